"""The fields of the filter language: which layers know them, how a packet gives them.

Addresses are 128-bit numbers, IPv4 ones as ::ffff:a.b.c.d.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from ..rewrite.headers import ICMP, ICMPV6, LATER, TCP, UDP, Located, locate
from .consts import Layer

_MAPPED: Final = 0xFFFF << 32
_FRAGMENT: Final = 44


class Facts:
    """What a filter may ask of one packet; never raises whatever the bytes are."""

    def __init__(
        self,
        raw: bytes | bytearray | memoryview,
        outbound: bool = True,
        interface: tuple[int, int] = (0, 0),
        loopback: bool = False,
        impostor: bool = False,
        timestamp: int = 0,
        event: int = 0,
    ) -> None:
        self.raw = raw
        self.outbound = outbound
        self.interface = interface
        self.loopback = loopback
        self.impostor = impostor
        self.timestamp = timestamp
        self.event = event

    @cached_property
    def at(self) -> Located | None:
        return locate(self.raw, 0, len(self.raw))

    @cached_property
    def ip4(self) -> bool:
        return self.at is not None and self.at.version == 4

    @cached_property
    def ip6(self) -> bool:
        return self.at is not None and self.at.version == 6

    @cached_property
    def l4(self) -> int | None:
        """Index of a transport header that is there whole."""
        at = self.at
        if at is None or at.fragment == LATER:
            return None
        room = at.end - at.l4
        if at.proto == TCP:
            header = (self.raw[at.l4 + 12] >> 4) * 4 if room >= 20 else 0
            return at.l4 if 20 <= header <= room else None
        if at.proto in (UDP, ICMP if at.version == 4 else ICMPV6):
            return at.l4 if room >= 8 else None
        return None

    def transport(self, proto: int) -> int | None:
        """Index of the header of this protocol."""
        if self.l4 is None or self.at is None or self.at.proto != proto:
            return None
        return self.l4

    @cached_property
    def payload(self) -> tuple[int, int, int] | None:
        """(protocol, begin, end) of what TCP or UDP carries."""
        if self.l4 is None or self.at is None:
            return None
        if self.at.proto == TCP:
            return TCP, self.l4 + (self.raw[self.l4 + 12] >> 4) * 4, self.at.end
        if self.at.proto == UDP:
            return UDP, self.l4 + 8, self.at.end
        return None

    @cached_property
    def fragment(self) -> bool:
        at = self.at
        if at is None:
            return False
        # An IPv6 packet that is its only fragment counts as well (RFC 6946).
        return at.fragment != 0 or (at.version == 6 and at.ident != b"")

    def number(self, at: int, size: int) -> int:
        return int.from_bytes(self.raw[at : at + size], "big")

    def address(self, source: bool) -> int | None:
        if self.ip4:
            return _MAPPED | self.number(12 if source else 16, 4)
        if self.ip6:
            return self.number(8 if source else 24, 16)
        return None

    def port(self, source: bool) -> int | None:
        """A port; the type of an ICMP message as its source port, otherwise 0."""
        if self.at is None:
            return None
        if self.l4 is None:
            return 0
        if self.at.proto in (TCP, UDP):
            return self.number(self.l4 + (0 if source else 2), 2)
        return self.raw[self.l4] if source else 0

    @cached_property
    def digest(self) -> int:
        """Even over packets, equal for equal headers (WinDivert uses another hash)."""
        end = 0 if self.at is None else min(self.at.end, self.at.l4 + 20)
        return zlib.crc32(bytes(self.raw[:end]))


Getter = Callable[[Facts], int | None]

_NETWORK: Final = frozenset((Layer.NETWORK,))
_PACKETS: Final = frozenset((Layer.NETWORK, Layer.NETWORK_FORWARD))
_ALL: Final = frozenset(Layer)
_EVENTS: Final = frozenset((Layer.FLOW, Layer.SOCKET))
_CONNECTIONS: Final = _NETWORK | _EVENTS


@dataclass(frozen=True, slots=True)
class Field:
    """layers: which know it; get: its value, None when the packet has none.

    Fields of layers without packets have no getter here: no packet has a value.
    """

    layers: frozenset[Layer]
    get: Getter


def _nothing(facts: Facts) -> int | None:
    return None


def _ip4(at: int, size: int, shift: int = 0, mask: int = -1) -> Field:
    return Field(
        _PACKETS, lambda f: f.number(at, size) >> shift & mask if f.ip4 else None
    )  # fmt: skip


def _ip6(at: int, size: int, shift: int = 0, mask: int = -1) -> Field:
    return Field(
        _PACKETS, lambda f: f.number(at, size) >> shift & mask if f.ip6 else None
    )  # fmt: skip


def _transport(proto: int, at: int, size: int, shift: int = 0, mask: int = -1) -> Field:
    def get(facts: Facts) -> int | None:
        start = facts.transport(proto)
        return None if start is None else facts.number(start + at, size) >> shift & mask

    return Field(_PACKETS, get)


def _is(proto: int) -> Field:
    return Field(_PACKETS | _EVENTS, lambda f: int(f.transport(proto) is not None))


def _address(version: int, source: bool) -> Field:
    return Field(
        _PACKETS,
        lambda f: f.address(source) if (f.ip4 if version == 4 else f.ip6) else None,
    )


def _payload_length(proto: int) -> Field:
    def get(facts: Facts) -> int | None:
        place = facts.payload
        return None if place is None or place[0] != proto else max(0, place[2] - place[1])

    return Field(_PACKETS, get)


def payload_range(name: str, facts: Facts) -> tuple[int, int] | None:
    """The bytes that an indexed field counts in."""
    if name.startswith("packet"):
        return 0, len(facts.raw)
    place = facts.payload
    if place is None or place[0] != (TCP if name.startswith("tcp") else UDP):
        return None
    return place[1], place[2]


FIELDS: Final[dict[str, Field]] = {
    "zero": Field(_ALL, lambda f: 0),
    "timestamp": Field(_ALL, lambda f: f.timestamp),
    "event": Field(_ALL, lambda f: f.event),
    "outbound": Field(_CONNECTIONS, lambda f: int(f.outbound)),
    "inbound": Field(_CONNECTIONS, lambda f: int(not f.outbound)),
    "ifIdx": Field(_PACKETS, lambda f: f.interface[0]),
    "subIfIdx": Field(_PACKETS, lambda f: f.interface[1]),
    "loopback": Field(_CONNECTIONS, lambda f: int(f.loopback)),
    "impostor": Field(_PACKETS, lambda f: int(f.impostor)),
    "fragment": Field(_PACKETS, lambda f: int(f.fragment)),
    "endpointId": Field(_EVENTS, _nothing),
    "parentEndpointId": Field(_EVENTS, _nothing),
    "processId": Field(_EVENTS | {Layer.REFLECT}, _nothing),
    "layer": Field(frozenset((Layer.REFLECT,)), _nothing),
    "priority": Field(frozenset((Layer.REFLECT,)), _nothing),
    "random8": Field(_PACKETS, lambda f: f.digest & 0xFF),
    "random16": Field(_PACKETS, lambda f: f.digest & 0xFFFF),
    "random32": Field(_PACKETS, lambda f: f.digest),
    "length": Field(_PACKETS, lambda f: len(f.raw)),
    "ip": Field(_PACKETS | _EVENTS, lambda f: int(f.ip4)),
    "ipv6": Field(_PACKETS | _EVENTS, lambda f: int(f.ip6)),
    "icmp": _is(ICMP),
    "icmpv6": _is(ICMPV6),
    "tcp": _is(TCP),
    "udp": _is(UDP),
    "protocol": Field(_CONNECTIONS, lambda f: None if f.at is None else f.at.proto),
    "localAddr": Field(_CONNECTIONS, lambda f: f.address(f.outbound)),
    "remoteAddr": Field(_CONNECTIONS, lambda f: f.address(not f.outbound)),
    "localPort": Field(_CONNECTIONS, lambda f: f.port(f.outbound)),
    "remotePort": Field(_CONNECTIONS, lambda f: f.port(not f.outbound)),
    "ip.HdrLength": _ip4(0, 1, 0, 0xF),
    "ip.TOS": _ip4(1, 1),
    "ip.Length": _ip4(2, 2),
    "ip.Id": _ip4(4, 2),
    "ip.DF": _ip4(6, 1, 6, 1),
    "ip.MF": _ip4(6, 1, 5, 1),
    "ip.FragOff": _ip4(6, 2, 0, 0x1FFF),
    "ip.TTL": _ip4(8, 1),
    "ip.Protocol": _ip4(9, 1),
    "ip.Checksum": _ip4(10, 2),
    "ip.SrcAddr": _address(4, True),
    "ip.DstAddr": _address(4, False),
    "ipv6.TrafficClass": _ip6(0, 2, 4, 0xFF),
    "ipv6.FlowLabel": _ip6(0, 4, 0, 0xFFFFF),
    "ipv6.Length": _ip6(4, 2),
    "ipv6.NextHdr": _ip6(6, 1),
    "ipv6.HopLimit": _ip6(7, 1),
    "ipv6.SrcAddr": _address(6, True),
    "ipv6.DstAddr": _address(6, False),
    "icmp.Type": _transport(ICMP, 0, 1),
    "icmp.Code": _transport(ICMP, 1, 1),
    "icmp.Checksum": _transport(ICMP, 2, 2),
    "icmp.Body": _transport(ICMP, 4, 4),
    "icmpv6.Type": _transport(ICMPV6, 0, 1),
    "icmpv6.Code": _transport(ICMPV6, 1, 1),
    "icmpv6.Checksum": _transport(ICMPV6, 2, 2),
    "icmpv6.Body": _transport(ICMPV6, 4, 4),
    "tcp.SrcPort": _transport(TCP, 0, 2),
    "tcp.DstPort": _transport(TCP, 2, 2),
    "tcp.SeqNum": _transport(TCP, 4, 4),
    "tcp.AckNum": _transport(TCP, 8, 4),
    "tcp.HdrLength": _transport(TCP, 12, 1, 4),
    "tcp.Urg": _transport(TCP, 13, 1, 5, 1),
    "tcp.Ack": _transport(TCP, 13, 1, 4, 1),
    "tcp.Psh": _transport(TCP, 13, 1, 3, 1),
    "tcp.Rst": _transport(TCP, 13, 1, 2, 1),
    "tcp.Syn": _transport(TCP, 13, 1, 1, 1),
    "tcp.Fin": _transport(TCP, 13, 1, 0, 1),
    "tcp.Window": _transport(TCP, 14, 2),
    "tcp.Checksum": _transport(TCP, 16, 2),
    "tcp.UrgPtr": _transport(TCP, 18, 2),
    "tcp.PayloadLength": _payload_length(TCP),
    "udp.SrcPort": _transport(UDP, 0, 2),
    "udp.DstPort": _transport(UDP, 2, 2),
    "udp.Length": _transport(UDP, 4, 2),
    "udp.Checksum": _transport(UDP, 6, 2),
    "udp.PayloadLength": _payload_length(UDP),
}

# Indexed fields and the size of their words in bytes.
SIZED: Final[dict[str, int]] = {
    prefix + bits: size
    for prefix in ("packet", "tcp.Payload", "udp.Payload")
    for bits, size in (("", 1), ("16", 2), ("32", 4))
}
FIELDS.update({name: Field(_PACKETS, _nothing) for name in SIZED})


def _everywhere(value: int) -> dict[Layer, int]:
    return dict.fromkeys(Layer, value)


# Names of numbers: layer -> value where the layer knows it.
MACROS: Final[dict[str, dict[Layer, int]]] = {
    "TRUE": _everywhere(1),
    "FALSE": _everywhere(0),
    "TCP": _everywhere(TCP),
    "UDP": _everywhere(UDP),
    "ICMP": _everywhere(ICMP),
    "ICMPV6": _everywhere(ICMPV6),
    **{layer.name: _everywhere(layer.value) for layer in Layer},
    "PACKET": dict.fromkeys(_PACKETS, 0),
    "ESTABLISHED": {Layer.FLOW: 1},
    "DELETED": {Layer.FLOW: 2},
    "BIND": {Layer.SOCKET: 3},
    "CONNECT": {Layer.SOCKET: 4},
    "LISTEN": {Layer.SOCKET: 5},
    "ACCEPT": {Layer.SOCKET: 6},
    "CLOSE": {Layer.SOCKET: 7, Layer.REFLECT: 9},
    "OPEN": {Layer.REFLECT: 8},
}
