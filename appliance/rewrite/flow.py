"""Tuples: the names under which one TCP connection is known.

A *flow* is seen from this side: ``local`` is the end that lies with us (our own
socket, or a host behind our NAT), ``remote`` the far one.  A connection has three
flows: *inside* (the design's end tuple: as our end sees it), *birth* (as it crossed
the network when both daemons first agreed on it) and *wire* (as it crosses now).
"""

from __future__ import annotations

from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import NamedTuple

Address = IPv4Address | IPv6Address


# A host has thousands of connections but few addresses: printing and parsing these
# anew each time took most of a large move.
@lru_cache(maxsize=4096)
def _text(addr: Address) -> str:
    return str(addr) if addr.version == 4 else f"[{addr}]"


@lru_cache(maxsize=4096)
def _address(text: str) -> Address:
    if text.startswith("[") and text.endswith("]"):
        return IPv6Address(text[1:-1])
    return IPv4Address(text)


class Endpoint(NamedTuple):
    """An address and a TCP port (0 to 65535)."""

    addr: Address
    port: int

    def __str__(self) -> str:
        return f"{_text(self.addr)}:{self.port}"

    def __hash__(self) -> int:
        # ipaddress hashes the hexadecimal text of an address
        return hash((int(self.addr), self.port))

    @classmethod
    def parse(cls, text: str) -> Endpoint:
        """``10.0.0.1:22`` or ``[fd00::1]:22``; ValueError names what is wrong."""
        host, sep, port = text.rpartition(":")
        if not sep or not port.isascii() or not port.isdigit() or int(port) > 65535:
            raise ValueError(f"{text!r} is not ADDRESS:PORT")
        return cls(_address(host), int(port))

    def packed(self) -> bytes:
        """Address bytes (4 or 16), then the port in network order."""
        return self.addr.packed + self.port.to_bytes(2, "big")


class Flow(NamedTuple):
    """One TCP connection as seen from this side."""

    local: Endpoint
    remote: Endpoint

    def __str__(self) -> str:
        return f"{self.local} {self.remote}"

    @classmethod
    def parse(cls, text: str) -> Flow:
        """The form that ``str()`` gives: two endpoints with one space between."""
        local, sep, remote = text.partition(" ")
        if not sep:
            raise ValueError(f"{text!r} is not LOCAL REMOTE")
        flow = cls(Endpoint.parse(local), Endpoint.parse(remote))
        if flow.local.addr.version != flow.remote.addr.version:
            raise ValueError(f"{text!r} mixes IPv4 and IPv6")
        return flow

    @classmethod
    def of(cls, laddr: str, lport: int, raddr: str, rport: int) -> Flow:
        return cls(Endpoint(ip_address(laddr), lport), Endpoint(ip_address(raddr), rport))

    @property
    def version(self) -> int:
        """4 or 6."""
        return self.local.addr.version

    def reversed(self) -> Flow:
        """The same connection as the far side sees it."""
        return Flow(self.remote, self.local)

    def canonical(self) -> bytes:
        """The same bytes at both ends: the smaller endpoint first."""
        a, b = self.local.packed(), self.remote.packed()
        return min(a, b) + max(a, b)

    def with_local(self, addr: Address, port: int | None = None) -> Flow:
        return Flow(Endpoint(addr, self.local.port if port is None else port), self.remote)

    def with_remote(self, addr: Address, port: int | None = None) -> Flow:
        return Flow(self.local, Endpoint(addr, self.remote.port if port is None else port))
