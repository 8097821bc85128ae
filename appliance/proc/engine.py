"""The engine: drives the pure core with sockets, a clock and the disk.

Everything that reaches the core passes one of the small methods below; everything the
core wants passes :mod:`.executor`.  It runs as `_redirectd` without any capability.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import time
from collections.abc import Callable

from keystore import Keystore, KeystoreError, open_keystore

from ..config import Config
from ..protocol import commands as c
from ..protocol.core import Core
from ..protocol.inputs import Connection, Segment
from ..protocol.x25519 import X25519Contact
from ..rewrite.flow import Address, Endpoint, Flow
from . import backends, paths, sandbox, settings, udp
from .captures import Captures
from .control import ControlServer
from .executor import Executor
from .inherited import Inherited
from .ipc import Message, ParentLink
from .journal import Journal
from .operations import Operator

log = logging.getLogger("redirectd.engine")

PRUNE_EVERY = 3600.0  # seconds between looks for unused peers and old events
FLUSH_AFTER = 3.0  # seconds that an event waits for company on its way to the disk
FLUSH_AGAIN = 30.0  # seconds until the next attempt when the disk took nothing
FINISH_WITHIN = 3.0  # seconds for commands under way when the daemon ends
DUMP_AGAIN = 1.0  # seconds after an overrun before connections are listed again


class Clock:
    """Seconds since the epoch that never go back, whatever is done to the date."""

    def __init__(self) -> None:
        self._base = time.time() - time.monotonic()

    def __call__(self) -> float:
        return self._base + time.monotonic()


class Engine:
    """One running engine; :meth:`run` is its life."""

    def __init__(
        self,
        config: Config,
        inherited: Inherited,
        after_command: Callable[[c.Command], None] = lambda command: None,
    ) -> None:
        self.config, self._inherited = config, inherited
        self.port = config.port
        self._after_command = after_command
        self._clock = Clock()
        self._stop = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._flush: asyncio.TimerHandle | None = None
        self._seen_since: dict[Address, float] = {}
        limits = config.limits
        self.store: Keystore = open_keystore(
            config.state_dir / "keystore.db",
            max_events=limits.events,
            event_age=limits.event_days * 86400.0,
        )
        bindings = list(self.store.bindings())
        self._first_entries = [binding.entry for binding in bindings]
        self.core = Core(
            settings.core_settings(config, self._name_of),
            self.store.peers(),
            bindings,
            self.store.host_id(),
            rng=os.urandom,
            now=self._clock(),
            first_contact=X25519Contact(),
        )
        self.journal = Journal(self.store, self._clock)
        side = backends.engine_side(config, inherited.backend, self, self)
        self.tap, self.connections, self.watcher = side.tap, side.connections, side.watcher

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        link = await ParentLink.connect(self._inherited.link)
        self.link = link
        self.executor = Executor(
            link, self.store, self.tap, self._inherited.udp, self, self.config.port,
            self._executed,
        )  # fmt: skip
        self.captures = Captures(self.config.state_dir, link, self._clock)
        await self.executor.replace_all(self._first_entries)
        for sock in self._inherited.udp:
            loop.add_reader(sock.fileno(), self._readable, self._read_udp, sock)
        loop.add_reader(self.watcher.fileno(), self._readable, self._read_watcher)
        loop.add_reader(self.connections.fileno(), self._readable, self._read_connections)
        loop.add_reader(self.tap.fileno(), self._readable, self.tap.read)
        self.look_at_paths()
        if self._inherited.fresh:
            self.core.choose_paths(self._clock())
        await link.call(Message.DUMP)
        await link.call(Message.READY)
        control = ControlServer(Operator(self), self._inherited.control)
        tasks = [
            asyncio.create_task(self.executor.run(), name="commands"),
            asyncio.create_task(control.run(), name="control socket"),
            asyncio.create_task(self._housekeeping(), name="housekeeping"),
            asyncio.create_task(self._parent_gone(), name="parent"),
            asyncio.create_task(self._stop.wait(), name="stop"),
        ]
        self.drain()
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        try:
            for task in done:
                task.result()  # raises what ended it
            await self._bye()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self.journal.flush()
            self.store.close()

    async def _bye(self) -> None:
        """The daemon was told to end: rules stay where connections live by them."""
        loop = asyncio.get_running_loop()
        filenos = [sock.fileno() for sock in self._inherited.udp]
        filenos += [self.watcher.fileno(), self.connections.fileno(), self.tap.fileno()]
        for fileno in filenos:
            loop.remove_reader(fileno)
        if self._timer is not None:
            self._timer.cancel()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FINISH_WITHIN):
                await self.executor.idle()  # a move under way is left whole
        keep = any(entry.redirected for entry in self.executor.entries.values())
        await self.link.call(Message.BYE, {"keep": keep})

    async def _parent_gone(self) -> None:
        """Whoever starts the daemon anew finds neither its port nor its keystore in use."""
        await self.link.gone()
        raise EOFError("the parent process is gone")

    # -- the way in: each input is told to the core, then its commands are fetched

    def _readable(self, read: Callable[..., None], *args: object) -> None:
        read(*args)
        self.drain()

    def drain(self) -> None:
        """Hand the core's commands to the executor and set its next timer."""
        self.executor.submit(self.core.poll())
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        timers = (self.core.next_timer(), self.connections.next_timer())
        due = min((timer for timer in timers if timer is not None), default=None)
        if due is not None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(max(0.0, due - self._clock()), self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._read_connections()
        self.core.handle_timer(self._clock())
        self.drain()

    def now(self) -> float:
        return self._clock()

    def _read_udp(self, sock: socket.socket) -> None:
        for data, remote, local in udp.receive(sock):
            self.core.receive_datagram(data, remote, local, self._clock())

    def _read_watcher(self) -> None:
        if self.watcher.read():
            self.look_at_paths()

    def look_at_paths(self) -> None:
        found = paths.look(self.watcher, self.core.far_addresses())
        log.debug("addresses: %s", paths.describe(found.addresses))
        now = self._clock()
        self._seen_since = {a.addr: self._seen_since.get(a.addr, now) for a in found.addresses}
        self.core.paths_changed(found, now)

    def _read_connections(self) -> None:
        self.connections.read()
        if self.connections.overran():
            asyncio.get_running_loop().call_later(DUMP_AGAIN, self._dump)

    def _dump(self) -> None:
        task = asyncio.ensure_future(self.link.call(Message.DUMP))
        task.add_done_callback(lambda done: done.exception())

    # -- ConnectionHandler and TapHandler (appliance.backend.api)

    def opened(self, connection: Connection) -> None:
        self.core.connection_opened(connection, self._clock())

    def closed(self, birth: Flow) -> None:
        self.core.connection_closed(birth, self._clock())

    def nat_lost(self, birth: Flow) -> None:
        self.core.nat_lost(birth, self._clock())

    def all_known(self, connections: list[Connection]) -> None:
        self.core.connections_known(connections, self._clock())

    def segment(self, seen: Segment) -> None:
        self.core.segment_seen(seen, self._clock())

    def reset_withheld(self, wire: Flow) -> None:
        self.core.reset_withheld(wire, self._clock())

    def silence(self, birth: Flow) -> None:
        self.core.silence(birth, self._clock())

    # -- Answers (.executor)

    def ports_reserved(self, got: dict[str, Flow | None]) -> None:
        self.core.ports_reserved(got, self._clock())
        self.drain()

    def resolved(self, peer_id: str, found: list[Endpoint]) -> None:
        self.core.resolved(peer_id, found, self._clock())
        self.drain()

    def command_failed(self, command: c.Command, why: str) -> None:
        self.core.command_failed(command, why, self._clock())
        self.drain()

    def logged(self, event: c.Log) -> None:
        self.journal.record(event)
        if self._flush is None:
            self._flush_in(FLUSH_AFTER)

    def _flush_in(self, seconds: float) -> None:
        self._flush = asyncio.get_running_loop().call_later(seconds, self._flush_journal)

    def _flush_journal(self) -> None:
        self._flush = None
        if not self.journal.flush():
            self._flush_in(FLUSH_AGAIN)

    async def _housekeeping(self) -> None:
        while True:
            try:
                self.store.prune(self._clock(), self.config.limits.prune_days * 86400.0)
            except KeystoreError as fault:
                log.error("old entries stay: %s", fault)
            await asyncio.sleep(PRUNE_EVERY)

    def _executed(self, command: c.Command) -> None:
        if isinstance(command, c.Apply):
            self.captures.follow(command.entries, self._peer_of)
        self._after_command(command)

    # -- what operations want to know

    def _name_of(self, peer_id: str) -> str | None:
        if not hasattr(self, "core"):  # it asks while it is being made
            return next((p.name for p in self.store.peers() if p.peer_id == peer_id), None)
        peer = self.core.world.peers.get(peer_id)
        return None if peer is None else peer.name

    def _peer_of(self, conn_id: str) -> str | None:
        binding = self.core.world.table.bindings.get(conn_id)
        return None if binding is None else binding.peer_id

    def addresses(self) -> list[dict[str, object]]:
        """*addresses* of docs/control.md; since when is known from this start on."""
        return [
            {"addr": str(a.addr), "ifname": a.ifname, "since": self._seen_since.get(a.addr)}
            for a in self.watcher.addresses()
        ]

    async def settle(self) -> None:
        """Return when every command so far has been carried out."""
        self.drain()
        await self.executor.idle()


def main(
    config: Config,
    inherited: Inherited,
    after_command: Callable[[c.Command], None] = lambda command: None,
) -> None:
    """The engine process, after privileges are gone; SystemExit when it can't go on."""

    async def life() -> None:
        engine = Engine(config, inherited, after_command)
        sandbox.enter("engine", config.state_dir, config.control_socket, config.source)
        await engine.run()

    try:
        asyncio.run(life())
    except KeystoreError as fault:
        log.error("%s", fault)
        raise SystemExit(1) from None
    except EOFError as fault:
        raise SystemExit(f"{fault}") from None
