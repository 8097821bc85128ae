"""What a gateway description must not say although each value by itself is right."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from typing import TYPE_CHECKING

from appliance.toml_lines import KeyPath

from .martians import martians

if TYPE_CHECKING:
    from .description import Gateway

Prefix = IPv4Network | IPv6Network


@dataclass(frozen=True, slots=True)
class Problem:
    """One contradiction; ``path`` leads to the key that is shown with its line."""

    path: KeyPath
    problem: str
    remedy: str


def shown(path: KeyPath) -> str:
    """``network[2].to``: counted from 1, as a person would."""
    text = "".join(f"[{p + 1}]" if isinstance(p, int) else f".{p}" for p in path)
    return text.lstrip(".")


def problems(gateway: Gateway, present: tuple[str, ...] | None = None) -> list[Problem]:
    """Everything that can't work; ``present``: interfaces known to exist."""
    return [
        *_interfaces(gateway, present),
        *_external(gateway),
        *_names(gateway),
        *_overlaps(gateway),
        *_references(gateway),
        *_forwards(gateway),
        *_ports(gateway),
        *_anchors(gateway),
        *_clamp(gateway),
        *_martians(gateway),
    ]


def _used_interfaces(gateway: Gateway) -> Iterator[tuple[KeyPath, str]]:
    yield ("external", "interface"), gateway.outside.interface
    for number, network in enumerate(gateway.networks):
        yield ("network", number, "interface"), network.interface
    if gateway.wireguard is not None:
        yield ("wireguard", "interface"), gateway.wireguard.interface


def _interfaces(gateway: Gateway, present: tuple[str, ...] | None) -> Iterator[Problem]:
    known = gateway.interfaces or present
    seen: dict[str, KeyPath] = {}
    for path, name in _used_interfaces(gateway):
        if name in seen:
            yield Problem(
                path, f"{name!r} is already {shown(seen[name])}", "give each its own interface"
            )
        seen.setdefault(name, path)
        # wg(4) and pppoe(4) are made by hostname.if(5), no hardware lists them
        if known and name not in known and not name.startswith(("wg", "pppoe")):
            yield Problem(
                path, f"unknown interface {name!r}", f"the machine has {', '.join(known)}"
            )


def _external(gateway: Gateway) -> Iterator[Problem]:
    outside = gateway.outside
    is_pppoe = outside.interface.startswith("pppoe")
    if outside.address == "pppoe" and not is_pppoe:
        yield Problem(
            ("external", "interface"),
            f"{outside.interface!r} is no pppoe(4) interface",
            'with address = "pppoe" name it: "pppoe0"',
        )
    if is_pppoe and outside.address != "pppoe":
        yield Problem(
            ("external", "address"),
            f"{outside.interface!r} gets its address by PPPoE",
            'write address = "pppoe"',
        )
    for number, network in enumerate(gateway.networks):
        if network.ipv6 is not None and not outside.ipv6:
            yield Problem(
                ("network", number, "ipv6"),
                "the external interface has no IPv6",
                "add 'ipv6 = true' to [external], or leave this out",
            )


def _names(gateway: Gateway) -> Iterator[Problem]:
    seen: dict[str, int] = {}
    for number, network in enumerate(gateway.networks):
        if network.name in seen:
            yield Problem(
                ("network", number, "name"),
                f"{network.name!r} is already network[{seen[network.name] + 1}]",
                "give each network its own name",
            )
        seen.setdefault(network.name, number)


def _prefixes(gateway: Gateway) -> Iterator[tuple[KeyPath, Prefix]]:
    if not isinstance(gateway.outside.address, str):
        yield ("external", "address"), gateway.outside.address.network
    for number, network in enumerate(gateway.networks):
        if network.address is not None:
            yield ("network", number, "address"), network.address.network
        if network.ipv6 is not None:
            yield ("network", number, "ipv6"), network.ipv6.network
    if gateway.wireguard is not None and gateway.wireguard.address is not None:
        yield ("wireguard", "address"), gateway.wireguard.address.network
    if gateway.ipsec is not None:
        for prefix in gateway.ipsec.networks:
            yield ("ipsec", "networks"), prefix


def _overlaps(gateway: Gateway) -> Iterator[Problem]:
    before: list[tuple[KeyPath, Prefix]] = []
    for path, prefix in _prefixes(gateway):
        for other_path, other in before:
            if prefix.version == other.version and prefix.overlaps(other):
                yield Problem(
                    path,
                    f"{prefix} overlaps {other} of {shown(other_path)}",
                    "give each network addresses of its own",
                )
                break
        before.append((path, prefix))


def _references(gateway: Gateway) -> Iterator[Problem]:
    kinds = {network.name: network.kind for network in gateway.networks}
    lists: list[tuple[KeyPath, tuple[str, ...], str | None]] = [
        (("network", n, "to"), network.to, network.name)
        for n, network in enumerate(gateway.networks)
    ]
    lists.append((("admin", "from"), gateway.admin.source, None))
    if gateway.wireguard is not None:
        lists.append((("wireguard", "to"), gateway.wireguard.to, None))
    if gateway.ipsec is not None:
        lists.append((("ipsec", "to"), gateway.ipsec.to, None))
    for path, names, own in lists:
        for name in names:
            if name not in kinds:
                known = ", ".join(sorted(kinds))
                yield Problem(path, f"no network is called {name!r}", f"there are: {known}")
            elif name == own:
                yield Problem(path, f"{name!r} is this network itself", "leave it out")
    for number, network in enumerate(gateway.networks):
        if network.kind == "guest" and any(kinds.get(name) == "lan" for name in network.to):
            yield Problem(
                ("network", number, "to"),
                "a guest network may not reach a LAN",
                'leave it out, or make this network\'s kind "lan"',
            )
    for name in gateway.admin.source:
        if kinds.get(name, "lan") != "lan":
            yield Problem(
                ("admin", "from"),
                f"{name!r} is a {kinds[name]} network; administration is for a LAN alone",
                'name networks of kind "lan"',
            )


def _forwards(gateway: Gateway) -> Iterator[Problem]:
    for number, forward in enumerate(gateway.forwards):
        home = [
            n for n in gateway.networks
            if n.address is not None and forward.to in n.address.network
        ]  # fmt: skip
        path = ("forward", number, "to")
        if not home:
            yield Problem(
                path, f"{forward.to} is in none of the networks", "name a host behind the gateway"
            )
            continue
        (network, *_) = home
        inside = network.address
        if inside is None:
            continue
        if forward.to == inside.ip:
            yield Problem(path, f"{forward.to} is the gateway itself", "name a host behind it")
        elif forward.to in (inside.network.network_address, inside.network.broadcast_address):
            yield Problem(path, f"{forward.to} is no host's address", "name a host behind it")
        for prefix in forward.source:
            if prefix.version == 6:
                yield Problem(
                    ("forward", number, "from"),
                    f"{prefix} is IPv6, which no port is forwarded for",
                    "name IPv4 prefixes",
                )


def _ports(gateway: Gateway) -> Iterator[Problem]:
    """Outer ports, each of which can have one owner."""
    taken: list[tuple[str, int, int, str]] = []
    if gateway.redirect.enabled:
        port = gateway.redirect.port
        taken.append(("udp", port, port, "redirect.port"))
    claims: list[tuple[KeyPath, str, int, int]] = []
    if gateway.ipsec is not None:
        claims += [(("ipsec",), "udp", 500, 500), (("ipsec",), "udp", 4500, 4500)]
    if gateway.wireguard is not None:
        port = gateway.wireguard.port
        claims.append((("wireguard", "port"), "udp", port, port))
    for number, forward in enumerate(gateway.forwards):
        if forward.port is not None:
            claims.append((("forward", number, "port"), forward.proto, *forward.port))
    for path, proto, low, high in claims:
        for other_proto, other_low, other_high, owner in taken:
            if proto == other_proto and low <= other_high and other_low <= high:
                yield Problem(
                    path,
                    f"{proto} port {max(low, other_low)} is taken by {owner}",
                    "choose another port",
                )
                break
        taken.append((proto, low, high, shown(path)))


def _anchors(gateway: Gateway) -> Iterator[Problem]:
    seen: set[str] = set()
    for number, anchor in enumerate(gateway.anchors):
        path = ("anchor", number, "name")
        stem = anchor.name.removesuffix("/*")
        if stem == "redirect" and anchor.at == "after-nat":
            yield Problem(
                ("anchor", number, "at"),
                "the redirect anchor after the NAT rule leaks inside addresses",
                "leave it out: it is written before the NAT rule",
            )
        elif stem.startswith("redirect"):
            yield Problem(path, f"{anchor.name!r} is written anyway", "leave it out")
        if stem in seen:
            yield Problem(path, f"{anchor.name!r} stands twice", "keep one of them")
        seen.add(stem)


def _clamp(gateway: Gateway) -> Iterator[Problem]:
    chosen, room = gateway.redirect.max_mss, gateway.outside.path_mtu - 40
    if chosen is not None and chosen > room:
        yield Problem(
            ("redirect", "max-mss"),
            f"{chosen} is more than an MTU of {gateway.outside.path_mtu} carries",
            f"use at most {room}",
        )


def _martians(gateway: Gateway) -> Iterator[Problem]:
    """What the description lets in must not be what it drops as impossible."""
    if not gateway.filter.martians:
        return
    outside = gateway.outside
    dropped = martians(outside.private_uplink, ipv6=True)
    claims: list[tuple[KeyPath, Prefix]] = []
    if not isinstance(outside.address, str):
        claims.append((("external", "address"), outside.address.network))
    claims += [(("redirect", "from"), prefix) for prefix in gateway.redirect.source]
    if gateway.ipsec is not None:
        claims += [(("ipsec", "peers"), prefix) for prefix in gateway.ipsec.peers]
    for number, forward in enumerate(gateway.forwards):
        claims += [(("forward", number, "from"), prefix) for prefix in forward.source]
    for path, prefix in claims:
        for martian in dropped:
            within = prefix.prefixlen >= martian.prefixlen
            if within and prefix.version == martian.version and prefix.overlaps(martian):
                yield Problem(
                    path,
                    f"{prefix} lies in {martian}, which is dropped on the external interface",
                    "add 'private-uplink = true' to [external], or 'martians = false' to [filter]",
                )
                break
