"""A sliding window over packet counters (RFC 4303, 3.4.3; RFC 6479's idea of width)."""

from __future__ import annotations

WIDTH = 1024


class ReplayWindow:
    """Tells whether a counter is new; packets may come up to ``WIDTH`` out of order."""

    __slots__ = ("_seen", "_top")

    def __init__(self) -> None:
        self._top = -1
        self._seen = 0  # bit n: counter top - n was seen

    def fresh(self, counter: int) -> bool:
        """Whether ``counter`` was never accepted and lies inside the window."""
        behind = self._top - counter
        return behind < 0 or (behind < WIDTH and not self._seen >> behind & 1)

    def accept(self, counter: int) -> bool:
        """Mark ``counter`` as seen; False: it was seen before, or is too old."""
        if not self.fresh(counter):
            return False
        ahead = counter - self._top
        if ahead > 0:
            # a jump wider than the window must not build a number of that many bits
            self._seen = (self._seen << ahead | 1) & ((1 << WIDTH) - 1) if ahead < WIDTH else 1
            self._top = counter
        else:
            self._seen |= 1 << -ahead
        return True
