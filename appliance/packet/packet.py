"""A packet as pydivert shows it: bytes, headers, and where it was seen.

For tools and for the exceptional; the packet worker's loop makes none of these.
"""

from __future__ import annotations

import socket

from ..rewrite import checksum
from ..rewrite.headers import ICMP, ICMPV6, LATER, TCP, UDP, WHOLE, Located, locate
from .consts import CalcChecksumsOption, Direction, Layer
from .filter import Facts, compile_filter
from .header import (
    ICMPHeader,
    ICMPv4Header,
    ICMPv6Header,
    IPv4Header,
    IPv6Header,
    TCPHeader,
    UDPHeader,
)

# Transport header that must be there for a header view to exist, in bytes.
_SMALLEST = {TCP: 20, UDP: 8, ICMP: 4, ICMPV6: 4}
_OPTION = {
    (4, TCP): CalcChecksumsOption.NO_TCP_CHECKSUM,
    (6, TCP): CalcChecksumsOption.NO_TCP_CHECKSUM,
    (4, UDP): CalcChecksumsOption.NO_UDP_CHECKSUM,
    (6, UDP): CalcChecksumsOption.NO_UDP_CHECKSUM,
    (4, ICMP): CalcChecksumsOption.NO_ICMP_CHECKSUM,
    (6, ICMPV6): CalcChecksumsOption.NO_ICMPV6_CHECKSUM,
}


class Packet:
    """One IP packet, copied from ``raw``.

    interface   index of the interface, or (index, sub-interface); 0 unknown
    direction   OUTBOUND or INBOUND
    timestamp   nanoseconds of the monotonic clock; 0 unknown
    loopback    it stays on this machine
    impostor    it was injected, by somebody like us
    sniffed     it is a copy; the packet itself went on
    token       the feed's own note of it, None for a packet made by hand
    """

    __slots__ = (
        "_data", "_direction", "_interface", "event", "is_impostor", "is_loopback", "is_sniffed",
        "layer", "timestamp", "token",
    )  # fmt: skip
    __match_args__ = ("src_addr", "dst_addr", "protocol")

    def __init__(
        self,
        raw: bytes | bytearray | memoryview,
        interface: int | tuple[int, int] | None = None,
        direction: Direction = Direction.OUTBOUND,
        timestamp: int = 0,
        loopback: bool = False,
        impostor: bool = False,
        sniffed: bool = False,
        layer: Layer = Layer.NETWORK,
        event: int = 0,
        token: int | None = None,
    ) -> None:
        self._data = bytearray(raw)
        self.interface = interface
        self._direction = Direction(direction)
        self.timestamp = timestamp
        self.is_loopback = loopback
        self.is_impostor = impostor
        self.is_sniffed = sniffed
        self.layer = layer
        self.event = event
        self.token = token

    def __repr__(self) -> str:
        at = self._at
        name = "IP"
        if at is not None:
            name = {TCP: "TCP", UDP: "UDP", ICMP: "ICMP", ICMPV6: "ICMPv6"}.get(at.proto, "IP")
        ends = []
        for address, port in ((self.src_addr, self.src_port), (self.dst_addr, self.dst_port)):
            text = f"[{address}]" if address is not None and ":" in address else str(address)
            ends.append(text if port is None else f"{text}:{port}")
        return f"<Packet {name} from={ends[0]} to={ends[1]} len={len(self._data)}>"

    @property
    def _at(self) -> Located | None:
        # Not kept: ``raw`` is writable, and a few comparisons find it again.
        return locate(self._data, 0, len(self._data))

    # Bytes.

    @property
    def raw(self) -> memoryview:
        """The whole packet, writable in place."""
        return memoryview(self._data)

    @raw.setter
    def raw(self, value: bytes | bytearray | memoryview) -> None:
        self._data = bytearray(value)

    @property
    def end(self) -> int:
        """Bytes of the packet proper; padding may follow in ``raw``."""
        at = self._at
        return len(self._data) if at is None else at.end

    def replace_tail(self, start: int, value: bytes | bytearray | memoryview) -> None:
        """Put ``value`` in place of all from byte ``start``; lengths follow, checksums
        don't.  ValueError: the packet would be longer than its length field can say."""
        # A new buffer: views of the old one must not keep it from growing.
        data = self._data[:start] + bytes(value)
        if not self._data or start == 0:
            self._data = data
            return
        at = self._at
        limit = 65575 if self._data[0] >> 4 == 6 else 65535
        if len(data) > limit:
            raise ValueError(f"a packet of {len(data)} bytes is longer than {limit}")
        self._data = data
        if at is None:
            return
        if at.version == 4:
            data[2:4] = len(data).to_bytes(2, "big")
        else:
            data[4:6] = (len(data) - 40).to_bytes(2, "big")
        if at.proto == UDP and at.fragment == WHOLE and start >= at.l4 + 6:
            data[at.l4 + 4 : at.l4 + 6] = (len(data) - at.l4).to_bytes(2, "big")

    # Where it was seen.

    @property
    def interface(self) -> tuple[int, int]:
        """Index of the interface and of a part of it (0)."""
        return self._interface

    @interface.setter
    def interface(self, value: int | tuple[int, int] | None) -> None:
        if value is None:
            self._interface = (0, 0)
        else:
            self._interface = (value, 0) if isinstance(value, int) else (value[0], value[1])

    @property
    def direction(self) -> Direction:
        return self._direction

    @direction.setter
    def direction(self, value: Direction) -> None:
        self._direction = Direction(value)

    @property
    def is_inbound(self) -> bool:
        return self._direction is Direction.INBOUND

    @is_inbound.setter
    def is_inbound(self, value: bool) -> None:
        self._direction = Direction.INBOUND if value else Direction.OUTBOUND

    @property
    def is_outbound(self) -> bool:
        return self._direction is Direction.OUTBOUND

    @is_outbound.setter
    def is_outbound(self, value: bool) -> None:
        self._direction = Direction.OUTBOUND if value else Direction.INBOUND

    @property
    def loopback(self) -> bool:
        return self.is_loopback

    @property
    def impostor(self) -> bool:
        return self.is_impostor

    @property
    def sniffed(self) -> bool:
        return self.is_sniffed

    # Headers; None where the packet has none, or not all of it.

    @property
    def address_family(self) -> socket.AddressFamily | None:
        at = self._at
        if at is None:
            return None
        return socket.AF_INET if at.version == 4 else socket.AF_INET6

    @property
    def protocol(self) -> tuple[int | None, int | None]:
        """(IANA protocol number, index of the transport header)."""
        at = self._at
        return (None, None) if at is None else (at.proto, at.l4)

    @property
    def ipv4(self) -> IPv4Header | None:
        at = self._at
        return IPv4Header(self) if at is not None and at.version == 4 else None

    @property
    def ipv6(self) -> IPv6Header | None:
        at = self._at
        return IPv6Header(self) if at is not None and at.version == 6 else None

    @property
    def ip(self) -> IPv4Header | IPv6Header | None:
        return self.ipv4 or self.ipv6

    def _transport(self, proto: int) -> int | None:
        at = self._at
        if at is None or at.proto != proto or at.fragment == LATER:
            return None
        return at.l4 if at.l4 + _SMALLEST[proto] <= at.end else None

    @property
    def tcp(self) -> TCPHeader | None:
        start = self._transport(TCP)
        return None if start is None else TCPHeader(self, start)

    @property
    def udp(self) -> UDPHeader | None:
        start = self._transport(UDP)
        return None if start is None else UDPHeader(self, start)

    @property
    def icmpv4(self) -> ICMPv4Header | None:
        start = self._transport(ICMP)
        return None if start is None else ICMPv4Header(self, start)

    @property
    def icmpv6(self) -> ICMPv6Header | None:
        start = self._transport(ICMPV6)
        return None if start is None else ICMPv6Header(self, start)

    @property
    def icmp(self) -> ICMPHeader | None:
        return self.icmpv4 or self.icmpv6

    # Short ways.

    @property
    def src_addr(self) -> str | None:
        return None if self.ip is None else self.ip.src_addr

    @src_addr.setter
    def src_addr(self, value: str) -> None:
        if self.ip is None:
            raise ValueError("no IP header")
        self.ip.src_addr = value

    @property
    def dst_addr(self) -> str | None:
        return None if self.ip is None else self.ip.dst_addr

    @dst_addr.setter
    def dst_addr(self, value: str) -> None:
        if self.ip is None:
            raise ValueError("no IP header")
        self.ip.dst_addr = value

    @property
    def _ports(self) -> TCPHeader | UDPHeader | None:
        return self.tcp or self.udp

    @property
    def src_port(self) -> int | None:
        return None if self._ports is None else self._ports.src_port

    @src_port.setter
    def src_port(self, value: int) -> None:
        if self._ports is None:
            raise ValueError("no TCP or UDP header")
        self._ports.src_port = value

    @property
    def dst_port(self) -> int | None:
        return None if self._ports is None else self._ports.dst_port

    @dst_port.setter
    def dst_port(self, value: int) -> None:
        if self._ports is None:
            raise ValueError("no TCP or UDP header")
        self._ports.dst_port = value

    @property
    def payload(self) -> bytes | None:
        """What the transport header carries; None without one."""
        header = self._ports or self.icmp
        return None if header is None else header.payload

    @payload.setter
    def payload(self, value: bytes | bytearray | memoryview) -> None:
        header = self._ports or self.icmp
        if header is None:
            raise ValueError("no TCP, UDP or ICMP header")
        header.payload = value

    # Checksums.

    @property
    def ip_checksum(self) -> bool:
        """Whether there is a header checksum, and it is right."""
        header = self.ipv4
        return (
            header is not None
            and checksum.header_checksum(self._data[: header.header_len]) == header.cksum
        )

    @property
    def tcp_checksum(self) -> bool:
        return self._transport_checksum((TCP,)) is True

    @property
    def udp_checksum(self) -> bool:
        return self._transport_checksum((UDP,)) is True

    @property
    def icmp_checksum(self) -> bool:
        return self._transport_checksum((ICMP, ICMPV6)) is True

    @property
    def is_checksum_valid(self) -> bool:
        """No checksum is wrong; those of fragments can't be."""
        if self.ipv4 is not None and not self.ip_checksum:
            return False
        return self._transport_checksum((TCP, UDP, ICMP, ICMPV6)) is not False

    def _transport_checksum(self, protocols: tuple[int, ...]) -> bool | None:
        """None: no such header, or nothing to compare with."""
        at = self._at
        if at is None or at.proto not in protocols:
            return None
        place = checksum.checksum_place(at)
        right = checksum.transport(self._data, 0, at)
        if place is None or right is None:
            return None
        found = int.from_bytes(self._data[place : place + 2], "big")
        if found == 0 and at.proto == UDP and at.version == 4:
            return True  # RFC 768: the sender computed none
        return found == right or {found, right} == {0, 0xFFFF}

    def recalculate_checksums(self, flags: int = 0) -> int:
        """Compute all checksums anew but those that ``flags`` name; 1 if any was.

        The transport checksum of a fragment or of a cut packet stays: it can't be known.
        """
        at = self._at
        if at is None:
            return 0
        data, done = self._data, 0
        if at.version == 4 and not flags & CalcChecksumsOption.NO_IP_CHECKSUM:
            header = (data[0] & 15) * 4
            data[10:12] = checksum.header_checksum(data[:header]).to_bytes(2, "big")
            done = 1
        option = _OPTION.get((at.version, at.proto))
        value = checksum.transport(data, 0, at)
        place = checksum.checksum_place(at)
        if option is not None and not flags & option and value is not None and place is not None:
            data[place : place + 2] = value.to_bytes(2, "big")
            done = 1
        return done

    # Filters.

    def facts(self) -> Facts:
        """What a filter may ask."""
        return Facts(
            self._data,
            self.is_outbound,
            self._interface,
            self.is_loopback,
            self.is_impostor,
            self.timestamp,
            self.event,
        )

    def matches(self, filter_str: str) -> bool:
        """Whether a filter selects this packet; ValueError: no filter, or no packet."""
        compiled = compile_filter(filter_str, self.layer)
        facts = self.facts()
        if facts.at is None:
            raise ValueError("not an IP packet")
        return compiled.matches(facts)
