"""The subset of pf.conf(5) that pfconf renders, read back into values for the evaluator.

Written from openbsd.md and the manual page, not from pfconf's own classes: it would
notice a word that stands where pf does not look for it.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

from appliance.rewrite.flow import Address

Network = IPv4Network | IPv6Network
PORTS = {
    "domain": 53, "bootps": 67, "bootpc": 68, "ntp": 123, "ssh": 22, "isakmp": 500,
    "ipsec-nat-t": 4500,
}  # fmt: skip


class PfSyntaxError(Exception):
    """Not in the subset."""


@dataclass(frozen=True)
class HostSpec:
    """networks None: any.  interface: ``em0:network`` or ``(em0)``, looked up when used."""

    networks: tuple[Network, ...] | None = None
    interface: str | None = None
    part: str = ""
    negated: bool = False
    low: int = 0
    high: int = 65535


ANY = HostSpec()


@dataclass(frozen=True)
class Target:
    """Where nat-to, rdr-to or divert-to lead; a port of None keeps the packet's."""

    addr: Address | None
    interface: str | None = None
    port: int | None = None


@dataclass(frozen=True)
class PfRule:
    action: str = "pass"
    returns: bool = False
    direction: str | None = None
    quick: bool = False
    log: str | None = None
    interface: str | None = None
    not_interface: bool = False
    family: int | None = None
    proto: str | None = None
    source: HostSpec = ANY
    dest: HostSpec = ANY
    icmp: str | None = None
    flags: str | None = None
    state: str = "keep"
    sloppy: bool = False
    max_mss: int | None = None
    nat_to: Target | None = None
    rdr_to: Target | None = None
    divert_to: Target | None = None
    divert_packet: int | None = None
    label: str | None = None


@dataclass(frozen=True)
class AnchorCall:
    name: str


@dataclass
class Ruleset:
    rules: list[PfRule | AnchorCall] = field(default_factory=list)
    macros: dict[str, str] = field(default_factory=dict)
    tables: dict[str, tuple[Network, ...]] = field(default_factory=dict)
    skip: set[str] = field(default_factory=set)


_TOKEN = re.compile(r'"[^"]*"|[{}(),!=]|[^\s{}(),!="]+')


def parse(text: str, macros: dict[str, str] | None = None) -> Ruleset:
    ruleset = Ruleset(macros=dict(macros or {}))
    joined = text.replace("\\\n", " ")
    for raw in joined.splitlines():
        line = re.sub(r"#.*$", "", raw).strip()
        if line:
            _statement(line, ruleset)
    return ruleset


def _statement(line: str, ruleset: Ruleset) -> None:
    if macro := re.fullmatch(r'(\w+) = "([^"]*)"', line):
        ruleset.macros[macro[1]] = macro[2]
        return
    for name, value in sorted(ruleset.macros.items(), key=lambda kv: -len(kv[0])):
        line = line.replace(f"${name}", value)
    if "$" in line:
        raise PfSyntaxError(f"macro not defined: {line}")
    words = _TOKEN.findall(line)
    if words[0] == "table":
        _table(line, ruleset)
    elif words[0] == "set":
        if words[1:3] == ["skip", "on"]:
            ruleset.skip |= set(words[3:])
    elif words[0] == "anchor":
        ruleset.rules.append(AnchorCall(words[1].strip('"')))
    elif words[0] == "antispoof":
        _antispoof(words, ruleset)
    else:
        ruleset.rules += _rules(words, ruleset)


def _table(line: str, ruleset: Ruleset) -> None:
    found = re.fullmatch(r"table <(\w+)> const \{ (.*) \}", re.sub(r"\s+", " ", line))
    if not found:
        raise PfSyntaxError(line)
    ruleset.tables[found[1]] = tuple(ip_network(word) for word in found[2].split())


def _antispoof(words: list[str], ruleset: Ruleset) -> None:
    """pf.conf(5), antispoof: block drop in on ! IF from IF:network, and from IF's own."""
    for name in (w for w in words[words.index("for") + 1 :] if w not in "{}"):
        for part in ("network", ""):
            ruleset.rules.append(
                PfRule(
                    "block", direction="in", quick=True, interface=name, not_interface=True,
                    source=HostSpec(interface=name, part=part),
                )
            )  # fmt: skip


class _Words:
    def __init__(self, words: list[str]) -> None:
        self.words, self.at = words, 0

    def peek(self) -> str | None:
        return self.words[self.at] if self.at < len(self.words) else None

    def take(self, *wanted: str) -> str | None:
        word = self.peek()
        if word is None or (wanted and word not in wanted):
            return None
        self.at += 1
        return word

    def need(self, *wanted: str) -> str:
        word = self.take(*wanted)
        if word is None:
            raise PfSyntaxError(f"wanted {wanted} at {self.words[self.at :]}")
        return word

    def choices(self) -> list[str]:
        """One word, or the words of a list in braces."""
        if self.take("{"):
            found = []
            while (word := self.need()) != "}":
                found += [word] if word != "," else []
            return found
        return [self.need()]

    def in_brackets(self) -> list[str]:
        self.need("(")
        found = []
        while (word := self.need()) != ")":
            found += [word] if word != "," else []
        return found


def _rules(tokens: list[str], ruleset: Ruleset) -> list[PfRule]:
    words = _Words(tokens)
    rule = PfRule(words.need("pass", "block", "match"))
    if rule.action == "block":
        rule = replace(rule, returns=words.take("drop", "return") == "return")
    rule = replace(rule, direction=words.take("in", "out"))
    if words.take("log"):
        rule = replace(rule, log="pflog0")
        if words.peek() == "(":
            rule = replace(rule, log=words.in_brackets()[-1])
    rule = replace(rule, quick=bool(words.take("quick")))
    interfaces: list[str | None] = [None]
    if words.take("on"):
        interfaces = [*words.choices()]
    family = words.take("inet", "inet6")
    rule = replace(rule, family={"inet": 4, "inet6": 6}.get(family or ""))
    protos: list[str | None] = [None]
    if words.take("proto"):
        protos = [*words.choices()]
    sources, dests = [ANY], [ANY]
    words.take("all")
    if words.take("from"):
        sources = _hosts(words, ruleset)
    if words.take("to"):
        dests = _hosts(words, ruleset)
    kinds: list[str | None] = [None]
    while words.peek() is not None:
        rule, kinds = _option(words, rule, kinds)
    _valid(rule)
    return [
        replace(rule, interface=i, proto=p, source=s, dest=d, icmp=k)
        for i, p, s, d, k in itertools.product(interfaces, protos, sources, dests, kinds)
    ]


def _valid(rule: PfRule) -> None:
    if rule.state == "none" and (rule.nat_to or rule.rdr_to):
        raise PfSyntaxError("nat-to and rdr-to require keep state")
    if (rule.nat_to or rule.rdr_to or rule.divert_packet) and rule.direction is None:
        raise PfSyntaxError("a rule without direction")


def _option(
    words: _Words, rule: PfRule, kinds: list[str | None]
) -> tuple[PfRule, list[str | None]]:
    word = words.need()
    if word == "flags":
        rule = replace(rule, flags=words.need("any", "S/SA"))
    elif word in ("keep", "no"):
        words.need("state")
        rule = replace(rule, state="keep" if word == "keep" else "none")
        if word == "keep" and words.peek() == "(":
            rule = replace(rule, sloppy="sloppy" in words.in_brackets())
    elif word in ("icmp-type", "icmp6-type"):
        kinds = [*words.choices()]
        if words.take("code"):
            kinds = [f"{kind} {words.need()}" for kind in kinds]
    elif word == "scrub":
        inside = words.in_brackets()
        if "reassemble" in inside:
            raise PfSyntaxError("reassemble tcp")
        if "max-mss" in inside:
            rule = replace(rule, max_mss=int(inside[inside.index("max-mss") + 1]))
    elif word == "nat-to":
        rule = replace(rule, nat_to=_target(words))
    elif word == "rdr-to":
        rule = replace(rule, rdr_to=_target(words))
    elif word == "divert-to":
        rule = replace(rule, divert_to=_target(words))
    elif word == "divert-packet":
        words.need("port")
        rule = replace(rule, divert_packet=int(words.need()))
    elif word == "label":
        rule = replace(rule, label=words.need().strip('"'))
    else:
        raise PfSyntaxError(f"what is {word!r} in {' '.join(words.words)}")
    return rule, kinds


def _target(words: _Words) -> Target:
    if words.peek() == "(":
        (name,) = words.in_brackets()
        target = Target(None, name)
    else:
        target = Target(ip_address(words.need()))
    if words.take("port"):
        port = words.need()
        target = replace(target, port=None if port.endswith(":*") else int(port))
    return target


def _hosts(words: _Words, ruleset: Ruleset) -> list[HostSpec]:
    if words.peek() == "(":
        (name,) = words.in_brackets()
        base, _, part = name.partition(":")
        found = HostSpec(interface=base, part="first" if part == "0" else part)
    else:
        negated = bool(words.take("!"))
        word = words.need()
        if word == "any":
            found = ANY
        elif word.startswith("<"):
            found = HostSpec(ruleset.tables[word.strip("<>")], negated=negated)
        elif word.endswith(":network"):
            found = HostSpec(interface=word.partition(":")[0], part="network")
        else:
            found = HostSpec((ip_network(word),), negated=negated)
    if not words.take("port"):
        return [found]
    return [replace(found, low=low, high=high) for low, high in map(_port, words.choices())]


def _port(word: str) -> tuple[int, int]:
    low, _, high = word.partition(":")
    first = PORTS.get(low) or int(low)
    return first, int(high) if high else first
