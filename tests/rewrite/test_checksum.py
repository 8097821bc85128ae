"""The arithmetic of RFC 1071 and RFC 1624, against dpkt's."""

from __future__ import annotations

import dpkt
from hypothesis import example, given
from hypothesis import strategies as st

from appliance.rewrite import checksum
from appliance.rewrite.flow import Endpoint
from appliance.rewrite.headers import locate

from .packets import datagram, recomputed, tcp

words = st.integers(0, 32).flatmap(lambda n: st.binary(min_size=2 * n, max_size=2 * n))


@given(st.binary(max_size=200))
@example(b"")
@example(b"\xff\xff")
@example(b"\xff\xfe\x00\x01")
@example(b"\0" * 9)
def test_sum_is_the_complement_of_the_checksum(data: bytes) -> None:
    assert checksum.ones_sum(data) ^ 0xFFFF == dpkt.in_cksum(data)


@given(st.integers(0, 20_000), st.integers(0, 255), st.sampled_from((b"", b"\x80", b"\xff\xfe")))
@example(65_535, 1, b"")
@example(8192, 0, b"")
@example(8193, 255, b"")
def test_sum_of_a_super_packet(size: int, filling: int, end: bytes) -> None:
    data = bytes((filling, size & 0xFF)) * (size // 2) + end
    for form in (data, bytearray(data), memoryview(data)):
        assert checksum.ones_sum(form) ^ 0xFFFF == dpkt.in_cksum(data)


@given(words, st.data())
def test_difference_gives_what_full_computation_gives(rest: bytes, data: st.DataObject) -> None:
    size = 2 * data.draw(st.integers(1, 8))
    # A packet always has some word that is not 0 beside what changes.
    fixed = rest + b"\x45\x00"
    old, new = (data.draw(st.binary(min_size=size, max_size=size)) for _ in range(2))
    before = dpkt.in_cksum(fixed + old)
    after = checksum.update(before, checksum.delta(old, new))
    assert after == dpkt.in_cksum(fixed + new)


def test_example_of_rfc_1624() -> None:
    """Section 4: eqn. 2 of RFC 1141 gives 0xffff here, eqn. 3 rightly gives 0."""
    change = checksum.delta(b"\x55\x55", b"\x32\x85")
    assert checksum.update(0xDD2F, change) == 0x0000


def test_unchanged_words_change_no_checksum() -> None:
    for check in (0, 1, 0x8000, 0xFFFE):
        assert checksum.update(check, checksum.delta(b"\x12\x34", b"\x12\x34")) == check


A, B = Endpoint.parse("10.0.0.1:53"), Endpoint.parse("10.0.0.2:5353")
A6, B6 = Endpoint.parse("[fd00::1]:53"), Endpoint.parse("[fd00::2]:5353")


def _transport(packet: bytes) -> int | None:
    at = locate(packet, 0, len(packet))
    assert at is not None
    return checksum.transport(packet, 0, at)


@given(st.binary(max_size=40), st.booleans())
def test_full_computation_agrees_with_dpkt(payload: bytes, six: bool) -> None:
    source, target = (A6, B6) if six else (A, B)
    packet = tcp(source, target, payload)
    place = (40 if six else 20) + 16
    assert _transport(packet) == int.from_bytes(packet[place : place + 2], "big")
    damaged = bytearray(packet)
    damaged[place : place + 2] = b"\xab\xcd"
    assert checksum.finish(damaged, 0, len(damaged))
    assert bytes(damaged) == packet
    if not six:
        header = bytearray(packet[:20])
        header[10:12] = b"\x12\x34"
        assert checksum.header_checksum(header) == int.from_bytes(packet[10:12], "big")


def test_udp_checksum_that_computes_to_zero_is_sent_as_ones() -> None:
    """RFC 768: 0 in the field means that there is no checksum."""
    segment = dpkt.udp.UDP(sport=1, dport=2, data=b"\0\0", ulen=10)
    packet = bytearray(datagram(A, B, bytes(segment), 17))
    packet[26:28] = b"\0\0"
    value = _transport(bytes(packet))
    assert value is not None
    packet[28:30] = value.to_bytes(2, "big")
    assert _transport(bytes(packet)) == 0xFFFF


def test_nothing_is_computed_for_fragments_and_cut_packets() -> None:
    packet = tcp(A, B, b"x" * 20)
    assert not checksum.finish(bytearray(packet[:-1]), 0, len(packet) - 1)
    piece = bytearray(packet)
    piece[6] |= 0x20
    assert not checksum.finish(piece, 0, len(piece))
    assert not checksum.finish(bytearray(b"\x45" * 10), 0, 10)
    assert not checksum.finish(bytearray(datagram(A, B, b"x" * 30, 132)), 0, 50)
    assert recomputed(packet) == packet
