"""The parent's side of the divert path: a packet worker, and who translates what.

A connection's path is a verdict in the kernel's rules, so it changes in one step.  Around
that step the worker knows more than it must, never less: it is told of a connection before
the first packet can be queued, and lets it go after the last one was.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, Protocol

from ..backend.api import BackendError, PacketWorker, RedirectTable
from ..rewrite.flow import Flow
from ..rewrite.redirect import Entry
from . import privileges, worker
from .ipc import EngineLink, Message, ProtocolError, WorkerLink

log = logging.getLogger("redirectd.parent")

FIRST_PAUSE, MOST_PAUSE, CALM = 0.05, 30.0, 60.0  # seconds, as in parent.Restarts
STUCK = 3.0  # seconds without an answer


class Queue(Protocol):
    """The kernel's queue; once closed by all, it drops."""

    def close(self) -> None: ...


class WorkerProcess:
    """One packet worker, started again when it dies.

    open_queue  as root, in the parent
    take_up     the queue's packets, in the worker
    user        whom it runs as
    """

    def __init__(
        self,
        open_queue: Callable[[], Any],
        take_up: Callable[[Any], PacketWorker],
        user: str,
    ) -> None:
        self._open_queue, self._take_up, self._user = open_queue, take_up, user
        self._entries: dict[str, Entry] = {}
        self._link: WorkerLink | None = None
        self._pid = 0
        self._wanted = False
        self._started = self._due = 0.0
        self._pause = FIRST_PAUSE

    @property
    def knows(self) -> dict[str, Entry]:
        """The connections on the divert path."""
        return self._entries

    def start(self) -> None:
        """BackendError when there can be none on this system; again: no matter."""
        if not self._wanted:
            self._fork()
            self._wanted = True

    def channels(self) -> list[socket.socket]:
        """Readable when it has died."""
        return [] if self._link is None else [self._link.sock]

    def due(self) -> float | None:
        """Seconds until :meth:`look` should be called."""
        if not self._wanted or self._link is not None:
            return None
        return max(0.0, self._due - time.monotonic())

    def look(self) -> None:
        """Start it again if it has died and has been away for long enough."""
        if self._link is not None and self._link.ended():
            self._died()
        if self.due() == 0.0:
            try:
                self._fork()
            except (BackendError, OSError) as fault:
                log.error("no packet worker, connections on the divert path wait: %s", fault)
                self._put_off()

    def apply(self, entries: Iterable[Entry]) -> None:
        entries = list(entries)
        self._entries.update((entry.conn_id, entry) for entry in entries)
        self._tell(Message.WORKER_APPLY, entries)

    def shut(self, entries: Iterable[Entry]) -> None:
        """As :meth:`apply`, behind whatever the queue has of them."""
        entries = list(entries)
        self._entries.update((entry.conn_id, entry) for entry in entries)
        self._tell(Message.WORKER_SHUT, entries)

    def load(self, entries: Iterable[Entry]) -> None:
        """Exactly these."""
        self._entries = {entry.conn_id: entry for entry in entries}
        if self._wanted:
            self._call(Message.WORKER_LOAD, _rows(self._entries.values()))

    def remove(self, conn_ids: Iterable[str]) -> None:
        gone = [conn_id for conn_id in conn_ids if self._entries.pop(conn_id, None) is not None]
        if gone:
            self._call(Message.WORKER_REMOVE, {"conn_ids": gone})

    def forget(self) -> None:
        """In a process that was forked off: it is the parent's alone."""
        if self._link is not None:
            self._link.sock.close()

    def close(self) -> None:
        self._wanted = False
        if self._link is not None:
            self._link.sock.close()
            self._link = None
            os.waitpid(self._pid, 0)

    def _tell(self, kind: Message, entries: list[Entry]) -> None:
        if entries:
            self.start()
            self._call(kind, _rows(entries))

    def _call(self, kind: Message, body: dict[str, Any]) -> None:
        """One that dies meanwhile is told everything when it starts again."""
        if self._link is None:
            return
        try:
            self._link.call(kind, body)
        except (EOFError, OSError, ProtocolError) as fault:
            log.error("packet worker: %s: %s", kind.name, fault)
            self._died()

    def _fork(self) -> None:
        queue = self._open_queue()
        ours, theirs = socket.socketpair()
        pid = os.fork()
        if pid == 0:
            status = os.EX_SOFTWARE
            try:
                side = self._take_up(queue)
                side.load(self._entries.values())
                worker.alone(theirs, side)
                privileges.drop(self._user, keep=(privileges.CAP_NET_ADMIN,))
                worker.main(side, EngineLink(theirs))
                status = 0
            except BaseException:
                log.exception("the packet worker failed")
            finally:
                logging.shutdown()
                os._exit(status)
        theirs.close()
        queue.close()
        self._pid, self._started = pid, time.monotonic()
        self._link = WorkerLink(ours, STUCK)
        log.debug("packet worker %d, %d connections", pid, len(self._entries))

    def _died(self) -> None:
        assert self._link is not None
        self._link.sock.close()
        self._link = None
        with suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)  # it may only be stuck
        os.waitpid(self._pid, 0)
        if time.monotonic() - self._started > CALM:
            self._pause = FIRST_PAUSE
        log.warning("the packet worker died; starting it again in %.2f s", self._pause)
        self._put_off()

    def _put_off(self) -> None:
        self._due = time.monotonic() + self._pause
        self._pause = min(2 * self._pause, MOST_PAUSE)


def _rows(entries: Iterable[Entry]) -> dict[str, Any]:
    return {"entries": [entry.to_json() for entry in entries]}


class PathTable:
    """:class:`..backend.api.RedirectTable` with a packet worker beside the kernel's rules."""

    def __init__(self, table: RedirectTable, process: WorkerProcess) -> None:
        self._table, self._worker = table, process

    def open(self) -> None:
        self._table.open()

    def replace_all(self, entries: Sequence[Entry]) -> None:
        diverted = _diverted(entries)
        self._worker.apply(self._open_as_long_as(diverted))
        self._table.replace_all(entries)
        self._worker.load(diverted)

    def apply(self, entries: Sequence[Entry]) -> None:
        diverted = _diverted(entries)
        self._worker.apply(self._open_as_long_as(diverted))
        self._table.apply(entries)
        self._worker.shut(entry for entry in diverted if entry.wire_out is None)
        self._worker.remove(entry.conn_id for entry in entries if entry.path == "kernel")

    def remove(self, conn_ids: Iterable[str]) -> None:
        conn_ids = list(conn_ids)
        self._table.remove(conn_ids)
        self._worker.remove(conn_ids)

    def observe(self, flows: Sequence[Flow]) -> None:
        self._table.observe(flows)

    def verify(self) -> bool:
        return self._table.verify()

    def close(self, keep: bool) -> None:
        """Connections that go on do so by the kernel, until a worker is there again."""
        diverted = list(self._worker.knows.values())
        if keep and diverted:
            try:
                self._table.apply([replace(entry, path="kernel") for entry in diverted])
            except BackendError as fault:
                log.error("connections on the divert path stand still: %s", fault)
        self._worker.close()
        self._table.close(keep)

    def _open_as_long_as(self, entries: list[Entry]) -> list[Entry]:
        """These, those that are about to be shut still open: as the rules have them."""
        found = []
        for entry in entries:
            before = self._worker.knows.get(entry.conn_id)
            if entry.wire_out is None and before is not None:
                entry = replace(entry, wire_out=before.wire_out)
            found.append(entry)
        return found


def _diverted(entries: Iterable[Entry]) -> list[Entry]:
    return [entry for entry in entries if entry.path == "divert"]
