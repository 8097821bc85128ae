"""The connections that exist, and the bindings among them, each found by any of its names."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

from ..rewrite.flow import Address, Endpoint, Flow
from ..rewrite.redirect import DataPath, Entry
from .inputs import Connection
from .records import BindingRecord
from .transitions import CONNECTION, Conn, ConnAction, ConnInput, step

MAX_STALE = 16


@dataclass(slots=True)
class Known:
    """A connection that the surroundings told us of.

    why      text: why it is not bound (yet)
    tried    peers that do not know it, or refused it
    conn_id  its binding
    """

    c: Connection
    state: Conn
    why: str = ""
    tried: set[str] = field(default_factory=set)
    conn_id: str | None = None

    def take(self, what: ConnInput) -> ConnAction:
        action, self.state = step(CONNECTION, self.state, what)
        return action


@dataclass(slots=True)
class Binding:
    """A connection bound to a peer, and where both its ends are now.

    locals_, remotes  endpoints that packets may have, newest first; every pair of them
                      is a wire flow that is let in
    spare_locals, spare_remotes  the same for prepared addresses
    out_local         our endpoint in what we send; None: not settled, segments are held
    out_remote        the far endpoint that has proved itself
    settled           the peer has confirmed our newest endpoint
    let_in            the peer lets packets from our newest endpoint in
    spare_until       the peer lets packets from spare_locals in until then (seconds)
    second            which of the two reservations is in use
    held_since        nothing is sent since then; absent_since: the peer does not answer
    closing           our end ended; far_closed: the peer says that its end did
    """

    conn_id: str
    peer_id: str
    birth: Flow
    inside: Flow
    local: bool
    inside_opened: bool
    path: DataPath
    since: float
    bound_at: float
    locals_: list[Endpoint]
    remotes: list[Endpoint]
    out_local: Endpoint | None
    out_remote: Endpoint
    entry: Entry
    spare_locals: list[Endpoint] = field(default_factory=list)
    spare_remotes: list[Endpoint] = field(default_factory=list)
    moves: int = 0
    last_move: float | None = None
    held_since: float | None = None
    absent_since: float | None = None
    settled: bool = True
    let_in: bool = True
    spare_until: float = 0.0
    second: bool = False
    reserved_second: bool = False
    port_tries: int = 0
    far_closed: bool = False
    closing: bool = False
    why: str = ""

    @classmethod
    def new(cls, conn_id: str, peer_id: str, c: Connection, path: DataPath, now: float) -> Binding:
        """Just bound: it crosses the network as it was born."""
        entry = Entry(
            conn_id, c.birth, c.inside, c.local, c.inside_opened, (c.birth,), c.birth, (), path
        )
        since = now if c.since is None else c.since
        return cls.of(BindingRecord(peer_id, entry, since, now))

    @classmethod
    def of(cls, record: BindingRecord) -> Binding:
        """As it was kept.

        A held connection does not tell which of the far endpoints has proved itself:
        then the oldest one is taken, and the peer's newest has to prove itself again.
        """
        e = record.entry
        out = e.wire_out
        remote = e.wires[-1].remote if out is None else out.remote
        locals_ = list(dict.fromkeys(w.local for w in e.wires))
        remotes = list(dict.fromkeys(w.remote for w in e.wires))
        if remote not in remotes:
            remotes.append(remote)
        return cls(
            e.conn_id, record.peer_id, e.birth, e.inside, e.local, e.inside_opened, e.path,
            record.since, record.bound_at, locals_, remotes,
            None if out is None else out.local, remote, e,
            moves=record.moves, last_move=record.last_move,
            settled=out is not None and out.local == e.wires[0].local,
            let_in=out is not None and out.local == e.wires[0].local,
        )  # fmt: skip

    @property
    def routed(self) -> bool:
        """We forward it as it is: its near end has an address of its own, not one of ours."""
        return not self.local and self.inside == self.birth

    @property
    def waiting_since(self) -> float | None:
        """Since when nobody can answer our end; None: somebody can."""
        times = [at for at in (self.held_since, self.absent_since) if at is not None]
        return min(times, default=None)

    def connection(self) -> Connection:
        return Connection(self.birth, self.inside, self.local, self.inside_opened, self.since)

    def record(self) -> BindingRecord:
        return BindingRecord(
            self.peer_id, self.entry, self.since, self.bound_at, self.moves, self.last_move
        )

    def rebuild(self) -> bool:
        """Compute the entry anew from the endpoints; whether it changed.

        Flows that are no longer let in become stale; one that comes back ceases to be.
        The birth flow never leaves the stale ones while it is not let in: whoever has
        its address now would reach our end without translation.
        """
        old = self.entry
        ours = _once(self.locals_ + self.spare_locals)
        theirs = _once(self.remotes + self.spare_remotes)
        wires = tuple(Flow(a, b) for a in ours for b in theirs)
        out = None if self.out_local is None else Flow(self.out_local, self.out_remote)
        if wires == old.wires:
            stale = old.stale
            if out == old.wire_out and self.path == old.path:
                return False
        else:
            past = _once([w for w in (*old.wires, *old.stale) if w not in wires])
            stale = tuple(past[:MAX_STALE])
            if self.birth not in wires and self.birth not in stale:
                stale = (*stale[: MAX_STALE - 1], self.birth)
        self.entry = Entry(
            self.conn_id, self.birth, self.inside, self.local, self.inside_opened,
            wires, out, stale, self.path,
        )  # fmt: skip
        return True


E = TypeVar("E")


def _once(items: list[E]) -> list[E]:
    """Each item once, in order; the lists are short, and addresses slow to hash."""
    if len(items) < 2:
        return items
    found: list[E] = []
    for item in items:
        if item not in found:
            found.append(item)
    return found


class Table:
    """Connections by birth flow and far address; bindings by ID, wire flow and peer."""

    def __init__(self) -> None:
        self.known: dict[Flow, Known] = {}
        self.bindings: dict[str, Binding] = {}
        self._by_remote: dict[Address, dict[Flow, None]] = {}
        self._by_wire: dict[Flow, dict[str, None]] = {}
        self._by_birth: dict[Flow, str] = {}
        self._wires: dict[str, tuple[Flow, ...]] = {}
        self._by_peer: dict[str, dict[str, None]] = {}

    def add(self, known: Known) -> None:
        birth = known.c.birth
        self.known[birth] = known
        self._by_remote.setdefault(birth.remote.addr, {})[birth] = None

    def discard(self, birth: Flow) -> None:
        if self.known.pop(birth, None) is not None:
            flows = self._by_remote[birth.remote.addr]
            del flows[birth]
            if not flows:
                del self._by_remote[birth.remote.addr]

    def with_remote(self, addr: Address) -> Iterator[Known]:
        """Connections whose far end was born at ``addr``."""
        for birth in list(self._by_remote.get(addr, ())):
            yield self.known[birth]

    def long_lived_with(self, addr: Address) -> bool:
        """Whether somebody at ``addr`` is worth expensive work."""
        return any(k.state in (Conn.LONG, Conn.OFFERED, Conn.BOUND) for k in self.with_remote(addr))

    def bind(self, binding: Binding) -> None:
        self.bindings[binding.conn_id] = binding
        self._by_birth[binding.birth] = binding.conn_id
        self._by_peer.setdefault(binding.peer_id, {})[binding.conn_id] = None
        self.reindex(binding)

    def reindex(self, binding: Binding) -> None:
        """After every change of the entry."""
        if self._wires.get(binding.conn_id) == binding.entry.wires:
            return
        self._unindex(binding.conn_id)
        self._wires[binding.conn_id] = binding.entry.wires
        for wire in binding.entry.wires:
            self._by_wire.setdefault(wire, {})[binding.conn_id] = None

    def _unindex(self, conn_id: str) -> None:
        for wire in self._wires.pop(conn_id, ()):
            ids = self._by_wire[wire]
            del ids[conn_id]
            if not ids:
                del self._by_wire[wire]

    def unbind(self, conn_id: str) -> Binding | None:
        binding = self.bindings.pop(conn_id, None)
        if binding is not None:
            self._unindex(conn_id)
            if self._by_birth.get(binding.birth) == conn_id:
                del self._by_birth[binding.birth]
            ids = self._by_peer[binding.peer_id]
            del ids[conn_id]
            if not ids:
                del self._by_peer[binding.peer_id]
        return binding

    def born(self, birth: Flow) -> Binding | None:
        conn_id = self._by_birth.get(birth)
        return None if conn_id is None else self.bindings[conn_id]

    def on_wire(self, wire: Flow) -> Binding | None:
        ids = self._by_wire.get(wire)
        return self.bindings[next(iter(ids))] if ids else None

    def taken(self, wire: Flow, conn_id: str) -> bool:
        """Whether a living connection other than ``conn_id`` has this wire flow."""
        if any(other != conn_id for other in self._by_wire.get(wire, ())):
            return True
        known = self.known.get(wire)
        return known is not None and known.conn_id != conn_id

    def of_peer(self, peer_id: str) -> list[Binding]:
        return [self.bindings[i] for i in self._by_peer.get(peer_id, ())]

    def count_of(self, peer_id: str) -> int:
        return len(self._by_peer.get(peer_id, ()))

    def all_bindings(self) -> Iterable[Binding]:
        return list(self.bindings.values())
