"""TCP segments and ICMP errors as bytes: read from copies, built for injection.

Pure.  Copies come unfinished (checksums are left to the network card, 64 KiB segments
are cut later), so whatever is injected gets its checksums computed in full.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from ..rewrite import checksum
from ..rewrite.flow import Address, Endpoint, Flow
from ..rewrite.headers import ICMP, ICMPV6, LATER, TCP, WHOLE, locate

FIN, SYN, RST, PSH, ACK = 0x01, 0x02, 0x04, 0x08, 0x10

IPV4_LEAST_MTU = 576  # the least that we believe (RFC 791 3.2 names it for hosts)
IPV6_LEAST_MTU = 1280  # RFC 8200, 5

_PORTS_SEQ_ACK = struct.Struct(">HHII")
_TCP = struct.Struct(">HHIIBBHHH")

_END, _NOP, _TIMESTAMPS = 0, 1, 8
_STAMPS = struct.Struct(">BBII")


@dataclass(frozen=True, slots=True)
class TcpSegment:
    """What a copy says about itself.

    packet   its tuple (``local`` is the source)
    start    index of the TCP header in ``raw``; ``data`` that of the payload
    length   bytes of payload that are there
    whole    nothing of it was cut off
    """

    raw: bytes
    packet: Flow
    seq: int
    ack: int
    flags: int
    start: int
    data: int
    length: int
    whole: bool

    @property
    def span(self) -> int:
        """Sequence numbers that it takes (RFC 9293 3.4: SYN and FIN take one each)."""
        return self.length + bool(self.flags & SYN) + bool(self.flags & FIN)


def parse_tcp(raw: bytes) -> TcpSegment | None:
    """A TCP segment in an IP packet; None for anything else or broken headers."""
    at = locate(raw, 0, len(raw))
    if at is None or at.proto != TCP or at.fragment != WHOLE or at.end - at.l4 < 20:
        return None
    sport, dport, seq, ack = _PORTS_SEQ_ACK.unpack_from(raw, at.l4)
    data = at.l4 + (raw[at.l4 + 12] >> 4) * 4
    if data < at.l4 + 20 or data > at.end:
        return None
    src, dst = _addresses(raw, at.version)
    packet = Flow(Endpoint(src, sport), Endpoint(dst, dport))
    return TcpSegment(
        raw, packet, seq, ack, raw[at.l4 + 13], at.l4, data, at.end - data, not at.truncated
    )


def _addresses(raw: bytes, version: int, at: int = 0) -> tuple[Address, Address]:
    if version == 4:
        return IPv4Address(raw[at + 12 : at + 16]), IPv4Address(raw[at + 16 : at + 20])
    return IPv6Address(raw[at + 8 : at + 24]), IPv6Address(raw[at + 24 : at + 40])


def ports_of(raw: bytes, at: int) -> tuple[int, int]:
    return int.from_bytes(raw[at : at + 2], "big"), int.from_bytes(raw[at + 2 : at + 4], "big")


def timestamps(segment: TcpSegment) -> tuple[int, int] | None:
    """TSval and TSecr (RFC 7323, 3.2); None when there is no such option."""
    at = timestamps_at(segment)
    if at is None:
        return None
    _, _, value, echo = _STAMPS.unpack_from(segment.raw, at)
    return value, echo


def timestamps_at(segment: TcpSegment) -> int | None:
    """Where the timestamps option begins in ``segment.raw``."""
    at, end = segment.start + 20, segment.data
    raw = segment.raw
    while at < end:
        kind = raw[at]
        if kind == _END:
            return None
        if kind == _NOP:
            at += 1
            continue
        if at + 2 > end or raw[at + 1] < 2 or at + raw[at + 1] > end:
            return None
        if kind == _TIMESTAMPS and raw[at + 1] == 10:
            return at
        at += raw[at + 1]
    return None


def timestamps_option(value: int, echo: int) -> bytes:
    """TSval and TSecr, padded to words."""
    return bytes((_NOP, _NOP)) + _STAMPS.pack(_TIMESTAMPS, 10, value, echo)


def retarget(segment: TcpSegment, wire: Flow, mtu: int) -> Iterator[bytes]:
    """The segment on ``wire`` (``local`` is the source), in packets of at most ``mtu`` bytes.

    Only the last one says FIN and PSH, and none does when the copy was cut short.
    """
    room = max(1, mtu - segment.data)
    for done in range(0, max(1, segment.length), room):
        begin = segment.data + done
        end = min(begin + room, segment.data + segment.length)
        out = bytearray(segment.raw[: segment.data] + segment.raw[begin:end])
        at = segment.start
        if done + room < segment.length or not segment.whole:
            out[at + 13] &= ~(FIN | PSH) & 0xFF
        _address(out, segment.packet.version, wire.local.addr, wire.remote.addr)
        out[at : at + 2] = wire.local.port.to_bytes(2, "big")
        out[at + 2 : at + 4] = wire.remote.port.to_bytes(2, "big")
        out[at + 4 : at + 8] = ((segment.seq + done) % 2**32).to_bytes(4, "big")
        yield bytes(_finish(out))


def build_tcp(
    packet: Flow,
    seq: int,
    ack: int,
    flags: int,
    window: int = 0,
    payload: bytes = b"",
    options: bytes = b"",
) -> bytes:
    """A segment from ``packet.local`` to ``packet.remote``; ``options``: a multiple of four."""
    src, dst = packet
    words = 5 + len(options) // 4
    head = _TCP.pack(src.port, dst.port, seq, ack, words << 4, flags, window, 0, 0)
    return _ip(src.addr, dst.addr, TCP, head + options + payload)


def _ip(src: Address, dst: Address, proto: int, body: bytes) -> bytes:
    if src.version == 4:
        head = struct.pack(">BBHHHBBH8x", 0x45, 0, 20 + len(body), 0, 0x4000, 64, proto, 0)
    else:
        head = struct.pack(">IHBB32x", 6 << 28, len(body), proto, 64)
    out = bytearray(head + body)
    _address(out, src.version, src, dst)
    return bytes(_finish(out))


def _address(out: bytearray, version: int, src: Address, dst: Address) -> None:
    begin = 12 if version == 4 else 8
    both = src.packed + dst.packed
    out[begin : begin + len(both)] = both


def _finish(out: bytearray) -> bytearray:
    """Lengths and checksums of a packet that is whole now."""
    if out[0] >> 4 == 4:
        out[2:4] = len(out).to_bytes(2, "big")
        header = (out[0] & 15) * 4
        out[10:12] = checksum.header_checksum(out[:header]).to_bytes(2, "big")
    else:
        out[4:6] = (len(out) - 40).to_bytes(2, "big")
    checksum.finish(out, 0, len(out))
    return out


@dataclass(frozen=True, slots=True)
class TooBig:
    """ICMP "fragmentation needed" (RFC 1191) or ICMPv6 "packet too big" (RFC 8201).

    packet  tuple of the packet that did not fit
    seq     its TCP sequence number
    """

    raw: bytes
    router: Address
    packet: Flow
    seq: int
    mtu: int
    inner: int
    inner_l4: int


def parse_too_big(raw: bytes) -> TooBig | None:
    """None for anything else, or when the TCP ports and number are not all there."""
    at = locate(raw, 0, len(raw))
    if at is None or at.fragment == LATER or at.end - at.l4 < 8 + 28:
        return None
    kind = (at.proto, raw[at.l4], raw[at.l4 + 1])
    if kind == (ICMP, 3, 4):
        mtu = int.from_bytes(raw[at.l4 + 6 : at.l4 + 8], "big")
    elif kind[:2] == (ICMPV6, 2):
        mtu = int.from_bytes(raw[at.l4 + 4 : at.l4 + 8], "big")
    else:
        return None
    begin = at.l4 + 8
    inner = locate(raw, begin, at.end - begin)
    if inner is None or inner.proto != TCP or inner.fragment == LATER or inner.end - inner.l4 < 8:
        return None
    if inner.version != at.version:
        return None
    sport, dport = ports_of(raw, inner.l4)
    src, dst = _addresses(raw, inner.version, begin)
    return TooBig(
        raw=raw[: at.end],
        router=_addresses(raw, at.version)[0],
        packet=Flow(Endpoint(src, sport), Endpoint(dst, dport)),
        seq=int.from_bytes(raw[inner.l4 + 4 : inner.l4 + 8], "big"),
        mtu=mtu,
        inner=begin,
        inner_l4=inner.l4,
    )


def retarget_too_big(error: TooBig, inside: Flow) -> bytes | None:
    """The error as the end of ``inside`` must see it; None when its MTU is not believed.

    Floors as in design.md: below 576 (IPv4) and 1280 (IPv6) a path is a lie.
    """
    least = IPV4_LEAST_MTU if inside.version == 4 else IPV6_LEAST_MTU
    if not least <= error.mtu <= 0xFFFF:
        return None
    embedded = bytearray(error.raw[error.inner :])
    _address(embedded, inside.version, inside.local.addr, inside.remote.addr)
    at = error.inner_l4 - error.inner
    embedded[at : at + 2] = inside.local.port.to_bytes(2, "big")
    embedded[at + 2 : at + 4] = inside.remote.port.to_bytes(2, "big")
    if inside.version == 4:
        header = (embedded[0] & 15) * 4
        embedded[10:12] = checksum.header_checksum(embedded[:header]).to_bytes(2, "big")
    return icmp_too_big(error.router, inside.local.addr, error.mtu, bytes(embedded))


def icmp_too_big(router: Address, to: Address, mtu: int, packet: bytes) -> bytes:
    """What ``router`` says of ``packet``, which begins with its IP header."""
    if to.version == 4:
        return _ip(router, to, ICMP, struct.pack(">BBHHH", 3, 4, 0, 0, mtu) + packet)
    return _ip(router, to, ICMPV6, struct.pack(">BBHI", 2, 0, 0, mtu) + packet)
