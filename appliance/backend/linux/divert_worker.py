"""The packet worker's loop: NFQUEUE, rewriter, and packets held for a shut connection."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from ...rewrite import checksum
from ...rewrite.redirect import Entry
from ...rewrite.rewriter import Rewriter
from ...rewrite.table import Verdict
from .nfqueue import Answer, Hook, Info, NfQueue

# Of each shut connection the first packet is kept, which is the first unacknowledged
# segment, and this many of the newest.
MAX_NEWEST = 15
# Of all connections together; must stay below the queue's length, or nothing else moves.
MAX_HELD = 1024

OnReset = Callable[[str], None]


class _Kept(NamedTuple):
    """``partial``: a super-packet, whose checksum the kernel finishes."""

    packet_id: int
    data: bytes
    partial: bool


class DivertWorker:
    """Translates what its queue brings.

    queue     made with ``gso`` or without
    rewriter  made with ``near="birth"``
    on_reset  told the connection of each RST that was withheld (if the rewriter does)

    Held packets are without a verdict in the kernel; when their connection opens they
    are translated and go on, in order.  When a bound is reached the oldest but the
    first of the connection is dropped.  Should the worker die, the kernel drops all.
    """

    def __init__(
        self, queue: NfQueue, rewriter: Rewriter, on_reset: OnReset = lambda conn_id: None
    ) -> None:
        self._queue = queue
        self._rewriter = rewriter
        self._rewrite = rewriter.rewrite
        self._on_reset = on_reset
        self._firsts: dict[str, _Kept] = {}
        self._newest: dict[str, deque[_Kept]] = {}
        self._total = 0
        self.dropped = 0

    def fileno(self) -> int:
        return self._queue.fileno()

    def read(self, limit: int = 256) -> int:
        """Handle what waits; how many packets."""
        return self._queue.dispatch(self._decide, limit)

    def load(self, entries: Iterable[Entry]) -> None:
        """Exactly these connections."""
        entries = list(entries)
        self._rewriter.load(entries)
        self._settle({entry.conn_id: entry for entry in entries}, set(self._firsts))

    def apply(self, entries: Iterable[Entry]) -> None:
        """Add or replace; packets held for those that are open now go on."""
        entries = list(entries)
        self._rewriter.apply(entries)
        known = {entry.conn_id: entry for entry in entries}
        self._settle(known, self._firsts.keys() & known.keys())

    def remove(self, conn_ids: Iterable[str]) -> None:
        """Forget connections; what is held for them is dropped."""
        gone = set(conn_ids)
        self._rewriter.remove(gone)
        self._settle({}, self._firsts.keys() & gone)

    def held(self) -> Mapping[str, int]:
        """Connection -> number of packets held now."""
        return {c: 1 + len(self._newest.get(c, ())) for c in self._firsts}

    def _decide(self, buffer: bytearray, offset: int, length: int, hook: int, info: int) -> int:
        inbound = hook == _PREROUTING
        verdict = self._rewrite(buffer, offset, length, inbound, info & 1 == 1)
        if verdict is _REWRITTEN:
            # A packet that was changed counts as finished, so its checksum must be; only
            # a super-packet on its way out gets new ones when it is cut into segments.
            if info & 1 and (inbound or not info & _GSO):
                checksum.finish(buffer, offset, length)
            return _ACCEPT_CHANGED
        if verdict is _PASS:
            return _ACCEPT
        if verdict is Verdict.DROP:
            return Answer.DROP
        conn_id = self._rewriter.connection_of(buffer, offset, length, inbound)
        if verdict is Verdict.RESET or conn_id is None or info & Info.TRUNCATED:
            if verdict is Verdict.RESET and conn_id is not None:
                self._on_reset(conn_id)
            return Answer.DROP
        partial = bool(info & 1 and info & _GSO)
        if info & 1 and not partial:
            checksum.finish(buffer, offset, length)
        data = bytes(buffer[offset : offset + length])
        self._hold(conn_id, _Kept(self._queue.current_id(), data, partial))
        return Answer.KEEP

    def _hold(self, conn_id: str, kept: _Kept) -> None:
        if conn_id not in self._firsts:
            if self._total >= MAX_HELD:
                self._drop_a_newest()
            self._firsts[conn_id] = kept
        else:
            newest = self._newest.setdefault(conn_id, deque())
            newest.append(kept)
            if len(newest) > MAX_NEWEST:
                self._drop(newest.popleft())
                self._total -= 1
            elif self._total >= MAX_HELD:
                self._drop_a_newest()
        self._total += 1

    def _drop_a_newest(self) -> None:
        """Make room: the longest line loses its oldest; without lines, the oldest first."""
        longest = max(self._newest, key=lambda c: len(self._newest[c]), default=None)
        if longest is not None:
            newest = self._newest[longest]
            self._drop(newest.popleft())
            if not newest:
                del self._newest[longest]
        else:
            self._drop(self._firsts.pop(next(iter(self._firsts))))
        self._total -= 1

    def _drop(self, kept: _Kept) -> None:
        self.dropped += 1
        self._queue.verdict(kept.packet_id, accept=False)

    def _settle(self, known: Mapping[str, Entry], concerned: set[str]) -> None:
        for conn_id in concerned:
            entry = known.get(conn_id)
            if entry is not None and entry.wire_out is None:
                continue
            line = [self._firsts.pop(conn_id), *self._newest.pop(conn_id, ())]
            self._total -= len(line)
            for kept in line:
                if entry is None:
                    self._drop(kept)
                else:
                    self._release(kept)

    def _release(self, kept: _Kept) -> None:
        data = bytearray(kept.data)
        if self._rewrite(data, 0, len(data), False, kept.partial) in (_PASS, _REWRITTEN):
            self._queue.verdict(kept.packet_id, accept=True, data=bytes(data))
        else:
            self._drop(kept)


_PREROUTING = int(Hook.PREROUTING)
_GSO = int(Info.GSO)
_ACCEPT, _ACCEPT_CHANGED = Answer.ACCEPT, Answer.ACCEPT_CHANGED
_PASS, _REWRITTEN = Verdict.PASS, Verdict.REWRITTEN
