"""Protocol headers as views: their attributes read and write the packet's bytes.

Numbers that don't fit their field raise ValueError, addresses that are none OSError.
Writing changes no other field but lengths, and no checksum:
:meth:`.packet.Packet.recalculate_checksums` does that.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, ClassVar, Self, overload

if TYPE_CHECKING:
    from .packet import Packet


class Number:
    """A big-endian field of ``size`` bytes, ``bits`` wide and ``shift`` from the right."""

    def __init__(self, at: int, size: int, shift: int = 0, bits: int = 0) -> None:
        self._at = at
        self._size = size
        self._shift = shift
        self._mask = (1 << (bits or size * 8)) - 1

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, header: None, owner: type) -> Self: ...
    @overload
    def __get__(self, header: Header, owner: type) -> int: ...
    def __get__(self, header: Header | None, owner: type) -> int | Self:
        if header is None:
            return self
        return header.read(self._at, self._size) >> self._shift & self._mask

    def __set__(self, header: Header, value: int) -> None:
        if not 0 <= value <= self._mask:
            raise ValueError(f"{self._name} is 0 to {self._mask}, not {value}")
        rest = header.read(self._at, self._size) & ~(self._mask << self._shift)
        header.write(self._at, (rest | value << self._shift).to_bytes(self._size, "big"))


class Bit:
    """One bit of the byte at ``at``, as a bool."""

    def __init__(self, at: int, shift: int) -> None:
        self._at = at
        self._bit = 1 << shift

    @overload
    def __get__(self, header: None, owner: type) -> Self: ...
    @overload
    def __get__(self, header: Header, owner: type) -> bool: ...
    def __get__(self, header: Header | None, owner: type) -> bool | Self:
        if header is None:
            return self
        return bool(header.read(self._at, 1) & self._bit)

    def __set__(self, header: Header, value: bool) -> None:
        rest = header.read(self._at, 1) & ~self._bit
        header.write(self._at, bytes((rest | self._bit if value else rest,)))


class Address:
    """An address as text."""

    def __init__(self, at: int, family: socket.AddressFamily) -> None:
        self._at = at
        self._family = family
        self._size = 4 if family == socket.AF_INET else 16

    @overload
    def __get__(self, header: None, owner: type) -> Self: ...
    @overload
    def __get__(self, header: Header, owner: type) -> str: ...
    def __get__(self, header: Header | None, owner: type) -> str | Self:
        if header is None:
            return self
        return socket.inet_ntop(
            self._family, header.read(self._at, self._size).to_bytes(self._size, "big")
        )

    def __set__(self, header: Header, value: str) -> None:
        header.write(self._at, socket.inet_pton(self._family, value))


class Header:
    """A header that begins at byte ``start`` of ``packet``."""

    __slots__ = ("_packet", "_start")

    def __init__(self, packet: Packet, start: int = 0) -> None:
        self._packet = packet
        self._start = start

    def read(self, at: int, size: int) -> int:
        """The number in ``size`` bytes at ``at``, counted from the header's begin."""
        start = self._start + at
        return int.from_bytes(self._packet.raw[start : start + size], "big")

    def write(self, at: int, data: bytes) -> None:
        start = self._start + at
        self._packet.raw[start : start + len(data)] = data

    @property
    def raw(self) -> memoryview:
        """The header and all that follows it."""
        return self._packet.raw[self._start :]

    @raw.setter
    def raw(self, value: bytes | bytearray | memoryview) -> None:
        self._packet.replace_tail(self._start, value)


class IPHeader(Header):
    """What both families have in common."""

    __slots__ = ()
    src_addr: str | Address
    dst_addr: str | Address


class IPv4Header(IPHeader):
    """RFC 791 3.1."""

    __slots__ = ()
    __match_args__: ClassVar[tuple[str, ...]] = ("src_addr", "dst_addr", "protocol", "ident", "ttl")

    src_addr = Address(12, socket.AF_INET)
    dst_addr = Address(16, socket.AF_INET)
    hdr_len = Number(0, 1, 0, 4)
    tos = Number(1, 1)
    diff_serv = Number(1, 1, 2, 6)
    dscp = Number(1, 1, 2, 6)
    ecn = Number(1, 1, 0, 2)
    packet_len = Number(2, 2)
    ident = Number(4, 2)
    flags = Number(6, 1, 5, 3)
    reserved = Bit(6, 7)
    rf = Bit(6, 7)
    evil = Bit(6, 7)  # RFC 3514
    df = Bit(6, 6)
    mf = Bit(6, 5)
    frag_offset = Number(6, 2, 0, 13)
    ttl = Number(8, 1)
    protocol = Number(9, 1)
    cksum = Number(10, 2)

    @property
    def header_len(self) -> int:
        """Bytes, options included."""
        return self.hdr_len * 4


class IPv6Header(IPHeader):
    """RFC 8200 3."""

    __slots__ = ()
    __match_args__: ClassVar[tuple[str, ...]] = ("src_addr", "dst_addr", "next_hdr", "hop_limit")
    header_len: ClassVar[int] = 40

    src_addr = Address(8, socket.AF_INET6)
    dst_addr = Address(24, socket.AF_INET6)
    traffic_class = Number(0, 2, 4, 8)
    diff_serv = Number(0, 2, 6, 6)
    dscp = Number(0, 2, 6, 6)
    ecn = Number(0, 2, 4, 2)
    flow_label = Number(0, 4, 0, 20)
    payload_len = Number(4, 2)
    next_hdr = Number(6, 1)
    hop_limit = Number(7, 1)

    @property
    def packet_len(self) -> int:
        """Bytes, this header included."""
        return self.payload_len + 40

    @packet_len.setter
    def packet_len(self, value: int) -> None:
        self.payload_len = value - 40


class PayloadHeader(Header):
    """A header with a payload behind it."""

    __slots__ = ()

    @property
    def header_len(self) -> int:
        return 0

    @property
    def payload(self) -> bytes:
        return bytes(self._packet.raw[self._start + self.header_len : self._packet.end])

    @payload.setter
    def payload(self, value: bytes | bytearray | memoryview) -> None:
        self._packet.replace_tail(self._start + self.header_len, value)


class TCPHeader(PayloadHeader):
    """RFC 9293 3.1."""

    __slots__ = ()
    __match_args__: ClassVar[tuple[str, ...]] = (
        "src_port", "dst_port", "seq_num", "ack_num", "control_bits",
    )  # fmt: skip

    src_port = Number(0, 2)
    dst_port = Number(2, 2)
    seq_num = Number(4, 4)
    ack_num = Number(8, 4)
    data_offset = Number(12, 1, 4, 4)
    reserved = Number(12, 1, 1, 3)
    control_bits = Number(12, 2, 0, 9)
    ns = Bit(12, 0)
    cwr = Bit(13, 7)
    ece = Bit(13, 6)
    urg = Bit(13, 5)
    ack = Bit(13, 4)
    psh = Bit(13, 3)
    rst = Bit(13, 2)
    syn = Bit(13, 1)
    fin = Bit(13, 0)
    window = Number(14, 2)
    cksum = Number(16, 2)
    urg_ptr = Number(18, 2)

    @property
    def header_len(self) -> int:
        """Bytes, options included."""
        return self.data_offset * 4

    @property
    def payload_len(self) -> int:
        return max(0, self._packet.end - self._start - self.header_len)


class UDPHeader(PayloadHeader):
    """RFC 768."""

    __slots__ = ()
    __match_args__: ClassVar[tuple[str, ...]] = ("src_port", "dst_port", "payload_len")

    src_port = Number(0, 2)
    dst_port = Number(2, 2)
    length = Number(4, 2)
    cksum = Number(6, 2)

    @property
    def header_len(self) -> int:
        return 8

    @property
    def payload_len(self) -> int:
        """Bytes by the header's own length."""
        return self.length - 8

    @payload_len.setter
    def payload_len(self, value: int) -> None:
        self.length = value + 8


class ICMPHeader(PayloadHeader):
    """RFC 792 and RFC 4443 2.1: what all messages begin with."""

    __slots__ = ()
    __match_args__: ClassVar[tuple[str, ...]] = ("type", "code", "cksum")

    type = Number(0, 1)
    code = Number(1, 1)
    cksum = Number(2, 2)

    @property
    def header_len(self) -> int:
        return 4


class ICMPv4Header(ICMPHeader):
    __slots__ = ()


class ICMPv6Header(ICMPHeader):
    __slots__ = ()
