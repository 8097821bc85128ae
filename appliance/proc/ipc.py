"""The contract between the processes: one enum of messages, one framing.

A message is a 4-byte length, one byte of type, and JSON.  The engine asks the parent, the
parent asks the packet worker; each request is answered with exactly one ``DONE`` or
``FAILED``, in order.
Nothing in a message is text for a rule: the parent builds rules from typed values.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import json
import select
import socket
import struct
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from ..backend.api import BackendError
from ..rewrite.redirect import Entry

HEADER = struct.Struct("!IB")
MAX_BODY = 32 << 20  # 20,000 entries in one piece; a longer message is a fault


class Message(enum.IntEnum):
    """Everything that the processes can say to each other."""

    # engine -> parent
    REPLACE_ALL = 1  # {"entries": [Entry]}
    APPLY = 2  # {"entries": [Entry]}
    REMOVE = 3  # {"conn_ids": [text]}
    OBSERVE = 4  # {"flows": [Flow]}
    PARK = 5  # {"addr": text}
    UNPARK = 6  # {"addr": text}
    RESERVE = 7  # {"wanted": {conn_id: Flow}}
    RESTORE_NAT = 8  # {"entries": [Entry]}
    ABORT = 9  # {"inside": Flow, "local": bool}
    DUMP = 10  # {}
    BYE = 11  # {"keep": bool}: the engine ends; keep the kernel's rules or not
    READY = 12  # {}: the engine's start is over, it serves
    RECORD = 13  # {"id", "flows": [Flow], "hosts": [addr], "seconds", "bytes"}: a capture begins
    RECORD_MORE = 14  # {"id", "flows": [Flow], "hosts": [addr]}: what it takes as well
    # parent -> packet worker; before what says so, all that is queued is translated
    WORKER_LOAD = 32  # {"entries": [Entry]}: exactly these; first the queue
    WORKER_APPLY = 33  # {"entries": [Entry]}
    WORKER_SHUT = 34  # {"entries": [Entry]}: as WORKER_APPLY; first the queue
    WORKER_REMOVE = 35  # {"conn_ids": [text]}; first the queue
    # the answers
    DONE = 64  # the answer's value, or null
    FAILED = 65  # {"why": text}


class ProtocolError(Exception):
    """The other process sent something that is no message."""


def pack(kind: Message, body: Any) -> bytes:
    data = json.dumps(body, separators=(",", ":")).encode()
    return HEADER.pack(len(data), kind) + data


def unpack_header(header: bytes) -> tuple[Message, int]:
    """(type, length of the body); ProtocolError when out of bounds."""
    length, kind = HEADER.unpack(header)
    if length > MAX_BODY:
        raise ProtocolError(f"message of {length} bytes")
    try:
        return Message(kind), length
    except ValueError:
        raise ProtocolError(f"message type {kind}") from None


class ParentLink:
    """The engine's end: ``await call(...)``; answers come in the order of the calls."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._waiting: deque[asyncio.Future[tuple[Message, Any] | None]] = deque()
        self._listening = asyncio.create_task(self._listen(), name="parent's answers")

    @classmethod
    async def connect(cls, sock: socket.socket) -> ParentLink:
        sock.setblocking(False)
        return cls(*await asyncio.open_unix_connection(sock=sock, limit=MAX_BODY))

    async def _listen(self) -> None:
        try:
            while True:
                kind, length = unpack_header(await self._reader.readexactly(HEADER.size))
                value = json.loads(await self._reader.readexactly(length))
                self._answer((kind, value))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            while self._waiting:
                self._answer(None)

    def _answer(self, answer: tuple[Message, Any] | None) -> None:
        if not self._waiting:
            raise ProtocolError("an answer without a question")
        waiting = self._waiting.popleft()
        if not waiting.done():  # whoever asked may have been cancelled
            waiting.set_result(answer)

    async def gone(self) -> None:
        """Return when the parent is gone, also while nothing is asked of it."""
        await asyncio.shield(self._listening)

    async def call(self, kind: Message, body: Mapping[str, Any] | None = None) -> Any:
        """The parent's answer; BackendError when it refused, EOFError when it is gone."""
        answer = None
        if not self._listening.done():
            waiting: asyncio.Future[tuple[Message, Any] | None]
            waiting = asyncio.get_running_loop().create_future()
            self._waiting.append(waiting)
            self._writer.write(pack(kind, body or {}))
            with contextlib.suppress(ConnectionError):
                await self._writer.drain()
            answer = await waiting
        if answer is None:
            raise EOFError("the parent process is gone")
        if answer[0] is Message.FAILED:
            raise BackendError(answer[1]["why"])
        return answer[1]

    async def close(self) -> None:
        self._listening.cancel()
        self._writer.close()
        await self._writer.wait_closed()


class EngineLink:
    """The end of who answers: blocking, read only when ``select`` says so."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock

    def _exactly(self, n: int) -> bytes:
        parts: list[bytes] = []
        while n:
            part = self.sock.recv(min(n, 1 << 20))
            if not part:
                raise EOFError("the other process is gone")
            parts.append(part)
            n -= len(part)
        return b"".join(parts)

    def read(self) -> tuple[Message, Any]:
        kind, length = unpack_header(self._exactly(HEADER.size))
        try:
            return kind, json.loads(self._exactly(length))
        except ValueError as fault:
            raise ProtocolError(f"{kind.name}: {fault}") from None

    def receive(self) -> tuple[Message, dict[str, Any]]:
        """A request."""
        kind, body = self.read()
        if not isinstance(body, dict):
            raise ProtocolError(f"{kind.name}: not an object")
        return kind, body

    def answer(self, kind: Message, body: Any) -> None:
        self.sock.sendall(pack(kind, body))


class WorkerLink:
    """The parent's end towards a packet worker: blocking; OSError after ``patience`` seconds."""

    def __init__(self, sock: socket.socket, patience: float) -> None:
        self.sock = sock
        sock.settimeout(patience)
        self._answers = EngineLink(sock)

    def call(self, kind: Message, body: Any) -> None:
        """ProtocolError when it refused, EOFError when it is gone."""
        self.sock.sendall(pack(kind, body))
        answer, value = self._answers.read()
        if answer is not Message.DONE:
            raise ProtocolError(f"{answer.name}: {value}")

    def ended(self) -> bool:
        """It never speaks first, so what can be read is its end."""
        return bool(select.select([self.sock], [], [], 0)[0])


def entries_of(body: Mapping[str, Any]) -> list[Entry]:
    """``body["entries"]``; ProtocolError, ValueError or KeyError if it is something else."""
    rows = body.get("entries")
    if not isinstance(rows, list):
        raise ProtocolError("'entries' is not a list")
    return [Entry.from_json(row) for row in rows]


def text_list(body: Mapping[str, Any], key: str) -> Sequence[str]:
    """``body[key]`` as a list of texts; ProtocolError otherwise."""
    value = body.get(key)
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ProtocolError(f"{key!r} is not a list of texts")
    return value
