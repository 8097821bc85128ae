"""A disk that takes nothing: what happens is said, and the daemon goes on."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from appliance.proc.executor import Executor
from appliance.proc.journal import Journal
from appliance.protocol import commands as c
from keystore import Keystore, KeystoreError, open_keystore

NOW = 1_700_000_000.0
MOVE = {"old": "192.0.2.1", "new": "192.0.2.2", "connections": 1}
DONE = {**MOVE, "handover_ms": 20.0, "refused": 0}


@pytest.fixture
def store(tmp_path: Path) -> Keystore:
    return open_keystore(tmp_path / "state" / "keystore.db")


def fill(store: Keystore, full: bool = True) -> None:
    """SQLite takes no page more: SQLITE_FULL, as on a full disk."""
    connection: sqlite3.Connection = store._db.conn
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count = {pages if full else 1 << 30}").fetchone()


def event(number: int, kind: str = "test", data: dict[str, Any] | None = None) -> c.Log:
    return c.Log("info", kind, f"event {number} {'x' * 4000}", data=data or {})


def test_history_waits_for_room_and_nothing_is_lost(
    store: Keystore, caplog: pytest.LogCaptureFixture
) -> None:
    journal = Journal(store, lambda: NOW)
    seen: list[dict[str, Any]] = []
    journal.subscribe(seen.append)
    journal.record(event(0))
    journal.flush()
    fill(store)
    with caplog.at_level(logging.ERROR):
        for number in range(1, 101):
            journal.record(event(number))
        journal.record(event(101, "move", MOVE))
        journal.record(event(102, "move-done", DONE))
        assert not journal.flush()
    assert len([r for r in caplog.records if "waits in memory" in r.msg]) == 1
    fill(store, full=False)
    assert journal.flush()
    assert [e.text.split()[1] for e in reversed(store.events(1000))] == [
        str(n) for n in range(103)
    ]
    assert [row["id"] for row in seen] == [e.id for e in reversed(store.events(1000))]


def test_a_move_is_in_the_history_although_its_beginning_was_not_written(store: Keystore) -> None:
    journal = Journal(store, lambda: NOW)
    fill(store)
    journal.record(event(1, "move", MOVE))
    fill(store, full=False)
    journal.record(event(2, "move-done", DONE))
    assert [(m.new, m.done) for m in store.moves()] == [("192.0.2.2", True)]


class Nobody:
    """Stands for the parent, the tap and whoever wants answers."""

    def __init__(self) -> None:
        self.failed: list[tuple[c.Command, str]] = []

    def command_failed(self, command: c.Command, why: str) -> None:
        self.failed.append((command, why))


class FullStore:
    def save_bindings(self, bindings: object) -> None:
        raise KeystoreError("keystore.db", "refused: database or disk is full", "make room")


def test_a_command_that_the_disk_refuses_is_told_to_the_core() -> None:
    answers = Nobody()
    parts: Any = answers
    full: Any = FullStore()
    executor = Executor(parts, full, parts, [], parts, 4787)
    command = c.SaveBindings(())
    asyncio.run(executor.execute(command))
    ((failed, why),) = answers.failed
    assert failed is command
    assert "disk is full" in why
