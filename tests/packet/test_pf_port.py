"""OpenBSD's port over sockets that behave as divert(4) does (docs: backend/openbsd/divert)."""

from __future__ import annotations

import functools
import socket
from collections.abc import Iterator

import pytest

from appliance.backend.api import BackendError
from appliance.backend.openbsd.divert import OUT4, OUT6, Diverted, Name
from appliance.packet.consts import Direction, Flag, Layer
from appliance.packet.divert import Divert
from appliance.packet.packet import Packet
from appliance.packet.pf_port import OpenBSDPort
from appliance.packet.port import UnsupportedError

from .samples import PACKETS, Endpoint, udp

LOCAL: Name = ("127.0.0.1", 0)
IN4: Name = ("192.0.2.77", 0)


class Wire:
    """A divert socket's two ends: the kernel's is kept by the test."""

    def __init__(self, version: int, number: int) -> None:
        self.version, self.number = version, number
        self._ours, self._kernels = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._ours.setblocking(False)
        self._came: list[Diverted] = []
        self.sent: list[tuple[bytes, Name]] = []
        self.refuses = False

    def divert(self, data: bytes, name: Name) -> None:
        self._came.append(Diverted(data, name))
        self._kernels.send(b"x")

    def fileno(self) -> int:
        return self._ours.fileno()

    def receive(self) -> Diverted | None:
        try:
            self._ours.recv(1)
        except BlockingIOError:
            return None
        return self._came.pop(0)

    def send(self, packet: bytes | bytearray, name: Name) -> bool:
        self.sent.append((bytes(packet), name))
        return not self.refuses

    def close(self) -> None:
        self._ours.close()
        self._kernels.close()


@pytest.fixture
def wires() -> dict[int, Wire]:
    return {}


@pytest.fixture
def handle(wires: dict[int, Wire]) -> Iterator[Divert]:
    yield from _handle(wires)


def _handle(wires: dict[int, Wire], flags: Flag = Flag.DEFAULT) -> Iterator[Divert]:
    def make(version: int, number: int) -> Wire:
        wires[version] = Wire(version, number)
        return wires[version]

    with Divert("tcp or udp", flags=flags, port=functools.partial(OpenBSDPort, sockets=make)) as h:
        yield h


def test_packets_of_both_families_come_and_go_on(handle: Divert, wires: dict[int, Wire]) -> None:
    assert {wire.number for wire in wires.values()} == {710}
    wires[4].divert(PACKETS["tcp"], OUT4)
    packet = handle.recv(timeout=5)
    assert packet.is_outbound
    packet.dst_port = 23
    handle.send(packet)
    assert wires[4].sent == [(bytes(packet.raw), OUT4)]
    assert packet.is_checksum_valid
    wires[6].divert(PACKETS["tcp6"], ("fe80:c::1", 710, 0, 0))
    packet = handle.recv(timeout=5)
    assert packet.is_inbound
    handle.send(packet)
    assert wires[6].sent == [(PACKETS["tcp6"], ("fe80:c::1", 710, 0, 0))]


def test_inbound_packet_for_this_machine_goes_to_its_address(
    handle: Divert, wires: dict[int, Wire]
) -> None:
    wires[4].divert(PACKETS["tcp"], IN4)
    packet = handle.recv(timeout=5)
    packet.dst_addr = "127.0.0.1"
    handle.send(packet)
    assert wires[4].sent[0][1] == LOCAL


def test_what_no_filter_matches_goes_on_at_once(handle: Divert, wires: dict[int, Wire]) -> None:
    wires[4].divert(PACKETS["icmp"], IN4)
    wires[4].divert(PACKETS["tcp"], OUT4)
    assert handle.recv(timeout=5).tcp is not None
    assert wires[4].sent == [(PACKETS["icmp"], IN4)]


def test_injected_packets_need_an_address_of_ours_inbound(
    handle: Divert, wires: dict[int, Wire]
) -> None:
    source = Endpoint.parse("192.0.2.1:5")
    handle.send(Packet(udp(source, Endpoint.parse("203.0.113.9:5"), b"x")))
    assert wires[4].sent[-1][1] == OUT4
    handle.send(
        Packet(udp(source, Endpoint.parse("127.0.0.1:5"), b"x"), direction=Direction.INBOUND)
    )
    assert wires[4].sent[-1][1] == LOCAL
    handle.send(Packet(PACKETS["udp6"]))
    assert wires[6].sent[-1][1] == OUT6
    with pytest.raises(UnsupportedError, match="no address of this machine"):
        handle.send(Packet(PACKETS["tcp"], direction=Direction.INBOUND))
    with pytest.raises(OSError, match="not an IP packet"):
        handle.send(Packet(b""))
    wires[4].refuses = True
    with pytest.raises(OSError, match="did not take"):
        handle.send(Packet(PACKETS["tcp"]))


def test_handle_for_sending_takes_nobodys_packets(wires: dict[int, Wire]) -> None:
    for handle in _handle(wires, Flag.SEND_ONLY):
        assert {wire.number for wire in wires.values()} == {0}
        assert handle.send(Packet(PACKETS["tcp"])) == len(PACKETS["tcp"])


def test_what_pf_does_by_itself_is_refused_with_advice() -> None:
    cases: list[tuple[dict[str, object], str]] = [
        ({"flags": Flag.DROP}, "block"),
        ({"flags": Flag.FRAGMENTS}, "reassembles"),
        ({"priority": 1}, "order of pf's rules"),
        ({"layer": Layer.NETWORK_FORWARD}, "Layer.NETWORK"),
        ({"interface": "em0"}, "on em0"),
    ]
    for arguments, text in cases:
        with pytest.raises(UnsupportedError, match=text):
            Divert(port=OpenBSDPort, **arguments).open()  # type: ignore[arg-type]


def test_socket_that_can_not_be_had_says_why(wires: dict[int, Wire]) -> None:
    def make(version: int, number: int) -> Wire:
        if version == 6:
            raise BackendError("divert port 710: start redirectd as root")
        wires[version] = Wire(version, number)
        return wires[version]

    with pytest.raises(UnsupportedError, match="as root"):
        Divert(port=functools.partial(OpenBSDPort, sockets=make)).open()
    assert wires[4].fileno() == -1
