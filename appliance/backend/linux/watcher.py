"""Addresses, links and routes of this machine, as rtnetlink tells them."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Network, ip_network

from ...protocol.inputs import LocalAddress
from ...rewrite.flow import Address
from . import netlink as nl
from . import routes
from .routes import IfAddress, Link
from .settings import Settings

_DATAGRAMS_A_READ = 64
_BUFFER = 4 * 1024 * 1024

# RFC 1918, RFC 6598 (carrier-grade NAT is no LAN of ours), RFC 4193
_PRIVATE = [ip_network(n) for n in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7")]


class RouteWatcher:
    """:class:`..api.AddressWatcher`; no privilege needed.

    It also answers which addresses are ours or of the LAN side, for the connection table.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._prefixes: list[IPv4Network | IPv6Network] = []
        self._inside_names: set[str] = set()
        for word in settings.inside:
            try:
                self._prefixes.append(ip_network(word))
            except ValueError:
                self._inside_names.add(word)
        self._events = nl.NetlinkSocket(nl.NETLINK_ROUTE, routes.GROUPS, receive=_BUFFER)
        self._requests = nl.NetlinkSocket(nl.NETLINK_ROUTE)
        self._links: dict[int, Link] = {}
        self._held: dict[tuple[int, Address], IfAddress] = {}
        self._defaults: dict[int, set[int]] = {}
        self._parked: set[Address] = set()
        self._deliverable: set[tuple[int, Address]] = set()
        self._view: tuple[LocalAddress, ...] = ()
        self._ours: set[Address] = set()
        self._inside: list[IPv4Network | IPv6Network] = []
        self._load()

    def fileno(self) -> int:
        return self._events.fileno()

    def close(self) -> None:
        self._events.close()
        self._requests.close()

    def read(self) -> bool:
        routed = False
        for part in self._events.notifications(_DATAGRAMS_A_READ):
            routed |= self._take(part)
        if self._events.overrun:
            self._events.overrun = False
            self._load()
            return True
        before = self._view
        self._refresh()
        return routed or self._view != before

    def addresses(self) -> tuple[LocalAddress, ...]:
        return self._view

    def source_for(self, remote: Address) -> Address | None:
        family = socket.AF_INET6 if remote.version == 6 else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            try:
                sock.connect((str(remote), 9))  # sends nothing: it only asks for the route
                name = sock.getsockname()[0]
            except OSError:
                return None
        for local in self._view:
            if str(local.addr) == name:
                return local.addr
        return None

    # -- roles of addresses

    def is_local(self, addr: Address) -> bool:
        """Ours, parked ones included."""
        return addr in self._ours or addr in self._parked

    def is_inside(self, addr: Address) -> bool:
        """On the LAN side."""
        return any(addr.version == net.version and addr in net for net in self._inside)

    # -- internal

    def _load(self) -> None:
        self._links.clear()
        self._held.clear()
        self._defaults.clear()
        self._parked.clear()
        self._deliverable.clear()
        requests = [(routes.RTM_GETLINK, 0), (routes.RTM_GETADDR, 0)]
        requests += [(routes.RTM_GETROUTE, version) for version in (4, 6)]
        for kind, version in requests:
            answer = self._requests.request(
                "list of addresses", kind, nl.NLM_F_DUMP, routes.dump(version)
            )
            for part in answer:
                self._take(part)
        self._refresh()

    def _take(self, part: nl.Message) -> bool:
        """True when it is about routes (the choice of a source may be another one now)."""
        if part.kind in (routes.RTM_NEWLINK, routes.RTM_DELLINK):
            link = routes.parse_link(part.payload)
            if link is not None:
                if part.kind == routes.RTM_NEWLINK:
                    self._links[link.index] = link
                else:
                    self._links.pop(link.index, None)
        elif part.kind in (routes.RTM_NEWADDR, routes.RTM_DELADDR):
            held = routes.parse_address(part.payload)
            if held is not None:
                if part.kind == routes.RTM_NEWADDR:
                    self._held[held.index, held.addr] = held
                else:
                    self._held.pop((held.index, held.addr), None)
        elif part.kind in (routes.RTM_NEWROUTE, routes.RTM_DELROUTE):
            return self._take_route(part)
        return False

    def _take_route(self, part: nl.Message) -> bool:
        route = routes.parse_route(part.payload)
        if route is None:
            return False
        new = part.kind == routes.RTM_NEWROUTE
        if routes.is_parking(route) and route.dst is not None:
            (self._parked.add if new else self._parked.discard)(route.dst)
            return False
        if route.kind == routes.RTN_LOCAL and route.dst is not None:
            here = (route.oif, route.dst)
            (self._deliverable.add if new else self._deliverable.discard)(here)
            return False
        if route.table != routes.RT_TABLE_MAIN or route.kind != routes.RTN_UNICAST:
            return False
        if route.dst_len == 0 and route.oif:
            doors = self._defaults.setdefault(route.version, set())
            (doors.add if new else doors.discard)(route.oif)
        return True

    def _refresh(self) -> None:
        ignored = set(self._settings.ignore)
        usable = [
            (link, held)
            for held in self._held.values()
            if (link := self._links.get(held.index)) is not None
            and not link.loopback
            and link.name not in ignored
            and not held.addr.is_link_local
        ]
        inside = self._inside_links(usable)
        view = [
            LocalAddress(
                addr=held.addr,
                ifname=link.name,
                prefix_len=held.prefix_len,
                usable=link.carrier and _is_usable(held) and self._is_deliverable(held),
                inside=link.index in inside or self._in_prefixes(held.addr),
            )
            for link, held in usable
        ]
        self._view = tuple(sorted(view, key=lambda a: (a.addr.version, a.addr.packed, a.ifname)))
        self._ours = {held.addr for held in self._held.values()}
        self._inside = self._prefixes + [
            ip_network((local.addr, local.prefix_len), strict=False)
            for local in self._view
            if local.inside
        ]

    def _is_deliverable(self, held: IfAddress) -> bool:
        # The kernel announces an IPv6 address before it has the route to it: an answer
        # that came meanwhile (of the router's, to the first neighbour solicitation) would
        # be dropped, and the next attempt is a second away.
        return held.addr.version == 4 or (held.index, held.addr) in self._deliverable

    def _in_prefixes(self, addr: Address) -> bool:
        return any(addr.version == net.version and addr in net for net in self._prefixes)

    def _inside_links(self, held: Iterable[tuple[Link, IfAddress]]) -> set[int]:
        by_link: dict[int, list[Address]] = {}
        names: dict[int, str] = {}
        for link, each in held:
            by_link.setdefault(link.index, []).append(each.addr)
            names[link.index] = link.name
        if self._settings.inside:
            return {index for index, name in names.items() if name in self._inside_names}
        doors = {door for some in self._defaults.values() for door in some}
        outside = set(self._settings.outside)
        return {
            index
            for index, addrs in by_link.items()
            if doors - {index}
            and index not in doors
            and names[index] not in outside
            and _is_lan(addrs)
        }


def _is_usable(held: IfAddress) -> bool:
    tentative = held.flags & routes.IFA_F_TENTATIVE and not held.flags & routes.IFA_F_OPTIMISTIC
    bad = held.flags & (routes.IFA_F_DADFAILED | routes.IFA_F_DEPRECATED)
    return not tentative and not bad


def _is_lan(addrs: list[Address]) -> bool:
    """A LAN has private IPv4 addresses; its IPv6 ones may be global (a delegated prefix)."""
    four = [addr for addr in addrs if addr.version == 4]
    return all(_is_private(addr) for addr in four or addrs)


def _is_private(addr: Address) -> bool:
    return any(addr.version == net.version and addr in net for net in _PRIVATE)
