"""Where things are in an IP packet: bounded walks that never raise.

Buffers are ``bytes``, ``bytearray`` or ``memoryview`` of unsigned bytes; offsets and
lengths are in bytes and must lie inside the buffer, its content is not trusted.
"""

from __future__ import annotations

from typing import Final, NamedTuple

ICMP: Final = 1
TCP: Final = 6
UDP: Final = 17
FRAGMENT: Final = 44
ICMPV6: Final = 58

WHOLE: Final = 0
FIRST: Final = 1
LATER: Final = 2

# RFC 8200 4.1 names eight headers in an order that makes sense; twice that is a
# packet that nobody sends in earnest.
MAX_EXTENSIONS: Final = 16

# Extension headers of RFC 6564's form (next header, length in 8 bytes beyond the
# first 8): hop-by-hop, routing, destination options, mobility, HIP, shim6.
_OPTIONS: Final = frozenset((0, 43, 60, 135, 139, 140))
_ROUTING: Final = 43


class Located(NamedTuple):
    """The parts of one packet; indices count from the start of the buffer.

    version    4 or 6
    proto      what follows the IP headers (IANA protocol number)
    l4         index of its first byte; ``l4 <= end``
    end        index after the last byte that belongs to the packet and is there
    fragment   WHOLE, FIRST or LATER; only the first one shows a transport header
    ident      identifies the datagram among those of one address pair
    truncated  the packet says that it is longer than what is there
    """

    version: int
    proto: int
    l4: int
    end: int
    fragment: int
    ident: bytes
    truncated: bool


def locate(buf: bytes | bytearray | memoryview, offset: int, length: int) -> Located | None:
    """Walk the IP headers; None when they are not whole or contradict themselves."""
    if length < 20:
        return None
    version = buf[offset] >> 4
    if version == 4:
        return _locate4(buf, offset, length)
    if version == 6 and length >= 40:
        return _locate6(buf, offset, length)
    return None


def _locate4(buf: bytes | bytearray | memoryview, offset: int, length: int) -> Located | None:
    header = (buf[offset] & 15) * 4
    total = buf[offset + 2] << 8 | buf[offset + 3]
    if header < 20 or header > length or total < header:
        return None
    place = (buf[offset + 6] << 8 | buf[offset + 7]) & 0x3FFF
    fragment = (LATER if place & 0x1FFF else FIRST) if place else WHOLE
    return Located(
        4,
        buf[offset + 9],
        offset + header,
        offset + min(total, length),
        fragment,
        bytes(buf[offset + 4 : offset + 6]),
        total > length,
    )


def _locate6(buf: bytes | bytearray | memoryview, offset: int, length: int) -> Located | None:
    total = 40 + (buf[offset + 4] << 8 | buf[offset + 5])
    end = offset + min(total, length)
    proto = buf[offset + 6]
    at = offset + 40
    fragment = WHOLE
    ident = b""
    for _ in range(MAX_EXTENSIONS):
        if fragment == LATER or (proto not in _OPTIONS and proto != FRAGMENT):
            return Located(6, proto, at, end, fragment, ident, total > length)
        if at + 8 > end:
            return None
        if proto == FRAGMENT:
            place = buf[at + 2] << 8 | buf[at + 3]
            if ident:
                return None  # a fragment of a fragment: RFC 8200 4.5 has no such thing
            ident = bytes(buf[at + 4 : at + 8])
            if place & 0xFFF8:
                fragment = LATER
            elif place & 1:
                fragment = FIRST
            size = 8
        else:
            size = 8 + buf[at + 1] * 8
            # With segments left, the header's destination is not the connection's
            # end (RFC 8200 4.4): such a packet is not ours to read.
            if proto == _ROUTING and buf[at + 3]:
                return None
        if at + size > end:
            return None
        proto = buf[at]
        at += size
    return None
