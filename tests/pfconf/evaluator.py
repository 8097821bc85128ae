"""A small pf: evaluates the subset that pfconf renders, as openbsd.md and pf.conf(5) tell.

What it models: the last matching rule wins, ``quick`` ends the search, ``match … nat-to``
translates at once for the rules that follow, anchors are evaluated where they stand, a
state is found before any rule and translates both directions, ``no state`` rules make
none, a plain state starts with a SYN alone, and a sloppy one with any segment.

    LAN host --in--> [ lan_if   pf   ext_if ] --out--> network
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from ipaddress import IPv4Interface, IPv6Interface, ip_address, ip_network

from appliance.rewrite.flow import Address, Endpoint

from .pfparse import AnchorCall, HostSpec, PfRule, Ruleset, Target, parse


@dataclass(frozen=True)
class Packet:
    """``flags``: "S" for a SYN, "A" for a segment in the middle; ``icmp``: pf's words."""

    source: Endpoint
    dest: Endpoint
    proto: str = "tcp"
    flags: str = "A"
    icmp: str | None = None

    @property
    def version(self) -> int:
        return self.source.addr.version

    def answer(self, flags: str = "A") -> Packet:
        return Packet(self.dest, self.source, self.proto, flags)


@dataclass(frozen=True)
class State:
    """Before and after translation, in the direction of the packet that made it."""

    direction: str
    before: tuple[Endpoint, Endpoint]
    after: tuple[Endpoint, Endpoint]
    proto: str
    label: str | None

    def translate(self, direction: str, packet: Packet) -> Packet | None:
        if packet.proto != self.proto:
            return None
        ends = (packet.source, packet.dest)
        if direction == self.direction and ends == self.before:
            return replace(packet, source=self.after[0], dest=self.after[1])
        if direction != self.direction and ends == (self.after[1], self.after[0]):
            return replace(packet, source=self.before[1], dest=self.before[0])
        return None


@dataclass(frozen=True)
class Verdict:
    """passed; the packet as it goes on; the divert port that takes it instead; local: it is
    handed to a socket of ours; rule None: a state decided."""

    passed: bool
    packet: Packet
    rule: PfRule | None = None
    divert: int | None = None
    local: bool = False
    returns: bool = False
    logged: tuple[str, ...] = ()


@dataclass
class Pf:
    """One machine's pf.  ``interfaces``: name -> its addresses, the first one first."""

    main: Ruleset
    interfaces: dict[str, list[IPv4Interface | IPv6Interface]]
    anchors: dict[str, Ruleset] = field(default_factory=dict)
    states: list[State] = field(default_factory=list)
    nat_port: int = 50000

    @classmethod
    def of(cls, text: str, interfaces: dict[str, list[str]]) -> Pf:
        made = {
            name: [IPv4Interface(a) if "." in a else IPv6Interface(a) for a in addrs]
            for name, addrs in interfaces.items()
        }
        return cls(parse(text), made)

    def load(self, anchor: str, text: str) -> None:
        """``pfctl -a ANCHOR -f -``"""
        self.anchors[anchor] = parse(text)

    def kill_key(self, source: Endpoint, dest: Endpoint) -> int:
        """``pfctl -k key``: the key before translation, of states in either direction."""
        dead = [s for s in self.states if s.before == (source, dest)]
        self.states = [s for s in self.states if s not in dead]
        return len(dead)

    def kill_label(self, label: str) -> int:
        dead = [s for s in self.states if s.label == label]
        self.states = [s for s in self.states if s not in dead]
        return len(dead)

    def test(self, direction: str, interface: str, packet: Packet) -> Verdict:
        """What happens to ``packet`` on an interface."""
        if interface in self.main.skip:
            return Verdict(True, packet)
        for state in self.states:
            translated = state.translate(direction, packet)
            if translated is not None:
                return Verdict(True, translated)
        return _Search(self, direction, interface, packet).run()

    def forward(self, came: str, goes: str, packet: Packet) -> Verdict:
        """In on one interface and out of another."""
        verdict = self.test("in", came, packet)
        if not verdict.passed or verdict.divert is not None or verdict.local:
            return verdict
        return self.test("out", goes, verdict.packet)

    def networks(self, name: str, part: str, version: int) -> list[str]:
        names = list(self.interfaces) if name == "self" else [name]
        found = [a for n in names for a in self.interfaces.get(n, []) if a.version == version]
        if part == "first":
            found = found[:1]
        return [str(a.network if part == "network" else a.ip) for a in found]


class _Search:
    """The evaluation of the rules for one packet."""

    def __init__(self, pf: Pf, direction: str, interface: str, packet: Packet) -> None:
        self.pf, self.direction, self.interface = pf, direction, interface
        self.first = self.packet = packet
        self.found: PfRule | None = None
        self.logged: list[str] = []

    def run(self) -> Verdict:
        self._walk(self.pf.main)
        rule = self.found
        if rule is None:  # pf's default: pass, and the first packet makes a state
            return Verdict(True, self.packet)
        if rule.log and rule.action != "match":
            self.logged.append(rule.log)
        logged = tuple(self.logged)
        if rule.action == "block":
            return Verdict(False, self.first, rule, returns=rule.returns, logged=logged)
        packet = self._translate(rule, self.packet)
        if rule.state == "keep":
            self.pf.states.append(
                State(
                    self.direction, (self.first.source, self.first.dest),
                    (packet.source, packet.dest), packet.proto, rule.label,
                )
            )  # fmt: skip
        return Verdict(
            True, packet, rule, rule.divert_packet, rule.divert_to is not None, logged=logged
        )

    def _walk(self, ruleset: Ruleset) -> bool:
        """True: a quick rule ended the search."""
        for rule in ruleset.rules:
            if isinstance(rule, AnchorCall):
                called = [r for n, r in sorted(self.pf.anchors.items()) if _is_called(rule, n)]
                if any(self._walk(inner) for inner in called):
                    return True
            elif self._matches(rule):
                if rule.action == "match":
                    self.packet = self._translate(rule, self.packet)
                    self.logged += [rule.log] if rule.log else []
                    continue
                self.found = rule
                if rule.quick:
                    return True
        return False

    def _matches(self, rule: PfRule) -> bool:
        packet = self.packet
        if rule.direction not in (None, self.direction):
            return False
        here = rule.interface == self.interface
        if rule.interface is not None and here == rule.not_interface:
            return False
        if rule.family not in (None, packet.version) or rule.proto not in (None, packet.proto):
            return False
        if rule.icmp is not None and rule.icmp != packet.icmp:
            return False
        if not self._side(rule.source, packet.source) or not self._side(rule.dest, packet.dest):
            return False
        # pf.conf(5): a pass rule that keeps state has "flags S/SA" unless it says otherwise
        implied = rule.flags is None and rule.action == "pass" and rule.state == "keep"
        if packet.proto == "tcp" and (implied or rule.flags == "S/SA"):
            return packet.flags == "S"
        return True

    def _side(self, spec: HostSpec, end: Endpoint) -> bool:
        if not spec.low <= end.port <= spec.high:
            return False
        if spec.interface is not None:
            texts = self.pf.networks(spec.interface, spec.part, end.addr.version)
            return any(end.addr in ip_network(text) for text in texts)
        if spec.networks is None:
            return True
        return any(end.addr in network for network in spec.networks) != spec.negated

    def _translate(self, rule: PfRule, packet: Packet) -> Packet:
        if rule.nat_to is not None:
            packet = replace(packet, source=self._end(rule.nat_to, packet.source, nat=True))
        if rule.rdr_to is not None:
            packet = replace(packet, dest=self._end(rule.rdr_to, packet.dest, nat=False))
        return packet

    def _end(self, target: Target, old: Endpoint, nat: bool) -> Endpoint:
        addr: Address
        if target.addr is not None:
            addr = target.addr
        else:
            name, _, part = (target.interface or "").partition(":")
            found = self.pf.networks(name, "first" if part == "0" else "", old.addr.version)
            addr = ip_address(found[0])
        if target.port is not None:
            return Endpoint(addr, target.port)
        if nat:
            self.pf.nat_port += 1
            return Endpoint(addr, self.pf.nat_port)
        return Endpoint(addr, old.port)


def _is_called(call: AnchorCall, name: str) -> bool:
    return name == call.name or (call.name.endswith("/*") and fnmatchcase(name, call.name))
