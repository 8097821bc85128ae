"""The table of connections, so that watching it stays cheap with 5,000 rows.

However many browsers watch, the daemon is asked at most once in MIN_AGE seconds, less often when
asking is slow; and a browser that names the version it shows is sent only the rows that differ.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .daemon import Connection

MIN_AGE = 1.0
# Watching may take a twentieth of a core on each side of the control socket, however many
# connections there are and however slow the machine is; but nobody looks at older rows than this.
SHARE = 20
MAX_AGE = 10.0
MAX_VERSIONS = 24
PAGE_SIZES = (100, 500, 5000)

# What an owner wants to see first comes first.
STATE_ORDER = ("held", "redirected", "bound", "long", "short")
_RANK = {state: rank for rank, state in enumerate(STATE_ORDER)}


@dataclass(frozen=True, slots=True)
class Row:
    """A connection with the key of its row: the same for as long as the connection lives."""

    key: str
    connection: Connection


@dataclass(frozen=True, slots=True)
class Query:
    """What of the table is shown. ``state`` and ``peer`` empty: all; ``page`` counts from 1."""

    text: str = ""
    state: str = ""
    peer: str = ""
    size: int = PAGE_SIZES[0]
    page: int = 1


@dataclass(frozen=True, slots=True)
class Selection:
    """One page of the table. ``matching`` of ``total`` connections match; ``counts`` by state."""

    rows: tuple[Row, ...]
    total: int
    matching: int
    counts: tuple[tuple[str, int], ...]
    page: int
    pages: int


@dataclass(frozen=True, slots=True)
class Update:
    """What a browser must do: ``order`` None: nothing; rows not in ``changed`` stay as they are."""

    version: str
    order: tuple[str, ...] | None
    changed: tuple[Row, ...]


def row_key(connection: Connection) -> str:
    """Endpoints name a living connection at this machine; its ID comes only with the binding."""
    names = "|".join((*connection.inside, *connection.birth))
    return hashlib.blake2b(names.encode(), digest_size=8).hexdigest()


class Snapshots:
    """All connections, MIN_AGE to MAX_AGE seconds old at most. ``clock`` counts seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._rows: tuple[Row, ...] = ()
        self._taken: float | None = None
        self._keep = MIN_AGE

    def rows(self, fetch: Callable[[], Sequence[Connection]]) -> tuple[Row, ...]:
        """Fetches when the last answer is too old; what ``fetch`` raises goes to the caller."""
        with self._lock:
            now = self._clock()
            if self._taken is None or now - self._taken >= self._keep:
                self._rows = _sorted(fetch())
                self._taken = self._clock()
                self._keep = min(max(MIN_AGE, SHARE * (self._taken - now)), MAX_AGE)
            return self._rows

    def forget(self) -> None:
        """The next reader asks the daemon: something was just changed."""
        with self._lock:
            self._taken = None


def _sorted(connections: Sequence[Connection]) -> tuple[Row, ...]:
    rows = [Row(row_key(connection), connection) for connection in connections]
    rows.sort(
        key=lambda row: (
            _RANK.get(row.connection.state, len(_RANK)),
            -(row.connection.last_move or 0.0),
            -(row.connection.since or 0.0),
            row.key,
        )
    )
    return tuple(rows)


def select(rows: Sequence[Row], query: Query) -> Selection:
    """The page of ``rows`` that ``query`` asks for; a page behind the last one is the last."""
    counts = dict.fromkeys(STATE_ORDER, 0)
    for row in rows:
        counts[row.connection.state] = counts.get(row.connection.state, 0) + 1
    matching = [row for row in rows if _matches(row.connection, query)]
    pages = max(1, -(-len(matching) // query.size))
    page = min(max(1, query.page), pages)
    first = (page - 1) * query.size
    return Selection(
        rows=tuple(matching[first : first + query.size]),
        total=len(rows),
        matching=len(matching),
        counts=tuple(counts.items()),
        page=page,
        pages=pages,
    )


def _matches(connection: Connection, query: Query) -> bool:
    if query.state and connection.state != query.state:
        return False
    if query.peer and connection.peer_id != query.peer:
        return False
    if not query.text:
        return True
    fields = (
        connection.peer_name or "",
        connection.conn_id or "",
        *connection.inside,
        *connection.birth,
        *(connection.wire or ()),
    )
    wanted = query.text.casefold()
    return any(wanted in field.casefold() for field in fields)


class LiveTable:
    """Remembers what the last few versions held, to tell what is new since one of them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._versions: OrderedDict[str, dict[str, int]] = OrderedDict()

    def version(self, rows: Sequence[Row]) -> str:
        """The name of exactly these rows in this order, remembered for update()."""
        digests = {row.key: hash(row.connection) for row in rows}
        name = hashlib.blake2b(repr(list(digests.items())).encode(), digest_size=12).hexdigest()
        with self._lock:
            self._versions[name] = digests
            self._versions.move_to_end(name)
            while len(self._versions) > MAX_VERSIONS:
                self._versions.popitem(last=False)
        return name

    def update(self, rows: Sequence[Row], since: str) -> Update:
        """From version ``since`` to ``rows``; an unknown version gets every row."""
        version = self.version(rows)
        if version == since:
            return Update(version, None, ())
        with self._lock:
            known = self._versions.get(since, {})
        changed = tuple(row for row in rows if known.get(row.key) != hash(row.connection))
        return Update(version, tuple(row.key for row in rows), changed)
