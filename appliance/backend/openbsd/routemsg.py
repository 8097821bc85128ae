"""Messages of a PF_ROUTE socket (route(4)), from bytes to facts.  Pure.

Layouts were taken from an OpenBSD 7.8 kernel (amd64, little-endian); the recorded
messages are in tests/fixtures/openbsd-7.8/route-socket.json.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from ...rewrite.flow import Address

VERSION: Final = 5
ADD, DELETE, CHANGE = 1, 2, 3
NEWADDR, DELADDR, IFINFO, IFANNOUNCE = 12, 13, 14, 15
DESYNC: Final = 16  # the socket overflowed: messages were lost
CHGADDRATTR: Final = 20  # attributes of an IPv6 address, e.g. no longer tentative

#: the types that the watcher asks for (ROUTE_MSGFILTER)
WANTED: Final = (
    ADD, DELETE, CHANGE, NEWADDR, DELADDR, IFINFO, IFANNOUNCE, DESYNC, CHGADDRATTR,
)  # fmt: skip

RTAX_DST, RTAX_GATEWAY, RTAX_NETMASK, RTAX_IFP, RTAX_IFA = 0, 1, 2, 4, 5
RTAX_MAX: Final = 15  # bits of addrs that can stand for a sockaddr
AF_INET, AF_LINK, AF_INET6 = 2, 18, 24
IFF_UP, IFF_LOOPBACK, IFF_POINTOPOINT = 0x1, 0x8, 0x10
RTF_CLONED: Final = 0x10000  # a neighbour (ARP, ND): not a change of routing
LINK_UNKNOWN, LINK_UP = 0, 4  # LINK_STATE_IS_UP: unknown counts as up

_HEADER = struct.Struct("<HBBHHH2xii")  # msglen version type hdrlen index tableid addrs flags
_COMMON = struct.Struct("<HBB")  # every message begins so
_ANNOUNCE = struct.Struct("<HHH16s")  # hdrlen index what name
_LINK_STATE_AT = 27  # if_data: type, addrlen, hdrlen, link_state


class RouteMessageError(ValueError):
    """These bytes are not a routing message of version 5."""


@dataclass(frozen=True, slots=True)
class AddressMessage:
    """NEWADDR, DELADDR or CHGADDRATTR: ``addr/prefix_len`` on an interface.

    A new IPv6 address is tentative until a CHGADDRATTR follows.
    """

    kind: int
    index: int
    ifname: str
    addr: Address
    prefix_len: int


@dataclass(frozen=True, slots=True)
class LinkMessage:
    """IFINFO: flags of the interface, and whether its link can carry packets."""

    index: int
    ifname: str
    flags: int
    link_up: bool

    @property
    def up(self) -> bool:
        """Administratively up, and so is the link."""
        return bool(self.flags & IFF_UP) and self.link_up


@dataclass(frozen=True, slots=True)
class AnnounceMessage:
    """IFANNOUNCE: an interface came or went."""

    index: int
    ifname: str
    departed: bool


@dataclass(frozen=True, slots=True)
class RouteMessage:
    """ADD, DELETE, CHANGE: a route; ``dest`` None when it is not an IP route.

    cloned  a neighbour entry, which says nothing about routing
    """

    kind: int
    index: int
    dest: Address | None
    gateway: Address | None
    cloned: bool


@dataclass(frozen=True, slots=True)
class OverflowMessage:
    """DESYNC: the kernel dropped messages, read everything anew."""


Message = AddressMessage | LinkMessage | AnnounceMessage | RouteMessage | OverflowMessage


def parse(data: bytes) -> Message | None:
    """One message; None for a type or family that is none of our business.

    Raises RouteMessageError on anything else than a whole message of version 5.
    """
    if len(data) < _COMMON.size:
        raise RouteMessageError(f"{len(data)} bytes are no message")
    length, version, kind = _COMMON.unpack_from(data)
    if version != VERSION:
        raise RouteMessageError(f"version {version}, this parser knows {VERSION}")
    if length != len(data):
        raise RouteMessageError(f"length says {length}, {len(data)} bytes are there")
    if kind == DESYNC:
        return OverflowMessage()
    if kind == IFANNOUNCE:
        return _announce(data)
    if kind not in WANTED:
        return None
    if length < _HEADER.size:
        raise RouteMessageError(f"{length} bytes are too short for type {kind}")
    _, _, _, hdrlen, index, _, addrs, flags = _HEADER.unpack_from(data)
    if not _HEADER.size <= hdrlen <= length:
        raise RouteMessageError(f"header length {hdrlen} of {length}")
    sockaddrs = dict(_sockaddrs(data[hdrlen:], addrs))
    if kind == IFINFO:
        if hdrlen <= _LINK_STATE_AT:
            raise RouteMessageError(f"interface header of {hdrlen} bytes")
        state = data[_LINK_STATE_AT]
        name = _link_name(sockaddrs.get(RTAX_IFP))
        return LinkMessage(index, name, flags & 0xFFFF, state >= LINK_UP or state == LINK_UNKNOWN)
    if kind in (NEWADDR, DELADDR, CHGADDRATTR):
        return _address(kind, index, sockaddrs)
    return RouteMessage(
        kind,
        index,
        _ip(sockaddrs.get(RTAX_DST)),
        _ip(sockaddrs.get(RTAX_GATEWAY)),
        bool(flags & RTF_CLONED),
    )


def _address(kind: int, index: int, sockaddrs: dict[int, bytes]) -> AddressMessage | None:
    addr = _ip(sockaddrs.get(RTAX_IFA))
    if addr is None:
        return None
    name = _link_name(sockaddrs.get(RTAX_IFP))
    mask = sockaddrs.get(RTAX_NETMASK, b"")
    return AddressMessage(kind, index, name, addr, _prefix_len(mask, addr.version))


def _announce(data: bytes) -> AnnounceMessage:
    if len(data) < 4 + _ANNOUNCE.size:
        raise RouteMessageError(f"announcement of {len(data)} bytes")
    _, index, what, name = _ANNOUNCE.unpack_from(data, 4)
    return AnnounceMessage(index, _text(name), what == 1)


def _sockaddrs(data: bytes, addrs: int) -> Iterator[tuple[int, bytes]]:
    """Sockaddrs stand in the bit order of ``addrs``, each rounded up to 8 bytes, and one
    of length zero takes 8."""
    at = 0
    for bit in range(RTAX_MAX):
        if not addrs & (1 << bit):
            continue
        if at >= len(data):
            raise RouteMessageError(f"sockaddr {bit} is missing")
        length = data[at]
        if at + length > len(data):
            raise RouteMessageError(f"sockaddr {bit} of {length} bytes reaches past the end")
        yield bit, data[at : at + length]
        at += (length + 7) & ~7 if length else 8


def _ip(sockaddr: bytes | None) -> Address | None:
    """The address of a sockaddr_in or sockaddr_in6; None for any other family."""
    if sockaddr is None or len(sockaddr) < 2:
        return None
    family = sockaddr[1]
    if family == AF_INET and len(sockaddr) >= 8:
        return IPv4Address(sockaddr[4:8])
    if family == AF_INET6 and len(sockaddr) >= 24:
        return unembed(sockaddr[8:24])
    return None


def unembed(raw: bytes) -> IPv6Address:
    """An address without the interface index that the kernel embeds in link-local ones
    (``fe80:c::1`` is ``fe80::1`` on interface 12)."""
    if raw[0] == 0xFE and raw[1] & 0xC0 == 0x80:
        raw = raw[:2] + b"\0\0" + raw[4:]
    return IPv6Address(raw)


def _prefix_len(mask: bytes, version: int) -> int:
    """Bits of a netmask sockaddr, which the kernel cuts after its last non-zero byte."""
    start, size = (4, 4) if version == 4 else (8, 16)
    bits = "".join(f"{byte:08b}" for byte in mask[start : start + size])
    return len(bits) - len(bits.lstrip("1"))


def _link_name(sockaddr: bytes | None) -> str:
    """The name in a sockaddr_dl: length at 5, text at 8."""
    if sockaddr is None or len(sockaddr) < 8 or sockaddr[1] != AF_LINK:
        return ""
    return _text(sockaddr[8 : 8 + sockaddr[5]])


def _text(raw: bytes) -> str:
    return raw.split(b"\0", 1)[0].decode("ascii", "replace")
