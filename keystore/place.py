"""Where the keystore lies: who may read it, and that only one process has it.

The directory must be 0700 and the file 0600, both ours: whoever reads the pairwise
roots can pose as either end of every pair.
"""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Callable
from pathlib import Path

from .errors import PlaceError


def prepare_directory(directory: Path) -> None:
    """Make the directory (0700) if it is missing, else insist on owner and mode.

    Raises PlaceError; never changes a directory that exists.
    """
    try:
        directory.mkdir(mode=0o700, parents=False)
    except FileExistsError:
        pass
    except OSError as error:
        raise PlaceError(
            directory,
            f"can't be made ({error.strerror})",
            f"make it: 'install -d -m 700 -o USER {directory}'",
        ) from None
    _insist(directory, stat.S_ISDIR, "directory", 0o700)


def check_file(path: Path) -> bool:
    """Whether the file exists; PlaceError unless it is a plain file, ours, 0600."""
    try:
        os.lstat(path)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise PlaceError(path, f"can't be read ({error.strerror})", "check its mount") from None
    _insist(path, stat.S_ISREG, "plain file", 0o600)
    return True


def _insist(path: Path, is_kind: Callable[[int], bool], kind: str, mode: int) -> None:
    found = os.lstat(path)  # lstat: a symbolic link could point anywhere tomorrow
    if not is_kind(found.st_mode):
        raise PlaceError(path, f"is not a {kind}", "move it away, or set another state-dir")
    if found.st_uid != os.geteuid():
        raise PlaceError(
            path,
            f"belongs to user {found.st_uid}, not to user {os.geteuid()}",
            f"give it back: 'chown {os.geteuid()} {path}'",
        )
    if found.st_mode & 0o077:
        raise PlaceError(
            path,
            f"others may use it (mode {stat.S_IMODE(found.st_mode):04o}), and it holds keys",
            f"'chmod {mode:o} {path}', and if others could read it, 'redirectctl peer forget' "
            "and meet the peers anew",
        )


class Lock:
    """Only one process may use a keystore: two would ratchet the same keys apart.

    A file of its own, since closing any other descriptor of the database would drop
    SQLite's locks on it (POSIX fcntl locks belong to the process, not to the file).
    """

    def __init__(self, path: Path) -> None:
        """Take the lock; PlaceError names the process that has it."""
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            self._fd = os.open(path, flags, 0o600)
        except OSError as error:
            raise PlaceError(
                path, f"can't be opened ({error.strerror})", "check the directory's file system"
            ) from None
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.pread(self._fd, 20, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(self._fd)
            raise PlaceError(
                path,
                f"another redirectd (process {holder}) uses this keystore",
                "stop it first, or set another state-dir",
            ) from None
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)

    @property
    def held(self) -> bool:
        return self._fd >= 0

    def release(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
