"""Address changes as the owner saw them: one each, although every known host is told by itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from .daemon import Move

# How far apart the first host and the last may be told of one change, in seconds.
TOGETHER = 60.0


@dataclass(frozen=True, slots=True)
class Change:
    """One address change. ``handover_ms``: until the last of its connections went on, in
    milliseconds; None: not all have. ``hosts``: the names of those that were told; or,
    ``ours`` false, of the one that changed its address."""

    time: float
    old: str
    new: str
    connections: int
    refused: int
    handover_ms: float | None
    done: bool
    hosts: tuple[str, ...]
    ours: bool = True


def changes(moves: Iterable[Move], names: Mapping[str, str]) -> list[Change]:
    """``moves`` newest first, put together; ``names``: what the hosts are called, by ID."""
    groups: list[list[Move]] = []
    for move in moves:
        last = groups[-1] if groups else []
        same = last and _what(last[0]) == _what(move)
        if same and last[-1].time - move.time <= TOGETHER:
            last.append(move)
        else:
            groups.append([move])
    return [_change(group, names) for group in groups]


def _what(move: Move) -> tuple[object, ...]:
    """Equal for the parts of one change."""
    return move.old, move.new, move.ours, None if move.ours else move.peer_id


def _change(group: list[Move], names: Mapping[str, str]) -> Change:
    times = [move.handover_ms for move in group if move.handover_ms is not None]
    done = all(move.done for move in group)
    hosts = (names.get(m.peer_id, f"host {m.peer_id[:8]}") for m in group if m.peer_id is not None)
    return Change(
        time=min(move.time for move in group),
        old=group[0].old,
        new=group[0].new,
        connections=sum(move.connections for move in group),
        refused=sum(move.refused for move in group),
        handover_ms=max(times, default=None) if done else None,
        done=done,
        hosts=tuple(dict.fromkeys(hosts)),
        ours=group[0].ours,
    )
