"""What the parts of the core share: settings, time, paths, tables, commands so far."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from ..rewrite.flow import Address
from .commands import Apply, Command, Log, SaveBindings
from .connections import Binding, Table
from .inputs import LocalAddress, Paths
from .limits import BucketTable
from .peer import Peer
from .settings import CoreSettings
from .timers import Timers


def counted(connections: int) -> str:
    """``1 connection``, ``2 connections``."""
    return f"{connections} connection{'' if connections == 1 else 's'}"


class World:
    """``now`` is the time of the input that is being worked on."""

    def __init__(
        self, settings: CoreSettings, host_id: str, rng: Callable[[int], bytes], now: float
    ) -> None:
        self.settings = settings
        self.host_id = host_id
        self.rng = rng
        self.now = now
        self.timers = Timers()
        self.table = Table()
        self.peers: dict[str, Peer] = {}
        self.paths = Paths((), {})
        self.local: dict[Address, LocalAddress] = {}
        self.commands: list[Command] = []
        self._log_rate = BucketTable(rate=0.2, burst=5, size=256)

    def emit(self, command: Command) -> None:
        self.commands.append(command)

    def log(
        self,
        level: str,
        kind: str,
        text: str,
        peer: Peer | None = None,
        conn_id: str | None = None,
        **data: Any,
    ) -> None:
        peer_id = None if peer is None else peer.peer_id
        self.emit(Log(level, kind, text, peer_id, conn_id, data))

    def log_rarely(
        self,
        level: str,
        kind: str,
        text: str,
        peer: Peer | None = None,
        conn_id: str | None = None,
        **data: Any,
    ) -> None:
        """For what others can cause at will: a few of a kind, then one in five seconds."""
        if self._log_rate.take((kind, None if peer is None else peer.peer_id), self.now):
            self.log(level, kind, text, peer, conn_id, **data)

    def usable_source(self, addr: Address) -> bool:
        found = self.local.get(addr)
        return found is not None and found.usable and not found.inside

    def held(self, binding: Binding) -> None:
        """Nothing of it is sent from now on."""
        binding.held_since = self.now
        self.limit(binding)

    def limit(self, binding: Binding) -> float | None:
        """Set the end of waiting; seconds that are left, None: as many as it takes."""
        b = binding
        longest = self.settings.hold_max(b.connection(), b.peer_id)
        since = b.waiting_since
        if longest is None or since is None:
            return None
        self.timers.set(("hold-max", b.conn_id), since + longest)
        return since + longest - self.now

    def apply(self, bindings: Iterable[Binding], save: bool = True) -> None:
        """Entries of these bindings: to the disk, then to the kernel."""
        changed = [b for b in bindings if b.rebuild()]
        if not changed:
            return
        for binding in changed:
            self.table.reindex(binding)
            if binding.entry.wire_out is not None:
                binding.held_since = None
            elif binding.held_since is None:
                self.held(binding)
        if save:
            self.emit(SaveBindings(tuple(b.record() for b in changed)))
        self.emit(Apply(tuple(b.entry for b in changed)))
