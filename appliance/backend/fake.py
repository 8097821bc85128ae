"""The backend in memory: what :mod:`.api` promises, without a kernel.

Tests make changes of the world by its plain methods (``add_address``, ``open_connection``,
``arrive`` ...) and look at what the program did in its plain attributes.  Nothing here is
asynchronous: each handler is called from within :meth:`read`, as the real ones are.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress

from ..protocol.inputs import Connection, LocalAddress, Segment
from ..rewrite.flow import Address, Flow
from ..rewrite.redirect import Entry
from .api import BackendError, ConnectionHandler, TapHandler


class _Bell:
    """A file descriptor that is readable while something waits."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def fileno(self) -> int:
        return self._read

    def ring(self) -> None:
        with suppress(BlockingIOError):
            os.write(self._write, b"\0")

    def silence(self) -> None:
        with suppress(BlockingIOError):
            while os.read(self._read, 4096):
                pass

    def close(self) -> None:
        os.close(self._read)
        os.close(self._write)


class FakeTable:
    """RedirectTable: ``entries`` is what the kernel would hold, ``history`` every state."""

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}
        self.observed: frozenset[Flow] = frozenset()
        self.history: list[dict[str, Entry]] = []
        self.is_open = False
        self.kept: bool | None = None

    def open(self) -> None:
        self.is_open = True

    def replace_all(self, entries: Sequence[Entry]) -> None:
        self._become({entry.conn_id: entry for entry in entries})

    def apply(self, entries: Sequence[Entry]) -> None:
        self._become(self.entries | {entry.conn_id: entry for entry in entries})

    def remove(self, conn_ids: Iterable[str]) -> None:
        gone = set(conn_ids)
        self._become({c: e for c, e in self.entries.items() if c not in gone})

    def observe(self, flows: Sequence[Flow]) -> None:
        self._opened()
        self.observed = frozenset(flows)

    def verify(self) -> bool:
        return False

    def close(self, keep: bool) -> None:
        self.is_open, self.kept = False, keep
        if not keep:
            self.entries = {}

    def inbound(self, packet: Flow) -> Flow | None:
        """Where a packet from the network goes (``local``: its source): rewritten to the
        birth tuple, unchanged when it belongs to nobody, None when it is dropped."""
        for entry in self.entries.values():
            if packet.reversed() in entry.wires:
                return entry.birth.reversed()
        for entry in self.entries.values():
            if packet.reversed() in entry.stale:
                return None
        return packet

    def outbound(self, packet: Flow) -> Flow | None:
        """The same for a packet of ours on its birth tuple; None: held."""
        for entry in self.entries.values():
            if packet == entry.birth:
                return entry.wire_out
        return packet

    def _become(self, entries: dict[str, Entry]) -> None:
        self._opened()
        self.entries = entries
        self.history.append(dict(entries))

    def _opened(self) -> None:
        if not self.is_open:
            raise BackendError("the redirect table is not open")


class FakeHost:
    """Host: remembers; ``taken`` are wire flows that others use already."""

    def __init__(self, on_dump: Callable[[], None] = lambda: None) -> None:
        self.parked: set[Address] = set()
        self.reserved: dict[str, Flow] = {}
        self.taken: set[Flow] = set()
        self.restored: list[Entry] = []
        self.aborted: list[tuple[Flow, bool]] = []
        self.adopted: list[Entry] = []
        self.closed = False
        self._on_dump = on_dump

    def park(self, addr: Address) -> None:
        self.parked.add(addr)

    def unpark(self, addr: Address) -> None:
        self.parked.discard(addr)

    def keep(self, entries: Sequence[Entry]) -> None:
        """Nothing is on its way in memory."""

    def reserve(self, wanted: Mapping[str, Flow]) -> dict[str, Flow | None]:
        return {conn: self._reserve(conn, flow) for conn, flow in wanted.items()}

    def _reserve(self, conn: str, flow: Flow) -> Flow | None:
        self.reserved.pop(conn, None)
        used = self.taken | set(self.reserved.values())
        for port in (flow.local.port, *range(32768, 61000)):
            candidate = flow.with_local(flow.local.addr, port)
            if candidate not in used:
                self.reserved[conn] = candidate
                return candidate
        return None

    def release(self, conn_ids: Iterable[str]) -> None:
        for conn in conn_ids:
            self.reserved.pop(conn, None)

    def restore_nat(self, entries: Sequence[Entry]) -> None:
        self.restored += entries

    def abort(self, inside: Flow, local: bool) -> None:
        self.aborted.append((inside, local))

    def request_connections(self) -> None:
        self._on_dump()

    def adopt(self, entries: Sequence[Entry]) -> None:
        self.adopted = list(entries)

    def close(self) -> None:
        self.parked.clear()
        self.reserved.clear()
        self.closed = True


class FakeTap:
    """SegmentTap: ``hold`` puts segments aside, ``see`` and ``withhold`` report."""

    def __init__(self, handler: TapHandler) -> None:
        self._handler = handler
        self._bell = _Bell()
        self._waiting: deque[Segment | Flow] = deque()
        self._held: dict[str, int] = {}
        self.entries: dict[str, Entry] = {}
        self.prompted: list[tuple[Flow, bool]] = []
        self.reinjected: list[Entry] = []
        self.guarded: frozenset[str] = frozenset()

    def hold(self, conn_id: str, segments: int = 1) -> None:
        self._held[conn_id] = self._held.get(conn_id, 0) + segments

    def see(self, segment: Segment) -> None:
        self._waiting.append(segment)
        self._bell.ring()

    def withhold(self, wire: Flow) -> None:
        self._waiting.append(wire)
        self._bell.ring()

    def fileno(self) -> int:
        return self._bell.fileno()

    def read(self) -> None:
        self._bell.silence()
        while self._waiting:
            seen = self._waiting.popleft()
            if isinstance(seen, Segment):
                self._handler.segment(seen)
            else:
                self._handler.reset_withheld(seen)

    def update(self, entries: Iterable[Entry]) -> None:
        self.entries |= {entry.conn_id: entry for entry in entries}

    def reinject(self, entries: Sequence[Entry]) -> int:
        open_ = [entry for entry in entries if entry.wire_out is not None]
        self.reinjected += open_
        return sum(self._held.pop(entry.conn_id, 0) for entry in open_)

    def prompt(self, inside: Flow, local: bool) -> None:
        self.prompted.append((inside, local))

    def guard(self, conn_ids: Iterable[str]) -> None:
        self.guarded = frozenset(conn_ids)

    def forget(self, conn_ids: Iterable[str]) -> None:
        for conn in conn_ids:
            self._held.pop(conn, None)
            self.entries.pop(conn, None)

    def held(self) -> Mapping[str, int]:
        return dict(self._held)

    def close(self) -> None:
        self._bell.close()


class FakeWatcher:
    """AddressWatcher: ``set_addresses`` and ``set_source`` are what happens to the machine."""

    def __init__(self, addresses: Iterable[LocalAddress] = ()) -> None:
        self._bell = _Bell()
        self._addresses = tuple(addresses)
        self._sources: dict[Address, Address | None] = {}
        self._changed = False

    def set_addresses(self, *addresses: LocalAddress) -> None:
        self._addresses = addresses
        self._change()

    def set_source(self, remote: Address, source: Address | None) -> None:
        """By default it is the first usable outside address of the same family."""
        self._sources[remote] = source
        self._change()

    def _change(self) -> None:
        self._changed = True
        self._bell.ring()

    def fileno(self) -> int:
        return self._bell.fileno()

    def read(self) -> bool:
        self._bell.silence()
        changed, self._changed = self._changed, False
        return changed

    def addresses(self) -> tuple[LocalAddress, ...]:
        return self._addresses

    def source_for(self, remote: Address) -> Address | None:
        if remote in self._sources:
            return self._sources[remote]
        for local in self._addresses:
            if local.usable and not local.inside and local.addr.version == remote.version:
                return local.addr
        return None

    def close(self) -> None:
        self._bell.close()


class FakeConnections:
    """ConnectionTable: ``open_connection`` and the like are what happens to the machine."""

    def __init__(self, handler: ConnectionHandler) -> None:
        self._handler = handler
        self._bell = _Bell()
        self._waiting: deque[Callable[[], None]] = deque()
        self._lost = False
        self.living: dict[Flow, Connection] = {}

    def open_connection(self, connection: Connection) -> None:
        self.living[connection.birth] = connection
        self._later(lambda: self._handler.opened(connection))

    def close_connection(self, birth: Flow) -> None:
        self.living.pop(birth, None)
        self._later(lambda: self._handler.closed(birth))

    def lose_nat(self, birth: Flow) -> None:
        self._later(lambda: self._handler.nat_lost(birth))

    def overrun(self) -> None:
        self._lost = True
        self._bell.ring()

    def dump(self) -> None:
        """What :meth:`FakeHost.request_connections` asks for."""
        everything = list(self.living.values())
        for connection in everything:
            self._later(lambda c=connection: self._handler.opened(c))  # type: ignore[misc]
        self._later(lambda: self._handler.all_known(everything))

    def _later(self, call: Callable[[], None]) -> None:
        self._waiting.append(call)
        self._bell.ring()

    def fileno(self) -> int:
        return self._bell.fileno()

    def filenos(self) -> list[int]:
        return [self.fileno()]

    def read(self) -> None:
        self._bell.silence()
        while self._waiting:
            self._waiting.popleft()()

    def overran(self) -> bool:
        lost, self._lost = self._lost, False
        return lost

    def next_timer(self) -> float | None:
        return None

    def close(self) -> None:
        self._bell.close()
