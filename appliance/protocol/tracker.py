"""Which connections exist, and what follows when they come, age, and go."""

from __future__ import annotations

from collections.abc import Iterable, Set

from ..rewrite.flow import Address, Flow
from .binder import Binder
from .commands import Abort, Apply, ReservePorts, RestoreNat
from .connections import Binding, Known
from .inputs import Connection
from .mover import OurMoves
from .parking import Parking
from .records import BindingRecord
from .status import Ends
from .transitions import Conn, ConnAction, ConnInput
from .world import World


class Tracker:
    def __init__(
        self, world: World, binder: Binder, mover: OurMoves, ends: Ends, parking: Parking
    ) -> None:
        self.world, self.binder, self.mover = world, binder, mover
        self.ends, self.parking = ends, parking

    def restore(self, records: Iterable[BindingRecord]) -> None:
        """The packet path as it was; what must change is seen when the paths are known."""
        world = self.world
        restored = []
        for record in records:
            binding = Binding.of(record)
            world.table.bind(binding)
            if binding.entry.wire_out is None:
                world.held(binding)
            c = Connection(
                binding.birth, binding.inside, binding.local, binding.inside_opened, record.since
            )
            world.table.add(Known(c, Conn.BOUND, conn_id=binding.conn_id))
            self.parking.restored(binding)
            restored.append(binding)
        if not restored:
            return
        world.emit(Apply(tuple(b.entry for b in restored)))
        forwarded = tuple(b.conn_id for b in restored if not b.local)
        if forwarded:
            world.emit(RestoreNat(forwarded))
        elsewhere = {
            b.conn_id: Flow(b.locals_[0], b.out_remote)
            for b in restored
            if b.locals_[0] != b.birth.local
        }
        if elsewhere:
            world.emit(ReservePorts(elsewhere))

    def opened(self, c: Connection) -> None:
        """A connection came into being, or is said again."""
        world = self.world
        known = world.table.known.get(c.birth)
        if known is not None:
            if known.conn_id is None or not world.table.bindings[known.conn_id].closing:
                return
            # the ports are in use again: the old redirect must not catch the new connection
            self.ends.release(world.table.bindings[known.conn_id])
            self._discard(c.birth)
        known = Known(c, Conn.SHORT)
        world.table.add(known)
        after = world.settings.long_lived_after(c, None)
        if after is None:
            known.take(ConnInput.EXEMPT)
        elif c.since is None or world.now - c.since >= after:
            self.aged(c.birth)
        else:
            world.timers.set(("age", c.birth), c.since + after)

    def aged(self, birth: Flow) -> None:
        """A connection is old enough to be worth keeping."""
        known = self.world.table.known.get(birth)
        if known is not None and known.take(ConnInput.AGED) is ConnAction.FIND_PEER:
            self.binder.find(known)

    def closed(self, birth: Flow) -> None:
        """Our end of it ended."""
        known = self.world.table.known.get(birth)
        if known is None or known.state is Conn.ENDED:
            return
        action = known.take(ConnInput.CLOSED)
        if action is ConnAction.TELL_PEER and known.conn_id is not None:
            self.ends.ended(self.world.table.bindings[known.conn_id])
        else:
            self._discard(birth)

    def _discard(self, birth: Flow) -> None:
        self.binder.closed(birth)
        self.world.timers.cancel(("age", birth))
        self.world.table.discard(birth)

    def unbound(self, binding: Binding) -> None:
        """A binding is about to be released."""
        world = self.world
        self.parking.leave(binding)
        self.mover.closed(binding)
        peer = world.peers.get(binding.peer_id)
        if peer is not None:
            peer.newest_change.pop(binding.conn_id, None)
        known = world.table.known.get(binding.birth)
        if known is not None and known.state is Conn.ENDED:
            self._discard(binding.birth)

    def addresses_lost(self, gone: Set[Address]) -> None:
        """What is bound is moved; what is too young is ended; the rest is left alone."""
        for known in list(self.world.table.known.values()) if gone else ():
            if known.c.birth.local.addr in gone and known.state is not Conn.ENDED:
                self._address_lost(known)

    def _address_lost(self, known: Known) -> None:
        birth = known.c.birth
        action = known.take(ConnInput.ADDRESS_LOST)
        if action is ConnAction.ABORT:
            self.world.emit(Abort(known.c.inside, known.c.local))
            self._discard(birth)
        elif known.state is Conn.OFFERED:
            self.binder.closed(birth)
            if known.state is Conn.OFFERED:
                known.take(ConnInput.FAILED)
            known.why = "its address is gone"
            self.binder.later(known)

    def nat_lost(self, birth: Flow) -> None:
        known = self.world.table.known.get(birth)
        if known is not None and known.conn_id is not None:
            self.world.emit(RestoreNat((known.conn_id,)))
        elif known is not None:
            if known.state is Conn.SHORT:
                self.world.emit(Abort(known.c.inside, known.c.local))
            self._discard(birth)

    def all_known(self, listed: list[Connection]) -> None:
        alive = {c.birth for c in listed}
        lost = []
        for birth, known in list(self.world.table.known.items()):
            if birth in alive:
                continue
            if known.conn_id is None or known.c.local:
                self.closed(birth)
            elif known.state is not Conn.ENDED:
                lost.append(known.conn_id)
        if lost:
            self.world.emit(RestoreNat(tuple(lost)))
        for c in listed:
            self.opened(c)
