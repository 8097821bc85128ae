"""Opening a keystore: inspected read-only first, so that what is refused stays as it was."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

from sqlite_utils import Database

from .errors import DamagedError, KeystoreError, NewerError
from .schema import APPLICATION_ID, MIGRATIONS, applied_migrations, known_migrations

_MAGIC = b"SQLite format 3\x00"  # https://www.sqlite.org/fileformat.html, 1.3.1
_RESTORE = "move it (and its -wal file) away and put a backup there, or start with a new one"


def inspect(path: Path) -> None:
    """Raise DamagedError or NewerError if this version should not touch the file."""
    with path.open("rb") as file:
        head = file.read(len(_MAGIC))
    if head != _MAGIC:
        raise DamagedError(path, "is not an SQLite database", _RESTORE)
    # immutable: SQLite makes no -wal and -shm files beside a database that has none;
    # with a -wal file (after a crash) it must be read, since the newest rows are there
    shm = path.with_name(path.name + "-shm")
    had_shm = shm.exists()
    mode = "mode=ro" if _wal(path).exists() else "mode=ro&immutable=1"
    try:
        conn = sqlite3.connect(f"file:{quote(str(path))}?{mode}", uri=True)
    except sqlite3.Error as error:
        raise DamagedError(path, f"can't be opened ({error})", _RESTORE) from None
    try:
        (application,) = conn.execute("PRAGMA application_id").fetchone()
        faults = [row[0] for row in conn.execute("PRAGMA quick_check(3)")]
        if faults != ["ok"]:
            what = " ".join("; ".join(faults).split())[:200]
            raise DamagedError(path, f"is damaged ({what})", _RESTORE)
        if application != APPLICATION_ID:
            raise DamagedError(
                path, "is an SQLite database, but not a keystore of redirectd", _RESTORE
            )
        newer = [name for name in applied_migrations(conn) if name not in known_migrations()]
        if newer:
            raise NewerError(
                path,
                f"was made by a newer redirectd (schema {newer[-1]}, this one knows "
                f"{known_migrations()[-1]})",
                "install that version again, or put back the keystore from before it",
            )
    except sqlite3.Error as error:
        raise DamagedError(path, f"is damaged ({error})", _RESTORE) from None
    finally:
        conn.close()
        if not had_shm:
            shm.unlink(missing_ok=True)  # only an index of the -wal file, made by this reading


def create(path: Path, meta: Mapping[str, str]) -> None:
    """Make a new keystore under another name, whole and on disk, then give it its own:
    after a crash there is either none or a complete one."""
    if _wal(path).exists():
        raise DamagedError(
            path,
            f"is missing, but {_wal(path).name} is there with its newest rows",
            "put the file back from a backup, or remove the -wal file to start with a new one",
        )
    new = path.with_name(path.name + ".new")
    for leftover in (new, Path(f"{new}-journal")):
        leftover.unlink(missing_ok=True)
    os.close(os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW, 0o600))
    with contextlib.closing(connect(new)) as db:
        MIGRATIONS.apply(db)
        with db.atomic():
            db.table("meta").insert_all({"key": k, "value": v} for k, v in meta.items())
    os.rename(new, path)
    _sync_directory(path.parent)


def connect(path: Path) -> Database:
    """A connection as the daemon wants it; the caller has inspected the file."""
    conn = sqlite3.connect(path, timeout=5)
    # execute_plugins: no foreign code that happens to be installed runs in the daemon
    db = Database(conn, execute_plugins=False)
    _pragma(db, "foreign_keys = ON")
    _pragma(db, "synchronous = FULL")  # a commit is on disk before the kernel is told
    _pragma(db, "secure_delete = ON")  # forgotten keys are overwritten
    _pragma(db, "cache_size = -1024")  # KiB; the default keeps 2 MB for nothing
    return db


def open_database(path: Path) -> Database:
    """Connect to an inspected file and bring its schema up to date."""
    db = connect(path)
    try:
        db.enable_wal()
        # short, so that overwritten keys do not linger there: 256 pages of 4 KiB
        _pragma(db, "wal_autocheckpoint = 256")
        if MIGRATIONS.pending(db):
            MIGRATIONS.apply(db)
    except sqlite3.Error as error:
        db.close()
        raise KeystoreError(path, f"can't be written ({error})", "check its file system") from None
    return db


def _pragma(db: Database, setting: str) -> None:
    db.execute(f"PRAGMA {setting}").fetchall()  # read to its end: some act only then


def _wal(path: Path) -> Path:
    return path.with_name(path.name + "-wal")


def _sync_directory(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
