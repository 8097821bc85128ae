"""Events and moves: newest first, searchable, bounded."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from keystore import Keystore, KeystoreError, open_keystore

from .samples import ID, binding, peer

DAY = 86400.0


def say(keystore: Keystore, text: str, time: float = 1.0, level: str = "info") -> int:
    return keystore.append_event(time, level, "test", text).id


def test_events_come_newest_first_and_page_by_page(keystore: Keystore) -> None:
    ids = [say(keystore, str(n)) for n in range(10)]
    assert [e.text for e in keystore.events(limit=3)] == ["9", "8", "7"]
    assert [e.text for e in keystore.events(limit=3, before=ids[7])] == ["6", "5", "4"]


def test_an_event_keeps_all_that_it_was_given(path: Path) -> None:
    with open_keystore(path) as first:
        told = first.append_event(
            5.5, "alert", "second-id", "text", ID, "ab" * 16, {"old": "192.0.2.1", "n": 3}
        )
    with open_keystore(path) as second:
        assert second.events() == [told]
    assert told.to_json() == {
        "id": 1, "time": 5.5, "level": "alert", "kind": "second-id", "text": "text",
        "peer_id": ID, "conn_id": "ab" * 16, "data": {"old": "192.0.2.1", "n": 3},
    }  # fmt: skip


def test_a_level_shows_itself_and_graver_ones(keystore: Keystore) -> None:
    for level in ("debug", "info", "notice", "warning", "alert"):
        say(keystore, level, level=level)
    assert [e.level for e in keystore.events(level="warning")] == ["alert", "warning"]
    with pytest.raises(ValueError, match="tuple"):
        keystore.events(level="loud")


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12))
def test_search_finds_the_text_itself_and_no_pattern(keystore: Keystore, text: str) -> None:
    number = keystore.append_event(1.0, "info", "kind", f"before {text} after").id
    assert number in [e.id for e in keystore.events(search=text, limit=1000)]


def test_search_takes_per_cent_and_underscore_literally(keystore: Keystore) -> None:
    say(keystore, "100 percent")
    say(keystore, "100% sure_thing")
    assert [e.text for e in keystore.events(search="0%")] == ["100% sure_thing"]
    assert [e.text for e in keystore.events(search="E_T")] == ["100% sure_thing"]


def test_search_looks_at_kind_and_ids_too(keystore: Keystore) -> None:
    keystore.append_event(1.0, "info", "bound", "x", ID, "ab" * 16)
    for word in ("BOUN", ID[:6], "abab"):
        assert len(keystore.events(search=word)) == 1


def test_old_events_make_room(path: Path) -> None:
    with open_keystore(path, max_events=100) as keystore:
        for n in range(1000):
            say(keystore, str(n))
        keystore.flush()
        kept = keystore.events(limit=1000)
    assert 100 <= len(kept) <= 110 + 64
    assert kept[0].text == "999"


def test_ids_are_never_given_twice(path: Path) -> None:
    with open_keystore(path) as first:
        last = [say(first, "x", time=1.0) for _ in range(5)][-1]
        first.prune(1000 * DAY, None)
    with open_keystore(path) as second:
        assert say(second, "y") > last


def test_pruning_deletes_old_events_and_moves(path: Path) -> None:
    with open_keystore(path, event_age=10 * DAY) as keystore:
        say(keystore, "old", time=DAY)
        say(keystore, "new", time=15 * DAY)
        keystore.append_move(DAY, "192.0.2.1", "192.0.2.2")
        keystore.append_move(15 * DAY, "192.0.2.2", "192.0.2.3")
        keystore.prune(20 * DAY, None)
        assert [e.text for e in keystore.events()] == ["new"]
        assert [m.new for m in keystore.moves()] == ["192.0.2.3"]


def test_pruning_forgets_unused_peers_only(keystore: Keystore) -> None:
    def named(number: int, **changes: object) -> str:
        peer_id = f"{number:032x}"
        keystore.save_peer(peer(peer_id, **changes))
        return peer_id

    old = {"first_contact": DAY, "last_contact": DAY}
    unused = named(1, **old)
    waiting = named(2, **old, state="pending")
    kept = [
        named(3, **old, state="verified"),
        named(4, **old, state="revoked"),
        named(5, first_contact=DAY, last_contact=99 * DAY),
        named(6, first_contact=99 * DAY, last_contact=0.0),  # introduced, not met yet
        named(7, **old),
    ]
    keystore.save_bindings([binding(1, peer_id=kept[-1])])
    assert keystore.prune(100 * DAY, None) == []
    assert sorted(keystore.prune(100 * DAY, 50 * DAY)) == [unused, waiting]
    assert sorted(p.peer_id for p in keystore.peers()) == kept


def test_events_ride_along_with_the_next_durable_write(keystore: Keystore, path: Path) -> None:
    say(keystore, "waits")
    assert _rows(path) == 0
    keystore.save_peer(peer())
    assert _rows(path) == 1


def test_events_that_rode_along_with_a_write_that_failed_are_kept(
    keystore: Keystore, path: Path
) -> None:
    say(keystore, "waits")
    with pytest.raises(KeystoreError):
        keystore.save_bindings([binding()])  # its peer is unknown
    assert _rows(path) == 0
    keystore.flush()
    assert _rows(path) == 1
    assert len(keystore.events()) == 1


def test_many_events_are_written_without_being_asked(keystore: Keystore, path: Path) -> None:
    for n in range(70):
        say(keystore, str(n))
    assert _rows(path) >= 64


def test_over_long_text_is_cut_and_over_large_data_left_out(keystore: Keystore) -> None:
    keystore.append_event(1.0, "info", "k", "x" * 10**6, data={"y": "z" * 10**6})
    (event,) = keystore.events()
    assert len(event.text) == 4096
    assert event.data == {"left_out": "too large"}


def test_an_unknown_level_is_refused(keystore: Keystore) -> None:
    with pytest.raises(ValueError, match="tuple"):
        say(keystore, "x", level="panic")


def test_a_move_is_shown_as_begun_and_as_ended(keystore: Keystore) -> None:
    begun = keystore.append_move(1.0, "192.0.2.1", "198.51.100.1", ID, connections=3)
    assert keystore.moves() == [begun]
    assert not begun.done
    ended = keystore.finish_move(begun.id, 41.5, refused=1, connections=2)
    assert keystore.moves() == [ended]
    assert ended.to_json() == {
        "id": begun.id, "time": 1.0, "old": "192.0.2.1", "new": "198.51.100.1", "peer_id": ID,
        "connections": 2, "refused": 1, "handover_ms": 41.5, "done": True,
        "ours": True,
    }  # fmt: skip


def test_a_move_of_the_peers_is_over_at_once(keystore: Keystore) -> None:
    ours = keystore.append_move(1.0, "192.0.2.1", "192.0.2.2", ID, connections=3)
    theirs = keystore.append_move(2.0, "203.0.113.1", "203.0.113.2", ID, 3, refused=1)
    assert keystore.moves() == [theirs, ours]
    assert (theirs.ours, theirs.done, theirs.refused, theirs.handover_ms) == (False, True, 1, None)
    assert keystore.moves(only_ours=True) == [ours]


def test_moves_of_an_older_keystore_are_ours(path: Path) -> None:
    with open_keystore(path) as keystore:
        made = keystore.append_move(1.0, "192.0.2.1", "192.0.2.2", ID, connections=3)
    db = sqlite3.connect(path)
    db.execute("ALTER TABLE moves DROP COLUMN ours")
    db.execute("DELETE FROM _sqlite_migrations WHERE name = '0002-whose-move'")
    db.commit()
    db.close()
    with open_keystore(path) as keystore:
        assert keystore.moves() == [made]


def test_moves_come_newest_first(keystore: Keystore) -> None:
    for n in range(5):
        keystore.append_move(float(n), "192.0.2.1", f"192.0.2.{n}")
    assert [m.new for m in keystore.moves(limit=2)] == ["192.0.2.4", "192.0.2.3"]


def test_an_unknown_move_can_not_end(keystore: Keystore) -> None:
    with pytest.raises(LookupError):
        keystore.finish_move(77, 1.0)


def _rows(path: Path) -> int:
    reader = sqlite3.connect(path)
    (count,) = reader.execute("SELECT count(*) FROM events").fetchone()
    reader.close()
    return int(count)
