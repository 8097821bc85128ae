"""What keeps our end of a connection alive while nobody answers it.  Pure.

A sender gives up after so many unanswered repetitions (RFC 9293 3.8.3; on Linux
``tcp_retries2``), but never on a peer whose window is shut and that answers (RFC 9293
3.8.6.1).  So repetitions are answered with what such a peer would say: nothing new is
acknowledged, and the far end's last timestamp is used again.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass, replace

from ...rewrite.flow import Flow
from ..segment import ACK, RST, SYN, TcpSegment, build_tcp

# From the third sending in a row on, a segment is the first unacknowledged one: the second
# one may be a loss probe, which repeats the *last* segment, but only once (RFC 8985 7.3);
# what a time-out repeats is the first (RFC 6298 5.4).
SURE_DATA = 3
# Probes are a second and more apart.  What our end says to an answer of ours comes at once.
SURE_PROBE = 2
PROBE_GAP = 0.5

_END, _NOP, _TIMESTAMPS = 0, 1, 8
_STAMPS = struct.Struct(">BBII")


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
        options = bytes((_NOP, _NOP)) + _STAMPS.pack(_TIMESTAMPS, 10, echo, value)
    window = 0 if segment.span else 1
    return build_tcp(inside.reversed(), segment.ack, unacknowledged, ACK, window, options=options)


class Stamps:
    """The newest timestamp that our end of each connection is known to have sent.

    A segment kept for a while carries an old one.  Once the far end has had an
    acknowledgment of ours that is younger, it takes the segment for a wanderer and drops
    it (PAWS, RFC 7323 5.3): so it is sent with the newest value, which our end did send.
    """

    def __init__(self) -> None:
        self._newest: dict[str, int] = {}

    def note(self, conn_id: str, segment: TcpSegment) -> None:
        """Our end sent ``segment``."""
        at = _stamps_at(segment)
        if at is None:
            return
        _, _, value, _ = _STAMPS.unpack_from(segment.raw, at)
        newest = self._newest.get(conn_id)
        if newest is None or (value - newest) % 2**32 < 2**31:
            self._newest[conn_id] = value

    def newest(self, conn_id: str) -> int | None:
        return self._newest.get(conn_id)

    def freshen(self, conn_id: str, segment: TcpSegment) -> TcpSegment:
        """``segment`` with the newest timestamp; its checksum is left as it was."""
        at = _stamps_at(segment)
        newest = self._newest.get(conn_id)
        if at is None or newest is None:
            return segment
        raw = bytearray(segment.raw)
        raw[at + 2 : at + 6] = newest.to_bytes(4, "big")
        return replace(segment, raw=bytes(raw))

    def forget(self, conn_ids: Iterable[str]) -> None:
        for conn_id in conn_ids:
            self._newest.pop(conn_id, None)


def timestamps(segment: TcpSegment) -> tuple[int, int] | None:
    """TSval and TSecr (RFC 7323, 3.2); None when there is no such option."""
    at = _stamps_at(segment)
    if at is None:
        return None
    _, _, value, echo = _STAMPS.unpack_from(segment.raw, at)
    return value, echo


def _stamps_at(segment: TcpSegment) -> int | None:
    """Where the timestamps option begins in ``segment.raw``."""
    at, end = segment.start + 20, segment.data
    raw = segment.raw
    while at < end:
        kind = raw[at]
        if kind == _END:
            return None
        if kind == _NOP:
            at += 1
            continue
        if at + 2 > end or raw[at + 1] < 2 or at + raw[at + 1] > end:
            return None
        if kind == _TIMESTAMPS and raw[at + 1] == 10:
            return at
        at += raw[at + 1]
    return None
