"""The packet worker's loop: NFQUEUE and rewriter."""

from __future__ import annotations

from collections.abc import Iterable

from ...rewrite import checksum
from ...rewrite.redirect import Entry
from ...rewrite.rewriter import Rewriter
from ...rewrite.table import Verdict
from .nfqueue import Answer, Hook, Info, NfQueue


class DivertWorker:
    """Translates what its queue brings (:class:`..api.PacketWorker`).

    queue     made with ``gso`` or without
    rewriter  made with ``near="birth"``

    The rules (pfconf/nft.py) queue segments of open connections on this path and nothing
    else: what a shut one sends they hold as on the kernel path, RSTs they withhold.
    Should the worker die, the kernel drops all that waits for it.
    """

    def __init__(self, queue: NfQueue, rewriter: Rewriter) -> None:
        self._queue = queue
        self._rewriter = rewriter
        self._rewrite = rewriter.rewrite

    def fileno(self) -> int:
        return self._queue.fileno()

    def read(self, limit: int = 256) -> int:
        """Handle what waits; how many packets."""
        return self._queue.dispatch(self._decide, limit)

    def drain(self) -> None:
        self.read(self._queue.length)

    def load(self, entries: Iterable[Entry]) -> None:
        self._rewriter.load(entries)

    def apply(self, entries: Iterable[Entry]) -> None:
        self._rewriter.apply(entries)

    def remove(self, conn_ids: Iterable[str]) -> None:
        self._rewriter.remove(conn_ids)

    def _decide(self, buffer: bytearray, offset: int, length: int, hook: int, info: int) -> int:
        inbound = hook == _PREROUTING
        verdict = self._rewrite(buffer, offset, length, inbound, info & 1 == 1)
        if verdict is _REWRITTEN:
            # A packet that was changed counts as finished, so its checksum must be; only
            # a super-packet on its way out gets new ones when it is cut into segments.
            if info & 1 and (inbound or not info & _GSO):
                checksum.finish(buffer, offset, length)
            return _ACCEPT_CHANGED
        if verdict is _PASS and self._rewriter.connection_of(buffer, offset, length, inbound):
            return _ACCEPT
        # Stale, or shut or let go since it was queued.  Untranslated it would make a stack
        # answer RST; a segment that is lost comes again.
        return _DROP


_PREROUTING = int(Hook.PREROUTING)
_GSO = int(Info.GSO)
_ACCEPT, _ACCEPT_CHANGED, _DROP = Answer.ACCEPT, Answer.ACCEPT_CHANGED, Answer.DROP
_PASS, _REWRITTEN = Verdict.PASS, Verdict.REWRITTEN
