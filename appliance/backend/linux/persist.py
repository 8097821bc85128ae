"""What keeps our end of a connection alive while nobody answers it.  Pure.

A sender gives up after so many unanswered repetitions (RFC 9293 3.8.3; on Linux
``tcp_retries2``), but never on a peer whose window is shut and that answers (RFC 9293
3.8.6.1).  So repetitions are answered with what such a peer would say: nothing new is
acknowledged, and the far end's last timestamp is used again.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ...rewrite.flow import Flow
from ..segment import ACK, RST, SYN, TcpSegment, build_tcp, timestamps, timestamps_option

# From the third sending in a row on, a segment is the first unacknowledged one: the second
# one may be a loss probe, which repeats the *last* segment, but only once (RFC 8985 7.3);
# what a time-out repeats is the first (RFC 6298 5.4).
SURE_DATA = 3
# Probes are a second and more apart.  What our end says to an answer of ours comes at once.
SURE_PROBE = 2
PROBE_GAP = 0.5



@dataclass(slots=True)
class _Repeated:
    seq: int
    ack: int
    count: int
    since: float
    last: float


class Repetitions:
    """How often each connection has sent the same segment in a row.

    Of segments with data and of those without it the last one each: a far end that is
    still heard makes our end acknowledge between two repetitions.
    """

    def __init__(self) -> None:
        self._last: dict[tuple[str, bool], _Repeated] = {}

    def note(self, conn_id: str, segment: TcpSegment, now: float) -> None:
        """Our end sent ``segment`` into a silence, at ``now`` seconds."""
        if segment.flags & (SYN | RST) or not segment.flags & ACK:
            return
        key = conn_id, segment.span > 0
        last = self._last.get(key)
        if segment.span:
            self._last.pop((conn_id, False), None)
        elif last is not None and now - last.last < PROBE_GAP:
            return
        if last is not None and (last.seq, last.ack) == (segment.seq, segment.ack):
            last.count, last.last = last.count + 1, now
        else:
            self._last[key] = _Repeated(segment.seq, segment.ack, 1, now, now)

    def _found(self, conn_id: str, segment: TcpSegment) -> _Repeated | None:
        last = self._last.get((conn_id, segment.span > 0))
        same = last is not None and (last.seq, last.ack) == (segment.seq, segment.ack)
        return last if same else None

    def stuck_for(self, conn_id: str, segment: TcpSegment) -> float:
        """Seconds between the first and the last sending of ``segment``."""
        last = self._found(conn_id, segment)
        return 0.0 if last is None else last.last - last.since

    def unacknowledged(self, conn_id: str, segment: TcpSegment) -> int | None:
        """The first unacknowledged number of our end, when ``segment`` proves it."""
        last = self._found(conn_id, segment)
        if last is None:
            return None
        if segment.span == 0:
            # A probe carries the number before it (RFC 9293 3.8.4), so that it is answered.
            return (segment.seq + 1) % 2**32 if last.count >= SURE_PROBE else None
        return segment.seq if last.count >= SURE_DATA else None

    def forget(self, conn_ids: Iterable[str]) -> None:
        for conn_id in conn_ids:
            for data in (False, True):
                self._last.pop((conn_id, data), None)


def answer(segment: TcpSegment, unacknowledged: int, inside: Flow) -> bytes:
    """What the far end would say to a repetition if its window were shut.

    unacknowledged  first number of our end that was not acknowledged
    inside          the connection as our end sees it

    A probe is answered with a window of one unit: a window that was open must not be shut,
    since nothing would open it again (Linux takes a smaller window for old news).
    """
    stamps = timestamps(segment)
    options = b""
    if stamps is not None:
        value, echo = stamps
        options = timestamps_option(echo, value)
    window = 0 if segment.span else 1
    return build_tcp(inside.reversed(), segment.ack, unacknowledged, ACK, window, options=options)
