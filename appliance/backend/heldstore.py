"""Segments kept for re-injection.  Pure: the time is an argument, in seconds.

What a shut connection sends is kept within bounds, oldest first: so that after a short
outage nothing needs a time-out.  What an open connection sends into a silence is kept
only as long as it may be unacknowledged.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from ..rewrite.flow import Flow
from .segment import TcpSegment

# One connection's window, within reason: Linux's first window is 14,480 bytes, and what
# follows the kept part comes by TCP's own means, one round trip later.
SEGMENTS = 64
BYTES = 96 * 1024
TOTAL_BYTES = 32 * 1024 * 1024

# Linux gives a silent peer up after 15 retransmissions, about 924 s (tcp(7)).
KEEP_HELD = 1000.0
# A segment sent into a silence is repeated from 200 ms on, in doubling steps; one that
# was sent this long ago and not repeated since was acknowledged.
KEEP_QUIET = 2.0


def before(a: int, b: int) -> bool:
    """``a`` comes before ``b`` in the circle of sequence numbers (RFC 9293, 3.4)."""
    return a != b and (b - a) % 2**32 < 2**31


@dataclass(slots=True)
class _Kept:
    segments: dict[int, tuple[float, TcpSegment]] = field(default_factory=dict)
    size: int = 0


class HeldStore:
    """Segments by packet tuple (of the rules' hook at which they were copied)."""

    def __init__(self, total: int = TOTAL_BYTES) -> None:
        self._total = total
        self._size = 0
        self._kept: dict[Flow, _Kept] = {}

    def hold(self, segment: TcpSegment, now: float) -> None:
        """Keep what a shut connection sent."""
        kept = self._kept.setdefault(segment.packet, _Kept())
        self._add(kept, segment, now)

    def quiet(self, segment: TcpSegment, now: float) -> None:
        """Keep what an open connection sent while nothing came back."""
        if not segment.span:
            return  # an acknowledgment repeats nothing, so it says nothing about the rest
        kept = self._kept.setdefault(segment.packet, _Kept())
        if segment.seq in kept.segments:
            # TCP repeats from the first unacknowledged number on: all before has arrived.
            self._drop(kept, [s for s in kept.segments if before(s, segment.seq)])
        self._drop(kept, [s for s, (at, _) in kept.segments.items() if now - at > KEEP_QUIET])
        self._add(kept, segment, now)

    def count(self, packet: Flow) -> int:
        kept = self._kept.get(packet)
        return 0 if kept is None else len(kept.segments)

    def take(self, packets: Iterable[Flow], now: float) -> list[TcpSegment]:
        """What is kept under any of these tuples, in sequence; it is kept no longer."""
        found: dict[int, TcpSegment] = {}
        for packet in packets:
            kept = self._kept.pop(packet, None)
            if kept is None:
                continue
            self._size -= kept.size
            for seq, (at, segment) in kept.segments.items():
                if now - at <= KEEP_HELD:
                    found.setdefault(seq, segment)
        return list(_in_sequence(found))

    def forget(self, packets: Iterable[Flow]) -> None:
        self.take(packets, 0.0)

    def expire(self, now: float) -> None:
        """Forget what is too old to be of use."""
        for packet, kept in list(self._kept.items()):
            self._drop(kept, [s for s, (at, _) in kept.segments.items() if now - at > KEEP_HELD])
            if not kept.segments:
                del self._kept[packet]

    def _add(self, kept: _Kept, segment: TcpSegment, now: float) -> None:
        if not segment.span:
            return  # an acknowledgment: the next one says more
        old = kept.segments.get(segment.seq)
        if old is not None and old[1].length > segment.length:
            kept.segments[segment.seq] = (now, old[1])
            return
        if old is not None:
            self._drop(kept, [segment.seq])
        size = len(segment.raw)
        if len(kept.segments) >= SEGMENTS or kept.size + size > BYTES:
            # The newest stays beside the oldest: when it is acknowledged selectively
            # (RFC 2018), the sender repeats all in between at once (RFC 8985).
            first = min_seq(kept.segments)
            newest = max(kept.segments, key=lambda s: (s - first) % 2**32)
            if before(segment.seq, first):
                # What a time-out repeats was sent before the connection was shut: nothing
                # else opens the way, so it takes the place of those in between.
                self._make_room(kept, newest, size)
            elif before(segment.seq, newest) or len(kept.segments) < 2:
                return
            else:
                self._drop(kept, [newest])
        if self._size + size > self._total:
            return
        kept.segments[segment.seq] = (now, segment)
        kept.size += size
        self._size += size

    def _make_room(self, kept: _Kept, newest: int, size: int) -> None:
        """Drop the last but one, again and again; the newest goes last."""
        while kept.segments and (len(kept.segments) >= SEGMENTS or kept.size + size > BYTES):
            others = [seq for seq in kept.segments if seq != newest]
            first = min_seq(others)
            last = max(others, key=lambda s: (s - first) % 2**32, default=newest)
            self._drop(kept, [last])

    def _drop(self, kept: _Kept, seqs: Iterable[int]) -> None:
        for seq in seqs:
            _, segment = kept.segments.pop(seq)
            kept.size -= len(segment.raw)
            self._size -= len(segment.raw)


def min_seq(seqs: Iterable[int]) -> int:
    """The first of numbers that lie within half the circle."""
    first: int | None = None
    for seq in seqs:
        if first is None or before(seq, first):
            first = seq
    return first or 0


def _in_sequence(found: dict[int, TcpSegment]) -> Iterator[TcpSegment]:
    first = min_seq(found)
    for seq in sorted(found, key=lambda s: (s - first) % 2**32):
        yield found[seq]
