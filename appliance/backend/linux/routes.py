"""rtnetlink: addresses, links and routes as bytes; parking an address.

Pure but for :class:`Parking`.  Numbers from linux/rtnetlink.h, if_addr.h, fib_rules.h.
"""

from __future__ import annotations

import errno
import socket
import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from ...rewrite.flow import Address
from . import netlink as nl

RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK = 16, 17, 18
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_NEWRULE, RTM_DELRULE = 32, 33

# Multicast groups (enum rtnetlink_groups)
GROUPS = (1, 5, 7, 9, 11)  # LINK, IPV4_IFADDR, IPV4_ROUTE, IPV6_IFADDR, IPV6_ROUTE

AF = {4: 2, 6: 10}
VERSION = {2: 4, 10: 6}

IFF_UP, IFF_LOOPBACK, IFF_RUNNING, IFF_LOWER_UP = 0x1, 0x8, 0x40, 0x10000
IFA_F_DADFAILED, IFA_F_DEPRECATED, IFA_F_TENTATIVE = 0x08, 0x20, 0x40
IFA_F_OPTIMISTIC, IFA_F_TEMPORARY = 0x04, 0x01

RT_TABLE_MAIN, RT_TABLE_LOCAL = 254, 255
RTN_UNICAST, RTN_LOCAL = 1, 2
RT_SCOPE_UNIVERSE, RT_SCOPE_LINK, RT_SCOPE_HOST = 0, 253, 254

_RTA_DST, _RTA_OIF, _RTA_PRIORITY, _RTA_TABLE = 1, 4, 6, 15
_IFLA_IFNAME = 3
_IFA_ADDRESS, _IFA_LOCAL, _IFA_FLAGS = 1, 2, 8
_FRA_SRC, _FRA_PRIORITY, _FRA_TABLE = 2, 6, 15
_FR_ACT_TO_TBL = 1

# How our routes and rules are told from those of others (`ip route` shows the numbers).
PROTOCOL = 114
TABLE = 4787
RULE_PRIORITY = 32800  # after the main (32766) and default (32767) tables
LOCAL_PRIORITY = 4787  # besides the route that the address itself makes


@dataclass(frozen=True, slots=True)
class Link:
    """An interface; ``carrier``: it is up and something is plugged in."""

    index: int
    name: str
    loopback: bool
    carrier: bool


@dataclass(frozen=True, slots=True)
class IfAddress:
    """An address of an interface."""

    index: int
    addr: Address
    prefix_len: int
    flags: int


@dataclass(frozen=True, slots=True)
class Route:
    """A route; ``dst`` None stands for the default one."""

    version: int
    table: int
    kind: int
    protocol: int
    dst: Address | None
    dst_len: int
    oif: int


def _address(value: memoryview | None) -> Address | None:
    if value is None:
        return None
    if len(value) == 4:
        return IPv4Address(bytes(value))
    return IPv6Address(bytes(value)) if len(value) == 16 else None


def _u32(value: memoryview | None) -> int | None:
    return None if value is None or len(value) != 4 else int(struct.unpack("=I", value)[0])


def parse_link(payload: memoryview) -> Link | None:
    if len(payload) < 16:
        return None
    index, flags = struct.unpack_from("=iI", payload, 4)
    name = nl.attributes(payload, 16).get(_IFLA_IFNAME)
    if name is None:
        return None
    carrier = bool(flags & IFF_UP and flags & IFF_RUNNING)
    text = bytes(name).rstrip(b"\0").decode("ascii", "replace")
    return Link(index, text, bool(flags & IFF_LOOPBACK), carrier)


def parse_address(payload: memoryview) -> IfAddress | None:
    if len(payload) < 8:
        return None
    prefix_len, flags = payload[1], payload[2]
    (index,) = struct.unpack_from("=I", payload, 4)
    found = nl.attributes(payload, 8)
    # On a point-to-point link IFA_ADDRESS is the far end's.
    addr = _address(found.get(_IFA_LOCAL) or found.get(_IFA_ADDRESS))
    wide = _u32(found.get(_IFA_FLAGS))
    return (
        None
        if addr is None
        else IfAddress(index, addr, prefix_len, flags if wide is None else wide)
    )


def parse_route(payload: memoryview) -> Route | None:
    if len(payload) < 12 or payload[0] not in VERSION:
        return None
    family, dst_len, _, _, table, protocol, _, kind = struct.unpack_from("=8B", payload)
    found = nl.attributes(payload, 12)
    table = _u32(found.get(_RTA_TABLE)) or table
    oif = _u32(found.get(_RTA_OIF)) or 0
    return Route(
        VERSION[family], table, kind, protocol, _address(found.get(_RTA_DST)), dst_len, oif
    )


def dump(version: int = 0) -> bytes:
    """struct rtgenmsg, padded to the longest header (struct ifinfomsg)."""
    return bytes([AF.get(version, 0)]) + bytes(15)


def _route(addr: Address | None, version: int, table: int, kind: int, scope: int, oif: int,
           priority: int) -> bytes:  # fmt: skip
    bits = 0 if addr is None else (32 if version == 4 else 128)
    head = struct.pack("=8BI", AF[version], bits, 0, 0, min(table, 252) if table > 255 else table,
                       PROTOCOL, scope, kind, 0)  # fmt: skip
    parts = [] if addr is None else [nl.attribute(_RTA_DST, addr.packed)]
    parts += [
        nl.attribute(_RTA_OIF, struct.pack("=I", oif)),
        nl.attribute(_RTA_TABLE, struct.pack("=I", table)),
        nl.attribute(_RTA_PRIORITY, struct.pack("=I", priority)),
    ]
    return head + b"".join(parts)


def _rule(addr: Address) -> bytes:
    bits = 32 if addr.version == 4 else 128
    head = struct.pack("=8BI", AF[addr.version], 0, bits, 0, 252, 0, 0, _FR_ACT_TO_TBL, 0)
    return head + b"".join((
        nl.attribute(_FRA_SRC, addr.packed),
        nl.attribute(_FRA_PRIORITY, struct.pack("=I", RULE_PRIORITY)),
        nl.attribute(_FRA_TABLE, struct.pack("=I", TABLE)),
    ))  # fmt: skip


class Parking:
    """Keeps addresses usable by our own sockets though no interface has them.

    For each there is ``local B dev lo`` beside the route that the address itself had:
    without it a Linux socket emits nothing (and receives nothing) once B is gone.
    And a rule ``from B lookup TABLE``, asked last of all, whose table leads everything
    to lo: without any route a segment is never made, so there would be nothing to hold
    and to re-inject.  The nftables rules see to it that nothing else comes of that.
    """

    def __init__(self) -> None:
        self._netlink = nl.NetlinkSocket(nl.NETLINK_ROUTE)
        self._lo = socket.if_nametoindex("lo")

    def close(self) -> None:
        self._netlink.close()

    def park(self, addr: Address) -> None:
        """Idempotent."""
        new = nl.NLM_F_CREATE | nl.NLM_F_EXCL
        table = self._last_resort(addr.version)
        for what, kind, payload in (
            ("route", RTM_NEWROUTE, table),
            ("rule", RTM_NEWRULE, _rule(addr)),
            ("route", RTM_NEWROUTE, self._local(addr)),
        ):
            with nl.ignoring(errno.EEXIST):
                self._netlink.request(f"{what} that parks {addr}", kind, new, payload)

    def unpark(self, addr: Address) -> None:
        """Idempotent."""
        for what, kind, payload in (
            ("rule", RTM_DELRULE, _rule(addr)),
            ("route", RTM_DELROUTE, self._local(addr)),
        ):
            with nl.ignoring(errno.ENOENT, errno.ESRCH, errno.EADDRNOTAVAIL):
                self._netlink.request(f"{what} that parks {addr}", kind, 0, payload)

    def forget_all(self) -> None:
        """The table of last resort, when nothing is parked any more."""
        for version in (4, 6):
            with nl.ignoring(errno.ENOENT, errno.ESRCH, errno.EAFNOSUPPORT):
                self._netlink.request(
                    "route of last resort", RTM_DELROUTE, 0, self._last_resort(version)
                )

    def parked(self) -> set[Address]:
        """Addresses that are parked now, by whomever."""
        found: set[Address] = set()
        for version in (4, 6):
            answer = self._netlink.request("routes", RTM_GETROUTE, nl.NLM_F_DUMP, dump(version))
            for part in answer:
                route = parse_route(part.payload)
                if route is not None and is_parking(route) and route.dst is not None:
                    found.add(route.dst)
        return found

    def _local(self, addr: Address) -> bytes:
        return _route(addr, addr.version, RT_TABLE_LOCAL, RTN_LOCAL, RT_SCOPE_HOST, self._lo,
                      LOCAL_PRIORITY)  # fmt: skip

    def _last_resort(self, version: int) -> bytes:
        # IPv6 makes unicast routes through lo into reject routes, so both are local.
        return _route(None, version, TABLE, RTN_LOCAL, RT_SCOPE_HOST, self._lo, LOCAL_PRIORITY)


def is_parking(route: Route) -> bool:
    return route.protocol == PROTOCOL and route.table == RT_TABLE_LOCAL and route.kind == RTN_LOCAL
