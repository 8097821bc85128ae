"""A program with TCP connections that knows exactly what it sent and what it got.

    traffic.py                   commands on stdin, answers on stdout, one JSON a line

One process serves any number of connections, so fifty cost one interpreter.  What
crosses a connection are records: a number, the time of sending, a body that follows
from the number.  The receiver counts what is lost, doubled or altered, takes a running
SHA-256 over every byte, and keeps the longest time without a record.  Clocks of all
machines in a lab are the same monotonic clock, so one-way delays are meaningful.

Commands (``tests.lab.streams`` is their handle):
    listen  {addr or null, port}               -> {port}
    connect {name, addr, port, source, mode, interval, size, up, down}
    say     {name, n}                          idle connections: send n records now
    wait    {name, received|sent|gone, timeout}  answered once so many have come
    mark    {name}                             the longest gap counts from now on
    report  {name}                             -> Report
    end     {name}                             stop sending (wait ``gone`` for the rest)
    drop    {name}                             close at once
    names   {}                                 -> [name]
modes: paced (one record each ``interval`` seconds), bulk (as fast as it goes), idle
(only on ``say``), echo (paced upwards, every record comes back).
``up`` and ``down`` say which end sends; the accepting end learns all this from the
first line of the connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import socket
import struct
import sys
import time
from typing import Any

# magic, length of the whole record, number, time of sending (monotonic, ns); a record
# numbered LAST ends the stream and says how many there were.
_HEADER = struct.Struct("!4sIQQ")
_MAGIC = b"rdct"
_LAST = 2**64 - 1
# Bodies are windows into this block: cheap to make, different for neighbours.
_BLOCK = hashlib.shake_256(b"redirectd traffic").digest(1 << 18)


def body(number: int, size: int) -> bytes:
    start = (number * 257) % (len(_BLOCK) - size)
    return _BLOCK[start : start + size]


class Endpoint(asyncio.Protocol):
    """One end of one connection; sends, receives, or both."""

    def __init__(self, agent: Agent, name: str | None, order: dict[str, Any] | None) -> None:
        self.agent = agent
        self.name = name or ""
        self.order = order or {}
        self.active = order is not None
        self.sends = self.receives = self.echoes = False
        self.transport: asyncio.Transport | None = None
        self.buffer = bytearray()
        self.sent = self.received = self.lost = self.doubled = self.altered = 0
        self.hash_sent = hashlib.sha256()
        self.hash_received = hashlib.sha256()
        self.expected_total: int | None = None
        self.last_time: int | None = None
        self.longest_gap = 0
        self.gap_began: int | None = None
        self.longest_delay = 0
        self.error: str | None = None
        self.closed = False
        self.finishing = False
        self.writable = asyncio.Event()
        self.writable.set()
        self.sender: asyncio.Task[None] | None = None
        self.changed = asyncio.Event()

    # -- transport -----------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        transport.set_write_buffer_limits(high=1 << 18)
        if self.active:
            transport.write(json.dumps({**self.order, "name": self.name}).encode() + b"\n")
            self.begin()

    def begin(self) -> None:
        mode = self.order["mode"]
        mine, other = ("up", "down") if self.active else ("down", "up")
        self.sends = bool(self.order[mine])
        self.receives = bool(self.order[other])
        if mode == "echo":
            self.sends, self.receives, self.echoes = self.active, True, not self.active
        self.agent.endpoints[self.name] = self
        self.last_time = time.monotonic_ns()
        if self.sends and mode != "idle":
            self.sender = asyncio.ensure_future(self.bulk() if mode == "bulk" else self.paced())
        self.notify()

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        if not self.active and not self.order:
            line, newline, rest = bytes(self.buffer).partition(b"\n")
            if not newline:
                return
            self.order = json.loads(line)
            self.name = self.order["name"]
            self.buffer = bytearray(rest)
            self.begin()
        self.parse()
        self.notify()

    def eof_received(self) -> bool:
        self.notify()
        return True  # our own direction may still have something to say

    def connection_lost(self, error: Exception | None) -> None:
        if error is not None:
            self.error = f"{type(error).__name__}: {error}"
        self.closed = True
        self.writable.set()
        if self.sender is not None:
            self.sender.cancel()
        self.notify()

    def notify(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()

    # -- records --------------------------------------------------------------------

    def write(self, number: int, size: int) -> None:
        assert self.transport is not None
        content = body(number, size) if number != _LAST else str(self.sent).encode()
        head = _HEADER.pack(_MAGIC, _HEADER.size + len(content), number, time.monotonic_ns())
        self.hash_sent.update(head)
        self.hash_sent.update(content)
        self.transport.write(head + content)
        if number != _LAST:
            self.sent += 1

    async def paced(self) -> None:
        interval = float(self.order["interval"])
        size = int(self.order["size"])
        start = time.monotonic()
        while not self.finishing:
            self.write(self.sent, size)
            self.notify()
            # Against the start, so that lateness does not add up.
            await asyncio.sleep(max(0.0, start + self.sent * interval - time.monotonic()))
            await self.writable.wait()

    async def bulk(self) -> None:
        size = int(self.order["size"])
        while not self.finishing:
            self.write(self.sent, size)
            self.notify()
            await asyncio.sleep(0)
            await self.writable.wait()

    def parse(self) -> None:
        buffer = self.buffer
        offset = 0
        while len(buffer) - offset >= _HEADER.size:
            magic, length, number, sent_at = _HEADER.unpack_from(buffer, offset)
            if magic != _MAGIC:
                self.altered += 1
                self.fail("what came is not a record")
                return
            if len(buffer) - offset < length:
                break
            record = bytes(memoryview(buffer)[offset : offset + length])
            offset += length
            self.hash_received.update(record)
            self.take(number, sent_at, record[_HEADER.size :])
        del buffer[:offset]

    def take(self, number: int, sent_at: int, content: bytes) -> None:
        now = time.monotonic_ns()
        if number == _LAST:
            self.expected_total = int(content)
            self.lost += max(0, self.expected_total - self.received - self.lost)
            if self.echoes:
                self.end_stream()
            return
        assert self.last_time is not None
        if now - self.last_time > self.longest_gap:
            self.longest_gap = now - self.last_time
            self.gap_began = self.last_time
        self.last_time = now
        self.longest_delay = max(self.longest_delay, now - sent_at)
        expected = self.received + self.lost
        if number < expected:
            self.doubled += 1
            return
        self.lost += number - expected
        self.received += 1
        if content != body(number, len(content)):
            self.altered += 1
        if self.echoes:
            self.write(number, len(content))

    def fail(self, why: str) -> None:
        self.error = self.error or why
        if self.transport is not None:
            self.transport.abort()

    def end_stream(self) -> None:
        """The last record, then our FIN."""
        if self.transport is not None and not self.finishing and not self.closed:
            self.finishing = True
            if self.sender is not None:
                self.sender.cancel()
            if self.sends or self.echoes:
                self.write(_LAST, 0)
            self.transport.write_eof()

    def report(self) -> dict[str, Any]:
        return {
            "sent": self.sent,
            "received": self.received,
            "lost": self.lost,
            "doubled": self.doubled,
            "altered": self.altered,
            "longest_gap_ms": self.longest_gap / 1e6,
            "gap_began": None if self.gap_began is None else self.gap_began / 1e9,
            "longest_delay_ms": self.longest_delay / 1e6,
            "hash_sent": self.hash_sent.hexdigest(),
            "hash_received": self.hash_received.hexdigest(),
            "complete": self.expected_total is not None and self.expected_total == self.received,
            "error": self.error,
            "closed": self.closed,
            "local": self.name_of("sockname"),
            "remote": self.name_of("peername"),
        }

    def name_of(self, what: str) -> list[Any]:
        info = self.transport.get_extra_info(what) if self.transport is not None else None
        return list(info[:2]) if info else []


class Agent:
    def __init__(self) -> None:
        self.endpoints: dict[str, Endpoint] = {}
        self.servers: list[asyncio.Server] = []

    async def do(self, command: str, args: dict[str, Any]) -> Any:
        if command == "names":
            return sorted(self.endpoints)
        if command == "listen":
            return await self.listen(**args)
        if command == "connect":
            return await self.connect(**args)
        name = args.pop("name")
        if command == "wait":
            return await self.wait(name, **args)
        endpoint = self.endpoints[name]
        if command == "say":
            for _ in range(args["n"]):
                endpoint.write(endpoint.sent, int(endpoint.order["size"]))
        elif command == "mark":
            endpoint.last_time = time.monotonic_ns()
            endpoint.longest_gap = endpoint.longest_delay = 0
        elif command == "end":
            endpoint.end_stream()
        elif command == "drop":
            if endpoint.transport is not None:
                endpoint.transport.abort()
        elif command != "report":
            raise ValueError(f"unknown command {command}")
        return endpoint.report()

    async def listen(self, addr: str | None, port: int) -> dict[str, int]:
        """Without an address: on every one, IPv4 and IPv6."""
        loop = asyncio.get_running_loop()
        if addr is None:
            sock = socket.create_server(
                ("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024
            )
        else:
            family = socket.AF_INET6 if ":" in addr else socket.AF_INET
            sock = socket.create_server((addr, port), family=family, backlog=1024)
        server = await loop.create_server(lambda: Endpoint(self, None, None), sock=sock)
        self.servers.append(server)
        return {"port": server.sockets[0].getsockname()[1]}

    async def connect(
        self, name: str, addr: str, port: int, source: list[Any] | None, **order: Any
    ) -> Any:
        loop = asyncio.get_running_loop()
        _, endpoint = await loop.create_connection(
            lambda: Endpoint(self, name, order),
            addr,
            port,
            local_addr=(source[0], source[1]) if source else None,
        )
        return endpoint.report()

    async def wait(
        self,
        name: str,
        received: int | None = None,
        sent: int | None = None,
        gone: bool = False,
        timeout: float = 30,
    ) -> Any:
        """``gone``: the connection ended, or both directions are finished."""
        deadline = time.monotonic() + timeout
        while True:
            endpoint = self.endpoints.get(name)
            if endpoint is not None:
                if received is not None and endpoint.received >= received:
                    return endpoint.report()
                if sent is not None and endpoint.sent >= sent:
                    return endpoint.report()
                done = endpoint.expected_total is not None or not endpoint.receives
                if gone and (endpoint.closed or (done and endpoint.finishing)):
                    return endpoint.report()
                if endpoint.closed:
                    raise ConnectionError(endpoint.error or "the connection is closed")
                signal = endpoint.changed.wait()
            else:
                signal = asyncio.sleep(0.005)  # type: ignore[assignment]
            left = deadline - time.monotonic()
            if left <= 0:
                where = "" if endpoint is None else f": {endpoint.report()}"
                raise TimeoutError(f"{name}: not within {timeout} s{where}")
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(signal, left)

    async def serve(self) -> None:
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=1 << 20)
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        tasks: set[asyncio.Task[None]] = set()
        while line := await reader.readline():
            task = asyncio.create_task(self.answer(json.loads(line)))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

    async def answer(self, request: dict[str, Any]) -> None:
        try:
            reply = {"data": await self.do(request["do"], request["args"])}
        except Exception as error:  # goes to whoever asked
            reply = {"error": f"{type(error).__name__}: {error}"}
        sys.stdout.write(json.dumps({"id": request["id"], **reply}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(Agent().serve())
