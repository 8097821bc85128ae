"""Divert on real packets, in a network namespace of its own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import threading
from collections.abc import Iterator

import pytest

from appliance.packet.capture import decode
from appliance.packet.consts import Direction, Flag, Layer, Param
from appliance.packet.divert import Divert, WinDivert
from appliance.packet.packet import Packet
from appliance.packet.port import UnsupportedError
from tests.lab.kernel import entered

from .samples import PACKETS, Endpoint, tcp, udp

NEAR, FAR = f"rd-packet-n{os.getpid()}", f"rd-packet-f{os.getpid()}"
HERE, THERE = "10.97.0.1", "10.97.0.2"


@pytest.fixture(scope="module")
def network() -> Iterator[None]:
    """Two namespaces joined by veth: we are 10.97.0.1 and fd97::1 in NEAR."""
    lines = [
        f"netns add {NEAR}",
        f"netns add {FAR}",
        f"link add v0 netns {NEAR} type veth peer name v1 netns {FAR}",
    ]
    for name, link, number in ((NEAR, "v0", 1), (FAR, "v1", 2)):
        lines += [
            f"-n {name} addr add 10.97.0.{number}/24 dev {link}",
            f"-n {name} addr add fd97::{number}/64 dev {link} nodad",
            f"-n {name} link set {link} up",
            f"-n {name} link set lo up",
        ]
    try:
        for line in lines:
            subprocess.run(["ip", *line.split()], check=True)
        yield
    finally:
        for name in (NEAR, FAR):
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


@pytest.fixture
def near(network: None) -> Iterator[None]:
    with entered(NEAR):
        yield
        left = subprocess.run(["nft", "list", "ruleset"], capture_output=True, text=True)
        assert left.stdout == "", "a closed handle left rules behind"


def bound(address: str, port: int = 0) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    made = socket.socket(family, socket.SOCK_DGRAM)
    made.bind((address, port))
    made.settimeout(5)
    return made


def far(address: str = THERE, port: int = 0) -> socket.socket:
    with entered(FAR):
        return bound(address, port)


@pytest.mark.parametrize(("here", "there"), [(HERE, THERE), ("fd97::1", "fd97::2")])
def test_outbound_packets_are_taken_changed_and_go_on(near: None, here: str, there: str) -> None:
    with (
        far(there, 7000) as target,
        bound(here) as sender,
        Divert("outbound and udp.DstPort == 6999") as handle,
    ):
        sender.sendto(b"hello", (there, 6999))
        packet = handle.recv(timeout=5)
        assert (packet.src_addr, packet.dst_addr) == (here, there)
        assert packet.is_outbound
        assert packet.payload == b"hello"
        assert packet.is_checksum_valid
        assert packet.udp is not None
        packet.udp.dst_port = 7000
        packet.payload = b"a longer greeting"
        assert handle.send(packet) == len(packet.raw)
        assert target.recv(99) == b"a longer greeting"
        sender.sendto(b"another port", (there, 7000))
        assert target.recv(99) == b"another port"
        assert handle.stats()["sent"] == 1


@pytest.mark.parametrize(("here", "there"), [(HERE, THERE), ("fd97::1", "fd97::2")])
def test_inbound_packets_are_taken_changed_and_go_on(near: None, here: str, there: str) -> None:
    with (
        far(there) as sender,
        bound(here, 7001) as target,
        Divert("inbound and udp.DstPort == 6998") as handle,
    ):
        sender.sendto(b"hello", (here, 6998))
        packet = handle.recv(timeout=5)
        assert packet.is_inbound
        assert packet.interface[0] == socket.if_nametoindex("v0")
        packet.dst_port = 7001
        handle.send(packet)
        assert target.recv(99) == b"hello"


def test_python_sorts_out_what_the_kernel_can_not(near: None) -> None:
    with (
        far(port=7002) as target,
        bound(HERE) as sender,
        Divert("udp.DstPort == 7002 and udp.Payload[0] == 0x61") as handle,
    ):
        for word in (b"bcd", b"abc", b"cde"):
            sender.sendto(word, (THERE, 7002))
        assert handle.recv(timeout=5).payload == b"abc"
        assert {target.recv(99), target.recv(99)} == {b"bcd", b"cde"}
        assert handle.stats()["passed"] == 2


def test_what_is_not_sent_is_gone(near: None) -> None:
    with far(port=7003) as target, bound(HERE) as sender:
        with Divert("udp.DstPort == 7003") as handle:
            sender.sendto(b"lost", (THERE, 7003))
            handle.recv(timeout=5)
        sender.sendto(b"free", (THERE, 7003))
        assert target.recv(99) == b"free"


def test_batches_and_a_bound_on_what_may_be_kept(near: None) -> None:
    with far(port=7004) as target, bound(HERE) as sender, Divert("udp.DstPort == 7004") as handle:
        handle.set_param(Param.QUEUE_LEN, 32)
        for number in range(40):
            sender.sendto(b"%d" % number, (THERE, 7004))
        packets: list[Packet] = []
        while len(packets) < 40:
            packets += handle.recv_batch(64, timeout=5)
        assert handle.stats()["dropped"] == 8
        assert handle.send_batch(packets[8:]) == 32
        assert [target.recv(9) for _ in range(32)] == [b"%d" % i for i in range(8, 40)]


def test_the_same_packet_can_be_sent_twice_and_new_ones_injected(near: None) -> None:
    with (
        far(port=7005) as target,
        bound(HERE, 7006) as receiver,
        bound(HERE) as sender,
        Divert("outbound and udp.DstPort == 7005") as handle,
    ):
        sender.sendto(b"twice", (THERE, 7005))
        packet = handle.recv(timeout=5)
        handle.send(packet)
        handle.send(packet)
        assert [target.recv(9), target.recv(9)] == [b"twice"] * 2
        source, here = Endpoint.parse("10.97.0.9:5"), Endpoint.parse(f"{HERE}:7006")
        made = Packet(udp(source, here, b"from nowhere"), direction=Direction.INBOUND)
        handle.send(made)
        assert receiver.recvfrom(99) == (b"from nowhere", ("10.97.0.9", 5))
        made.dst_addr = THERE
        with pytest.raises(UnsupportedError, match="can't be injected"):
            handle.send(made)
        assert handle.stats()["injected"] == 2
        with pytest.raises(TimeoutError):
            handle.recv(timeout=0.05)


def test_other_handles_see_injected_packets_as_impostors(near: None) -> None:
    with far(port=7007) as target, Divert("udp.DstPort == 7007", priority=10) as low:
        made = Packet(udp(Endpoint.parse(f"{HERE}:5"), Endpoint.parse(f"{THERE}:7007"), b"x"))
        with Divert("false", flags=Flag.SEND_ONLY) as high:
            high.send(made)
            packet = low.recv(timeout=5)
            assert packet.is_impostor
            assert packet.matches("impostor")
            low.send(packet)
            assert target.recv(9) == b"x"


def test_loopback_packets_are_seen_once_and_outbound(near: None) -> None:
    with bound("127.0.0.1", 7008) as both, Divert("udp.DstPort == 7008") as handle:
        both.sendto(b"me", ("127.0.0.1", 7008))
        packet = handle.recv(timeout=5)
        assert packet.is_loopback
        assert packet.is_outbound
        handle.send(packet)
        assert both.recv(9) == b"me"
        with pytest.raises(TimeoutError):
            handle.recv(timeout=0.05)


def test_drop_needs_no_reader(near: None) -> None:
    with (
        far(port=7009) as target,
        bound(HERE) as sender,
        Divert("outbound and udp.DstPort == 7009 and length < 33", flags=Flag.DROP) as handle,
    ):
        with pytest.raises(PermissionError):  # so Linux tells a sender whose packet is dropped
            sender.sendto(b"tiny", (THERE, 7009))
        sender.sendto(b"not so tiny", (THERE, 7009))
        assert target.recv(99) == b"not so tiny"
        with pytest.raises(OSError, match="drops"):
            handle.recv()


def test_tcp_survives_being_diverted(near: None) -> None:
    with entered(FAR):
        listener = socket.create_server((THERE, 7010))
    sent = os.urandom(200_000)
    received = bytearray()

    def serve() -> None:
        connection, _ = listener.accept()
        with connection, listener:
            while piece := connection.recv(65536):
                received.extend(piece)

    server = threading.Thread(target=serve)
    server.start()
    with Divert("tcp.DstPort == 7010 or tcp.SrcPort == 7010") as handle:
        stop = threading.Event()

        def forward() -> None:
            while not stop.is_set():
                with contextlib.suppress(TimeoutError):
                    handle.send_batch(handle.recv_batch(32, timeout=0.05))

        forwarder = threading.Thread(target=forward)
        forwarder.start()
        with socket.create_connection((THERE, 7010), timeout=5) as client:
            client.sendall(sent)
        server.join(10)
        stop.set()
        forwarder.join()
    assert received == sent


def test_sniffed_packets_go_on(near: None) -> None:
    with (
        far(port=7011) as target,
        bound(HERE) as sender,
        Divert("outbound and udp.DstPort == 7011", flags=Flag.SNIFF) as handle,
    ):
        sender.sendto(b"look", (THERE, 7011))
        assert target.recv(9) == b"look"
        packet = handle.recv(timeout=5)
        assert packet.is_sniffed
        assert packet.payload == b"look"
        assert packet.is_outbound
        with pytest.raises(OSError, match="recv-only"):
            handle.send(packet)


def test_sniffing_on_one_interface_tells_directions_by_address(near: None) -> None:
    with (
        far(port=7012) as target,
        bound(HERE, 7013) as sender,
        Divert("udp", flags=Flag.SNIFF, interface="v0") as handle,
    ):
        sender.sendto(b"ping", (THERE, 7012))
        _, back = target.recvfrom(9)
        target.sendto(b"pong", back)
        assert sender.recv(9) == b"pong"
        seen = [handle.recv(timeout=5) for _ in range(2)]
        assert [p.direction for p in seen] == [Direction.OUTBOUND, Direction.INBOUND]


def test_asyncio(near: None) -> None:
    async def run() -> list[bytes | None]:
        found: list[bytes | None] = []
        async with Divert("udp.DstPort == 7014") as handle:
            for word in (b"1", b"2"):
                sender.sendto(word, (THERE, 7014))
            async for packet in handle:
                found.append(packet.payload)
                await handle.send_async(packet)
                if len(found) == 2:
                    break
            with pytest.raises(TimeoutError):
                await handle.recv_async(timeout=0.05)
        return found

    with far(port=7014) as target, bound(HERE) as sender:
        assert asyncio.run(run()) == [b"1", b"2"]
        assert [target.recv(9), target.recv(9)] == [b"1", b"2"]


def test_every_sample_reaches_a_handle_that_matches_it(near: None) -> None:
    """The kernel's selection never misses what the filter matches."""
    filters = [
        "true", "ip and length > 28", "tcp.DstPort == 22", "tcp.Syn and !tcp.Ack", "udp or icmp",
        "ip.SrcAddr >= 10.0.0.0 and ip.TTL == 61", "protocol == 6 and remotePort == 22",
        "(tcp? tcp.PayloadLength > 3: icmp.Type == 3)", "not tcp", "ip.Protocol != 6",
        "ifIdx != 0 and tcp.HdrLength >= 5", "remoteAddr == 192.0.2.9 and tcp.Window == 512",
    ]  # fmt: skip
    subprocess.run(["ip", "route", "replace", "default", "via", THERE], check=True)
    samples = [
        raw for name, raw in PACKETS.items()
        if raw[0] >> 4 == 4 and "fragment" not in name and name != "udp"
    ]  # fmt: skip
    for text in filters:
        wanted = [raw for raw in samples if Packet(raw, interface=1).matches(text)]
        with Divert(text) as handle, Divert("true", flags=Flag.SEND_ONLY) as sender:
            for raw in samples:
                sender.send(Packet(raw))
            got = [bytes(handle.recv(timeout=5).raw) for _ in wanted]
            assert sorted(got) == sorted(wanted), text


def test_unsupported_things_are_refused_with_a_reason(near: None) -> None:
    cases: list[tuple[dict[str, object], str]] = [
        ({"layer": Layer.FLOW}, "Layer.FLOW exists on Windows only"),
        ({"layer": Layer.SOCKET}, "Windows only"),
        ({"flags": Flag.DROP, "filter": "tcp.Payload[0] == 1"}, "can't decide this filter alone"),
        ({"flags": Flag.SNIFF, "layer": Layer.NETWORK_FORWARD}, "SNIFF exists on"),
        ({"flags": Flag.SNIFF, "interface": "nowhere0"}, "can't capture on nowhere0"),
        ({"interface": "v0"}, "ifIdx"),
    ]
    for arguments, text in cases:
        with pytest.raises(UnsupportedError, match=text):
            Divert(**arguments).open()  # type: ignore[arg-type]


def test_wrong_use_is_refused() -> None:
    with pytest.raises(ValueError, match="bad token"):
        Divert("nonsense").open()
    with pytest.raises(ValueError, match="priority"):
        Divert(priority=30001).open()
    with pytest.raises(ValueError, match="exclude"):
        Divert(flags=Flag.SNIFF | Flag.DROP).open()
    handle = Divert()
    for call in (handle.recv, handle.close, handle.stats, handle.fileno):
        with pytest.raises(RuntimeError, match="not open"):
            call()
    with pytest.raises(ValueError, match="QUEUE_LEN is 32 to 16384"):
        handle.set_param(Param.QUEUE_LEN, 1)
    with pytest.raises(UnsupportedError, match="QUEUE_TIME"):
        handle.get_param(Param.QUEUE_TIME)
    assert repr(handle).startswith("<Divert closed")


def test_handles_open_once_and_obey_their_flags(near: None) -> None:
    with WinDivert("false", flags=Flag.RECV_ONLY) as handle:
        assert handle.is_opened
        with pytest.raises(RuntimeError, match="already open"):
            handle.open()
        with pytest.raises(OSError, match="recv-only"):
            handle.send(Packet(PACKETS["tcp"]))
    with Divert("true", flags=Flag.SEND_ONLY) as handle, pytest.raises(OSError, match="send-only"):
        handle.recv()


IPV4 = tcp(Endpoint.parse("203.0.113.1:1"), Endpoint.parse("203.0.113.2:2"))
ETHERNET = b"\2" * 12


@pytest.mark.parametrize(
    ("link", "header", "outbound"),
    [
        (1, ETHERNET + b"\x08\x00", False),
        (1, ETHERNET + b"\x81\x00\x00\x05\x08\x00", False),
        (113, b"\0\4\0\1" + bytes(10) + b"\x08\x00", True),
        (113, b"\0\0\0\1" + bytes(10) + b"\x08\x00", False),
        (113, b"\0\4\3\x04" + bytes(10) + b"\x08\x00", True),
        (276, b"\x08\x00\0\0\0\0\0\7\0\1\4" + bytes(9), True),
        (0, b"\2\0\0\0", True),
        (12, b"", False),
    ],
)
def test_frames_of_all_link_types_are_decoded(link: int, header: bytes, outbound: bool) -> None:
    packet = decode(link, header + IPV4 + b"\0" * 6)
    assert packet is not None
    assert bytes(packet.raw) == IPV4
    assert packet.is_outbound == outbound
    assert decode(link, header) is None
    assert decode(1, ETHERNET + b"\x08\x06" + IPV4) is None
    assert decode(113, b"\0\0\3\x04" + bytes(12) + IPV4) is None
