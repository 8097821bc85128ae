"""What happened, on disk and to whoever watches: the core's ``Log`` commands end here."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from keystore import Keystore, KeystoreError

from ..protocol.commands import Log

log = logging.getLogger("redirectd")

_LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "notice": logging.INFO,
    "warning": logging.WARNING,
    "alert": logging.ERROR,
}

Listener = Callable[[dict[str, Any]], None]


class Journal:
    """Events, and the moves that are made of two of them."""

    def __init__(self, store: Keystore, clock: Callable[[], float]) -> None:
        self._store, self._clock = store, clock
        self._listeners: list[Listener] = []
        self._disk_failed = False
        self._open_moves: dict[tuple[str | None, str], int] = {}
        self._of_moves: dict[str, Callable[[Log], None]] = {
            "move": self._began,
            "move-done": self._ended,
            "peer-moved": self._peer_moved,
        }

    def record(self, event: Log) -> None:
        """Never raises for the disk's sake: no connection ends for its history."""
        log.log(_LEVELS[event.level], "%s: %s", event.kind, event.text)
        now = self._clock()
        made = self._store.append_event(
            now, event.level, event.kind, event.text, event.peer_id, event.conn_id, event.data
        )
        for listener in list(self._listeners):
            listener(made.to_json())
        if (keep := self._of_moves.get(event.kind)) is not None:
            with self._disk():
                keep(event)

    def _began(self, event: Log) -> None:
        data = event.data
        made = self._store.append_move(
            self._clock(), data["old"], data["new"], event.peer_id, data["connections"]
        )
        self._open_moves[event.peer_id, data["new"]] = made.id

    def _ended(self, event: Log) -> None:
        data = event.data
        move = self._open_moves.pop((event.peer_id, data["new"]), None)
        if move is None:  # it began before a restart
            move = self._store.append_move(
                self._clock(), data["old"], data["new"], event.peer_id, data["connections"]
            ).id
        with suppress(LookupError):  # pruned meanwhile
            self._store.finish_move(
                move, data["handover_ms"], data["refused"], data["connections"]
            )

    def _peer_moved(self, event: Log) -> None:
        data = event.data
        if data["old"] is not None:
            self._store.append_move(
                self._clock(), data["old"], data["new"], event.peer_id, data["connections"],
                data["refused"],
            )  # fmt: skip

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Every event from now on as *event* of docs/control.md; the result ends it."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener) if listener in self._listeners else None

    def flush(self) -> bool:
        """Write what waits; False: the disk refuses, and it goes on waiting (in bounds)."""
        with self._disk():
            self._store.flush()
            return True
        return False

    @contextmanager
    def _disk(self) -> Iterator[None]:
        """A disk that refuses is complained about once, until it takes something again."""
        try:
            yield
        except KeystoreError as fault:
            if not self._disk_failed:
                log.error("history waits in memory: %s", fault)
            self._disk_failed = True
        else:
            self._disk_failed = False
