"""A gateway description becomes a complete pf.conf.

The order of the sections is the order in which pf evaluates them, and it matters: the
redirect anchor stands before the NAT rule (a ``match … nat-to`` translates at once, and
what the LAN sends first would leak with its own source address); ``block`` comes before
the rules that pass, of which the last match wins.
"""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Network, IPv6Network

from .anchor import mss_clamp
from .description import Forward, Gateway, Network
from .labels import FLUSH_LABEL, PROMPT_INTERFACE
from .martians import martians

#: RFC 5925: the TCP-AO option with a MAC of 96 bits takes 16 bytes, and 4 to spare
MAC_ROOM = 20


def render_gateway(gateway: Gateway) -> str:
    """The text of pf.conf; it depends on nothing but ``gateway``."""
    sections = [
        _head(gateway),
        _macros(gateway),
        _tables(gateway),
        _options(gateway),
        _normalise(gateway),
        _redirect(gateway),
        _nat(gateway),
        _refuse(gateway),
        _default(gateway),
        _ipv6(gateway),
        _outbound(gateway),
        _crossing(gateway),
        _forwarding(gateway),
        _tunnels(gateway),
        _services(gateway),
        _administration(gateway),
    ]
    return "\n".join("\n".join(section) + "\n" for section in map(list, sections) if section)


def _title(text: str) -> str:
    return f"# --- {text} ".ljust(80, "-")


def _head(gateway: Gateway) -> Iterator[str]:
    yield "# pf.conf for a home gateway, written by pfconf(1): change its description instead."
    yield "# Check before loading: pfctl -nf FILE.  Sections stand in the order of evaluation."


def _macros(gateway: Gateway) -> Iterator[str]:
    yield _title("names")
    yield f'ext_if = "{gateway.outside.interface}"'
    for network in gateway.networks:
        yield f'{network.name}_if = "{network.interface}"{_purpose(network)}'
    if gateway.wireguard is not None:
        yield f'wg_if = "{gateway.wireguard.interface}"'


def _purpose(network: Network) -> str:
    words = {"lan": "", "guest": "  # visitors", "dmz": "  # servers that the Internet may reach"}
    return words[network.kind]


def _tables(gateway: Gateway) -> Iterator[str]:
    yield _title("tables")
    yield "# every network behind this gateway, tunnels included"
    yield _table("inside", _inside(gateway))
    if gateway.filter.martians:
        yield "# addresses that do not belong on the Internet (RFC 6890)"
        outside = gateway.outside
        yield _table("martians", martians(outside.private_uplink, outside.ipv6))
    if gateway.redirect.enabled and gateway.redirect.source:
        yield "# who may speak to redirectd"
        yield _table("redirect_from", gateway.redirect.source)
    if gateway.ipsec is not None:
        yield "# IPsec: networks behind the far ends, and the far ends"
        yield _table("ipsec_nets", gateway.ipsec.networks)
        if gateway.ipsec.peers:
            yield _table("ipsec_peers", gateway.ipsec.peers)
    for number, forward in enumerate(gateway.forwards, 1):
        if forward.source:
            yield _table(f"forward_{number}_from", forward.source)


def _inside(gateway: Gateway) -> tuple[IPv4Network | IPv6Network, ...]:
    found: list[IPv4Network | IPv6Network] = []
    for network in gateway.networks:
        found += [network.address.network] if network.address else []
        found += [network.ipv6.network] if network.ipv6 else []
    if gateway.wireguard is not None and gateway.wireguard.address is not None:
        found.append(gateway.wireguard.address.network)
    if gateway.ipsec is not None:
        found += gateway.ipsec.networks
    return tuple(found)


def _table(name: str, items: tuple[object, ...]) -> str:
    words = [str(item) for item in items]
    line = f"table <{name}> const {{ {' '.join(words)} }}"
    if len(line) <= 80:
        return line
    lines, row = [f"table <{name}> const {{ \\"], "   "
    for word in words:
        if len(row) + len(word) > 74:
            lines.append(f"{row} \\")
            row = "   "
        row += f" {word}"
    return "\n".join([*lines, f"{row} \\", "}"])


def _options(gateway: Gateway) -> Iterator[str]:
    yield _title("options")
    yield "set block-policy drop"
    yield "set loginterface $ext_if"
    yield f"set limit states {gateway.filter.states}"
    yield "set skip on lo"


def _normalise(gateway: Gateway) -> Iterator[str]:
    yield _title("normalisation")
    yield "# never 'reassemble tcp' nor 'modulate state': a redirect could not keep such states"
    yield "match in all scrub (no-df random-id)"
    mss = _max_mss(gateway)
    if mss is not None:
        if gateway.redirect.integrity:
            yield "# room for the MAC of protected connections (TCP-AO, RFC 5925)"
        yield str(mss_clamp("ext0", mss)).replace("ext0", "$ext_if")
        if gateway.outside.ipv6:
            yield str(mss_clamp("ext0", mss - 20, 6)).replace("ext0", "$ext_if")


def _max_mss(gateway: Gateway) -> int | None:
    """Bytes of TCP payload (IPv4; IPv6 has 20 less); None: nothing to clamp."""
    if gateway.redirect.max_mss is not None:
        return gateway.redirect.max_mss
    room = gateway.outside.path_mtu - 40
    if gateway.redirect.enabled and gateway.redirect.integrity:
        return room - MAC_ROOM
    return room if gateway.outside.path_mtu < 1500 else None


def _redirect(gateway: Gateway) -> Iterator[str]:
    before = [a.name for a in gateway.anchors if a.at == "before-nat"]
    if not gateway.redirect.enabled and not before:
        return
    yield _title("anchors")
    if gateway.redirect.enabled:
        yield "# redirected connections; must stand before the NAT rule, or sources leak"
        yield 'anchor "redirect/*"'
        yield "# the first packet of each new state tells redirectd to look at the state table"
        yield f"match out log (to {PROMPT_INTERFACE}) on $ext_if proto tcp"
    for name in before:
        yield f'anchor "{name}"'


def _nat(gateway: Gateway) -> Iterator[str]:
    names = list(_natted(gateway))
    after = [anchor.name for anchor in gateway.anchors if anchor.at == "after-nat"]
    if not (names or after or gateway.redirect.enabled):
        return
    yield _title("NAT")
    yield "# ($ext_if:0): the first address alone, as it is at the moment"
    for name in names:
        source = "$wg_if:network" if name == "wg" else f"${name}_if:network"
        yield f"match out on $ext_if inet from {source} to any nat-to ($ext_if:0)"
    if gateway.redirect.enabled:
        yield "# keeps new connections off ports that moved connections hold (after NAT)"
        yield 'anchor "redirect-reserved"'
    for name in after:
        yield f'anchor "{name}"'


def _natted(gateway: Gateway) -> Iterator[str]:
    """Networks that may use the Internet; answers to a forwarded port need no rule here."""
    for network in gateway.networks:
        if network.internet:
            yield network.name
    if gateway.wireguard is not None and gateway.wireguard.internet:
        yield "wg"


def _refuse(gateway: Gateway) -> Iterator[str]:
    checks = gateway.filter
    if not (checks.antispoof or checks.martians):
        return
    log = "log " if checks.log_blocked else ""
    yield _title("what can't be true")
    if checks.antispoof:
        names = " ".join(f"${n.name}_if" for n in gateway.networks)
        yield f"antispoof {log}quick for {{ {names} }}"
    if checks.martians:
        if gateway.outside.address == "dhcp":
            yield "# a provider's DHCP server may have a private address"
            yield "pass out quick on $ext_if inet proto udp from any port bootpc to any port bootps"
        yield f"block drop in {log}quick on $ext_if from <martians> to any"
        yield f"block drop out {log}quick on $ext_if from any to <martians>"


def _default(gateway: Gateway) -> Iterator[str]:
    log = " log" if gateway.filter.log_blocked else ""
    yield _title("default: nothing passes")
    yield f"block drop{log} all"
    yield "# inside, say so instead of letting programs wait"
    for network in gateway.networks:
        yield f"block return in{log} on ${network.name}_if"


def _ipv6(gateway: Gateway) -> Iterator[str]:
    yield _title("IPv6")
    if not gateway.outside.ipv6:
        yield "block drop quick inet6 all"
        return
    yield "# RFC 4890: neighbours and routers, path MTU, unreachable, time exceeded"
    yield ("pass quick inet6 proto icmp6 icmp6-type { neighbrsol neighbradv routersol routeradv }")
    yield "pass in inet6 proto icmp6 icmp6-type { unreach toobig timex paramprob }"
    if isinstance(gateway.outside.address, str):
        yield "# DHCPv6 answers come to the link-local address"
        yield ("pass in on $ext_if inet6 proto udp from fe80::/10 port 547 to fe80::/10 port 546")


def _outbound(gateway: Gateway) -> Iterator[str]:
    yield _title("outbound")
    families = ["inet", "inet6"] if gateway.outside.ipv6 else ["inet"]
    yield "# TCP states outlive a change of address: redirectd keeps them."
    yield f'# Other states would go on using the dead address: label "{FLUSH_LABEL}".'
    for family in families:
        icmp = "icmp" if family == "inet" else "icmp6"
        yield f"pass out on $ext_if {family} proto tcp"
        yield f'pass out on $ext_if {family} proto {{ udp {icmp} }} label "{FLUSH_LABEL}"'
    names = " ".join(f"${n.name}_if" for n in gateway.networks)
    yield "# towards our own networks: what may cross was decided where it came in"
    yield f"pass out on {{ {names} }}"


def _crossing(gateway: Gateway) -> Iterator[str]:
    yield _title("from one network to another, and to the Internet")
    for network in gateway.networks:
        here = f"${network.name}_if"
        families = ["inet", "inet6"] if network.ipv6 else ["inet"]
        for family in families if network.internet else ():
            yield f"pass in on {here} {family} from {here}:network to ! <inside>"
        for name in network.to:
            yield f"pass in on {here} from {here}:network to ${name}_if:network"


def _forwarding(gateway: Gateway) -> Iterator[str]:
    if not gateway.forwards:
        return
    yield _title("port forwards")
    for number, forward in enumerate(gateway.forwards, 1):
        source = f"<forward_{number}_from>" if forward.source else "any"
        prompts = gateway.redirect.enabled and forward.proto == "tcp"
        log = f" log (to {PROMPT_INTERFACE})" if prompts else ""
        label = f' label "{FLUSH_LABEL}"' if forward.proto == "udp" else ""
        yield (
            f"pass in{log} on $ext_if inet proto {forward.proto} from {source} "
            f"to ($ext_if) port {_ports(forward)} \\\n"
            f"    rdr-to {forward.to}{_target(forward)}{label}"
        )


def _ports(forward: Forward) -> str:
    low, high = forward.port or (0, 0)
    return str(low) if low == high else f"{low}:{high}"


def _target(forward: Forward) -> str:
    """A range keeps its ports (``port 6000:*``, pf.conf(5))."""
    if forward.to_port is not None:
        return f" port {forward.to_port}"
    low, high = forward.port or (0, 0)
    return "" if low == high else f" port {low}:*"


def _tunnels(gateway: Gateway) -> Iterator[str]:
    """What comes out of a tunnel; the tunnels' own packets are services of the gateway."""
    wireguard, ipsec = gateway.wireguard, gateway.ipsec
    if wireguard is None and ipsec is None:
        return
    yield _title("what comes through tunnels")
    if wireguard is not None:
        yield "pass out on $wg_if"
        if wireguard.internet:
            yield "pass in on $wg_if inet from $wg_if:network to ! <inside>"
        for name in wireguard.to:
            yield f"pass in on $wg_if inet from $wg_if:network to ${name}_if:network"
    if ipsec is not None:
        yield "# IPsec: states stay on enc0, so nothing can answer around the tunnel"
        for name in ipsec.to:
            net = f"${name}_if:network"
            yield f"pass in on enc0 from <ipsec_nets> to {net} keep state (if-bound)"
            yield f"pass out on enc0 from {net} to <ipsec_nets> keep state (if-bound)"
            yield f"pass in on ${name}_if from {net} to <ipsec_nets>"


def _services(gateway: Gateway) -> Iterator[str]:
    yield _title("services of the gateway itself")
    names = [f"${n.name}_if" for n in gateway.networks]
    names += ["$wg_if"] if gateway.wireguard else []
    names += ["enc0"] if gateway.ipsec else []
    yield "# nothing of what was passed above ends on the gateway, except:"
    yield f"block return in on {{ {' '.join(names)} }} to (self)"
    yield from _outer_services(gateway)
    if gateway.ipsec is not None:
        peers = "<ipsec_peers>" if gateway.ipsec.peers else "any"
        yield "# decapsulated packets pass once more, addressed to the gateway"
        yield f"pass in on enc0 proto ipencap from {peers} to (self) keep state (if-bound)"
    for network in gateway.networks:
        here = f"${network.name}_if"
        if "dhcp" in network.services:
            yield f"pass in on {here} inet proto udp from any port bootpc to any port bootps"
        if "dns" in network.services:
            yield _dns(here)
        if "ntp" in network.services:
            yield f"pass in on {here} proto udp from {here}:network to ({here}) port ntp"
        yield (
            f"pass in on {here} inet proto icmp from {here}:network to ({here}) icmp-type echoreq"
        )
    if gateway.wireguard is not None:
        yield _dns("$wg_if")


def _dns(here: str) -> str:
    return f"pass in on {here} proto {{ tcp udp }} from {here}:network to ({here}) port domain"


def _outer_services(gateway: Gateway) -> Iterator[str]:
    if gateway.outside.ping:
        yield "pass in on $ext_if inet proto icmp to ($ext_if) icmp-type echoreq"
        if gateway.outside.ipv6:
            yield "pass in on $ext_if inet6 proto icmp6 to ($ext_if) icmp6-type echoreq"
    if gateway.redirect.enabled:
        source = "<redirect_from>" if gateway.redirect.source else "any"
        yield "# redirectd: the hosts at both ends of a connection tell each other new addresses"
        yield (
            f"pass in on $ext_if proto udp from {source} to ($ext_if) port {gateway.redirect.port}"
        )
    if gateway.wireguard is not None:
        yield "# WireGuard"
        yield f"pass in on $ext_if proto udp to ($ext_if) port {gateway.wireguard.port}"
    if gateway.ipsec is not None:
        peers = "<ipsec_peers>" if gateway.ipsec.peers else "any"
        yield "# IPsec: IKE, then ESP in both directions"
        yield (
            f"pass in on $ext_if proto udp from {peers} to ($ext_if) port {{ isakmp ipsec-nat-t }}"
        )
        yield f"pass in on $ext_if proto esp from {peers} to ($ext_if)"
        yield f"pass out on $ext_if proto esp from ($ext_if) to {peers}"


def _administration(gateway: Gateway) -> Iterator[str]:
    ports = (["ssh"] if gateway.admin.ssh else []) + (
        [str(gateway.admin.web)] if gateway.admin.web is not None else []
    )
    yield _title("administration: from the LAN alone")
    if not ports:
        yield "# none: the console remains"
    for network in gateway.admins if ports else ():
        here = f"${network.name}_if"
        yield (
            f"pass in on {here} inet proto tcp from {here}:network to ({here}) "
            f"port {{ {' '.join(ports)} }}"
        )
