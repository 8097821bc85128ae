"""The nftables rule set of the Linux backend, as text for ``nft -f -``.

One table a family holds the chains (fixed) and the maps that :mod:`pfconf.nftmap`
fills; a third one keeps the neighbours from learning parked addresses.  It stands
outermost, so that conntrack, the user's own rules and the sockets keep seeing the
birth tuple and need no change: before everything but defragmentation inbound
(priority -310; -400 is defragmentation), after everything outbound (310).

Plain packets cost one look-up a hook: a miss in a verdict map.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from itertools import combinations
from typing import Final, Literal

from .nftmap import (
    HOOK_FIELDS,
    SAME,
    Elements,
    Hook,
    Key,
    Value,
    chain_name,
    queue_chains,
    unpack,
    unpack_end,
    version_of,
)

# Copies for user space are told apart by the log prefix.
HELD: Final = "held"  # outbound while the connection is shut: copied, then dropped
QUIET: Final = "quiet"  # outbound, and nothing came in lately: copied
SEEN_IN: Final = "seen-in"  # small segments of an observed flow
SEEN_OUT: Final = "seen-out"
RESET: Final = "reset"  # an inbound RST, withheld
PMTU: Final = "pmtu"  # ICMP "fragmentation needed", ICMPv6 "packet too big"

# Bound of the one set that packets fill.  The maps have none: with ``size`` the kernel
# takes the memory of all their buckets at once (40 MB), without it they grow as needed.
ALIVE_SIZE: Final = 32768

# Shorter than TCP's least retransmission time-out (200 ms, Linux): a retransmission
# into silence is copied, the ordinary answer within a round trip is not.
ALIVE_MS: Final = 150


_HELD_BIT: Final = 0x10000

# How packets get to a packet worker: by nft's own statement, or by the xt target, which nft
# can't write.
Queueing = Literal["nft", "xt"]
TO_WORKER: Final = "to_worker"  # the chain that queues

SNAP: Final = 128  # bytes of a copy of which only the headers are read


@dataclass(frozen=True, slots=True)
class Settings:
    """Names and numbers that the rules carry.

    table   name of our tables in the families ip, ip6 and arp
    group   NFLOG group of the copies (0 to 65535)
    mark    packet mark of what we inject ourselves: never tracked, never held;
            its bit 0x10000 is ours
    copies  copies of outbound segments a second, all connections together
    queue   NFQUEUE of the divert path (0 to 65535)
    """

    table: str = "redirectd"
    group: int = 4787
    mark: int = 0x72640001
    copies: int = 2000
    queue: int = 4787

    @property
    def held_mark(self) -> int:
        """Mark of what our own sockets send on a shut connection."""
        return self.mark | _HELD_BIT


def table_name_is_valid(name: str) -> bool:
    """Whether ``name`` can stand unquoted as an nftables table name."""
    plain = name.replace("_", "").replace("-", "")
    return 0 < len(name) <= 32 and name.isascii() and name[0].isalpha() and plain.isalnum()


class _Family:
    """What differs between IPv4 and IPv6 in the text."""

    def __init__(self, version: int) -> None:
        six = version == 6
        self.name = "ip6" if six else "ip"
        self.address = "ipv6_addr" if six else "ipv4_addr"
        self.key = f"{self.name} saddr . tcp sport . {self.name} daddr . tcp dport"
        self.back = f"{self.name} daddr . tcp dport . {self.name} saddr . tcp sport"
        self.key_type = f"{self.address} . inet_service . {self.address} . inet_service"
        self.header = {
            "s": f"{self.name} saddr",
            "d": f"{self.name} daddr",
            "sp": "tcp sport",
            "dp": "tcp dport",
        }
        # RFC 1191: type 3 code 4; RFC 8201: type 2.
        self.too_big = (
            "icmpv6 type packet-too-big"
            if six
            else "icmp type destination-unreachable icmp code frag-needed"
        )
        # Headers alone: 20 + 60 bytes with all options; IPv6 counts without its header.
        self.small = "ip6 length <= 60" if six else "ip length <= 80"


def ruleset(
    settings: Settings,
    elements: Elements | None = None,
    *,
    routed: bool = True,
    queueing: Queueing | None = None,
) -> str:
    """The whole of our rules in one transaction; replaces what is there.

    routed  whether connections may be forwarded, or translated by rules of the user's;
            a machine that does neither is spared the hooks (a tenth of its time a packet)
    queueing  whether, and how, packets go to a packet worker; with ``xt`` the chain
            :data:`TO_WORKER` drops them until the target stands in front of its rule
    """
    if not table_name_is_valid(settings.table):
        raise ValueError(f"{settings.table!r} is no name for an nftables table")
    by_map: dict[tuple[int, str], list[tuple[Key, Value]]] = {}
    for key, value in (elements or {}).items():
        by_map.setdefault((version_of(key[1]), key[0]), []).append((key, value))
    lines = []
    for version in (4, 6):
        family = _Family(version)
        lines += _replace(family.name, settings.table)
        filled = {name: rows for (v, name), rows in by_map.items() if v == version}
        lines += _table(family, settings, filled, routed, queueing)
    lines += _replace("arp", settings.table)
    lines += _arp(settings)
    return "\n".join(lines) + "\n"


def removal(settings: Settings) -> str:
    """Takes our tables away, whether they are there or not."""
    lines = [line for f in ("ip", "ip6", "arp") for line in _replace(f, settings.table)]
    return "\n".join(lines) + "\n"


def _replace(family: str, table: str) -> list[str]:
    return [f"add table {family} {table}", f"delete table {family} {table}"]


def _table(
    family: _Family,
    settings: Settings,
    filled: Mapping[str, list[tuple[Key, Value]]],
    routed: bool,
    queueing: Queueing | None,
) -> list[str]:
    lines = [f"table {family.name} {settings.table} {{"]
    for name, kind in map_types(family.address).items():
        lines += _map(family, name, kind, filled.get(name, []))
    lines += [
        *_block("set alive", f"type {family.key_type}", f"size {ALIVE_SIZE}",
                "flags dynamic,timeout", f"timeout {ALIVE_MS}ms"),
        *_block("set parked", f"type {family.address}"),
        *_copies(family, settings),
    ]  # fmt: skip
    for hook, fields in HOOK_FIELDS.items():
        for count in range(len(fields) + 1):
            for chosen in combinations(fields, count):
                for observed in (False, True) if hook != "via" else (False,):
                    lines += _rewrite_chain(family, settings, hook, chosen, observed)
    if queueing is not None:
        lines += _queue_chains(family, settings, queueing)
    lines += _base_chains(family, settings, routed)
    if routed:
        lines += _routing_chains(family, settings)
    lines.append("}")
    return lines


def map_types(address: str) -> dict[str, str]:
    """Our maps and sets that elements fill: name -> type of the data ("" for a set)."""
    field = {"s": address, "d": address, "sp": "inet_service", "dp": "inet_service"}
    both = f"{address} . inet_service"
    kinds = {"guard": "", "sent": "", "nat_s": both, "nat_d": both}
    for hook, fields in HOOK_FIELDS.items():
        kinds[f"{hook}_go"] = "verdict"
        kinds |= {f"{hook}_{name}": field[name] for name in fields}
    return kinds


def _map(family: _Family, name: str, kind: str, rows: list[tuple[Key, Value]]) -> list[str]:
    body = [f"type {family.key_type}{f' : {kind}' if kind else ''}"]
    if name == "via_go":
        body.append("flags timeout")  # for connections that are told off for a while
    if rows:
        body.append(f"elements = {{ {', '.join(element_text(k, v) for k, v in rows)} }}")
    return _block(f"{'map' if kind else 'set'} {name}", *body)


def element_text(key: Key, value: Value) -> str:
    """``192.0.2.1 . 22 . 198.51.100.7 . 40000 : goto in_s``."""
    src, dst = unpack(key[1])
    text = f"{src.addr} . {src.port} . {dst.addr} . {dst.port}"
    if isinstance(value, str):
        return f"{text} : {value if value == 'drop' else f'goto {value}'}"
    return f"{text} : {_data_text(value)}" if value else text


def _data_text(value: bytes) -> str:
    if len(value) == 2:
        return str(int.from_bytes(value, "big"))
    if len(value) in (8, 20):
        end = unpack_end(value)
        return f"{end.addr} . {end.port}"
    return str(IPv4Address(value) if len(value) == 4 else IPv6Address(value))


def _block(head: str, *body: str) -> list[str]:
    # nft 1.0.6 needs the newline before the closing brace.
    return [f" {head} {{", *(f"  {line}" for line in body), " }"]


def _copies(family: _Family, settings: Settings) -> list[str]:
    """Chains that copy packets to user space (NFLOG: no verdict is needed)."""
    log = f"log group {settings.group}"
    loopback = "::1" if family.name == "ip6" else "127.0.0.1"
    small = f"limit rate {settings.copies}/second {log} snaplen {SNAP}"
    return [
        *_block("chain held", f'{log} prefix "{HELD}"', "drop"),
        # A drop in the output hook is an error for TCP: it would take the segment for
        # unsent, and the acknowledgment of its copy for an attack.  Sent to ourselves
        # instead, it is lost on the way.
        *_block("chain held_own", f'{log} prefix "{HELD}"',
                f"meta mark set {settings.held_mark:#010x}",
                f"{family.name} daddr set {loopback} accept"),
        *_block("chain withheld",
                f'limit rate 200/second {log} prefix "{RESET}" snaplen {SNAP}', "drop"),
        *_block("chain seen_in", f'tcp flags & (syn|fin|rst) == 0 {family.small} {small}'
                f' prefix "{SEEN_IN}"'),
        *_block("chain seen_out", f'tcp flags & (syn|fin|rst) == 0 {family.small} {small}'
                f' prefix "{SEEN_OUT}"'),
        *_block("chain marked", f"meta mark {settings.mark:#010x} notrack accept", "drop"),
        *_block("chain taken", "reject with tcp reset"),
        # Nobody comes here: the mention alone switches connection tracking on, and with it
        # defragmentation, without which a fragment has no ports to look up.
        *_block("chain tracked", "ct state new accept"),
        *_block("chain told_off", "reject with tcp reset"),
    ]  # fmt: skip


def _rewrite_chain(
    family: _Family, settings: Settings, hook: Hook, fields: tuple[str, ...], observed: bool
) -> list[str]:
    """One chain for each set of fields that differ; the verdict map chooses it."""
    body = _first(family, hook, observed, not {"s", "d"} & set(fields))
    body += [f"{family.header[f]} set {family.key} map @{hook}_{f}" for f in fields]
    if hook in ("out", "post"):
        body += _into_silence(family, settings)
    return _block(f"chain {chain_name(hook, fields, observed)}", *(body or ["accept"]))


def _first(family: _Family, hook: Hook, observed: bool, same: bool = False) -> list[str]:
    """What becomes of a packet of ours before it is translated; ``same``: its addresses
    will not be."""
    if hook != "in":
        return [
            # Without its address and any other route a socket sends by the route of last
            # resort, to ourselves: our own stack would answer with a RST.  (With another
            # address the packet is routed anew.)
            *(['oifname "lo" goto held_own'] if hook == "out" and same else []),
            *(["jump seen_out"] if observed else []),
        ]
    return [
        # A stranger who got the old address resets what is not his (RFC 5961, 3): no RST
        # passes until the peer's daemon confirms it.
        "tcp flags & rst == rst goto withheld",
        *(["jump seen_in"] if observed else []),
        f"update @alive {{ {family.key} }}",
    ]


def _into_silence(family: _Family, settings: Settings) -> list[str]:
    """Copies of what leaves while nothing comes in."""
    return [
        f"{family.back} @alive accept",
        f"limit rate {settings.copies}/second burst {settings.copies} packets"
        f' log group {settings.group} prefix "{QUIET}"',
    ]


def _queue_chains(family: _Family, settings: Settings, queueing: Queueing) -> list[str]:
    """The divert path.  Without a listener the queue drops: the path fails closed."""
    lines = _block(
        f"chain {TO_WORKER}", f"queue num {settings.queue}" if queueing == "nft" else "drop"
    )
    for hook, fields in queue_chains():
        for observed in (False, True):
            body = [*_first(family, hook, observed, SAME in fields), f"goto {TO_WORKER}"]
            lines += _block(f"chain {chain_name(hook, fields, observed)}", *body)
    return [
        *lines,
        *_block("chain quiet", *_into_silence(family, settings)),
        # After a verdict a packet goes on behind the chain that queued it.
        *_block("chain late", "type filter hook postrouting priority 311; policy accept;",
                f"meta mark {settings.mark:#010x} accept",
                f"{family.key} @sent goto quiet"),
    ]  # fmt: skip


def _base_chains(family: _Family, settings: Settings, routed: bool) -> list[str]:
    mine = f"meta mark {settings.mark:#010x} notrack accept"
    pmtu = (
        f"{family.too_big} limit rate 200/second"
        f' log group {settings.group} prefix "{PMTU}" snaplen 640'
    )
    return [
        *_block("chain before", "type filter hook prerouting priority -310; policy accept;",
                f"meta mark & {0xFFFFFFFF ^ _HELD_BIT:#010x} == {settings.mark:#010x} goto marked",
                pmtu,
                f"{family.key} vmap @in_go",
                # A parked address lives in our own sockets only.
                f'meta l4proto tcp {family.name} daddr @parked iifname != "lo" drop'),
        # Of path errors leave only those of a router.
        *_block("chain mine", "type filter hook output priority -310; policy accept;",
                mine, *([pmtu] if routed else [])),
        *_block("chain own", "type route hook output priority 310; policy accept;",
                f"meta mark {settings.mark:#010x} accept",
                f"{family.key} vmap @out_go",
                # Of a parked address only bound connections send; what the route of last
                # resort led to lo must not be taken for local traffic.
                f"meta l4proto tcp {family.name} saddr @parked fib daddr type != local drop",
                f'{family.name} saddr @parked oifname "lo" fib daddr type != local drop'),
    ]  # fmt: skip


def _routing_chains(family: _Family, settings: Settings) -> list[str]:
    return [
        *_block("chain destination", "type filter hook prerouting priority -90; policy accept;",
                f"meta mark {settings.mark:#010x} accept",
                f"{family.key} vmap @via_go"),
        *_block("chain after", "type filter hook postrouting priority 310; policy accept;",
                f"meta mark {settings.mark:#010x} accept",
                f"{family.key} vmap @post_go"),
        *_block("chain stack", "type filter hook input priority -310; policy accept;",
                f"meta mark {settings.mark:#010x} accept",
                f"{family.key} @guard drop"),
        # Asked once a conntrack entry.
        *_block("chain source_nat", "type nat hook postrouting priority 99; policy accept;",
                f"snat {family.name} to {family.key} map @nat_s"),
        *_block("chain destination_nat", "type nat hook prerouting priority -101; policy accept;",
                f"dnat {family.name} to {family.key} map @nat_d"),
    ]  # fmt: skip


def _arp(settings: Settings) -> list[str]:
    return [
        f"table arp {settings.table} {{",
        *_block("set parked", "type ipv4_addr"),
        # The old address belongs to somebody else now: never answer for it.
        *_block("chain requests", "type filter hook input priority 0; policy accept;",
                "arp operation request arp daddr ip @parked drop"),
        "}",
    ]  # fmt: skip


def parked(settings: Settings, addresses: Iterable[IPv4Address | IPv6Address]) -> str:
    """Commands that make addresses known as parked."""
    return "".join(
        f"add element {family} {settings.table} parked {{ {addr} }}\n"
        for addr in addresses
        for family in (("ip", "arp") if addr.version == 4 else ("ip6",))
    )
