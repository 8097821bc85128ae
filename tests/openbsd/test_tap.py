"""The segment tap: what is observed, held, sent again and provoked."""

from __future__ import annotations

import os
import struct
from dataclasses import replace
from ipaddress import ip_address

import pytest

from appliance.backend.openbsd.conntable import Known
from appliance.backend.openbsd.divert import OUT4, Diverted, Name
from appliance.backend.openbsd.tap import EXPIRE_EVERY, PfTap
from appliance.backend.segment import ACK, FIN, PSH, build_tcp, parse_tcp
from appliance.protocol.inputs import Segment
from appliance.rewrite.flow import Address, Flow
from appliance.rewrite.redirect import Entry

ID = "ab" * 16
INSIDE = Flow.of("192.168.1.5", 37403, "10.8.0.2", 5000)
BIRTH = Flow.of("10.9.0.2", 57510, "10.8.0.2", 5000)
NEW = Flow.of("10.9.0.77", 57510, "10.8.0.2", 5000)
SHUT = Entry(ID, BIRTH, INSIDE, False, True, (NEW, BIRTH), None)
OPEN = replace(SHUT, wire_out=NEW)
SPARE = ip_address("10.9.0.77")
OURS = {ip_address("10.9.0.2"), ip_address("10.9.0.77")}


class Handler:
    def __init__(self) -> None:
        self.seen: list[Segment] = []

    def segment(self, seen: Segment) -> None:
        self.seen.append(seen)

    def reset_withheld(self, wire: Flow) -> None:
        raise AssertionError("pf withholds none")


class Pipe:
    """A descriptor that is readable while something waits."""

    def __init__(self) -> None:
        self._in, self._out = os.pipe()

    def fileno(self) -> int:
        return self._in


class Bpf(Pipe):
    def __init__(self, link: int = 1) -> None:
        super().__init__()
        self.link, self.data = link, b""

    def read(self) -> bytes:
        data, self.data = self.data, b""
        return data

    def copy(self, packet: bytes, header: int = 14) -> None:
        frame = bytes(header) + packet
        head = struct.pack("=IIIIH", 0, 0, len(frame), len(frame), 20).ljust(20, b"\0")
        self.data += (head + frame).ljust((20 + len(frame) + 3) & ~3, b"\0")


class Divert(Pipe):
    version = 4

    def __init__(self) -> None:
        super().__init__()
        self.waiting: list[Diverted] = []
        self.sent: list[tuple[bytes, Name]] = []

    def receive(self) -> Diverted | None:
        return self.waiting.pop(0) if self.waiting else None

    def send(self, packet: bytes | bytearray, name: Name) -> bool:
        self.sent.append((bytes(packet), name))
        return True

    def packets(self) -> list[tuple[Flow, int, int, bytes, Name]]:
        found = []
        for raw, name in self.sent:
            segment = parse_tcp(raw)
            assert segment is not None
            found.append((segment.packet, segment.seq, segment.flags, raw[segment.data :], name))
        self.sent.clear()
        return found


class Setup:
    def __init__(self, spare: Address | None = SPARE, link: int = 1) -> None:
        self.bpf, self.divert, self.handler = Bpf(link), Divert(), Handler()
        self.known, self.now = Known(), 10.0
        self.tap = PfTap(
            [self.bpf], {1: 14, 12: 4}, {4: self.divert}, self.handler, self.known,
            OURS.__contains__, lambda version: spare, lambda: self.now,
        )  # fmt: skip

    def came(self, raw: bytes, name: Name = OUT4) -> None:
        self.divert.waiting.append(Diverted(raw, name))


@pytest.fixture
def setup() -> Setup:
    return Setup()


def test_observed_acks_are_told_in_both_directions(setup: Setup) -> None:
    setup.bpf.copy(build_tcp(BIRTH, 11, 22, ACK))
    setup.bpf.copy(build_tcp(BIRTH.reversed(), 33, 44, ACK))
    setup.tap.read()
    assert setup.handler.seen == [Segment(BIRTH, "out", 11, 22), Segment(BIRTH, "in", 33, 44)]


def test_what_the_filter_let_through_by_mistake_is_not_told(setup: Setup) -> None:
    setup.bpf.copy(build_tcp(BIRTH, 11, 22, ACK | FIN))
    setup.bpf.copy(build_tcp(BIRTH, 11, 22, ACK | 0x04))
    setup.bpf.copy(build_tcp(BIRTH, 11, 22, ACK, payload=b"x"))
    setup.bpf.copy(b"rubbish")
    setup.tap.read()
    assert setup.handler.seen == []


def test_link_type_that_is_not_known_is_not_read() -> None:
    setup = Setup(link=99)
    setup.bpf.copy(build_tcp(BIRTH, 11, 22, ACK))
    setup.tap.read()
    assert setup.handler.seen == []


def test_held_segments_leave_translated_in_order_when_the_connection_opens(setup: Setup) -> None:
    setup.tap.update([SHUT])
    setup.came(build_tcp(INSIDE, 105, 2, ACK | PSH, payload=b"world"))
    setup.came(build_tcp(INSIDE, 100, 2, ACK, payload=b"hello"))
    setup.tap.read()
    assert setup.tap.held() == {ID: 2}
    setup.tap.update([OPEN])
    assert setup.tap.reinject([OPEN]) == 2
    first, second = setup.divert.packets()
    assert first == (NEW, 100, ACK, b"hello", OUT4)
    assert second == (NEW, 105, ACK | PSH, b"world", OUT4)
    assert setup.tap.held() == {}


def test_held_segment_acknowledges_what_our_end_has_by_now(setup: Setup) -> None:
    """An old acknowledgment is dropped (RFC 5961 5.2)."""
    setup.tap.update([SHUT])
    setup.came(build_tcp(INSIDE, 100, 2, ACK, payload=b"hello"))
    setup.came(build_tcp(INSIDE, 105, 70002, ACK))
    setup.tap.read()
    setup.tap.update([OPEN])
    assert setup.tap.reinject([OPEN]) == 1
    again = parse_tcp(setup.divert.sent[-1][0])
    assert again is not None
    assert (again.seq, again.ack) == (100, 70002)
    setup.tap.forget([ID])


def test_packet_that_was_on_its_way_while_the_connection_opened_goes_on(setup: Setup) -> None:
    setup.tap.update([OPEN])
    setup.came(build_tcp(INSIDE, 100, 2, ACK, payload=b"late"))
    setup.tap.read()
    ((packet, _, _, payload, name),) = setup.divert.packets()
    assert (packet, payload, name) == (NEW, b"late", OUT4)


@pytest.mark.parametrize("kind", ["inbound", "unknown", "broken", "not TCP"])
def test_other_diverted_packets_are_not_kept(setup: Setup, kind: str) -> None:
    setup.tap.update([SHUT])
    raw = bytearray(build_tcp(INSIDE, 1, 2, ACK, payload=b"x"))
    name: Name = OUT4
    if kind == "inbound":
        name = ("10.9.0.77", 0)
    elif kind == "unknown":
        raw = bytearray(build_tcp(INSIDE.with_local(INSIDE.local.addr, 9), 1, 2, ACK, payload=b"x"))
    elif kind == "broken":
        raw[-1] ^= 1
    else:
        raw[9] = 17
    setup.came(bytes(raw), name)
    setup.tap.read()
    assert setup.tap.held() == {}
    assert setup.divert.sent == []


def test_forgotten_connections_hold_nothing(setup: Setup) -> None:
    setup.tap.update([SHUT])
    setup.came(build_tcp(INSIDE, 100, 2, ACK, payload=b"hello"))
    setup.tap.read()
    setup.tap.forget([ID, "unknown"])
    assert setup.tap.held() == {}
    assert setup.tap.reinject([OPEN]) == 0


def test_old_segments_expire(setup: Setup) -> None:
    setup.tap.update([SHUT])
    setup.came(build_tcp(INSIDE, 100, 2, ACK, payload=b"hello"))
    setup.tap.read()
    setup.now += EXPIRE_EVERY * 20
    setup.tap.read()
    assert setup.tap.held() == {}


def test_shut_connection_is_not_reinjected(setup: Setup) -> None:
    setup.tap.update([SHUT])
    assert setup.tap.reinject([SHUT]) == 0
    assert setup.divert.sent == []


def test_prompt_is_one_byte_before_what_our_end_expects(setup: Setup) -> None:
    setup.tap.numbers = lambda inside: (1000, 2000) if inside == INSIDE else None
    setup.tap.prompt(INSIDE, False)
    ((packet, seq, flags, payload, name),) = setup.divert.packets()
    assert (packet, seq, flags, payload) == (INSIDE.reversed(), 999, ACK, b"")
    assert name == ("10.9.0.77", 0)  # as input, by way of an address of ours


def test_prompt_for_our_own_socket_names_its_address(setup: Setup) -> None:
    setup.tap.prompt(BIRTH, True)
    ((packet, _, _, _, name),) = setup.divert.packets()
    assert (packet, name) == (BIRTH.reversed(), ("10.9.0.2", 0))


def test_without_an_address_of_ours_nothing_is_injected() -> None:
    setup = Setup(spare=None)
    setup.tap.prompt(INSIDE, False)
    assert setup.divert.sent == []
    setup.tap.prompt(BIRTH, True)
    assert setup.divert.sent[0][1] == ("10.9.0.2", 0)


def test_a_family_without_a_socket_is_left_alone(setup: Setup) -> None:
    setup.tap.prompt(Flow.of("fd07::1", 1, "fd07::2", 2), True)
    assert setup.divert.sent == []
    assert setup.tap.fileno() > 0
