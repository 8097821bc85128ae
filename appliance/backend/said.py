"""What our end of each connection is known to have said last.  Pure.

A segment that was kept for a while says old things.  Once the far end has heard newer
ones, it takes the segment for a wanderer: for its timestamp (PAWS, RFC 7323 5.3), or for an
acknowledgment further back than one window (RFC 5961 5.2).  So it is sent with the newest
values, all of which our end did send.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from .heldstore import before
from .segment import ACK, RST, SYN, TcpSegment, timestamps, timestamps_at


@dataclass(frozen=True, slots=True)
class Newest:
    """stamp: TSval; None where the connection has no timestamps."""

    ack: int
    window: int
    stamp: int | None


class Said:
    def __init__(self) -> None:
        self._newest: dict[str, Newest] = {}

    def note(self, conn_id: str, segment: TcpSegment) -> None:
        """Our end sent ``segment``."""
        if segment.flags & (SYN | RST) or not segment.flags & ACK:
            return  # the window of a SYN is not scaled (RFC 7323, 2.2)
        stamps = timestamps(segment)
        stamp = None if stamps is None else stamps[0]
        window = int.from_bytes(segment.raw[segment.start + 14 : segment.start + 16], "big")
        last = self._newest.get(conn_id)
        if last is not None:
            if before(segment.ack, last.ack):
                return
            if stamp is None or (last.stamp is not None and before(stamp, last.stamp)):
                stamp = last.stamp
        self._newest[conn_id] = Newest(segment.ack, window, stamp)

    def newest(self, conn_id: str) -> Newest | None:
        return self._newest.get(conn_id)

    def freshen(self, conn_id: str, segment: TcpSegment) -> TcpSegment:
        """``segment`` as our end would send it now; its checksum is left as it was."""
        newest = self._newest.get(conn_id)
        if newest is None or not segment.flags & ACK or before(newest.ack, segment.ack):
            return segment
        raw = bytearray(segment.raw)
        at = segment.start
        raw[at + 8 : at + 12] = newest.ack.to_bytes(4, "big")
        raw[at + 14 : at + 16] = newest.window.to_bytes(2, "big")
        option = timestamps_at(segment)
        if option is not None and newest.stamp is not None:
            raw[option + 2 : option + 6] = newest.stamp.to_bytes(4, "big")
        return replace(segment, raw=bytes(raw), ack=newest.ack)

    def forget(self, conn_ids: Iterable[str]) -> None:
        for conn_id in conn_ids:
            self._newest.pop(conn_id, None)
