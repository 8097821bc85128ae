"""The keystore: what must outlive the process, one method a concern."""

from __future__ import annotations

import contextlib
import secrets
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from sqlite_utils import Database

from appliance.protocol.records import BindingRecord, PeerRecord

from . import opening, rows
from .errors import DamagedError, KeystoreError
from .history import EventRecord, History, MoveRecord
from .place import Lock, check_file, prepare_directory

T = TypeVar("T")

_DAY = 86400.0


def open_keystore(
    path: Path | str,
    *,
    max_events: int = 10_000,
    event_age: float = 90 * _DAY,
    token_hex: Callable[[int], str] = secrets.token_hex,
) -> Keystore:
    """Open the database file ``path``, or make it (0600, in a 0700 directory).

    max_events  rows that the event log keeps (a tenth more for moments)
    event_age   seconds after which :meth:`Keystore.prune` deletes events and moves

    Raises PlaceError (permissions, owner, in use), DamagedError, NewerError, or their
    base KeystoreError; a file that is refused is left as it was.
    """
    path = Path(path)
    prepare_directory(path.parent)
    lock = Lock(path.with_name(path.name + ".lock"))
    try:
        if not check_file(path):
            opening.create(path, {"host_id": token_hex(16)})
        opening.inspect(path)
        return Keystore(path, opening.open_database(path), lock, max_events, event_age)
    except (sqlite3.Error, OSError) as error:
        lock.release()
        raise KeystoreError(path, f"can't be used ({error})", "check its file system") from None
    except BaseException:
        lock.release()
        raise


class Keystore:
    """An open keystore.  Made by :func:`open_keystore`, used by one thread.

    Every ``save``, ``forget`` and ``release`` is on disk when it returns; if it raises
    (KeystoreError: disk full, peer unknown) nothing of it is.
    """

    def __init__(
        self, path: Path, db: Database, lock: Lock, max_events: int, event_age: float
    ) -> None:
        self.path = path
        self._db = db
        self._lock = lock
        self._event_age = event_age
        self._history = History(db, max_events)

    def host_id(self) -> str:
        """32 hex digits, random, made at first opening: this host's own ID."""
        row = self._db.execute("SELECT value FROM meta WHERE key = 'host_id'").fetchone()
        if row is None:
            raise DamagedError(self.path, "holds no host ID", "put a backup in its place")
        return str(row[0])

    # Peers

    def peers(self) -> list[PeerRecord]:
        """All known hosts, in the order of first contact; DamagedError names a bad row."""
        return self._read("peers", "first_contact, peer_id", rows.row_peer)

    def save_peer(self, peer: PeerRecord) -> None:
        """Add or replace a peer; durable."""
        with self._writing():
            rows.put(self._db.conn, "peers", "peer_id", [rows.peer_row(peer)])

    def forget_peer(self, peer_id: str) -> int:
        """Delete a peer, its keys and its bindings; returns how many bindings.

        The keys also leave the write-ahead log.  An unknown peer is ignored.
        """
        with self._writing():
            bindings: int = self._db.table("bindings").count_where("peer_id = ?", [peer_id])
            self._db.table("peers").delete_where("peer_id = ?", [peer_id])
        self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        return bindings

    # Bindings

    def bindings(self) -> list[BindingRecord]:
        """All bound connections, oldest first; DamagedError names a bad row."""
        return self._read("bindings", "bound_at, conn_id", rows.row_binding)

    def save_bindings(self, bindings: Iterable[BindingRecord]) -> None:
        """Add or replace bindings, all or none; durable."""
        made = [rows.binding_row(b) for b in bindings]
        if made:
            with self._writing():
                rows.put(self._db.conn, "bindings", "conn_id", made)

    def release(self, conn_ids: Iterable[str]) -> int:
        """Delete bindings, all or none; durable; returns how many there were."""
        ids = [(i,) for i in conn_ids]
        if not ids:
            return 0
        with self._writing():
            sql = "DELETE FROM bindings WHERE conn_id = ?"
            return int(self._db.conn.executemany(sql, ids).rowcount)

    # History (docs: keystore.history)

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
        """Add an event; on disk after the next durable write or :meth:`flush`."""
        with self._translated():
            return self._history.append_event(time, level, kind, text, peer_id, conn_id, data)

    def events(
        self,
        limit: int = 100,
        before: int | None = None,
        level: str | None = None,
        search: str | None = None,
    ) -> list[EventRecord]:
        """Newest first; ``level`` and graver; ``before`` an event's ID."""
        with self._translated():
            return self._history.events(limit, before, level, search)

    def append_move(
        self,
        time: float,
        old: str,
        new: str,
        peer_id: str | None = None,
        connections: int = 0,
        refused: int | None = None,
    ) -> MoveRecord:
        """A move of ours that begins; with ``refused`` one of the peer's that is over."""
        with self._translated():
            return self._history.append_move(time, old, new, peer_id, connections, refused)

    def finish_move(
        self,
        move_id: int,
        handover_ms: float | None,
        refused: int = 0,
        connections: int | None = None,
    ) -> MoveRecord:
        """How a move ended; LookupError for an unknown one."""
        with self._translated():
            return self._history.finish_move(move_id, handover_ms, refused, connections)

    def moves(self, limit: int = 100, only_ours: bool = False) -> list[MoveRecord]:
        """Newest first."""
        with self._translated():
            return self._history.moves(limit, only_ours)

    def flush(self) -> None:
        """Write the events that wait; to be called now and then."""
        with self._translated():
            self._history.flush()

    def prune(self, now: float, unused_after: float | None) -> Sequence[str]:
        """Forget peers without a connection that nobody heard of for ``unused_after``
        seconds (None: never), and events that are too old; returns the peers' IDs.

        Only pending and trusted peers: a person decided about the others, and a revoked
        one that were forgotten could come back as a stranger.
        """
        gone: list[str] = []
        with self._writing():
            if unused_after is not None:
                found = self._db.table("peers").rows_where(
                    "state IN ('pending', 'trusted')"
                    " AND max(first_contact, last_contact) < ?"
                    " AND peer_id NOT IN (SELECT peer_id FROM bindings)",
                    [now - unused_after],
                    select="peer_id",
                )
                gone = [row["peer_id"] for row in found]
                for peer_id in gone:
                    self._db.table("peers").delete_where("peer_id = ?", [peer_id])
            self._history.prune(now - self._event_age)
        return gone

    def close(self) -> None:
        """Write what waits and leave one clean file; further calls do nothing."""
        if self._lock.held:
            try:
                self.flush()
            finally:
                self._db.close()
                self._lock.release()

    def __enter__(self) -> Keystore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Keystore({str(self.path)!r})"

    # How

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        with self._translated(), self._history.writing():
            yield

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise KeystoreError(
                self.path, f"refused: {error}", "check the file system, then restart redirectd"
            ) from error

    def _read(self, table: str, order: str, make: Callable[[Mapping[str, Any]], T]) -> list[T]:
        with self._translated():
            found = list(self._db.table(table).rows_where(order_by=order))
        try:
            return [make(row) for row in found]
        except (ValueError, KeyError, TypeError) as error:
            raise DamagedError(
                self.path, f"table {table}: {error}", "put a backup in its place"
            ) from None
