"""Events and moves: what happened, for the operator; bounded by rows and by age."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from sqlite_utils import Database
from sqlite_utils.db import Table

LEVELS = ("debug", "info", "notice", "warning", "alert")
_TEXT_MAX = 4096
_DATA_MAX = 16384
_BATCH = 64  # events that wait for a durable write before they are written on their own
_WAITING_MAX = 1024
_MOVES_MAX = 10_000


@dataclass(frozen=True, slots=True)
class EventRecord:
    """One event; ``time`` in seconds since the epoch, IDs grow with time."""

    id: int
    time: float
    level: str
    kind: str
    text: str
    peer_id: str | None = None
    conn_id: str | None = None
    data: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """*event* of docs/control.md."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class MoveRecord:
    """One address change, old and new address as text: of ours, as ``peer_id`` was told, or
    (``ours`` false) of that peer."""

    id: int
    time: float
    old: str
    new: str
    peer_id: str | None
    connections: int
    refused: int
    handover_ms: float | None
    done: bool
    ours: bool = True

    def to_json(self) -> dict[str, Any]:
        """*move* of docs/control.md."""
        return asdict(self)


class History:
    """Both tables.  Events wait in memory until something durable is written anyway,
    :meth:`flush` is called, or ``_BATCH`` of them have come together."""

    def __init__(self, db: Database, max_events: int) -> None:
        self._db = db
        self._events: Table = db.table("events")
        self._moves: Table = db.table("moves")
        self._max_events = max(1, max_events)
        self._waiting: list[dict[str, Any]] = []
        newest, self._rows = db.execute("SELECT max(id), count(*) FROM events").fetchone()
        self._next_id = (newest or 0) + 1

    def append_event(
        self,
        time: float,
        level: str,
        kind: str,
        text: str,
        peer_id: str | None = None,
        conn_id: str | None = None,
        data: Mapping[str, Any] | None = None,
    ) -> EventRecord:
        """Add an event; ValueError for an unknown level.  Over-long text is cut, and data
        that is too large is left out, rather than an event lost."""
        number = LEVELS.index(level)
        packed = json.dumps(data or {}, separators=(",", ":"), default=str)
        if len(packed) > _DATA_MAX:
            packed = '{"left_out":"too large"}'
        event = EventRecord(
            self._next_id, float(time), level, kind, text[:_TEXT_MAX], peer_id, conn_id,
            json.loads(packed),
        )  # fmt: skip
        self._next_id += 1
        self._waiting.append({**asdict(event), "level": number, "data": packed})
        if len(self._waiting) >= _BATCH:
            # a disk that is full must not fill the memory as well
            del self._waiting[:-_WAITING_MAX]
            with contextlib.suppress(sqlite3.Error):  # whoever calls flush() hears of it
                self.flush()
        return event

    def flush(self) -> None:
        """Write what waits."""
        if self._waiting:
            with self.writing():
                pass

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """One durable transaction, in which the events that wait go along for free; if it
        fails, they wait again."""
        waiting, rows = self._waiting, self._rows
        try:
            with self._db.atomic():
                if waiting:
                    self._waiting = []
                    self._insert_events(waiting)
                yield
        except BaseException:
            self._waiting, self._rows = waiting, rows
            raise

    def _insert_events(self, events: list[dict[str, Any]]) -> None:
        self._events.insert_all(events)
        self._rows += len(events)
        if self._rows > self._max_events * 1.1:  # a tenth of slack: not at every write
            self._delete_events(
                "id <= (SELECT id FROM events ORDER BY id DESC LIMIT 1 OFFSET ?)",
                [self._max_events],
            )

    def events(
        self,
        limit: int = 100,
        before: int | None = None,
        level: str | None = None,
        search: str | None = None,
    ) -> list[EventRecord]:
        """Newest first.  ``level``: this one and graver ones; ``search``: text that stands
        in the text, the kind or an ID, whatever the case; ``before``: an event's ID."""
        self.flush()
        where = ["1"]
        values: list[Any] = []
        if before is not None:
            where.append("id < ?")
            values.append(before)
        if level is not None:
            where.append("level >= ?")
            values.append(LEVELS.index(level))
        if search:
            columns = ("text", "kind", "ifnull(peer_id, '')", "ifnull(conn_id, '')")
            where.append("(" + " OR ".join(f"{c} LIKE ? ESCAPE '\\'" for c in columns) + ")")
            values += [f"%{_escaped(search)}%"] * len(columns)
        rows = self._events.rows_where(
            " AND ".join(where), values, order_by="id DESC", limit=max(1, limit)
        )
        return [
            EventRecord(**{**row, "level": LEVELS[row["level"]], "data": json.loads(row["data"])})
            for row in rows
        ]

    def append_move(
        self,
        time: float,
        old: str,
        new: str,
        peer_id: str | None,
        connections: int,
        refused: int | None = None,
    ) -> MoveRecord:
        """A move of ours that begins (:meth:`finish_move` tells how it ended), or, with
        ``refused``, one of the peer's that is over."""
        ours = refused is None
        with self.writing():
            self._moves.insert(
                {
                    "time": float(time), "old": old, "new": new, "peer_id": peer_id,
                    "connections": connections, "refused": refused or 0, "handover_ms": None,
                    "done": int(not ours), "ours": int(ours),
                }
            )  # fmt: skip
            (newest,) = self._db.execute("SELECT max(id) FROM moves").fetchone()
            self._moves.delete_where("id <= ?", [newest - _MOVES_MAX])
        return MoveRecord(
            newest, float(time), old, new, peer_id, connections, refused or 0, None, not ours, ours
        )

    def finish_move(
        self,
        move_id: int,
        handover_ms: float | None,
        refused: int = 0,
        connections: int | None = None,
    ) -> MoveRecord:
        """``handover_ms``: from the new address to the far end's answer; None: not known.
        LookupError if there is no such move (any more)."""
        rows = list(self._moves.rows_where("id = ?", [move_id]))
        if not rows:
            raise LookupError(f"no move {move_id}")
        change: dict[str, Any] = {"handover_ms": handover_ms, "refused": refused, "done": 1}
        if connections is not None:
            change["connections"] = connections
        with self.writing():
            self._moves.update(move_id, change)
        return _move({**rows[0], **change})

    def moves(self, limit: int = 100, only_ours: bool = False) -> list[MoveRecord]:
        """Newest first."""
        where = "ours" if only_ours else None
        rows = self._moves.rows_where(where, order_by="id DESC", limit=max(1, limit))
        return [_move(row) for row in rows]

    def prune(self, older_than: float) -> None:
        """Within :meth:`writing`: delete events and moves from before this time."""
        # the newest row stays whatever its age: its ID must not be given twice
        self._delete_events("time < ? AND id < (SELECT max(id) FROM events)", [older_than])
        self._moves.delete_where("time < ? AND id < (SELECT max(id) FROM moves)", [older_than])

    def _delete_events(self, where: str, values: list[Any]) -> None:
        self._events.delete_where(where, values)
        (self._rows,) = self._db.execute("SELECT count(*) FROM events").fetchone()


def _move(row: dict[str, Any]) -> MoveRecord:
    return MoveRecord(**{**row, "done": bool(row["done"]), "ours": bool(row["ours"])})


def _escaped(search: str) -> str:
    return search.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
