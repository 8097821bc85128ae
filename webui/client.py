"""A blocking, bounded client of the control socket (docs/control.md)."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

MAX_REQUEST = 1 << 20
MAX_ANSWER = 16 << 20
_CHUNK = 1 << 18


class DaemonDown(Exception):
    """Nobody answers at the control socket; the text says why."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason


class DaemonError(Exception):
    """The daemon refused a request. ``code`` is one of those in docs/control.md."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class ControlClient:
    """One connection to the daemon, opened at the first call.

    ``timeout`` bounds one whole call in seconds, however slowly the answer trickles in. After
    any failure the connection is closed, so that a late answer can't be taken for another's.
    """

    def __init__(self, path: Path, timeout: float = 5.0) -> None:
        self.path = path
        self.timeout = timeout
        self._socket: socket.socket | None = None
        self._next_id = 1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def call(self, operation: str, **args: Any) -> Any:
        """The ``data`` of the answer; DaemonError when refused, DaemonDown when unreachable."""
        number = self._next_id
        self._next_id += 1
        request = json.dumps({"id": number, "do": operation, "args": args}).encode() + b"\n"
        if len(request) > MAX_REQUEST:
            raise DaemonError("bad-request", "too long for the daemon")
        deadline = time.monotonic() + self.timeout
        try:
            answer = self._exchange(request, deadline)
        except (OSError, ValueError, RecursionError) as error:
            self.close()
            raise DaemonDown(self.path, _reason(error)) from error
        if not isinstance(answer, dict) or answer.get("id") != number:
            self.close()
            raise DaemonDown(self.path, "what answers there is not redirectd")
        if answer.get("ok") is True:
            return answer.get("data")
        fault = answer.get("error")
        if not isinstance(fault, dict):
            self.close()
            raise DaemonDown(self.path, "what answers there is not redirectd")
        raise DaemonError(str(fault.get("code", "internal")), str(fault.get("message", "")))

    def _exchange(self, request: bytes, deadline: float) -> Any:
        if self._socket is None:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self._socket.settimeout(self.timeout)
            self._socket.connect(str(self.path))
        self._socket.settimeout(_left(deadline))
        self._socket.sendall(request)
        buffer = bytearray()
        while True:
            self._socket.settimeout(_left(deadline))
            chunk = self._socket.recv(_CHUNK)
            if not chunk:
                raise ConnectionResetError("closed the connection without an answer")
            start = len(buffer)
            buffer += chunk
            end = buffer.find(b"\n", start)
            if end >= 0:
                # One request is under way at a time: bytes behind the line were not asked for.
                if end != len(buffer) - 1:
                    raise ValueError("answered more than was asked")
                return json.loads(buffer)
            if len(buffer) > MAX_ANSWER:
                raise ValueError(f"answered with more than {MAX_ANSWER} bytes")


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("timed out")
    return left


def _reason(error: Exception) -> str:
    match error:
        case FileNotFoundError():
            return "the socket is not there"
        case PermissionError():
            return "this user may not open the socket (group _redirectd may)"
        case ConnectionRefusedError():
            return "nobody listens at the socket"
        case TimeoutError():
            return "no answer in time"
        case json.JSONDecodeError() | UnicodeDecodeError() | RecursionError():
            return "what answers there is not redirectd"
        case OSError() if error.strerror:
            return error.strerror
        case _:
            return str(error)
