"""Events become moves: of ours with a beginning and an end, of a peer's at once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.proc.journal import Journal
from appliance.protocol.commands import Log
from keystore import Keystore, open_keystore

PEER = "ab" * 16
PLACES = {"old": "192.0.2.1", "new": "192.0.2.2"}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Keystore]:
    with open_keystore(tmp_path / "state" / "keystore.db") as keystore:
        yield keystore


def log(kind: str, **data: object) -> Log:
    return Log("info", kind, "text", PEER, None, data)


def test_a_move_of_ours_is_one_row_from_beginning_to_end(store: Keystore) -> None:
    journal = Journal(store, lambda: 5.0)
    journal.record(log("move", **PLACES, connections=3))
    (move,) = store.moves()
    assert (move.ours, move.done) == (True, False)
    journal.record(log("move-done", **PLACES, connections=3, refused=1, handover_ms=40.0))
    (move,) = store.moves()
    assert (move.ours, move.done, move.refused, move.handover_ms) == (True, True, 1, 40.0)


def test_a_move_of_the_peers_is_a_finished_row(store: Keystore) -> None:
    journal = Journal(store, lambda: 5.0)
    journal.record(log("peer-moved", **PLACES, connections=2, refused=0))
    (move,) = store.moves()
    assert move.peer_id == PEER
    assert (move.ours, move.done, move.handover_ms, move.connections) == (False, True, None, 2)


def test_a_peer_that_says_again_where_it_is_has_not_moved(store: Keystore) -> None:
    journal = Journal(store, lambda: 5.0)
    journal.record(log("peer-moved", old=None, new="192.0.2.2", connections=2, refused=0))
    assert store.moves() == []
    assert [event.kind for event in store.events()] == ["peer-moved"]
