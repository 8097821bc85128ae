"""The rules of the ``redirect/*`` anchor: an :class:`Entry` becomes pf rules.

pf translates once per packet, so the rules map the *inside* tuple (as our end sees the
connection) to the *wire* tuple directly.  The anchor stands before the NAT rule: after
it, what the LAN sends first leaks with its own source address.

Words used below: B the mover with its new address B' and the port NP that NAT chose,
L port LP the LAN host behind it, A port ap the correspondent.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address

from appliance.rewrite.flow import Address, Endpoint, Flow
from appliance.rewrite.redirect import Entry

from .rule import NEEDFRAG, TOOBIG, Family, Rule, family_word, render

#: ``divert-to`` marks a packet as local; the established socket is found before the
#: port is looked at, so the discard port serves as well as any
DIVERT_TO_PORT = 9


@dataclass(frozen=True, slots=True)
class Layout:
    """What the rules of this machine have in common.

    external       interface (or group) towards the network; None: no ``on`` is written
    external_out   interface of the route to the old far address where it differs:
                   "the out rule names the interface of the route to OLD (or none)"
    lan            interface of the LAN side, or ``any`` when it is not known; None: no LAN
                   rules are written (openbsd.md's two-rule form, for a LAN that the
                   ruleset passes without state)
    divert_port    divert(4) port of the packet workers
    hold_port      divert(4) port that takes held packets; None: they are dropped
    state_options  e.g. ``("tcp.opening 86400",)``: a picked-up state then lives a day
                   without traffic instead of 30 s (the rules re-create it either way)
    labels         write the connection ID as label, for ``pfctl -k label``
    """

    external: str | None
    external_out: str | None = None
    lan: str | None = None
    divert_port: int = 700
    hold_port: int | None = None
    state_options: tuple[str, ...] = ()
    labels: bool = True

    @property
    def out_interface(self) -> str | None:
        return self.external_out or self.external

    def with_lan(self, lan: str) -> Layout:
        return replace(self, lan=lan)


def entry_rules(entry: Entry, layout: Layout) -> tuple[Rule, ...]:
    """All rules of one connection: guards first, then what passes."""
    label = entry.conn_id if layout.labels else None
    rules = [guard(flow, layout.external, label) for flow in entry.stale if _dead(flow, entry)]
    if entry.path == "divert":
        rules += _divert_rules(entry, layout, label)
    else:
        rules += _kernel_rules(entry, layout, label)
    if not entry.local and layout.lan is not None:
        lan = None if layout.lan == "any" else layout.lan
        rules += lan_rules(entry.inside, lan, layout.state_options, label)
    return tuple(rules)


def _dead(flow: Flow, entry: Entry) -> bool:
    """A flow that is let in again (back to the first address) is no longer stale."""
    return flow not in entry.wires and flow != entry.wire_out


def _kernel_rules(entry: Entry, layout: Layout, label: str | None) -> list[Rule]:
    options = layout.state_options
    if entry.wire_out is None:
        out = hold_rule(entry.inside, layout.out_interface, layout.hold_port, label)
    else:
        out = out_rule(entry.inside, entry.wire_out, layout.out_interface, options, label)
    ins = [
        in_rule(entry.inside, wire, layout.external, entry.local, options, label)
        for wire in entry.wires
    ]
    far_end_moved = entry.wires[0].local == entry.inside.local
    return [*ins, out] if far_end_moved else [out, *ins]  # openbsd.md's order


def out_rule(
    inside: Flow,
    wire: Flow,
    interface: str | None,
    options: tuple[str, ...] = (),
    label: str | None = None,
) -> Rule:
    """What our end sends, from the inside tuple to the wire tuple.

    gateway that moved: pass out quick on ext inet proto tcp from L port LP to A port ap
      flags any keep state (sloppy) nat-to B' port NP
    correspondent: pass out quick on ext inet proto tcp from A port ap to B port NP
      flags any keep state (sloppy) rdr-to B' port NP
    both moved: one rule holds nat-to and rdr-to
    """
    return Rule(
        "pass", "out", interface, _family(inside), "tcp", inside.local, inside.remote,
        state="sloppy",
        state_options=options,
        nat_to=None if wire.local == inside.local else wire.local,
        rdr_to=None if wire.remote == inside.remote else wire.remote,
        label=label,
    )  # fmt: skip


def in_rule(
    inside: Flow,
    wire: Flow,
    interface: str | None,
    local: bool,
    options: tuple[str, ...] = (),
    label: str | None = None,
) -> Rule:
    """What the far end sends, from the wire tuple to the inside tuple.

    gateway that moved: pass in quick on ext inet proto tcp from A port ap to B' port NP
      flags any keep state (sloppy) rdr-to L port LP
    host that moved: … rdr-to B port NP divert-to 127.0.0.1 port 9 ("divert-to makes pf
      treat the packet as local; the established socket is found first")
    correspondent: pass in quick on ext inet proto tcp from B' port NP to A port ap
      flags any keep state (sloppy) nat-to B port NP
    """
    moved_socket = local and wire.local.addr != inside.local.addr
    return Rule(
        "pass", "in", interface, _family(inside), "tcp", wire.remote, wire.local,
        state="sloppy",
        state_options=options,
        nat_to=None if wire.remote == inside.remote else inside.remote,
        rdr_to=None if wire.local == inside.local else inside.local,
        divert_to=loopback(inside.version) if moved_socket else None,
        label=label,
    )  # fmt: skip


def loopback(version: int) -> Endpoint:
    """``127.0.0.1 port 9`` or ``::1 port 9``."""
    addr: Address = IPv4Address("127.0.0.1") if version == 4 else IPv6Address("::1")
    return Endpoint(addr, DIVERT_TO_PORT)


def guard(wire: Flow, interface: str | None, label: str | None = None) -> Rule:
    """block drop in quick on ext proto tcp from A port ap to B' port NP

    Keeps a peer's packets off a stack that would answer RST: while our rules are not
    there yet, and on the tuples of the past.
    """
    return Rule(
        "block drop", "in", interface, None, "tcp", wire.remote, wire.local, label=label
    )  # fmt: skip


def hold_rule(
    inside: Flow, interface: str | None, port: int | None, label: str | None = None
) -> Rule:
    """What our end sends while nothing may leave.

    pass out quick on ext inet proto tcp from L port LP to A port ap
      no state divert-packet port 701
    (no listener: packets drop, no fail-open exists), or without a port
    block drop out quick on ext inet proto tcp from L port LP to A port ap
    """
    if port is None:
        return Rule(
            "block drop", "out", interface, _family(inside), "tcp", inside.local,
            inside.remote, label=label,
        )  # fmt: skip
    return divert_out(inside, interface, port, label)


def _divert_rules(entry: Entry, layout: Layout, label: str | None) -> list[Rule]:
    """The divert path: ``no state`` rules alone (stateful ones change timestamps).

    They do not depend on ``wire_out``: the worker's rewriter holds what is shut.
    """
    port = layout.divert_port
    out = divert_out(entry.inside, layout.out_interface, port, label)
    ins = [divert_in(wire, layout.external, port, label) for wire in entry.wires]
    addresses = dict.fromkeys(wire.local.addr for wire in entry.wires)
    pmtu = [divert_pmtu(addr, layout.external, port, label) for addr in addresses]
    far_end_moved = entry.wires[0].local == entry.inside.local
    return [*ins, out, *pmtu] if far_end_moved else [out, *ins, *pmtu]


def divert_out(
    inside: Flow,
    interface: str | None,
    port: int,
    label: str | None = None,
    max_mss: int | None = None,
) -> Rule:
    """pass out quick on ext inet proto tcp from L port LP to A port ap
    no state divert-packet port 700

    ``max_mss`` for SYNs: no state rules ignore a match rule's scrub, so
    … no state scrub (max-mss 1440) divert-packet port 700
    """
    return Rule(
        "pass", "out", interface, _family(inside), "tcp", inside.local, inside.remote,
        state="none", max_mss=max_mss, divert_packet=port, label=label,
    )  # fmt: skip


def divert_in(
    wire: Flow,
    interface: str | None,
    port: int,
    label: str | None = None,
    max_mss: int | None = None,
) -> Rule:
    """pass in quick on ext inet proto tcp from A port ap to B' port NP
    no state divert-packet port 700"""
    return Rule(
        "pass", "in", interface, _family(wire), "tcp", wire.remote, wire.local,
        state="none", max_mss=max_mss, divert_packet=port, label=label,
    )  # fmt: skip


def divert_pmtu(addr: Address, interface: str | None, port: int, label: str | None = None) -> Rule:
    """pass in quick on ext inet proto icmp from any to B' icmp-type unreach code needfrag
    no state divert-packet port 700

    Without it, need-frag never reaches L.  IPv6: packet too big (pf.conf(5), icmp6-type).
    """
    v4 = addr.version == 4
    return Rule(
        "pass", "in", interface, "inet" if v4 else "inet6", "icmp" if v4 else "icmp6",
        None, addr, icmp=NEEDFRAG if v4 else TOOBIG, state="none", divert_packet=port,
        label=label,
    )  # fmt: skip


def divert_mixed(
    inside: Flow, wire: Flow, interface: str | None, port: int, label: str | None = None
) -> tuple[Rule, Rule]:
    """A connection that ends on B itself, old address not parked: divert for out, kernel
    for in (flags any keep state (sloppy) rdr-to OLD port NP divert-to 127.0.0.1 port 9).
    If A speaks first, the in rule's state translates outbound too."""
    return (
        divert_out(inside, interface, port, label),
        in_rule(inside, wire, interface, local=True, label=label),
    )


def lan_rules(
    inside: Flow, lan: str | None, options: tuple[str, ...] = (), label: str | None = None
) -> tuple[Rule, Rule]:
    """pass in quick on lan inet proto tcp from L port LP to A port ap
    flags any keep state (sloppy), and its out twin.

    A kill by key takes the LAN-side state too, and a mid-stream packet does not match the
    ruleset's own ``flags S/SA``.
    """
    family = _family(inside)
    return (
        Rule(
            "pass", "in", lan, family, "tcp", inside.local, inside.remote,
            state="sloppy", state_options=options, label=label,
        ),
        Rule(
            "pass", "out", lan, family, "tcp", inside.remote, inside.local,
            state="sloppy", state_options=options, label=label,
        ),
    )  # fmt: skip


def reservation_guard(wire: Flow, interface: str | None, label: str | None = None) -> Rule:
    """block drop out quick on ext inet proto tcp from B' port NP to A port ap flags S/SA

    Stands in the anchor after the NAT rule, where a packet shows its translated source:
    a new connection for which NAT drew the reserved port is dropped at its SYN, before
    it has a state; its next SYN draws another port.
    """
    return Rule(
        "block drop", "out", interface, _family(wire), "tcp", wire.local, wire.remote,
        syn=True, label=label,
    )  # fmt: skip


def old_address_udp(old: Endpoint, to_port: int, interface: str | None) -> Rule:
    """pass in quick on ext inet proto udp from any to B port 4000 divert-to 127.0.0.1 port 4000

    UDP to an address that is no longer local reaches a local socket, which must be bound
    to exactly that loopback address (a wildcard-bound one gets nothing).
    """
    return Rule(
        "pass", "in", interface, family_word(old.addr), "udp", None, old,
        divert_to=Endpoint(loopback(old.addr.version).addr, to_port),
    )  # fmt: skip


def mss_clamp(interface: str, max_mss: int, version: int = 4) -> Rule:
    """match on ext inet proto tcp scrub (max-mss 1440)

    Before the anchor it clamps SYN and SYN-ACK and goes with everything here, except
    that no state rules ignore it (see :func:`divert_out`).
    """
    return Rule(
        "match", None, interface, "inet" if version == 4 else "inet6", "tcp",
        quick=False, max_mss=max_mss,
    )  # fmt: skip


def anchor_text(entries: Iterable[Entry], layout: Layout) -> str:
    """The whole anchor, as ``pfctl -a redirect/… -f -`` reads it; the order is stable."""
    return "".join(render(entry_rules(entry, layout)) for entry in entries)


def reserved_text(wires: Iterable[tuple[str, Flow]], layout: Layout) -> str:
    """The anchor of reserved tuples, from (connection ID, wire flow) pairs."""
    return render([reservation_guard(wire, layout.out_interface, cid) for cid, wire in wires])


def _family(flow: Flow) -> Family:
    return family_word(flow.local.addr)
