"""divert(4): where packets go again, and the worker's loop."""

from __future__ import annotations

import errno
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.backend.openbsd import divert
from appliance.backend.openbsd.divert import (
    OUT4,
    OUT6,
    Diverted,
    DivertWorker,
    Name,
    destination,
    inject_name,
    is_intact,
    opening_failed,
    spare_address,
)
from appliance.backend.segment import ACK, build_tcp, parse_tcp
from appliance.rewrite.flow import Address, Flow
from appliance.rewrite.rewriter import Rewriter

from ..pfconf import roles

SPARE = ip_address("10.9.0.77")
CAME: Name = ("10.9.0.2", 0)


def ours(*texts: str) -> set[Address]:
    return {ip_address(t) for t in texts}


def test_a_rewritten_destination_that_is_local_is_named() -> None:
    local = ours("10.9.0.2")
    assert inject_name(ip_address("10.9.0.2"), CAME, local.__contains__, SPARE) == CAME


def test_otherwise_the_address_that_recvfrom_gave_is_named() -> None:
    local = ours("10.9.0.2")
    assert inject_name(ip_address("192.168.1.5"), CAME, local.__contains__, SPARE) == CAME


def test_an_address_that_left_meanwhile_is_remapped() -> None:
    local = ours("10.9.0.77")
    assert inject_name(ip_address("192.168.1.5"), CAME, local.__contains__, SPARE) == (
        "10.9.0.77", 0,
    )  # fmt: skip
    assert inject_name(None, CAME, local.__contains__, None) == CAME
    assert inject_name(None, CAME, local.__contains__, ip_address("fd07::1")) == CAME


def test_a_link_local_name_with_its_embedded_index_is_echoed_unchanged() -> None:
    came: Name = ("fe80:c::1", 0, 0, 0)
    assert inject_name(ip_address("fd00::5"), came, ours().__contains__, SPARE) == came


def test_outbound_is_the_unspecified_address() -> None:
    assert (divert.output_name(4), divert.output_name(6)) == (OUT4, OUT6)
    assert not Diverted(b"", OUT4).inbound
    assert not Diverted(b"", OUT6).inbound
    assert Diverted(b"", CAME).inbound
    assert divert.input_name(ip_address("fd07::1")) == ("fd07::1", 0, 0, 0)


@pytest.mark.parametrize(
    ("number", "told"),
    [
        (errno.EADDRINUSE, "second redirectd"),
        (errno.EPERM, "as root"),
        (errno.EPROTONOSUPPORT, "no divert"),
        (errno.EIO, "divert(4)"),
    ],
)
def test_a_socket_that_can_not_be_had_says_why(number: int, told: str) -> None:
    assert told in opening_failed(700, OSError(number, "x"))


def test_spare_is_neither_loopback_nor_link_local() -> None:
    held = [ip_address(t) for t in ("127.0.0.1", "169.254.0.1", "10.0.0.1", "fe80::1", "fd00::1")]
    assert spare_address(held, 4) == ip_address("10.0.0.1")
    assert spare_address(held, 6) == ip_address("fd00::1")
    assert spare_address(held[:2], 4) is None


@given(st.binary(max_size=80))
def test_any_bytes_have_a_destination_or_none(data: bytes) -> None:
    destination(data)
    assert is_intact(data) in (True, False)


def test_corrupted_packets_are_recognised() -> None:
    packet = bytearray(build_tcp(roles.LAN, 1, 2, ACK, payload=b"hello"))
    assert is_intact(packet)
    packet[10] ^= 0xFF  # the IP checksum: bad on translated inbound packets
    assert is_intact(packet)
    packet[-1] ^= 0x01
    assert not is_intact(packet)


def test_udp_without_a_checksum_is_intact() -> None:
    packet = bytearray(28)
    packet[0], packet[3], packet[9], packet[25] = 0x45, 28, 17, 8
    assert is_intact(packet)
    packet[27] = 1
    assert not is_intact(packet)
    assert is_intact(packet[:9] + b"\x2f" + packet[10:])  # GRE has none that we know


class Wire:
    """A divert socket in memory."""

    version = 4

    def __init__(self, *waiting: Diverted) -> None:
        self.waiting, self.sent = list(waiting), list[tuple[Flow, Name]]()
        self.full = False

    def fileno(self) -> int:
        return 7

    def receive(self) -> Diverted | None:
        return self.waiting.pop(0) if self.waiting else None

    def send(self, packet: bytes | bytearray, name: Name) -> bool:
        segment = parse_tcp(bytes(packet))
        assert segment is not None
        assert is_intact(packet)
        self.sent.append((segment.packet, name))
        return not self.full


def worker(wire: Wire) -> DivertWorker:
    rewriter = Rewriter(near="inside")
    rewriter.load([roles.entry(roles.OLD, roles.NEW, roles.LAN, local=False, path="divert")])
    held = ours("10.9.0.77")
    return DivertWorker(
        wire,
        rewriter,
        held.__contains__,
        lambda version: SPARE,
    )


def test_gateway_translates_both_directions_as_openbsd_md_saw_it() -> None:
    out = Diverted(build_tcp(roles.LAN, 1, 2, ACK, payload=b"x"), OUT4)
    came = Diverted(build_tcp(roles.NEW.reversed(), 1, 2, ACK, payload=b"y"), ("10.9.0.77", 0))
    wire = Wire(out, came)
    made = worker(wire)
    assert (made.fileno(), made.read()) == (7, 2)
    assert wire.sent == [
        (roles.NEW, OUT4),
        (roles.LAN.reversed(), ("10.9.0.77", 0)),
    ]
    assert made.counters.rewritten == 2


def test_other_packets_go_on_unchanged_and_broken_ones_do_not() -> None:
    other = Flow.of("10.9.0.77", 1, "10.8.0.9", 2)
    broken = bytearray(build_tcp(other, 1, 2, ACK, payload=b"x"))
    broken[-1] ^= 1
    wire = Wire(Diverted(build_tcp(other, 1, 2, ACK), OUT4), Diverted(bytes(broken), OUT4))
    made = worker(wire)
    assert made.read(1) == 1
    assert made.read() == 1
    assert wire.sent == [(other, OUT4)]
    assert (made.counters.passed, made.counters.broken) == (1, 1)


def test_what_the_kernel_does_not_take_is_counted() -> None:
    wire = Wire(Diverted(build_tcp(roles.LAN, 1, 2, ACK), OUT4))
    wire.full = True
    made = worker(wire)
    made.read()
    assert made.counters.lost == 1


def test_shut_connections_are_handed_to_the_holder_and_stale_ones_dropped() -> None:
    kept: list[tuple[bytes, bool]] = []
    wire = Wire(
        Diverted(build_tcp(roles.LAN, 1, 2, ACK), OUT4),
        Diverted(build_tcp(roles.OLD.reversed(), 1, 2, ACK), CAME),
    )
    rewriter = Rewriter(near="inside")
    rewriter.load(
        [roles.entry(roles.OLD, None, roles.LAN, local=False, wires=(roles.NEW,),
                     stale=(roles.OLD,), path="divert")]
    )  # fmt: skip
    made = DivertWorker(
        wire,
        rewriter, ours().__contains__, lambda version: None,
        hold=lambda packet, inbound: kept.append((packet, inbound)),
    )  # fmt: skip
    made.read()
    assert [inbound for _, inbound in kept] == [False]
    assert made.counters.dropped == 1
    assert wire.sent == []
