"""May a peer's connections go to this address?  Everything it could do harm with is refused."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address, ip_network

from ..rewrite.flow import Address
from .frames import TargetFault
from .inputs import LocalAddress

# RFC 1122, 3.2.1.3: "this network", class E and the limited broadcast
_NEVER = tuple(ip_network(p) for p in ("0.0.0.0/8", "127.0.0.0/8", "240.0.0.0/4"))


def target_fault(new: Address, local: Iterable[LocalAddress]) -> TargetFault | None:
    """None: ``new`` may be used.  ``local``: all addresses of this machine."""
    if not _unicast(new):
        return TargetFault.NOT_UNICAST
    for mine in local:
        if mine.addr == new:
            return TargetFault.OWN_ADDRESS
        if mine.addr.version != new.version:
            continue
        network = ip_network(f"{mine.addr}/{mine.prefix_len}", strict=False)
        if new not in network:
            continue
        if mine.inside:
            return TargetFault.INSIDE
        edges = (network.network_address, network.broadcast_address)
        if new.version == 4 and mine.prefix_len < 31 and new in edges:
            return TargetFault.NOT_UNICAST
    return None


def _unicast(addr: Address) -> bool:
    if addr.is_multicast or addr.is_unspecified or addr.is_loopback or addr.is_link_local:
        return False
    if isinstance(addr, IPv4Address):
        return not any(addr in net for net in _NEVER)
    assert isinstance(addr, IPv6Address)
    # Embedded IPv4 would reach by a detour what is refused above; what is reserved holds
    # IPv4-compatible addresses and the prefix of translators (64:ff9b::/96, RFC 6052).
    embedded = addr.ipv4_mapped or addr.sixtofour or addr.teredo
    return embedded is None and not addr.is_reserved
