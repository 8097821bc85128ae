"""The control socket (docs/control.md): framing, bounds, dispatch, monitor streams.

What the requests do is the engine's matter: it implements :class:`Operations`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
from collections.abc import Callable
from typing import Any, Protocol

from ..rewrite.flow import Address
from ..rewrite.redirect import DataPath
from .control_requests import ControlError, Request, parse_request

log = logging.getLogger("redirectd.control")

REQUEST_MAX = 1 << 20  # bytes a line
ANSWER_MAX = 16 << 20
CLIENTS_MAX = 64
EVENTS_WAITING_MAX = 1024  # events that a monitor may be behind before it is closed
SEND_TIMEOUT = 30.0  # seconds a client may leave an answer unread

Json = dict[str, Any]


class Operations(Protocol):
    """What the engine does on request; each returns *data* of docs/control.md.

    A peer is given by ID, unique prefix or name, a connection by ID or prefix, as the
    client wrote it.  Raise :class:`ControlError` to refuse; anything else that is raised
    is logged and told to the client as ``internal``.
    """

    async def status(self) -> Json: ...

    async def peers(self) -> list[Json]: ...

    async def connections(self, state: str | None, peer: str | None) -> list[Json]: ...

    async def redirects(self) -> list[Json]: ...

    async def events(
        self, limit: int, before: int | None, level: str | None, search: str | None
    ) -> list[Json]: ...

    async def moves(self, limit: int) -> list[Json]: ...

    async def config(self) -> Json: ...

    async def peer_accept(self, peer: str) -> Json: ...

    async def peer_verify(self, peer: str) -> Json: ...

    async def peer_revoke(self, peer: str) -> Json: ...

    async def peer_forget(self, peer: str) -> Json: ...

    async def peer_rename(self, peer: str, name: str) -> Json: ...

    async def peer_dns(self, peer: str, dns_name: str | None) -> Json: ...

    async def peer_export(self, peer: str) -> Json: ...

    async def peer_introduce(
        self, name: str, address: Address | None, port: int | None
    ) -> Json: ...

    async def peer_import(self, text: str, name: str | None) -> Json: ...

    async def connection_resend(self, conn: str) -> Json: ...

    async def connection_drop(self, conn: str) -> Json: ...

    async def connection_path(self, conn: str, path: DataPath) -> Json: ...

    async def move(self, to: Address, from_: Address | None) -> Json: ...

    async def capture_start(
        self, conn: str | None, peer: str | None, seconds: int, most: int
    ) -> Json: ...

    async def capture_list(self) -> list[Json]: ...

    async def capture_get(self, capture: str, offset: int) -> Json: ...

    async def capture_delete(self, capture: str) -> Json: ...

    def subscribe(self, listener: Callable[[Json], None]) -> Callable[[], None]:
        """Call ``listener`` with every *event* from now on; the result ends that."""


class ControlServer:
    """Serves ``operations`` on a listening Unix stream socket."""

    def __init__(self, operations: Operations, sock: socket.socket) -> None:
        self._operations = operations
        self._sock = sock
        self._clients: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Serve until cancelled; then all clients are closed."""
        server = await asyncio.start_unix_server(self._serve, sock=self._sock, limit=REQUEST_MAX)
        try:
            async with server:
                await server.serve_forever()
        finally:
            for task in list(self._clients):
                task.cancel()
            await asyncio.gather(*self._clients, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        client = _Client(self._operations, reader, writer)
        full = len(self._clients) >= CLIENTS_MAX
        self._clients.add(task)
        try:
            if full:
                await client.refuse(None, "refused", f"{CLIENTS_MAX} clients are served already")
            else:
                await client.serve()
        except (ConnectionError, TimeoutError, asyncio.CancelledError):
            pass  # gone, or too slow, or the daemon stops: nobody is left to be told
        finally:
            self._clients.discard(task)
            client.close()


class _Client:
    def __init__(
        self,
        operations: Operations,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self._operations = operations
        self._reader = reader
        self._writer = writer
        self._sending = asyncio.Lock()
        self._monitor: asyncio.Task[None] | None = None
        self._unsubscribe: Callable[[], None] = lambda: None

    async def serve(self) -> None:
        """Answer requests one after the other until the client closes."""
        while True:
            try:
                line = await self._reader.readuntil(b"\n")
            except asyncio.IncompleteReadError:
                return
            except asyncio.LimitOverrunError:
                message = f"a request has at most {REQUEST_MAX} bytes"
                await self.refuse(None, "bad-request", message)
                return
            try:
                request = parse_request(line)
            except ControlError as error:
                await self.refuse(error.request_id, error.code, error.message)
                continue
            await self._answer(request)

    async def _answer(self, request: Request) -> None:
        if request.do == "monitor":
            await self._send({"id": request.id, "ok": True, "data": {}})
            self._start_monitor()
            return
        if request.changes:
            given = map(request.args.get, ("peer", "conn", "capture"))
            named = next((name for name in given if name), None)
            log.info("asked for %s %s", request.do, "" if named is None else repr(named))
        try:
            data = await getattr(self._operations, request.method)(**request.args)
            line = _line({"id": request.id, "ok": True, "data": data})
        except ControlError as error:
            await self.refuse(request.id, error.code, error.message)
            return
        except Exception:
            # not the exception's text: it could hold what the client may not see
            log.exception("control: %s failed", request.do)
            await self.refuse(request.id, "internal", "redirectd failed; its log says why")
            return
        if len(line) > ANSWER_MAX:
            message = f"the answer has more than {ANSWER_MAX} bytes: ask for less"
            await self.refuse(request.id, "refused", message)
            return
        await self._send_line(line)

    def _start_monitor(self) -> None:
        if self._monitor is not None:
            return
        waiting: asyncio.Queue[Json] = asyncio.Queue(EVENTS_WAITING_MAX)

        def listener(event: Json) -> None:
            try:
                waiting.put_nowait(event)
            except asyncio.QueueFull:
                log.warning("control: a monitor reads too slowly and is closed")
                self.close()

        async def forward() -> None:
            with contextlib.suppress(ConnectionError, TimeoutError):
                while True:
                    await self._send({"event": await waiting.get()})
            self.close()

        self._unsubscribe = self._operations.subscribe(listener)
        self._monitor = asyncio.create_task(forward(), name="monitor")

    async def refuse(self, request_id: Any, code: str, message: str) -> None:
        error = {"code": code, "message": message}
        await self._send({"id": request_id, "ok": False, "error": error})

    async def _send(self, message: Json) -> None:
        await self._send_line(_line(message))

    async def _send_line(self, line: bytes) -> None:
        async with self._sending:
            self._writer.write(line)
            async with asyncio.timeout(SEND_TIMEOUT):
                await self._writer.drain()

    def close(self) -> None:
        self._unsubscribe()
        self._unsubscribe = lambda: None
        if self._monitor is not None:
            self._monitor.cancel()
        if self._writer.transport.get_write_buffer_size() > ANSWER_MAX // 16:
            self._writer.transport.abort()  # nobody reads: do not wait for ever
        self._writer.close()


def _line(message: Json) -> bytes:
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"
