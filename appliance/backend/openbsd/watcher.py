"""Addresses and links of this machine: ifconfig's picture, kept up by the route socket."""

from __future__ import annotations

import errno
import fcntl
import socket
import struct
from collections.abc import Callable
from ipaddress import IPv4Network, IPv6Network, ip_interface, ip_network

from ...protocol.inputs import LocalAddress
from ...rewrite.flow import Address
from ..api import BackendError
from . import ifconfig, routemsg
from .settings import Settings
from .system import IFCONFIG, run

AF_ROUTE = 17
ROUTE_MSGFILTER, ROUTE_TABLEFILTER = 1, 2
ALL_TABLES = 0xFFFFFFFF
RECEIVE_BUFFER = 1024 * 1024
MESSAGES_A_READ = 256

# SIOCGIFAFLAG_IN6, _IOWR('i', 73, struct in6_ifreq); flags of an IPv6 address
SIOCGIFAFLAG_IN6 = 0xC1206949
IN6_IFF_TENTATIVE, IN6_IFF_DUPLICATED, IN6_IFF_DEPRECATED = 0x02, 0x04, 0x10

# RFC 1918 and RFC 4193; carrier-grade NAT (RFC 6598) is no LAN of ours
_PRIVATE = [ip_network(n) for n in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7")]

Flags = Callable[[str, Address], int | None]


class Picture:
    """Which addresses there are and what part they play; pure, changed by messages.

    flags  IPv6 flags of (interface, address); None when they can't be had
    """

    def __init__(self, settings: Settings, text: str, flags: Flags) -> None:
        self._settings, self._flags = settings, flags
        self._prefixes: list[IPv4Network | IPv6Network] = []
        self._inside_names: set[str] = set()
        for word in settings.inside:
            try:
                self._prefixes.append(ip_network(word))
            except ValueError:
                self._inside_names.add(word)
        self._interfaces: dict[str, ifconfig.Interface] = {}
        self._egress: set[str] = set()
        self.load(text)

    def load(self, text: str) -> None:
        """Begin anew from ``ifconfig`` output."""
        self._interfaces = {i.name: i for i in ifconfig.parse(text)}
        self._egress = {i.name for i in self._interfaces.values() if "egress" in i.groups}

    def take(self, message: routemsg.Message) -> bool:
        """True: something of interest may have changed."""
        if isinstance(message, routemsg.AddressMessage):
            return self._address(message)
        if isinstance(message, routemsg.LinkMessage):
            made = self._interface(message.ifname, message.index)
            changed = (made.flags, made.link_up) != (message.flags, message.link_up)
            made.flags, made.link_up = message.flags, message.link_up
            return changed
        if isinstance(message, routemsg.AnnounceMessage):
            if message.departed:
                self._egress.discard(message.ifname)
                return self._interfaces.pop(message.ifname, None) is not None
            self._interface(message.ifname, message.index)
            return False
        return isinstance(message, routemsg.RouteMessage) and self._route(message)

    def _address(self, message: routemsg.AddressMessage) -> bool:
        made = self._interface(message.ifname, message.index)
        if message.kind == routemsg.DELADDR:
            return made.addresses.pop(message.addr, None) is not None
        flags = self._flags(message.ifname, message.addr) if message.addr.version == 6 else 0
        if flags is None:  # new addresses of IPv6 are tentative until their attributes change
            flags = IN6_IFF_TENTATIVE if message.kind == routemsg.NEWADDR else 0
        made.addresses[message.addr] = ifconfig.IfAddress(
            message.addr,
            message.prefix_len,
            bool(flags & (IN6_IFF_TENTATIVE | IN6_IFF_DUPLICATED)),
            bool(flags & IN6_IFF_DEPRECATED),
        )
        return True

    def _interface(self, name: str, index: int) -> ifconfig.Interface:
        made = self._interfaces.get(name)
        if made is None:
            made = self._interfaces[name] = ifconfig.Interface(name, ifconfig.IFF_UP, index)
        return made

    def _route(self, message: routemsg.RouteMessage) -> bool:
        """A neighbour's entry is none; a default route tells where the network is."""
        if message.cloned:
            return False
        if message.dest is not None and int(message.dest) == 0 and message.gateway is not None:
            for name, made in self._interfaces.items():
                on_link = any(
                    message.gateway in ip_interface(f"{a.addr}/{a.prefix_len}").network
                    for a in made.addresses.values()
                    if a.addr.version == message.gateway.version
                )
                if on_link and message.kind == routemsg.ADD:
                    self._egress.add(name)
                elif on_link and message.kind == routemsg.DELETE:
                    self._egress.discard(name)
        return True

    def addresses(self) -> tuple[LocalAddress, ...]:
        """Loopback addresses (parked ones are aliases of lo0) and link-local ones left out."""
        inside = self.inside_names()
        return tuple(
            LocalAddress(
                held.addr,
                made.name,
                held.prefix_len,
                made.up and not held.tentative and not held.deprecated,
                made.name in inside or self._in_prefixes(held.addr),
            )
            for made in self._interfaces.values()
            if not made.loopback and made.name not in self._settings.ignore
            for held in made.addresses.values()
            if not held.addr.is_link_local
        )

    def inside_names(self) -> set[str]:
        if self._settings.inside:
            return self._inside_names
        outside = set(self._settings.outside) or self._egress
        if not outside:
            return set()
        return {
            made.name
            for made in self._interfaces.values()
            if made.name not in outside and not made.loopback and _private_only(made)
        }

    def outside_name(self) -> str | None:
        """The one interface towards the network, None when there are none or several."""
        names = set(self._settings.outside) or self._egress
        return next(iter(names)) if len(names) == 1 else None

    def interface_of(self, addr: Address) -> str | None:
        """The inside interface whose network holds ``addr``."""
        inside = self.inside_names()
        for made in self._interfaces.values():
            for held in made.addresses.values():
                network = ip_interface(f"{held.addr}/{held.prefix_len}").network
                if made.name in inside and addr.version == network.version and addr in network:
                    return made.name
        return None

    def is_local(self, addr: Address) -> bool:
        """Ours, parked ones included."""
        return any(addr in made.addresses for made in self._interfaces.values())

    def is_inside(self, addr: Address) -> bool:
        return self._in_prefixes(addr) or self.interface_of(addr) is not None

    def _in_prefixes(self, addr: Address) -> bool:
        return any(addr.version == p.version and addr in p for p in self._prefixes)


def _private_only(made: ifconfig.Interface) -> bool:
    """A LAN's IPv6 addresses are global where the provider gives a prefix: IPv4 decides."""
    held = [a.addr for a in made.addresses.values() if not a.addr.is_link_local]
    told = [a for a in held if a.version == 4] or held
    return bool(told) and all(
        any(a.version == p.version and a in p for p in _PRIVATE) for a in told
    )


class RouteWatcher:
    """:class:`..api.AddressWatcher`; no privilege needed.

    snapshot  gives ifconfig's text, at the start and after an overflow
    """

    def __init__(
        self, settings: Settings, snapshot: Callable[[], str] = lambda: run([IFCONFIG])
    ) -> None:
        self._snapshot = snapshot
        # first the socket, then the picture: what changes in between is told twice
        self._sock = open_route_socket()
        self.picture = Picture(settings, snapshot(), ipv6_flags)

    def fileno(self) -> int:
        return self._sock.fileno()

    def close(self) -> None:
        self._sock.close()

    def read(self) -> bool:
        changed = False
        for _ in range(MESSAGES_A_READ):
            try:
                data = self._sock.recv(65536)
            except (BlockingIOError, InterruptedError):
                break
            except OSError as fault:
                if fault.errno != errno.ENOBUFS:
                    raise
                return self._again()
            changed |= self.take(data)
        return changed

    def take(self, data: bytes) -> bool:
        try:
            message = routemsg.parse(data)
        except routemsg.RouteMessageError:
            return False
        if isinstance(message, routemsg.OverflowMessage):
            return self._again()
        return message is not None and self.picture.take(message)

    def _again(self) -> bool:
        try:
            self.picture.load(self._snapshot())
        except BackendError as fault:
            raise BackendError(f"the route socket overflowed, and {fault}") from None
        return True

    def addresses(self) -> tuple[LocalAddress, ...]:
        return self.picture.addresses()

    def source_for(self, remote: Address) -> Address | None:
        family = socket.AF_INET6 if remote.version == 6 else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            try:
                sock.connect((str(remote), 9))  # sends nothing: it only asks for the route
                name = sock.getsockname()[0]
            except OSError:
                return None
        for local in self.addresses():
            if str(local.addr) == name:
                return local.addr
        return None


def open_route_socket() -> socket.socket:
    sock = socket.socket(AF_ROUTE, socket.SOCK_RAW, 0)
    wanted = sum(1 << kind for kind in routemsg.WANTED)
    sock.setsockopt(AF_ROUTE, ROUTE_MSGFILTER, struct.pack("=I", wanted))
    sock.setsockopt(AF_ROUTE, ROUTE_TABLEFILTER, struct.pack("=I", ALL_TABLES))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
    sock.setblocking(False)
    return sock


def ipv6_flags(ifname: str, addr: Address) -> int | None:
    """Flags of an address; None when it is gone or the kernel does not say."""
    sockaddr = struct.pack("=BBHI16sI", 28, routemsg.AF_INET6, 0, 0, addr.packed, 0)
    request = ifname.encode()[:15].ljust(16, b"\0") + sockaddr.ljust(272, b"\0")
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        try:
            answer = fcntl.ioctl(sock, SIOCGIFAFLAG_IN6, request)
        except OSError:
            return None
    return int(struct.unpack_from("=i", answer, 16)[0])
