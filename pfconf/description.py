"""The description of a home gateway: a short TOML text as frozen, checked values.

    [external]
    interface = "em0"
    address = "dhcp"

    [[network]]
    name = "lan"
    interface = "em1"
    address = "192.168.1.1/24"

pfconf(1) explains each key.  Every value is read into a type that can't hold pf syntax;
:mod:`pfconf.checks` refuses what can't work together.
"""

# ruff: noqa: RUF009 -- setting() makes an attrs field
from __future__ import annotations

from collections.abc import Callable
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Interface,
    IPv6Network,
    ip_address,
    ip_interface,
)
from typing import Any, Literal

import attrs

from appliance import config_values as v
from appliance.config_reading import Bad, Fault, faults_of, reader, setting
from appliance.toml_lines import Document, TomlError, parse

from . import checks

Network4or6 = IPv4Network | IPv6Network
Kind = Literal["lan", "guest", "dmz"]

_WEB_PORT: int | None = 4788
_RESERVED = {"any", "ext", "external", "inside", "internet", "ipsec", "self", "wireguard"}

interface = v.text(r"[a-z]{2,12}[0-9]{1,3}", "interface name", "em0")
_name = v.text(r"[a-z][a-z0-9_]{0,14}", "name (small letters, digits, _)", "lan")
_anchor = v.text(r"[a-z][a-z0-9_-]{0,30}(/\*)?", "name of an anchor", "ftp-proxy/*")


def network_name(value: Any) -> str:
    name = _name(value)
    if name in _RESERVED:
        raise Bad(f"{name!r} has a meaning of its own", "choose another name, such as 'lan'")
    return name


def _interface_address(version: int) -> Callable[[Any], Any]:
    """``192.168.1.1/24``: our own address with the length of its network's prefix."""
    example = "192.168.1.1/24" if version == 4 else "2001:db8:1::1/64"

    def read(value: Any) -> Any:
        if not isinstance(value, str) or "/" not in value:
            raise Bad(f"{value!r} is no address with a prefix length", f"write one: {example!r}")
        try:
            made = ip_interface(value)
        except ValueError:
            raise Bad(
                f"{value!r} is no address with a prefix length", f"write one: {example!r}"
            ) from None
        if made.version != version:
            raise Bad(f"{value!r} is not IPv{version}", f"write one: {example!r}")
        _usable(made)
        return made

    return read


def _usable(made: IPv4Interface | IPv6Interface) -> None:
    addr = made.ip
    if addr.is_multicast or addr.is_loopback or addr.is_unspecified or addr.is_link_local:
        raise Bad(f"{made} can't be an interface's address", "choose a unicast address")
    low, high = (8, 30) if made.version == 4 else (16, 127)
    if not low <= made.network.prefixlen <= high:
        raise Bad(f"a prefix length of {made.network.prefixlen}", f"use {low} to {high}")
    network = made.network
    if made.ip == network.network_address and made.version == 4:
        raise Bad(f"{made.ip} is the network's own address", f"use {network.network_address + 1}")
    if made.version == 4 and made.ip == network.broadcast_address:
        raise Bad(f"{made.ip} is the broadcast address", f"use {network.network_address + 1}")


def external_address(value: Any) -> Literal["dhcp", "pppoe"] | IPv4Interface:
    if value in ("dhcp", "pppoe"):
        word: Literal["dhcp", "pppoe"] = value
        return word
    try:
        made: IPv4Interface = _interface_address(4)(value)
    except Bad as bad:
        raise Bad(bad.problem, 'write "dhcp", "pppoe" or an address: "203.0.113.5/24"') from None
    return made


def host4(value: Any) -> IPv4Address:
    try:
        made = ip_address(value) if isinstance(value, str) else None
    except ValueError:
        made = None
    if not isinstance(made, IPv4Address):
        raise Bad(f"{value!r} is no IPv4 address", "write the inside host's: '192.168.1.10'")
    return made


def _port_or_off(value: Any) -> int | None:
    return None if value == "off" else v.whole(1, 65535)(value)


def sources(value: Any) -> tuple[Network4or6, ...]:
    """A list of prefixes; ``any`` (the default) is the empty list."""
    if value == "any":
        return ()
    if isinstance(value, str):
        value = [value]
    found = v.listed(v.prefix)(value)
    if not found:
        raise Bad("the list is empty: nobody could come in", 'name prefixes, or write "any"')
    return found


@attrs.frozen
class External:
    """The interface towards the provider.

    private_uplink  the provider's side has private addresses (double NAT)
    """

    interface: str = setting("", interface)
    address: Literal["dhcp", "pppoe"] | IPv4Interface = setting("dhcp", external_address)
    ipv6: bool = setting(False, v.boolean)
    mtu: int | None = setting(None, v.whole(1280, 9000))
    private_uplink: bool = setting(False, v.boolean)
    ping: bool = setting(True, v.boolean)

    def check(self) -> None:
        if not self.interface:
            raise Bad("names no interface", 'add interface = "em0"')

    @property
    def path_mtu(self) -> int:
        """Bytes; PPPoE takes 8 of Ethernet's 1500 (RFC 2516 section 7)."""
        return self.mtu or (1492 if self.address == "pppoe" else 1500)


@attrs.frozen
class Network:
    """One network behind the gateway.

    to        other networks it may open connections to
    internet  whether it may use the Internet
    services  what it may ask of the gateway: dns, dhcp, ntp
    """

    name: str = setting("", network_name)
    interface: str = setting("", interface)
    address: IPv4Interface | None = setting(None, _interface_address(4))
    ipv6: IPv6Interface | None = setting(None, _interface_address(6))
    kind: Kind = setting("lan", v.choice("lan", "guest", "dmz"))
    internet: bool = setting(True, v.boolean)
    to: tuple[str, ...] = setting((), v.listed(_name))
    services: tuple[str, ...] = setting(("dhcp", "dns"), v.listed(v.choice("dhcp", "dns", "ntp")))

    def check(self) -> None:
        for key in ("name", "interface", "address"):
            if not getattr(self, key):
                raise Bad(f"has no {key}", f"add '{key}'")


@attrs.frozen
class Forward:
    """A port of the external address that leads to an inside host."""

    port: tuple[int, int] | None = setting(None, v.port_range)
    proto: Literal["tcp", "udp"] = setting("tcp", v.choice("tcp", "udp"))
    to: IPv4Address | None = setting(None, host4)
    to_port: int | None = setting(None, v.whole(1, 65535))
    source: tuple[Network4or6, ...] = setting((), sources, key="from")

    def check(self) -> None:
        if self.port is None or self.to is None:
            raise Bad("needs 'port' and 'to'", "name the outer port and the inside host")
        if self.to_port is not None and self.port[0] != self.port[1]:
            raise Bad("'to-port' does not go with a range of ports", "leave 'to-port' out")


@attrs.frozen
class Wireguard:
    """wg(4), for devices on the road."""

    interface: str = setting("wg0", v.text(r"wg[0-9]{1,3}", "WireGuard interface", "wg0"))
    port: int = setting(51820, v.whole(1, 65535))
    address: IPv4Interface | None = setting(None, _interface_address(4))
    to: tuple[str, ...] = setting((), v.listed(_name))
    internet: bool = setting(True, v.boolean)

    def check(self) -> None:
        if self.address is None:
            raise Bad("has no address", "add 'address', such as '10.20.0.1/24'")


@attrs.frozen
class Ipsec:
    """iked(8): networks that are reached through IPsec tunnels."""

    networks: tuple[Network4or6, ...] = setting((), v.one_or_more(v.prefix))
    peers: tuple[Network4or6, ...] = setting((), sources)
    to: tuple[str, ...] = setting((), v.listed(_name))

    def check(self) -> None:
        if not self.networks:
            raise Bad("has no networks", "add 'networks', the far sides' prefixes")


@attrs.frozen
class Redirect:
    """redirectd itself.

    integrity  leave room for the per-packet MAC: TCP's MSS is clamped
    max_mss    clamp to this instead
    """

    enabled: bool = setting(True, v.boolean)
    port: int = setting(4787, v.whole(1, 65535))
    source: tuple[Network4or6, ...] = setting((), sources, key="from")
    integrity: bool = setting(False, v.boolean)
    max_mss: int | None = setting(None, v.whole(536, 8960))


@attrs.frozen
class Admin:
    """The admin page and ssh, from networks of kind ``lan`` alone."""

    source: tuple[str, ...] = setting((), v.one_or_more(_name), key="from")
    web: int | None = setting(_WEB_PORT, _port_or_off)
    ssh: bool = setting(True, v.boolean)


@attrs.frozen
class Filter:
    """What the ruleset does beside passing packets."""

    antispoof: bool = setting(True, v.boolean)
    martians: bool = setting(True, v.boolean)
    log_blocked: bool = setting(False, v.boolean)
    states: int = setting(100_000, v.whole(1_000, 10_000_000))


@attrs.frozen
class Anchor:
    """An anchor of another daemon (ftp-proxy, relayd), and where it stands."""

    name: str = setting("", _anchor)
    at: Literal["before-nat", "after-nat"] = setting(
        "before-nat", v.choice("before-nat", "after-nat")
    )

    def check(self) -> None:
        if not self.name:
            raise Bad("has no name", "add 'name', such as 'ftp-proxy/*'")


@attrs.frozen
class Gateway:
    """The whole description.  ``interfaces``: those that the machine has; when it is given,
    any other name is refused."""

    interfaces: tuple[str, ...] = setting((), v.listed(interface))
    external: External | None = setting(None, v.table(External))
    networks: tuple[Network, ...] = setting((), v.tables(Network), key="network")
    forwards: tuple[Forward, ...] = setting((), v.tables(Forward), key="forward")
    wireguard: Wireguard | None = setting(None, v.table(Wireguard))
    ipsec: Ipsec | None = setting(None, v.table(Ipsec))
    redirect: Redirect = setting(Redirect(), v.table(Redirect))
    admin: Admin = setting(Admin(), v.table(Admin))
    filter: Filter = setting(Filter(), v.table(Filter))
    anchors: tuple[Anchor, ...] = setting((), v.tables(Anchor), key="anchor")

    def check(self) -> None:
        if self.external is None:
            raise Bad("there is no [external] interface", "add the table [external]")
        if not any(network.kind == "lan" for network in self.networks):
            raise Bad('there is no [[network]] of kind "lan"', "add one")

    @property
    def outside(self) -> External:
        """``external``, which :meth:`check` made sure of."""
        if self.external is None:
            raise ValueError("a gateway without an external interface")
        return self.external

    @property
    def admins(self) -> tuple[Network, ...]:
        """Networks that may administer: those named, else all of kind ``lan``."""
        if self.admin.source:
            return tuple(n for n in self.networks if n.name in self.admin.source)
        return tuple(n for n in self.networks if n.kind == "lan")


def read_description(
    text: str, present: tuple[str, ...] | None = None
) -> tuple[Gateway | None, list[Fault]]:
    """The description in ``text``, or None and every fault with its line.

    ``present``: interfaces that the machine has, when the caller knows them.
    """
    try:
        document = parse(text)
    except TomlError as error:
        return None, [Fault(error.line, "", f"is not TOML: {error.problem}", "see pfconf(1)")]
    try:
        gateway: Gateway = reader().structure(document.values, Gateway)
    except Exception as error:
        return None, faults_of(error, Gateway, document)
    faults = _located(checks.problems(gateway, present), document)
    return (None if faults else gateway), faults


def _located(problems: list[checks.Problem], document: Document) -> list[Fault]:
    return [
        Fault(document.line(p.path), checks.shown(p.path), p.problem, p.remedy) for p in problems
    ]
