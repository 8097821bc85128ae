"""Deadlines: a heap with lazy deletion, so that nothing is ever scanned."""

from __future__ import annotations

import heapq
from collections.abc import Hashable

Key = tuple[Hashable, ...]


class Timers:
    """At most one deadline a key; setting a key again moves its deadline."""

    __slots__ = ("_due", "_heap", "_serial")

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Key]] = []
        self._due: dict[Key, int] = {}
        self._serial = 0

    def __len__(self) -> int:
        return len(self._due)

    def __contains__(self, key: Key) -> bool:
        return key in self._due

    def set(self, key: Key, at: float) -> None:
        """``at``: seconds since the epoch."""
        self._serial += 1
        self._due[key] = self._serial
        heapq.heappush(self._heap, (at, self._serial, key))
        if len(self._heap) > 64 and len(self._heap) > 4 * len(self._due):
            self._heap = [item for item in self._heap if self._due.get(item[2]) == item[1]]
            heapq.heapify(self._heap)

    def cancel(self, key: Key) -> None:
        self._due.pop(key, None)

    def next(self) -> float | None:
        """The earliest deadline; None when there is none."""
        while self._heap and self._due.get(self._heap[0][2]) != self._heap[0][1]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def pop(self, now: float) -> Key | None:
        """The key whose deadline has passed longest ago; it is forgotten."""
        at = self.next()
        if at is None or at > now:
            return None
        key = heapq.heappop(self._heap)[2]
        del self._due[key]
        return key
