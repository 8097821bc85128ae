"""One pf rule as data, and its text.

Every part is a typed value (addresses are :mod:`ipaddress` objects, names match a
narrow pattern), so no text from elsewhere can become syntax.  The order of the parts
is the one of pf.conf(5): action, direction, quick, interface, family, protocol, hosts,
filter options.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Literal

from appliance.rewrite.flow import Address, Endpoint

Action = Literal["pass", "block drop", "block return", "match"]
Direction = Literal["in", "out"]
Family = Literal["inet", "inet6"]
State = Literal["default", "sloppy", "none", "plain"]

_INTERFACE = re.compile(r"[a-z]{1,12}[0-9]{0,3}\Z")
_LABEL = re.compile(r"[A-Za-z0-9._-]{1,63}\Z")
_OPTION = re.compile(r"[a-z][a-z.-]{0,20}( [0-9]{1,6})?\Z")

#: pf's TCP states that a redirect needs: picked up in the middle, no window tracking
SLOPPY = "flags any keep state (sloppy)"


def interface_name(name: str) -> str:
    """``name`` when it is an interface or an interface group, else ValueError."""
    if not _INTERFACE.match(name):
        raise ValueError(f"{name!r} is not an interface name (letters, then digits: em0)")
    return name


def label_name(label: str) -> str:
    """``label`` when pf can hold it unexpanded (``$`` starts a macro), else ValueError."""
    if not _LABEL.match(label):
        raise ValueError(f"{label!r} is not a label (1 to 63 letters, digits, '.', '_', '-')")
    return label


def plain_address(addr: Address) -> Address:
    """``addr`` unless it carries a scope, which pf rules and sockets write differently."""
    if isinstance(addr, IPv6Address) and addr.scope_id is not None:
        raise ValueError(f"{addr} carries a scope; a redirect needs a global address")
    return addr


def family_word(addr: Address) -> Family:
    """``inet`` or ``inet6``."""
    return "inet" if isinstance(addr, IPv4Address) else "inet6"


def host(endpoint: Endpoint) -> str:
    """``10.8.0.2 port 5000``"""
    port = endpoint.port
    if not 0 < port < 65536:
        raise ValueError(f"port {port} is not between 1 and 65535")
    return f"{plain_address(endpoint.addr)} port {port}"


@dataclass(frozen=True, slots=True)
class Icmp:
    """An ICMP type (and code) in pf's words: ``icmp-type unreach code needfrag``."""

    keyword: Literal["icmp-type", "icmp6-type"]
    kind: Literal["unreach", "toobig"]
    code: Literal["needfrag"] | None = None

    def __str__(self) -> str:
        text = f"{self.keyword} {self.kind}"
        return text if self.code is None else f"{text} code {self.code}"


#: IPv4: fragmentation needed (RFC 792); IPv6: packet too big (RFC 4443 3.2)
NEEDFRAG = Icmp("icmp-type", "unreach", "needfrag")
TOOBIG = Icmp("icmp6-type", "toobig")


@dataclass(frozen=True, slots=True)
class Rule:
    """One pf rule.

    source, dest   None: ``any``; an Endpoint with a port, or a bare address
    state          ``sloppy``: ``flags any keep state (sloppy …)``; ``none``: ``no state``;
                   ``plain``: ``keep state``; ``default``: pf's own (nothing written)
    state_options  further options of a sloppy state: ``no-sync``, ``if-bound``,
                   ``tcp.opening 86400``
    syn            ``flags S/SA``: the first segment of a new connection alone
    max_mss        ``scrub (max-mss N)``
    """

    action: Action
    direction: Direction | None = None
    interface: str | None = None
    family: Family | None = None
    proto: Literal["tcp", "udp", "icmp", "icmp6"] | None = None
    source: Endpoint | Address | None = None
    dest: Endpoint | Address | None = None
    quick: bool = True
    received_on: str | None = None
    icmp: Icmp | None = None
    syn: bool = False
    state: State = "default"
    state_options: tuple[str, ...] = ()
    max_mss: int | None = None
    nat_to: Endpoint | None = None
    rdr_to: Endpoint | None = None
    divert_to: Endpoint | None = None
    divert_packet: int | None = None
    label: str | None = None

    def __post_init__(self) -> None:
        translates = self.nat_to is not None or self.rdr_to is not None
        if translates and self.state == "none":
            raise ValueError("nat-to and rdr-to require keep state")  # pfctl's own words
        if translates and self.direction is None:
            raise ValueError("a translating rule needs a direction")
        if self.state_options and self.state != "sloppy":
            raise ValueError("state options stand with a sloppy state only")
        for option in self.state_options:
            if not _OPTION.match(option):
                raise ValueError(f"{option!r} is not a state option")

    def __str__(self) -> str:
        words: list[str] = [self.action]
        words += [self.direction] if self.direction else []
        words += ["quick"] if self.quick else []
        words += ["on", interface_name(self.interface)] if self.interface else []
        words += [self.family] if self.family else []
        words += ["proto", self.proto] if self.proto else []
        if self.source is not None or self.dest is not None:
            words += ["from", _side(self.source), "to", _side(self.dest)]
        words += ["received-on", interface_name(self.received_on)] if self.received_on else []
        words += [str(self.icmp)] if self.icmp else []
        words += ["flags S/SA"] if self.syn else []
        words += self._state_words()
        if self.max_mss is not None:
            words.append(f"scrub (max-mss {_bounded(self.max_mss, 536, 65495)})")
        words += [f"nat-to {host(self.nat_to)}"] if self.nat_to else []
        words += [f"rdr-to {host(self.rdr_to)}"] if self.rdr_to else []
        words += [f"divert-to {host(self.divert_to)}"] if self.divert_to else []
        if self.divert_packet is not None:
            words.append(f"divert-packet port {_bounded(self.divert_packet, 1, 65535)}")
        words += [f'label "{label_name(self.label)}"'] if self.label else []
        return " ".join(words)

    def _state_words(self) -> list[str]:
        if self.state == "sloppy":
            if not self.state_options:
                return [SLOPPY]
            # openbsd.md's order: (no-sync, if-bound, sloppy, tcp.opening 86400)
            timeouts = [option for option in self.state_options if " " in option]
            words = [option for option in self.state_options if " " not in option]
            return [f"flags any keep state ({', '.join([*words, 'sloppy', *timeouts])})"]
        return {"none": ["no state"], "plain": ["keep state"]}.get(self.state, [])


def _side(side: Endpoint | Address | None) -> str:
    if side is None:
        return "any"
    return host(side) if isinstance(side, Endpoint) else str(plain_address(side))


def _bounded(value: int, low: int, high: int) -> int:
    if not low <= value <= high:
        raise ValueError(f"{value} is not between {low} and {high}")
    return value


def render(rules: tuple[Rule, ...] | list[Rule]) -> str:
    """One rule a line, as ``pfctl -f -`` reads it."""
    return "".join(f"{rule}\n" for rule in rules)
