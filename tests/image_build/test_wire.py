"""The switch between guests, and the provider's DHCP server on it."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import dpkt
import pytest
from ethernet import FRAME_MAX, Wire
from hypothesis import given
from hypothesis import strategies as st
from leases import Heard, LeaseServer, mac_bytes, udp_frame

from tests.lab import kernel
from tests.lab.net import Lab

MAC = "52:54:00:00:00:01"


@pytest.fixture
def wire(tmp_path: Path) -> Iterator[Wire]:
    with Wire(tmp_path, "wan") as made:
        yield made


class Plug:
    """A guest's end, as QEMU speaks it."""

    def __init__(self, wire: Wire) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(10)
        self.socket.connect(str(wire.path))

    def send(self, frame: bytes) -> None:
        self.socket.sendall(struct.pack("!I", len(frame)) + frame)

    def receive(self) -> bytes:
        (length,) = struct.unpack("!I", self._exactly(4))
        return self._exactly(length)

    def _exactly(self, length: int) -> bytes:
        data = b""
        while len(data) < length:
            more = self.socket.recv(length - len(data))
            assert more, "the wire hung up"
            data += more
        return data


def joined(wire: Wire, *plugs: Plug) -> None:
    """Wait until every plug is on the wire: what one says, the others hear."""
    for plug in plugs:
        plug.send(b"hello from " + str(id(plug)).encode())
    for plug in plugs:
        plug.socket.settimeout(0.2)
        for _ in range(50):
            try:
                plug.receive()
            except TimeoutError:
                break
        plug.socket.settimeout(10)


def test_a_frame_reaches_every_other_port_and_not_its_own(wire: Wire) -> None:
    one, two, three = Plug(wire), Plug(wire), Plug(wire)
    joined(wire, one, two, three)
    one.send(b"a frame")
    assert two.receive() == b"a frame"
    assert three.receive() == b"a frame"
    two.send(b"an answer")
    assert one.receive() == b"an answer"


def test_frames_keep_their_borders_however_they_arrive(wire: Wire) -> None:
    one, two = Plug(wire), Plug(wire)
    joined(wire, one, two)
    frames = [bytes([n]) * (1 + n * 37) for n in range(40)]
    data = b"".join(struct.pack("!I", len(f)) + f for f in frames)
    for at in range(0, len(data), 7):
        one.socket.sendall(data[at : at + 7])
    assert [two.receive() for _ in frames] == frames


def test_a_port_out_of_step_is_cut_off_and_the_others_go_on(wire: Wire) -> None:
    bad, one, two = Plug(wire), Plug(wire), Plug(wire)
    joined(wire, bad, one, two)
    bad.socket.sendall(struct.pack("!I", FRAME_MAX + 1) + b"x" * 100)
    assert bad.socket.recv(10) == b""
    one.send(b"still here")
    assert two.receive() == b"still here"


def test_a_guest_that_does_not_read_loses_frames_and_holds_nobody_up(wire: Wire) -> None:
    deaf, one, two = Plug(wire), Plug(wire), Plug(wire)
    joined(wire, deaf, one, two)
    for number in range(20):
        one.send(bytes([number]) * 60_000)
        for _ in range(10):
            one.send(b"y" * 60_000)
        assert two.receive()[0] == number
        for _ in range(10):
            two.receive()


def test_a_tap_joins_a_namespace_to_the_wire(lab: Lab, wire: Wire) -> None:
    host = lab.machine("gateway")
    with kernel.entered(host.netns):
        wire.add_tap("tap0")
    kernel.ip_batch(["addr add 10.1.1.1/24 dev tap0", "link set tap0 up"], host.netns)
    plug = Plug(wire)
    joined(wire, plug)
    me = mac_bytes("52:54:00:00:00:09")
    request = dpkt.arp.ARP(
        op=1, sha=me, spa=socket.inet_aton("10.1.1.9"), tha=b"\0" * 6,
        tpa=socket.inet_aton("10.1.1.1"),
    )  # fmt: skip
    plug.send(bytes(dpkt.ethernet.Ethernet(dst=b"\xff" * 6, src=me, type=0x806, data=request)))
    while True:
        frame = dpkt.ethernet.Ethernet(plug.receive())
        if frame.type == 0x806 and frame.data.op == 2:
            break
    assert socket.inet_ntoa(frame.data.spa) == "10.1.1.1"


# -- leases --------------------------------------------------------------------------------


def ask(kind: int, *, mac: str = MAC, **options: bytes) -> bytes:
    from ipaddress import IPv4Address

    opts = [(dpkt.dhcp.DHCP_OPT_MSGTYPE, bytes([kind]))]
    if "requested" in options:
        opts.append((dpkt.dhcp.DHCP_OPT_REQ_IP, options["requested"]))
    if "server" in options:
        opts.append((dpkt.dhcp.DHCP_OPT_SERVER_ID, options["server"]))
    message = dpkt.dhcp.DHCP(op=1, xid=7, chaddr=mac_bytes(mac) + b"\0" * 10, opts=opts)
    return udp_frame(
        mac_bytes(mac), b"\xff" * 6, IPv4Address("0.0.0.0"), IPv4Address("255.255.255.255"),
        68, 67, bytes(message),
    )  # fmt: skip


def answer(server: LeaseServer, frame: bytes) -> dpkt.dhcp.DHCP | None:
    frames = list(server.frame(frame))
    if not frames:
        return None
    packet = dpkt.ethernet.Ethernet(frames[0]).data
    return dpkt.dhcp.DHCP(packet.data.data)


def kind(message: dpkt.dhcp.DHCP | None) -> int:
    assert message is not None
    return int(dict(message.opts)[dpkt.dhcp.DHCP_OPT_MSGTYPE][0])


@pytest.fixture
def server() -> LeaseServer:
    made = LeaseServer("198.51.100.254", router="198.51.100.1", seconds=20)
    made.assign(MAC, "198.51.100.10")
    return made


ADDRESS = socket.inet_aton("198.51.100.10")


def test_a_client_gets_its_address(server: LeaseServer) -> None:
    offer = answer(server, ask(dpkt.dhcp.DHCPDISCOVER))
    assert kind(offer) == dpkt.dhcp.DHCPOFFER
    ack = answer(server, ask(dpkt.dhcp.DHCPREQUEST, requested=ADDRESS))
    assert kind(ack) == dpkt.dhcp.DHCPACK
    assert ack is not None
    assert ack.yiaddr == int.from_bytes(ADDRESS, "big")
    options = dict(ack.opts)
    assert options[dpkt.dhcp.DHCP_OPT_LEASE_SEC] == (20).to_bytes(4, "big")
    assert options[dpkt.dhcp.DHCP_OPT_ROUTER] == socket.inet_aton("198.51.100.1")
    assert server.wait_for_ack(MAC, "198.51.100.10", 0)


def test_a_client_with_yesterdays_address_is_refused_and_gets_the_new_one(
    server: LeaseServer,
) -> None:
    server.assign(MAC, "198.51.100.77")
    refusal = answer(server, ask(dpkt.dhcp.DHCPREQUEST, requested=ADDRESS))
    assert kind(refusal) == dpkt.dhcp.DHCPNAK
    assert not server.wait_for_ack(MAC, "198.51.100.77", 0)
    offer = answer(server, ask(dpkt.dhcp.DHCPDISCOVER))
    assert offer is not None
    assert offer.yiaddr == int.from_bytes(socket.inet_aton("198.51.100.77"), "big")


def test_strangers_and_other_servers_clients_are_left_alone(server: LeaseServer) -> None:
    assert answer(server, ask(dpkt.dhcp.DHCPDISCOVER, mac="52:54:00:00:00:99")) is None
    other = socket.inet_aton("198.51.100.253")
    assert answer(server, ask(dpkt.dhcp.DHCPREQUEST, requested=ADDRESS, server=other)) is None
    assert Heard(MAC, dpkt.dhcp.DHCPREQUEST, "198.51.100.10") in server.heard


@given(st.binary(max_size=400))
def test_no_frame_upsets_the_server(data: bytes) -> None:
    server = LeaseServer("198.51.100.254")
    assert list(server.frame(data)) == []


@given(st.integers(0, 330), st.binary(min_size=1, max_size=20))
def test_no_damaged_request_upsets_the_server(at: int, junk: bytes) -> None:
    server = LeaseServer("198.51.100.254")
    server.assign(MAC, "198.51.100.10")
    frame = ask(dpkt.dhcp.DHCPREQUEST, requested=ADDRESS)
    for answered in server.frame(frame[:at] + junk + frame[at + len(junk) :]):
        dpkt.ethernet.Ethernet(answered)
