"""The owner's password, the one-time set-up code and the page's own secrets, as 0600 files."""

from __future__ import annotations

import hmac
import os
import secrets
import threading
from pathlib import Path

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

MIN_PASSWORD = 10
MAX_PASSWORD = 256
# No letters and digits that are mistaken for each other when read off a console.
_CODE_ALPHABET = "abcdefghjkmnpqrstuvwxyz23456789"
_MAX_FILE = 4096


class StateError(Exception):
    """The state directory cannot be used; the text names the file and the remedy."""


class Credentials:
    """Files in the page's state directory, read at each use: ``redirectd-web --reset-password``
    works while the page runs.

    ``password``       Argon2id hash of the owner's password
    ``setup-code``     there as long as no password is set
    ``secret``         32 bytes; signs cookies
    ``metrics-token``  what a collector of /metrics presents

    Argon2id with 19 MiB and two passes (OWASP's figure for small machines); hashlib.scrypt would
    need OpenSSL, and OpenBSD's Python is built with LibreSSL, which lacks that function. One hash
    is worked out at a time, so that many log-ins at once can't exhaust a small gateway's memory.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._hasher = PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1)
        self._lock = threading.Lock()

    def prepare(self) -> None:
        """Make the directory and what is missing in it; StateError when it can't be used."""
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            if self.directory.stat().st_mode & 0o077:
                raise StateError(f"{self.directory}: others may enter it: chmod 700 it")
            if self._read("secret") is None:
                self._write("secret", secrets.token_hex(32))
            if self._read("metrics-token") is None:
                self._write("metrics-token", secrets.token_urlsafe(32))
            if not self.has_password and self.setup_code is None:
                self._write("setup-code", _new_code())
        except OSError as error:
            raise StateError(f"{error.filename}: {error.strerror}") from error

    @property
    def secret(self) -> str:
        """Signs cookies; StateError when prepare() has not run."""
        return self._required("secret")

    @property
    def metrics_token(self) -> str:
        return self._required("metrics-token")

    @property
    def has_password(self) -> bool:
        return self._read("password") is not None

    @property
    def setup_code(self) -> str | None:
        """None once a password is set."""
        return self._read("setup-code")

    @property
    def generation(self) -> str:
        """Changes with every new password: sessions opened before it end."""
        stored = self._read("password")
        return "" if stored is None else stored[-16:]

    def check_code(self, offered: str) -> bool:
        code = self.setup_code
        plain = "".join(char for char in offered.lower() if char.isalnum())
        return code is not None and hmac.compare_digest(
            plain.encode(), code.replace("-", "").encode()
        )

    def check_password(self, offered: str) -> bool:
        stored = self._read("password")
        if stored is None or len(offered) > MAX_PASSWORD:
            return False
        with self._lock:
            try:
                return self._hasher.verify(stored, offered)
            except (VerificationError, InvalidHashError):
                return False

    def set_password(self, password: str) -> None:
        """Replaces the password and burns the set-up code."""
        with self._lock:
            hashed = self._hasher.hash(password)
            self._write("password", hashed)
            (self.directory / "setup-code").unlink(missing_ok=True)

    def reset(self) -> str:
        """Forget the password; the new set-up code."""
        code = _new_code()
        self._write("setup-code", code)
        (self.directory / "password").unlink(missing_ok=True)
        return code

    def _required(self, name: str) -> str:
        text = self._read(name)
        if text is None:
            raise StateError(f"{self.directory / name}: missing: start redirectd-web again")
        return text

    def _read(self, name: str) -> str | None:
        try:
            with (self.directory / name).open("rb") as file:
                return file.read(_MAX_FILE).decode("ascii").strip() or None
        except FileNotFoundError:
            return None
        except UnicodeDecodeError as error:
            raise StateError(f"{self.directory / name}: damaged: remove it") from error

    def _write(self, name: str, text: str) -> None:
        # Written beside and renamed: a crash leaves the old file or the new one, never half.
        path = self.directory / name
        beside = self.directory / f".{name}.{secrets.token_hex(4)}"
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "w", encoding="ascii") as file:
                file.write(text + "\n")
                file.flush()
                os.fsync(file.fileno())
            beside.rename(path)
        except OSError:
            beside.unlink(missing_ok=True)
            raise


def _new_code() -> str:
    """16 letters and digits, about 79 bits: nobody guesses it within the attempts allowed."""
    return "-".join("".join(secrets.choice(_CODE_ALPHABET) for _ in range(4)) for _ in range(4))


def password_fault(password: str, again: str) -> str | None:
    """Why a new password is no good, or None. Length alone counts (NIST SP 800-63B, 5.1.1.2)."""
    if password != again:
        return "The two passwords differ."
    if len(password) < MIN_PASSWORD:
        return f"A password needs at least {MIN_PASSWORD} characters."
    if len(password) > MAX_PASSWORD:
        return f"A password has at most {MAX_PASSWORD} characters."
    if len(set(password)) < 4:
        return "This password is too easy to guess."
    return None
