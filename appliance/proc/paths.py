"""From addresses and routes to the core's :class:`Paths`."""

from __future__ import annotations

from collections.abc import Iterable

from ..backend.api import AddressWatcher
from ..protocol.inputs import LocalAddress, Paths
from ..rewrite.flow import Address


def look(watcher: AddressWatcher, remotes: Iterable[Address]) -> Paths:
    """The addresses of this machine, and which one routing would use towards whom."""
    addresses = watcher.addresses()
    source: dict[Address, Address] = {}
    for remote in remotes:
        chosen = _usable(watcher.source_for(remote), addresses)
        if chosen is not None:
            source[remote] = chosen
    return Paths(addresses=addresses, source=source)


def _usable(chosen: Address | None, addresses: tuple[LocalAddress, ...]) -> Address | None:
    """What routing chose, or its neighbour on the same interface.

    IPv4 routing goes on choosing an interface's first address when it is deprecated (only
    IPv6 has RFC 6724, rule 3); the link is right all the same.
    """
    found = next((local for local in addresses if local.addr == chosen), None)
    if found is None or found.usable:
        return None if found is None else found.addr
    for local in addresses:
        same_link = local.ifname == found.ifname and local.addr.version == found.addr.version
        if same_link and local.usable and not local.inside and not local.addr.is_link_local:
            return local.addr
    return None


def describe(addresses: Iterable[LocalAddress]) -> str:
    """One line for the log: ``192.0.2.1/24 on eth0, ...``."""
    return ", ".join(
        f"{local.addr}/{local.prefix_len} on {local.ifname}{'' if local.usable else ' (unusable)'}"
        for local in addresses
    )
