"""What can be wrong with the keystore: always with the file and the remedy."""

from __future__ import annotations

from pathlib import Path


class KeystoreError(Exception):
    """The keystore can't be used; nothing was changed.

    ``str()`` is one line for the operator: file, problem, remedy.
    """

    def __init__(self, path: Path | str, problem: str, remedy: str) -> None:
        super().__init__(f"{path}: {problem}; {remedy}")
        self.path = Path(path)
        self.problem = problem
        self.remedy = remedy


class PlaceError(KeystoreError):
    """Owner or permissions of the file or its directory are wrong, or it is in use."""


class DamagedError(KeystoreError):
    """The file is not a sound SQLite database, or a row in it makes no sense."""


class NewerError(KeystoreError):
    """A newer redirectd made it: this one would not understand what it holds."""
