"""Which packets take the divert path: nft sets of tuples, in front of an NFQUEUE.

Where the rules stand (the rewriter is outermost, so that conntrack, NAT and sockets keep
seeing the birth tuple):

    prerouting -310  what comes from the network
    output      310  what our own sockets send: only here does the kernel look for another
                     route when the address has changed
    postrouting 310  what we forward

Packets of a connection on this path fail closed: while nobody listens to the queue they
are dropped.  ICMP errors are queued when they are about an address in use here; they may
be anybody's, so they pass while nobody listens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from ...rewrite.flow import Address, Flow
from ...rewrite.redirect import Entry
from . import queue_rules
from .nft import run_nft

# (set, element)
Member = tuple[str, str]

_ERRORS = "destination-unreachable, time-exceeded, parameter-problem"
_FAMILIES = (
    ("4", "ip", "ipv4_addr", "icmp", f"{{ {_ERRORS} }}"),
    ("6", "ip6", "ipv6_addr", "icmpv6", f"{{ packet-too-big, {_ERRORS} }}"),
)


def body(mark: int) -> str:
    """The table without its queueing chains; packets with ``mark`` are left alone."""
    sets, inward, outward = "", "", ""
    for version, ip, kind, icmp, errors in _FAMILIES:
        for name in ("in", "own", "forwarded"):
            sets += (
                f" set {name}{version} {{\n"
                f"  type {kind} . inet_service . {kind} . inet_service\n }}\n"
            )
        for name in ("here", "there"):
            sets += f" set {name}{version} {{\n  type {kind}\n }}\n"
        key = f"{ip} saddr . tcp sport . {ip} daddr . tcp dport"
        inward += f"  {key} @in{version} jump closed\n"
        inward += f"  {ip} daddr @here{version} {icmp} type {errors} jump open\n"
        outward += f"  {key} @CHAIN{version} jump closed\n"
        outward += f"  {ip} daddr @there{version} {icmp} type {errors} jump open\n"
    chains = ""
    for hook, priority, rules in (
        ("prerouting", -310, inward),
        ("output", 310, outward.replace("CHAIN", "own")),
        ("postrouting", 310, outward.replace("CHAIN", "forwarded")),
    ):
        # What our own machine sends has been through output: it has no inbound interface.
        already = "  meta iif 0 return\n" if hook == "postrouting" else ""
        chains += (
            f" chain {hook} {{\n  type filter hook {hook} priority {priority}\n"
            f"  meta mark {mark} return\n{already}{rules} }}\n"
        )
    return sets + chains


def _key(source: tuple[Address, int], target: tuple[Address, int]) -> str:
    return f"{source[0]} . {source[1]} . {target[0]} . {target[1]}"


def members(entry: Entry) -> list[Member]:
    """The set elements that bring one connection to the queue."""
    version = str(entry.birth.version)
    found: list[Member] = []
    for wire in (*entry.wires, *entry.stale):
        found.append((f"in{version}", _key(wire.remote, wire.local)))
        found.append((f"here{version}", str(wire.local.addr)))
    birth: Flow = entry.birth
    own = "own" if entry.local else "forwarded"
    found.append((f"{own}{version}", _key(birth.local, birth.remote)))
    found.append((f"there{version}", str(birth.remote.addr)))
    return list(dict.fromkeys(found))


class DivertTable:
    """The sets of the divert path (as :class:`..api.RedirectTable`; entries on the kernel
    path are none of its business and count as removed)."""

    def __init__(self, table: str, queue: int, mark: int) -> None:
        self._table = table
        self._queue = queue
        self._mark = mark
        self._entries: dict[str, Entry] = {}
        # Addresses are shared: an element stays while any connection needs it.
        self._users: Counter[Member] = Counter()

    def open(self) -> None:
        """Install empty sets; replaces whatever an earlier run left."""
        self._entries.clear()
        self._users.clear()
        chains = {"closed": False, "open": True}
        queue_rules.install(self._table, self._queue, body(self._mark), chains)

    def replace_all(self, entries: Sequence[Entry]) -> None:
        gone = self._entries.keys() - {entry.conn_id for entry in entries}
        self._change(entries, gone)

    def apply(self, entries: Sequence[Entry]) -> None:
        self._change(entries, ())

    def remove(self, conn_ids: Iterable[str]) -> None:
        self._change((), conn_ids)

    def close(self, keep: bool) -> None:
        """``keep``: connections on this path stay shut until a worker listens again."""
        if not keep:
            queue_rules.remove(self._table)

    def _change(self, entries: Sequence[Entry], gone: Iterable[str]) -> None:
        """One transaction; the books change only when the kernel has taken it."""
        after, users = dict(self._entries), Counter(self._users)
        for conn_id in (*gone, *(entry.conn_id for entry in entries)):
            before = after.pop(conn_id, None)
            if before is not None:
                users.subtract(members(before))
        for entry in entries:
            if entry.path == "divert":
                after[entry.conn_id] = entry
                users.update(members(entry))
        users = +users
        lines = [
            f"delete element inet {self._table} {name} {{ {element} }}"
            for name, element in self._users.keys() - users.keys()
        ] + [
            f"add element inet {self._table} {name} {{ {element} }}"
            for name, element in users.keys() - self._users.keys()
        ]
        if lines:
            run_nft("\n".join(lines) + "\n")
        self._entries, self._users = after, users
