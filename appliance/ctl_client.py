"""A client of the control socket (docs/control.md) that waits for each answer."""

from __future__ import annotations

import errno
import json
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

ANSWER_MAX = 16 << 20  # bytes


class DaemonDown(Exception):
    """Nobody sensible answers; the message names the socket and the remedy."""


class Refused(Exception):
    """The daemon said no."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class ControlClient:
    """One connection; ``timeout`` in seconds for each wait, none while monitoring."""

    def __init__(self, path: Path, timeout: float = 15.0) -> None:
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(timeout)
        try:
            self._socket.connect(str(path))
        except OSError as error:
            self._socket.close()
            raise DaemonDown(_why(path, error)) from None
        self._lines = self._socket.makefile("rb")
        self._last_id = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._lines.close()
        self._socket.close()

    def ask(self, do: str, args: Mapping[str, Any] | None = None) -> Any:
        """*data* of the answer; Refused or DaemonDown."""
        self._last_id += 1
        request = {"id": self._last_id, "do": do, "args": dict(args or {})}
        try:
            self._socket.sendall(json.dumps(request).encode() + b"\n")
        except OSError as error:
            raise DaemonDown(_why(self._path, error)) from None
        answer = self._read()
        if answer.get("ok") is True and answer.get("id") == self._last_id:
            return answer.get("data")
        fault = answer.get("error")
        if not isinstance(fault, dict):
            raise self._strange()
        raise Refused(str(fault.get("code")), str(fault.get("message")))

    def monitor(self) -> Iterator[dict[str, Any]]:
        """Every event from now on; DaemonDown when the daemon ends."""
        self.ask("monitor")
        self._socket.settimeout(None)
        while True:
            event = self._read().get("event")
            if isinstance(event, dict):
                yield event

    def _read(self) -> dict[str, Any]:
        try:
            line = self._lines.readline(ANSWER_MAX + 1)
        except OSError as error:
            raise DaemonDown(_why(self._path, error)) from None
        if not line:
            raise DaemonDown(f"redirectd closed {self._path}: its log says why")
        try:
            answer = json.loads(line)
        except (ValueError, RecursionError):
            raise self._strange() from None
        if not isinstance(answer, dict):
            raise self._strange()
        return answer

    def _strange(self) -> DaemonDown:
        return DaemonDown(f"what answers at {self._path} is not redirectd: check --socket")


def _why(path: Path, error: OSError) -> str:
    if isinstance(error, TimeoutError):
        return f"redirectd does not answer at {path}: its log says what it is doing"
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"you may not open {path}: become root, or a member of its group"
    if error.errno in (errno.ENOENT, errno.ECONNREFUSED):
        return (
            f"redirectd is not running (nobody answers at {path}): start it with"
            " 'systemctl start redirectd' or 'rcctl start redirectd', or say --socket PATH"
        )
    return f"{path}: {error.strerror or error}: is redirectd running?"
