"""From pf's states to connections.  Pure; the table that reads is :mod:`.conntable`.

A forwarded connection has two states, one on each side; the one towards the network
tells both its names.  A state says for each of its keys which end is *near* (the source
of an outbound packet) and which is *far*.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from ...protocol.inputs import Connection
from ...rewrite.flow import Address, Flow
from ...rewrite.redirect import Entry
from .pfstates import ESTABLISHED, FIN_WAIT_2, PfState


class Roles(Protocol):
    """What part an address plays (:class:`.watcher.Picture`)."""

    def is_local(self, addr: Address) -> bool: ...

    def is_inside(self, addr: Address) -> bool: ...


@dataclass(frozen=True, slots=True)
class Found:
    """One connection in the state table.

    closing    every state of it has seen both FINs, or a RST
    left_alone why it can't be kept; None: it can
    numbers    (next byte that our end expects, next byte that the far end expects), as the
               newest state knows them; None after a redirect (sloppy states track nothing)
    """

    connection: Connection
    closing: bool
    left_alone: str | None
    numbers: tuple[int, int] | None


def find(
    states: Iterable[PfState],
    roles: Roles,
    now: float,
    entries: Mapping[Flow, Entry] | None = None,
) -> dict[Flow, Found]:
    """Birth flow -> connection.  ``entries``: bound connections by their inside flow, whose
    states show a wire flow instead of the birth flow."""
    bound = entries or {}
    found: dict[Flow, Found] = {}
    for state in states:
        connection = _connection(state, roles, now, bound)
        if connection is None:
            continue
        one = Found(connection, _closing(state), state.hands_off, _numbers(state))
        before = found.get(connection.birth)
        found[connection.birth] = one if before is None else _merge(before, one)
    return found


def _connection(
    state: PfState, roles: Roles, now: float, bound: Mapping[Flow, Entry]
) -> Connection | None:
    if state.proto != "tcp" or state.wire.rdomain:
        return None
    inside = Flow(state.stack.near, state.stack.far)
    entry = bound.get(inside)
    if entry is not None:
        return Connection(entry.birth, entry.inside, entry.local, entry.inside_opened, None)
    if not _is_open(state):
        return None
    wire = Flow(state.wire.near, state.wire.far)
    if wire.version != inside.version:
        return None  # translated between the families (af-to)
    ends = (wire.local.addr, wire.remote.addr, inside.local.addr)
    if any(a.is_loopback or a.is_link_local or a.is_multicast for a in ends):
        return None
    if roles.is_inside(wire.remote.addr) or roles.is_local(wire.remote.addr):
        return None  # the LAN side of a forwarded connection, or one of the LAN with us
    local = roles.is_local(inside.local.addr)
    if not local and not state.translated and not roles.is_inside(inside.local.addr):
        return None  # neither end is ours
    return Connection(wire, inside, local, state.direction == "out", now - state.age)


def _is_open(state: PfState) -> bool:
    """Established in both directions, or since then on its way to its end."""
    levels = (state.src.state, state.dst.state)
    return min(levels) >= ESTABLISHED or (state.sloppy and max(levels) >= ESTABLISHED)


def _closing(state: PfState) -> bool:
    """FIN_WAIT_2:FIN_WAIT_2 after both FINs, TIME_WAIT in both after a RST (pf_test_state)."""
    return min(state.src.state, state.dst.state) >= FIN_WAIT_2


def _numbers(state: PfState) -> tuple[int, int] | None:
    if state.sloppy or state.hands_off:
        return None
    ours, theirs = (state.src, state.dst) if state.direction == "out" else (state.dst, state.src)
    return theirs.seqlo, ours.seqlo


def _merge(a: Found, b: Found) -> Found:
    """Several states of one connection: it lives while one of them does."""
    since = [s for s in (a.connection.since, b.connection.since) if s is not None]
    first = a.connection
    merged = Connection(
        first.birth, first.inside, first.local, first.inside_opened, min(since, default=None)
    )
    numbers = b.numbers if a.numbers is None else a.numbers
    return Found(merged, a.closing and b.closing, a.left_alone or b.left_alone, numbers)


@dataclass(frozen=True, slots=True)
class Change:
    """What a new dump tells against the one before."""

    opened: tuple[Connection, ...]
    closed: tuple[Flow, ...]
    lost: tuple[Flow, ...]
    left_alone: tuple[tuple[Flow, str], ...]
    present: tuple[Connection, ...]


def compare(before: Mapping[Flow, Found], now: Mapping[Flow, Found]) -> Change:
    """A connection whose states hold offsets is never opened: who does not know it can't
    bind it.  One that was open and has no state any more was flushed or expired."""
    usable = {birth: f for birth, f in now.items() if f.left_alone is None}
    alive = {birth: f for birth, f in usable.items() if not f.closing}
    was = {b for b, f in before.items() if not f.closing and f.left_alone is None}
    left = {b: f.left_alone for b, f in now.items() if f.left_alone is not None}
    return Change(
        opened=tuple(f.connection for b, f in alive.items() if b not in was),
        closed=tuple(b for b in was if b in usable and usable[b].closing),
        lost=tuple(b for b in was if b not in usable),
        left_alone=tuple((b, why) for b, why in left.items() if b not in before),
        present=tuple(f.connection for f in alive.values()),
    )
