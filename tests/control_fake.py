"""Operations that remember what they were asked, and a server for them in a thread."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar, cast

from appliance.proc.control import ControlServer
from appliance.proc.control_requests import ControlError
from appliance.rewrite.flow import Address

Json = dict[str, Any]
T = TypeVar("T")

PEER: Json = {
    "peer_id": "ab" * 16, "name": "office", "state": "trusted", "fingerprint": "12345 67890",
    "host_id": "cd" * 16, "first_contact": 1700000000.0, "last_contact": 1700000100.0,
    "addresses": ["203.0.113.9"], "dns_name": None, "session": "up", "connections": 2,
}  # fmt: skip
CONNECTION: Json = {
    "conn_id": "ef" * 16, "peer_id": "ab" * 16, "peer_name": "office", "state": "redirected",
    "why": "", "inside": ["192.168.1.5:50000", "203.0.113.9:22"],
    "birth": ["198.51.100.7:40001", "203.0.113.9:22"],
    "wire": ["198.51.100.99:40001", "203.0.113.9:22"], "local": False, "since": 1700000000.0,
    "bound_at": 1700000010.0, "moves": 3, "last_move": 1700000090.0, "path": "kernel",
    "integrity": "off", "held": 0, "held_since": None,
}  # fmt: skip
EVENT: Json = {
    "id": 7, "time": 1700000050.0, "level": "notice", "kind": "move", "text": "moved",
    "peer_id": "ab" * 16, "conn_id": None, "data": {},
}  # fmt: skip
MOVE: Json = {
    "id": 1, "time": 1700000060.0, "old": "198.51.100.7", "new": "198.51.100.99",
    "peer_id": None, "connections": 2, "refused": 0, "handover_ms": 21.5, "done": True,
    "ours": True,
}  # fmt: skip
CAPTURE: Json = {
    "id": "0123456789abcdef", "conn_id": None, "peer_id": "ab" * 16, "text": "host office",
    "started": 1700000000.0, "seconds": 60, "bytes": 4194304, "state": "done", "size": 12,
    "why": "",
}  # fmt: skip
STATUS: Json = {
    "version": "0.1.0", "since": 1700000000.0, "port": 4787,
    "addresses": [{"addr": "198.51.100.99", "ifname": "eth0", "since": 1700000060.0}],
    "peers": {"pending": 0, "trusted": 1, "verified": 0, "revoked": 0},
    "connections": {"short": 1, "long": 2, "bound": 2, "held": 0, "redirected": 2},
    "last_move": MOVE,
    "warnings": [{"kind": "path-translates", "text": "the path translates", "peer_id": None,
                  "conn_id": None}],
}  # fmt: skip
SECRET = "-----BEGIN REDIRECTD PAIR-----\nsecret\n-----END REDIRECTD PAIR-----\n"


class FakeOperations:
    """Answers with the samples above; ``asked`` holds (method, arguments) in order."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, tuple[Any, ...]]] = []
        self.listeners: list[Callable[[Json], None]] = []
        self.answer: Any = None
        self.fault: BaseException | None = None
        self.subscribed = asyncio.Event()
        self.listened = threading.Event()  # the same for another thread

    def _did(self, method: str, *args: Any, data: T) -> T:
        self.asked.append((method, args))
        if self.fault is not None:
            raise self.fault
        return data if self.answer is None else cast(T, self.answer)

    async def status(self) -> Json:
        return self._did("status", data=STATUS)

    async def peers(self) -> list[Json]:
        return self._did("peers", data=[PEER])

    async def connections(self, state: str | None, peer: str | None) -> list[Json]:
        return self._did("connections", state, peer, data=[CONNECTION])

    async def redirects(self) -> list[Json]:
        return self._did("redirects", data=[CONNECTION])

    async def events(
        self, limit: int, before: int | None, level: str | None, search: str | None
    ) -> list[Json]:
        return self._did("events", limit, before, level, search, data=[EVENT])

    async def moves(self, limit: int) -> list[Json]:
        return self._did("moves", limit, data=[MOVE])

    async def config(self) -> Json:
        return self._did("config", data={"path": "/etc/redirectd.toml", "settings": {}})

    async def peer_accept(self, peer: str) -> Json:
        return self._did("peer_accept", peer, data=PEER)

    async def peer_verify(self, peer: str) -> Json:
        return self._did("peer_verify", peer, data=PEER)

    async def peer_revoke(self, peer: str) -> Json:
        return self._did("peer_revoke", peer, data=PEER)

    async def peer_forget(self, peer: str) -> Json:
        return self._did("peer_forget", peer, data={"connections": 2})

    async def peer_rename(self, peer: str, name: str) -> Json:
        return self._did("peer_rename", peer, name, data={**PEER, "name": name})

    async def peer_dns(self, peer: str, dns_name: str | None) -> Json:
        return self._did("peer_dns", peer, dns_name, data={**PEER, "dns_name": dns_name})

    async def peer_export(self, peer: str) -> Json:
        return self._did("peer_export", peer, data={"text": SECRET})

    async def peer_introduce(self, name: str, address: Address | None, port: int | None) -> Json:
        data = {"peer": {**PEER, "name": name}, "text": SECRET}
        return self._did("peer_introduce", name, address, port, data=data)

    async def peer_import(self, text: str, name: str | None) -> Json:
        return self._did("peer_import", text, name, data=PEER)

    async def connection_resend(self, conn: str) -> Json:
        return self._did("connection_resend", conn, data={})

    async def connection_drop(self, conn: str) -> Json:
        return self._did("connection_drop", conn, data={})

    async def connection_path(self, conn: str, path: str) -> Json:
        return self._did("connection_path", conn, path, data={})

    async def move(self, to: Address, from_: Address | None) -> Json:
        return self._did("move", to, from_, data={})

    async def capture_start(
        self, conn: str | None, peer: str | None, seconds: int, most: int
    ) -> Json:
        return self._did("capture_start", conn, peer, seconds, most, data=CAPTURE)

    async def capture_list(self) -> list[Json]:
        return self._did("capture_list", data=[CAPTURE])

    async def capture_get(self, capture: str, offset: int) -> Json:
        """Two pieces."""
        pieces = {0: (b"first ", 6), 6: (b"second", None)}
        data, after = pieces[offset]
        row = {"data": base64.b64encode(data).decode(), "next": after}
        return self._did("capture_get", capture, offset, data=row)

    async def capture_delete(self, capture: str) -> Json:
        return self._did("capture_delete", capture, data={})

    def subscribe(self, listener: Callable[[Json], None]) -> Callable[[], None]:
        self.listeners.append(listener)
        self.subscribed.set()
        self.listened.set()
        return lambda: self.listeners.remove(listener)

    def tell(self, event: Json) -> None:
        for listener in list(self.listeners):
            listener(event)


def listening(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.bind(str(path))
    sock.listen(16)
    sock.setblocking(False)
    return sock


@contextlib.contextmanager
def served(operations: FakeOperations, path: Path) -> Iterator[asyncio.AbstractEventLoop]:
    """The server in a thread of its own, for clients that block; its loop."""
    loop = asyncio.new_event_loop()
    server = ControlServer(operations, listening(path))
    task = loop.create_task(server.run())

    def live() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            loop.run_until_complete(task)

    thread = threading.Thread(target=live, name="control server")
    thread.start()
    try:
        yield loop
    finally:
        loop.call_soon_threadsafe(task.cancel)
        thread.join()
        loop.close()


def refused(code: Any, message: str) -> ControlError:
    return ControlError(code, message)
