"""What is refused is refused with file and remedy, and left as it was."""

from __future__ import annotations

import os
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from keystore import DamagedError, KeystoreError, NewerError, PlaceError, open_keystore
from keystore.schema import known_migrations

from .samples import binding, peer


@pytest.fixture
def filled(path: Path) -> Path:
    with open_keystore(path) as keystore:
        keystore.save_peer(peer())
        keystore.save_bindings([binding(n) for n in range(200)])
    return path


def contents(path: Path) -> dict[str, tuple[bytes, int]]:
    """All files of the keystore but its lock: name -> (bytes, mode)."""
    return {
        p.name: (p.read_bytes(), stat.S_IMODE(p.stat().st_mode))
        for p in path.parent.iterdir()
        if p.is_symlink() or not p.name.endswith(".lock")
    }


def refused(path: Path, error: type[KeystoreError], *words: str) -> None:
    before = contents(path)
    with pytest.raises(error) as raised:
        open_keystore(path)
    assert contents(path) == before
    message = str(raised.value)
    assert message.startswith(str(raised.value.path))
    assert "\n" not in message
    for word in words:
        assert word in message


def test_file_and_directory_are_made_for_the_daemon_alone(path: Path) -> None:
    old = os.umask(0)
    try:
        with open_keystore(path) as keystore:
            keystore.save_peer(peer())
            modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in path.parent.iterdir()}
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert set(modes) >= {"keystore.db", "keystore.db-wal", "keystore.db-shm", "keystore.db.lock"}
    assert set(modes.values()) == {0o600}


def test_a_closed_keystore_is_one_file(filled: Path) -> None:
    assert sorted(p.name for p in filled.parent.iterdir()) == ["keystore.db", "keystore.db.lock"]


@pytest.mark.parametrize(
    "data",
    [b"", b"hello", b"SQLite format 3", os.urandom(8192)],
    ids=["empty", "text", "cut", "noise"],
)
def test_a_file_that_is_no_database_is_refused(filled: Path, data: bytes) -> None:
    filled.write_bytes(data)
    refused(filled, DamagedError, "not an SQLite database", "backup")


@pytest.mark.parametrize("cut", [100, 4096, 20000])
def test_a_database_that_was_cut_short_is_refused(filled: Path, cut: int) -> None:
    filled.write_bytes(filled.read_bytes()[:cut])
    refused(filled, DamagedError, "damaged", "backup")


def test_a_database_with_a_damaged_page_is_refused(filled: Path) -> None:
    data = bytearray(filled.read_bytes())
    for page in range(1, len(data) // 4096):
        data[page * 4096 : page * 4096 + 8] = b"\xff" * 8
    filled.write_bytes(data)
    refused(filled, DamagedError, "damaged")


def test_a_damaged_database_with_a_log_from_a_crash_is_left_with_it(filled: Path) -> None:
    keystore = open_keystore(filled)
    keystore.save_peer(peer(name="newer"))
    kept = contents(filled)
    keystore.close()
    for name, (data, mode) in kept.items():
        if not name.endswith("-shm"):
            (filled.parent / name).write_bytes(data)
            (filled.parent / name).chmod(mode)
    whole = filled.read_bytes()
    filled.write_bytes(whole[:-4096] + b"\xff" * 4096)
    refused(filled, DamagedError, "damaged")


def test_another_programs_database_is_refused(path: Path) -> None:
    path.parent.mkdir(mode=0o700)
    other = sqlite3.connect(path)
    with other:
        other.execute("CREATE TABLE peers (name)")
    other.close()
    path.chmod(0o600)
    refused(path, DamagedError, "not a keystore")


def test_a_newer_database_is_refused(filled: Path) -> None:
    later = sqlite3.connect(filled)
    with later:
        later.execute(
            "INSERT INTO _sqlite_migrations (migration_set, name, applied_at)"
            " VALUES ('redirectd', '9999-future', '2099-01-01')"
        )
    later.close()
    refused(filled, NewerError, "9999-future", known_migrations()[-1], "install that version again")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o601])
def test_a_file_that_others_may_use_is_refused(filled: Path, mode: int) -> None:
    filled.chmod(mode)
    refused(filled, PlaceError, f"{mode:04o}", "chmod 600")


@pytest.mark.parametrize("mode", [0o750, 0o705, 0o711])
def test_a_directory_that_others_may_use_is_refused(filled: Path, mode: int) -> None:
    filled.parent.chmod(mode)
    refused(filled, PlaceError, f"{mode:04o}", "chmod 700")


def test_another_users_file_is_refused(filled: Path) -> None:
    os.chown(filled, 12345, -1)
    refused(filled, PlaceError, "12345", "chown")


def test_a_symbolic_link_is_refused(filled: Path) -> None:
    real = filled.with_name("real.db")
    filled.rename(real)
    filled.symlink_to(real)
    refused(filled, PlaceError, "not a plain file")


def test_a_directory_in_its_place_is_refused(path: Path) -> None:
    path.mkdir(parents=True)
    path.parent.chmod(0o700)
    with pytest.raises(PlaceError, match="not a plain file"):
        open_keystore(path)


def test_a_missing_parent_directory_is_not_invented(tmp_path: Path) -> None:
    with pytest.raises(PlaceError, match="install -d"):
        open_keystore(tmp_path / "a" / "b" / "keystore.db")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_database_whose_log_is_still_there_is_not_replaced(filled: Path) -> None:
    filled.rename(filled.with_name("keystore.db-wal"))
    refused(filled, DamagedError, "is missing", "-wal")


def test_a_second_process_is_refused_and_the_first_one_named(filled: Path) -> None:
    with open_keystore(filled) as first:
        code = (
            "import sys, keystore\n"
            "try: keystore.open_keystore(sys.argv[1])\n"
            "except keystore.PlaceError as e: print(e)\n"
        )
        told = subprocess.run(
            [sys.executable, "-c", code, str(filled)], capture_output=True, text=True, check=True
        ).stdout
        assert f"process {os.getpid()}" in told
        first.save_peer(peer(name="still mine"))
    with open_keystore(filled) as second:
        assert second.peers()[0].name == "still mine"


def test_a_lock_that_is_a_symbolic_link_is_not_followed(filled: Path) -> None:
    lock = filled.with_name("keystore.db.lock")
    lock.unlink()
    lock.symlink_to(filled)
    refused(filled, PlaceError, "can't be opened")


def test_a_refused_keystore_is_not_left_locked(filled: Path) -> None:
    filled.chmod(0o644)
    with pytest.raises(PlaceError):
        open_keystore(filled)
    filled.chmod(0o600)
    open_keystore(filled).close()


def test_a_crash_while_the_keystore_is_made_leaves_none_and_the_next_start_makes_it(
    path: Path,
) -> None:
    path.parent.mkdir(mode=0o700)
    half = path.with_name("keystore.db.new")
    half.write_bytes(b"half")
    with open_keystore(path) as keystore:
        assert keystore.peers() == []
    assert not half.exists()


def test_closing_twice_is_harmless(path: Path) -> None:
    keystore = open_keystore(path)
    keystore.close()
    keystore.close()


def test_a_full_disk_is_an_error_that_names_the_file_and_changes_nothing(filled: Path) -> None:
    with open_keystore(filled) as keystore:
        (pages,) = keystore._db.execute("PRAGMA page_count").fetchone()
        keystore._db.execute(f"PRAGMA max_page_count = {pages}").fetchall()
        with pytest.raises(KeystoreError, match="full") as raised:
            keystore.save_bindings([binding(n) for n in range(1000, 2000)])
        assert str(filled) in str(raised.value)
        assert len(keystore.bindings()) == 200


def test_writes_are_synchronous_and_references_are_checked(path: Path) -> None:
    with open_keystore(path) as keystore:
        found = {
            name: keystore._db.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("synchronous", "foreign_keys", "journal_mode", "secure_delete")
        }
    assert found == {
        "synchronous": 2, "foreign_keys": 1, "journal_mode": "wal", "secure_delete": 1,
    }  # fmt: skip


def test_the_import_stays_small() -> None:
    """sqlite-utils is the largest part of the engine's memory that we chose freely."""
    code = (
        "import asyncio, json, sqlite3, resource, time\n"
        "used = lambda: int(open('/proc/self/statm').read().split()[1])\n"
        "m, t = used(), time.perf_counter()\n"
        "import keystore\n"
        "t = time.perf_counter() - t\n"
        "print(t * 1e3, (used() - m) * resource.getpagesize() / 2**20)\n"
    )
    spent = [
        tuple(
            map(
                float,
                subprocess.run(
                    [sys.executable, "-c", code], capture_output=True, text=True, check=True
                ).stdout.split(),
            )
        )
        for _ in range(3)
    ]
    ms, mb = min(s[0] for s in spent), min(s[1] for s in spent)
    print(f"import keystore: {ms:.0f} ms, {mb:.1f} MB")
    assert mb < 16
    assert ms < 1000
