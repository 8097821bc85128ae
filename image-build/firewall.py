"""A gateway description as nftables rules, for the Linux image (pure).

The same promises as pfconf's pf.conf: nothing listens outside but what the description
opens, nothing crosses that it does not allow, the admin page is for the LAN.  The
redirect tables are redirectd's own and are not touched: they hook in further out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from ipaddress import IPv4Network, IPv6Network

from pfconf.description import Forward, Gateway, Network
from pfconf.martians import martians

# RFC 5925: the option with a MAC of 96 bits takes 16 bytes, and 4 to spare
_MAC_ROOM = 20


def render(gateway: Gateway) -> str:
    """Input for ``nft -f``; replaces the table as a whole, atomically."""
    lines = [
        "# Written from gateway.toml at each start: change that file instead.",
        "table inet gateway",
        "delete table inet gateway",
        "table inet gateway {",
    ]
    for chain in (_antispoof, _input, _forward, _prerouting, _postrouting, _clamp):
        body = list(chain(gateway))
        if body:
            lines += [f" {body[0]}", *(f"  {line}" for line in body[1:]), " }"]
    return "\n".join([*lines, "}"]) + "\n"


def _interfaces(names: Iterable[str]) -> str:
    quoted = [f'"{name}"' for name in names]
    return quoted[0] if len(quoted) == 1 else "{ " + ", ".join(quoted) + " }"


def _prefixes(items: Iterable[object]) -> str:
    words = [str(item) for item in items]
    return words[0] if len(words) == 1 else "{ " + ", ".join(words) + " }"


def _from(sources: tuple[IPv4Network | IPv6Network, ...]) -> list[str]:
    """``ip saddr … ``, one for each family; an empty one when anybody may come."""
    if not sources:
        return [""]
    found = []
    for version, word in ((4, "ip"), (6, "ip6")):
        some = [s for s in sources if s.version == version]
        if some:
            found.append(f"{word} saddr {_prefixes(some)} ")
    return found


def _log(gateway: Gateway) -> list[str]:
    """Rate-limited, so that a flood from outside fills no log."""
    if not gateway.filter.log_blocked:
        return []
    return ['limit rate 10/second log prefix "blocked: "']


def _own_prefixes(network: Network) -> dict[str, str]:
    found = {}
    if network.address is not None:
        found["ip"] = str(network.address.network)
    if network.ipv6 is not None:
        found["ip6"] = str(network.ipv6.network)
    return found


def _antispoof(gateway: Gateway) -> Iterator[str]:
    """Before conntrack, so that a forged packet makes no entry."""
    lines = []
    if gateway.filter.antispoof:
        for network in gateway.networks:
            here = f'iifname "{network.interface}"'
            own = _own_prefixes(network)
            if "ip" in own:
                # A host without an address asks from 0.0.0.0 (RFC 2131 section 4.1).
                allowed = _prefixes(["0.0.0.0", own["ip"]])
                lines.append(f"{here} meta nfproto ipv4 ip saddr != {allowed} drop")
            allowed = _prefixes(["fe80::/10", "::", *([own["ip6"]] if "ip6" in own else [])])
            lines.append(f"{here} meta nfproto ipv6 ip6 saddr != {allowed} drop")
            for word, prefix in own.items():
                lines.append(
                    f'iifname != {{ "lo", "{network.interface}" }} {word} saddr {prefix} drop'
                )
    if gateway.filter.martians:
        outside = gateway.outside
        bogus = martians(outside.private_uplink, outside.ipv6)
        here = f'iifname "{outside.interface}"'
        if outside.address == "dhcp":
            # the provider's DHCP server may have a private address
            lines.append(f"{here} udp sport 67 udp dport 68 accept")
        for version, word in ((4, "ip"), (6, "ip6")):
            some = (
                [m for m in bogus if f"{m}".count(":") == 0]
                if version == 4
                else [m for m in bogus if ":" in f"{m}"]
            )
            if some:
                lines.append(f"{here} {word} saddr {_prefixes(some)} drop")
    if lines:
        yield "chain forged {"
        yield "type filter hook prerouting priority raw; policy accept;"
        yield from lines


def _input(gateway: Gateway) -> Iterator[str]:
    outside = f'iifname "{gateway.outside.interface}"'
    yield "chain input {"
    yield "type filter hook input priority filter; policy drop;"
    yield 'iif "lo" accept'
    yield "ct state invalid drop"
    yield "ct state established,related accept"
    yield (
        "icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert, nd-router-solicit,"
        " nd-router-advert, packet-too-big, time-exceeded, parameter-problem,"
        " destination-unreachable } accept"
    )
    if gateway.outside.address == "dhcp":
        # A refusal comes as a broadcast, which belongs to no conversation.
        yield f"{outside} udp sport 67 udp dport 68 accept"
    if gateway.outside.ipv6:
        yield f"{outside} ip6 saddr fe80::/10 udp sport 547 udp dport 546 accept"
    if gateway.outside.ping:
        yield f"{outside} icmp type echo-request limit rate 20/second accept"
        yield f"{outside} icmpv6 type echo-request limit rate 20/second accept"
    if gateway.redirect.enabled:
        for source in _from(gateway.redirect.source):
            yield f"{outside} {source}udp dport {gateway.redirect.port} accept"
    if gateway.wireguard is not None:
        yield f"{outside} udp dport {gateway.wireguard.port} accept"
        yield f'iifname "{gateway.wireguard.interface}" udp dport 53 accept'
        yield f'iifname "{gateway.wireguard.interface}" tcp dport 53 accept'
    for network in gateway.networks:
        yield from _inside_services(network)
    ports = [22] if gateway.admin.ssh else []
    ports += [gateway.admin.web] if gateway.admin.web is not None else []
    for network in gateway.admins:
        for word, prefix in _own_prefixes(network).items():
            for port in ports:
                yield f'iifname "{network.interface}" {word} saddr {prefix} tcp dport {port} accept'
    yield from _log(gateway)
    yield f"{_inside(gateway)} reject"


def _inside(gateway: Gateway) -> str:
    return f"iifname {_interfaces(n.interface for n in gateway.networks)}"


def _inside_services(network: Network) -> Iterator[str]:
    here = f'iifname "{network.interface}"'
    yield f"{here} icmp type echo-request accept"
    yield f"{here} icmpv6 type echo-request accept"
    if "dhcp" in network.services:
        yield f"{here} udp sport 68 udp dport 67 accept"
    if "dns" in network.services:
        yield f"{here} udp dport 53 accept"
        yield f"{here} tcp dport 53 accept"
    if "ntp" in network.services:
        yield f"{here} udp dport 123 accept"


def _forward(gateway: Gateway) -> Iterator[str]:
    outside = f'oifname "{gateway.outside.interface}"'
    by_name = {network.name: network for network in gateway.networks}
    yield "chain forward {"
    yield "type filter hook forward priority filter; policy drop;"
    yield "ct state invalid drop"
    yield "ct state established,related accept"
    for network in gateway.networks:
        here = f'iifname "{network.interface}"'
        if network.internet:
            yield f"{here} {outside} accept"
        for name in network.to:
            yield f'{here} oifname "{by_name[name].interface}" accept'
    if gateway.wireguard is not None:
        here = f'iifname "{gateway.wireguard.interface}"'
        if gateway.wireguard.internet:
            yield f"{here} {outside} accept"
        for name in gateway.wireguard.to:
            yield f'{here} oifname "{by_name[name].interface}" accept'
        for network in gateway.networks:
            if network.kind == "lan":
                yield (
                    f'iifname "{network.interface}" oifname "{gateway.wireguard.interface}" accept'
                )
    if gateway.forwards:
        yield f'iifname "{gateway.outside.interface}" ct status dnat accept'
    yield from _log(gateway)
    yield f"{_inside(gateway)} reject"


def _prerouting(gateway: Gateway) -> Iterator[str]:
    if not gateway.forwards:
        return
    yield "chain prerouting {"
    yield "type nat hook prerouting priority dstnat; policy accept;"
    for forward in gateway.forwards:
        four = tuple(s for s in forward.source if s.version == 4)
        for source in _from(four):
            yield (
                f'iifname "{gateway.outside.interface}" {source}fib daddr type local'
                f" {forward.proto} dport {_ports(forward)} dnat ip to {_target(forward)}"
            )


def _ports(forward: Forward) -> str:
    low, high = forward.port or (0, 0)
    return str(low) if low == high else f"{low}-{high}"


def _target(forward: Forward) -> str:
    """Without a port of its own, a forward keeps the one that was asked for."""
    return f"{forward.to}" if forward.to_port is None else f"{forward.to}:{forward.to_port}"


def _postrouting(gateway: Gateway) -> Iterator[str]:
    yield "chain postrouting {"
    yield "type nat hook postrouting priority srcnat; policy accept;"
    sources = [
        str(n.address.network) for n in gateway.networks if n.address is not None and n.internet
    ]
    wireguard = gateway.wireguard
    if wireguard is not None and wireguard.internet and wireguard.address is not None:
        sources.append(str(wireguard.address.network))
    if sources:
        yield (f'oifname "{gateway.outside.interface}" ip saddr {_prefixes(sources)} masquerade')


def max_mss(gateway: Gateway) -> int | None:
    """Bytes of TCP payload over IPv4; None: nothing to clamp."""
    if gateway.redirect.max_mss is not None:
        return gateway.redirect.max_mss
    room = gateway.outside.path_mtu - 40
    if gateway.redirect.enabled and gateway.redirect.integrity:
        return room - _MAC_ROOM
    return room if gateway.outside.path_mtu < 1500 else None


def _clamp(gateway: Gateway) -> Iterator[str]:
    mss = max_mss(gateway)
    if mss is None:
        return
    name = gateway.outside.interface
    yield "chain clamp {"
    yield "type filter hook forward priority mangle; policy accept;"
    for word, size in (("ipv4", mss), ("ipv6", mss - 20)):
        for direction in ("iifname", "oifname"):
            # never raise what an end asked for
            yield (
                f'{direction} "{name}" meta nfproto {word} tcp flags syn'
                f" tcp option maxseg size > {size} tcp option maxseg size set {size}"
            )
