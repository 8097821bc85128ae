"""The tables, as migrations: what an older redirectd wrote is brought up to date.

A migration, once released, is never edited: a new one is added below it.  The SQL is
kept as it stands here in the database, comments included, so that ``.schema`` in a
sqlite shell explains the columns.
"""

from __future__ import annotations

import sqlite3

from sqlite_utils import Database, Migrations

APPLICATION_ID = 0x72646B73  # "rdks": tells a keystore from any other SQLite database

MIGRATIONS = Migrations("redirectd")

_FIRST = (
    """
    CREATE TABLE meta (
      key TEXT PRIMARY KEY,
      value TEXT NOT NULL
    ) STRICT
    """,
    """
    CREATE TABLE peers (
      peer_id TEXT PRIMARY KEY,
      name TEXT NOT NULL,
      state TEXT NOT NULL CHECK (state IN ('pending', 'trusted', 'verified', 'revoked')),
      fingerprint TEXT NOT NULL,
      host_id TEXT NOT NULL,       -- the ID that the far host gave at first contact
      initiator INTEGER NOT NULL CHECK (initiator IN (0, 1)),  -- 1: we are side A
      first_contact REAL NOT NULL, -- seconds since the epoch, like all times here
      last_contact REAL NOT NULL,
      addresses TEXT NOT NULL,     -- JSON list, newest first
      port INTEGER NOT NULL CHECK (port BETWEEN 0 AND 65535),
      dns_name TEXT,
      root BLOB NOT NULL,          -- secret, as are the next two
      chain BLOB NOT NULL,
      previous BLOB NOT NULL
    ) STRICT
    """,
    """
    CREATE TABLE bindings (
      conn_id TEXT PRIMARY KEY,
      peer_id TEXT NOT NULL REFERENCES peers ON DELETE CASCADE,
      birth TEXT AS (json_extract(entry, '$.birth')),       -- LOCAL REMOTE
      inside TEXT AS (json_extract(entry, '$.inside')),
      wire TEXT AS (json_extract(entry, '$.wires[0]')),
      wire_out TEXT AS (json_extract(entry, '$.wire_out')), -- null: held
      since REAL NOT NULL,
      bound_at REAL NOT NULL,
      moves INTEGER NOT NULL,
      last_move REAL,
      entry TEXT NOT NULL          -- JSON: the whole packet path of the connection
    ) STRICT
    """,
    "CREATE INDEX bindings_peer ON bindings (peer_id)",
    """
    CREATE TABLE moves (
      id INTEGER PRIMARY KEY,
      time REAL NOT NULL,
      old TEXT NOT NULL,           -- addresses
      new TEXT NOT NULL,
      peer_id TEXT,                -- no reference: history outlives the peer
      connections INTEGER NOT NULL,
      refused INTEGER NOT NULL,
      handover_ms REAL,
      done INTEGER NOT NULL CHECK (done IN (0, 1))
    ) STRICT
    """,
    """
    CREATE TABLE events (
      id INTEGER PRIMARY KEY,
      time REAL NOT NULL,
      level INTEGER NOT NULL,      -- 0 debug, 1 info, 2 notice, 3 warning, 4 alert
      kind TEXT NOT NULL,
      text TEXT NOT NULL,
      peer_id TEXT,
      conn_id TEXT,
      data TEXT NOT NULL           -- JSON object
    ) STRICT
    """,
    "CREATE INDEX events_time ON events (time)",
)


@MIGRATIONS(name="0001-first")
def _first(db: Database) -> None:
    for statement in _FIRST:
        db.execute(statement)
    db.execute(f"PRAGMA application_id = {APPLICATION_ID}")


@MIGRATIONS(name="0002-whose-move")
def _whose_move(db: Database) -> None:
    # until here only moves of ours were kept
    db.execute(
        "ALTER TABLE moves ADD COLUMN ours INTEGER NOT NULL DEFAULT 1"
        " CHECK (ours IN (0, 1)) /* 0: the peer has moved */"
    )


def known_migrations() -> tuple[str, ...]:
    """The names of all migrations that this version has, oldest first."""
    return tuple(m.name for m in MIGRATIONS.pending(Database(memory=True, execute_plugins=False)))


def applied_migrations(conn: sqlite3.Connection) -> tuple[str, ...]:
    """The names of all migrations that a database has seen; reads only."""
    return tuple(m.name for m in MIGRATIONS.applied(Database(conn, execute_plugins=False)))
