"""Carries out the core's commands, strictly one after the other.

The order of a move is the order of these commands (docs/protocol.md), so nothing here
runs ahead: a command is finished, on disk or in the kernel, before the next begins.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from ipaddress import ip_address
from typing import Any, Protocol

from keystore import KeystoreError

from ..backend.api import BackendError, SegmentTap
from ..protocol import commands as c
from ..protocol.records import BindingRecord, PeerRecord
from ..rewrite.flow import Endpoint, Flow
from ..rewrite.redirect import Entry
from . import udp
from .ipc import Message, ParentLink

log = logging.getLogger("redirectd.engine")

RESOLVE_TIMEOUT = 10.0  # seconds for a peer's DNS name


class Store(Protocol):
    """The part of the keystore that commands write to; KeystoreError when it can't."""

    def save_peer(self, peer: PeerRecord) -> None: ...
    def forget_peer(self, peer_id: str) -> object: ...
    def save_bindings(self, bindings: Iterable[BindingRecord]) -> None: ...
    def release(self, conn_ids: Iterable[str]) -> object: ...


class Answers(Protocol):
    """Where the outcome of a command goes."""

    def ports_reserved(self, got: dict[str, Flow | None]) -> None: ...
    def resolved(self, peer_id: str, found: list[Endpoint]) -> None: ...
    def command_failed(self, command: c.Command, why: str) -> None: ...
    def logged(self, event: c.Log) -> None: ...


class Executor:
    """A queue of commands and the one task that works it off.

    after_command  called when a command is finished (tests let the process die there)
    """

    def __init__(
        self,
        link: ParentLink,
        store: Store,
        tap: SegmentTap,
        sockets: list[socket.socket],
        answers: Answers,
        port: int,
        after_command: Callable[[c.Command], None] = lambda command: None,
    ) -> None:
        self.entries: dict[str, Entry] = {}
        self._link, self._store, self._tap = link, store, tap
        self._sockets, self._answers, self._port = sockets, answers, port
        self._after_command = after_command
        self._queue: deque[c.Command] = deque()
        self._ready = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._lookups: set[asyncio.Task[None]] = set()
        self._table: dict[type, Callable[[Any], Awaitable[None]]] = {
            c.Send: self._send,
            c.SavePeer: self._save_peer,
            c.ForgetPeer: self._forget_peer,
            c.SaveBindings: self._save_bindings,
            c.Apply: self._apply,
            c.Release: self._release,
            c.RestoreNat: self._restore_nat,
            c.Park: self._park,
            c.Unpark: self._unpark,
            c.ReservePorts: self._reserve,
            c.Observe: self._observe,
            c.Prompt: self._prompt,
            c.Reinject: self._reinject,
            c.Guard: self._guard,
            c.Abort: self._abort,
            c.Resolve: self._resolve,
            c.Log: self._log,
        }

    def submit(self, commands: Iterable[c.Command]) -> None:
        self._queue.extend(commands)
        if self._queue:
            self._idle.clear()
            self._ready.set()

    async def idle(self) -> None:
        """Return when the queue is empty and the last command is finished."""
        await self._idle.wait()

    async def run(self) -> None:
        """Work the queue off, for ever; ends with EOFError when the parent is gone."""
        while True:
            await self._ready.wait()
            while self._queue:
                await self.execute(self._queue.popleft())
            self._ready.clear()
            self._idle.set()

    async def execute(self, command: c.Command) -> None:
        try:
            await self._table[type(command)](command)
        except (BackendError, KeystoreError, OSError) as fault:
            log.warning("%s failed: %s", type(command).__name__, fault)
            self._answers.command_failed(command, str(fault))
        self._after_command(command)

    async def replace_all(self, entries: Iterable[Entry]) -> None:
        """First of all after a start: the kernel gets exactly what the disk says."""
        self.entries = {entry.conn_id: entry for entry in entries}
        rows = [entry.to_json() for entry in self.entries.values()]
        await self._link.call(Message.REPLACE_ALL, {"entries": rows})
        self._tap.update(self.entries.values())

    def _present(self, conn_ids: Iterable[str]) -> list[Entry]:
        return [self.entries[conn] for conn in conn_ids if conn in self.entries]

    async def _send(self, command: c.Send) -> None:
        why = udp.send(self._sockets, command.data, command.remote, command.source)
        if why is not None:
            log.debug("not sent: %s", why)

    async def _save_peer(self, command: c.SavePeer) -> None:
        self._store.save_peer(command.peer)

    async def _forget_peer(self, command: c.ForgetPeer) -> None:
        self._store.forget_peer(command.peer_id)

    async def _save_bindings(self, command: c.SaveBindings) -> None:
        self._store.save_bindings(command.bindings)

    async def _apply(self, command: c.Apply) -> None:
        rows = [entry.to_json() for entry in command.entries]
        await self._link.call(Message.APPLY, {"entries": rows})
        self.entries.update((entry.conn_id, entry) for entry in command.entries)
        self._tap.update(command.entries)

    async def _release(self, command: c.Release) -> None:
        conn_ids = list(command.conn_ids)
        await self._link.call(Message.REMOVE, {"conn_ids": conn_ids})
        self._store.release(conn_ids)
        self._tap.forget(conn_ids)
        for conn in conn_ids:
            self.entries.pop(conn, None)

    async def _restore_nat(self, command: c.RestoreNat) -> None:
        rows = [entry.to_json() for entry in self._present(command.conn_ids)]
        await self._link.call(Message.RESTORE_NAT, {"entries": rows})

    async def _park(self, command: c.Park) -> None:
        await self._link.call(Message.PARK, {"addr": str(command.addr)})

    async def _unpark(self, command: c.Unpark) -> None:
        await self._link.call(Message.UNPARK, {"addr": str(command.addr)})

    async def _reserve(self, command: c.ReservePorts) -> None:
        wanted = {conn: str(flow) for conn, flow in command.wanted.items()}
        got = await self._link.call(Message.RESERVE, {"wanted": wanted})
        self._answers.ports_reserved(
            {conn: None if flow is None else Flow.parse(flow) for conn, flow in got.items()}
        )

    async def _observe(self, command: c.Observe) -> None:
        flows = [str(flow) for flow in command.flows]
        await self._link.call(Message.OBSERVE, {"flows": flows})

    async def _prompt(self, command: c.Prompt) -> None:
        self._tap.prompt(command.inside, command.local)

    async def _reinject(self, command: c.Reinject) -> None:
        entries = [e for e in self._present(command.conn_ids) if e.wire_out is not None]
        self._tap.reinject(entries)
        for entry in entries if command.wake else ():
            self._tap.prompt(entry.inside, entry.local)

    async def _guard(self, command: c.Guard) -> None:
        self._tap.guard(command.conn_ids)

    async def _abort(self, command: c.Abort) -> None:
        body = {"inside": str(command.inside), "local": command.local}
        await self._link.call(Message.ABORT, body)

    async def _resolve(self, command: c.Resolve) -> None:
        """Begins a look-up; a slow name server must not hold the queue up."""
        task = asyncio.create_task(self._look_up(command))
        self._lookups.add(task)
        task.add_done_callback(self._lookups.discard)

    async def _look_up(self, command: c.Resolve) -> None:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(RESOLVE_TIMEOUT):
                found = await loop.getaddrinfo(
                    command.name, self._port, type=socket.SOCK_DGRAM, proto=socket.IPPROTO_UDP
                )
        except (OSError, TimeoutError) as fault:
            log.info("peer name %r not found: %s", command.name, fault)
            found = []
        endpoints = [
            Endpoint(ip_address(str(name[0])), self._port)
            for _, _, _, _, name in found
            if "%" not in str(name[0])  # link-local: no use to a host that moved
        ]
        self._answers.resolved(command.peer_id, endpoints)

    async def _log(self, command: c.Log) -> None:
        self._answers.logged(command)
