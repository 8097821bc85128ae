"""When our connections move, where to, with which port, and what is prepared for it.

The order of the commands is the order of docs/protocol.md ("The way of a change").
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ..rewrite.flow import Address, Endpoint, Flow
from .announcer import Announcer
from .changes import OurChange
from .commands import Reinject, ReservePorts
from .connections import Binding
from .frames import Purpose
from .peer import Peer
from .world import World

PORT_TRIES = 8
RETRY = 10.0
PREPARE_SOON = 0.5
SECOND = "+"  # behind a connection ID: the second of its two reservations


class OurMoves:
    def __init__(self, world: World, announcer: Announcer) -> None:
        self.world, self.announcer = world, announcer
        announcer.port_refused = self._port_refused
        self._wanted: dict[str, tuple[Address, Purpose]] = {}
        self._ready: dict[str, Endpoint] = {}

    # when to move

    def hold(self) -> None:
        """Shut what would leave from an address that is gone: segments wait for the new one.

        Not written to the disk: after a crash the same comparison holds them again.
        """
        shut = []
        for binding in self.world.table.all_bindings():
            out = binding.out_local
            if out is not None and not binding.routed and not self.world.usable_source(out.addr):
                binding.out_local = None
                shut.append(binding)
        self.world.apply(shut, save=False)

    def reconsider(self) -> None:
        """Move what has to move; reopen what can go on where it was; prepare the rest."""
        world = self.world
        targets: dict[str, Address] = {}
        resumed: dict[str, Endpoint] = {}
        reopen = []
        pruned = []
        for binding in world.table.all_bindings():
            claim = binding.locals_[0]
            if binding.closing or binding.routed:
                continue
            spares = [e for e in binding.spare_locals if e.addr in world.local]
            older = [
                e for e in binding.locals_[1:] if e.addr in world.local or not binding.settled
            ]
            if spares != binding.spare_locals or older != binding.locals_[1:]:
                binding.spare_locals, binding.locals_ = spares, [claim, *older]
                pruned.append(binding)
            if not world.usable_source(claim.addr):
                target = self._source_towards(binding)
                if target is not None:
                    targets[binding.conn_id] = target
                else:
                    binding.why = "no usable address"
                continue
            if not binding.settled and not self.announcer.under_way(binding):
                resumed[binding.conn_id] = claim  # a restart in the middle of a move
            if binding.let_in and binding.out_local is None:
                binding.out_local = claim
                binding.why = ""
                reopen.append(binding)
        self._move(targets)
        self._begin(resumed)
        world.apply({b.conn_id: b for b in (*reopen, *pruned)}.values())
        if reopen:
            world.emit(Reinject(tuple(b.conn_id for b in reopen)))
        for peer in list(world.peers.values()):
            self.prepare(peer)

    def _source_towards(self, binding: Binding) -> Address | None:
        """The source that routing chooses now towards the connection's far end."""
        family = binding.birth.version
        sources = self.world.paths.source
        places = [binding.out_remote.addr, *(r.addr for r in binding.remotes)]
        places += [a for a in sources if a.version == family]  # it may have moved as well
        for place in places:
            found = sources.get(place)
            if found is not None and found.version == family and self.world.usable_source(found):
                return found
        return None

    def move(self, to: Address, frm: Address | None) -> int:
        """The operator's wish; how many connections it concerns."""
        chosen = {
            b.conn_id: to
            for b in self.world.table.all_bindings()
            if not b.closing
            and not b.routed
            and b.birth.version == to.version
            and b.locals_[0].addr != to
            and frm in (None, b.locals_[0].addr)
        }
        self._move(chosen)
        return len(chosen)

    def again(self, bindings: Iterable[Binding]) -> None:
        """Announce once more where these connections are."""
        self._begin({b.conn_id: b.locals_[0] for b in bindings})

    def _move(self, targets: Mapping[str, Address]) -> None:
        """To a prepared address at once; to another one when ports are reserved."""
        instant: dict[str, Endpoint] = {}
        others: dict[str, Address] = {}
        for conn_id, target in targets.items():
            binding = self.world.table.bindings[conn_id]
            spare = next((e for e in binding.spare_locals if e.addr == target), None)
            if spare is not None:
                instant[conn_id] = spare
                self._wanted.pop(conn_id, None)
            else:
                others[conn_id] = target
        self._begin(instant)
        self._reserve(others, Purpose.MOVE)

    # ports

    def _reserve(
        self, targets: Mapping[str, Address], purpose: Purpose, other_port: bool = False
    ) -> None:
        """A port at the new address for each connection; at its birth address it has one.

        A connection has two reservations by turns, so that the one in use stays until the
        next is in use.
        """
        wanted: dict[str, Flow] = {}
        for conn_id, target in targets.items():
            binding = self.world.table.bindings[conn_id]
            if self._wanted.get(conn_id) == (target, purpose) and not other_port:
                continue
            self._wanted[conn_id] = target, purpose
            self._ready.pop(conn_id, None)
            if purpose is Purpose.MOVE:
                binding.spare_locals, binding.spare_until = [], 0.0
                self.announcer.cancel(binding, Purpose.PREPARE)
            birth = binding.birth.local
            if target == birth.addr and not other_port:
                self._ready[conn_id] = birth
                continue
            port = birth.port
            if other_port:  # the dynamic ports of RFC 6335, 6
                port = 49152 + int.from_bytes(self.world.rng(2), "big") % 16384
            key = conn_id if binding.second else conn_id + SECOND
            wanted[key] = Flow(Endpoint(target, port), binding.out_remote)
        if wanted:
            self.world.emit(ReservePorts(wanted))
        elif self._ready:
            self.ports_reserved({})

    def ports_reserved(self, got: Mapping[str, Flow | None]) -> None:
        world = self.world
        ready, self._ready = self._ready, {}
        for key, flow in got.items():
            conn_id = key.removesuffix(SECOND)
            binding = world.table.bindings.get(conn_id)
            if binding is None or conn_id not in self._wanted:
                continue
            if flow is not None and flow.local.addr == self._wanted[conn_id][0]:
                ready[conn_id] = flow.local
                binding.reserved_second = key != conn_id
            elif flow is None and self._wanted.pop(conn_id)[1] is Purpose.MOVE:
                binding.why = "no port free at the new address"
                world.log_rarely(
                    "warning", "no-port", f"{binding.birth}: {binding.why}", conn_id=conn_id
                )
                world.timers.set(("reconsider",), world.now + RETRY)
        moves: dict[str, Endpoint] = {}
        spares: dict[str, Endpoint] = {}
        for conn_id, endpoint in ready.items():
            _, purpose = self._wanted.pop(conn_id, (None, None))
            if conn_id in world.table.bindings and purpose is not None:
                (moves if purpose is Purpose.MOVE else spares)[conn_id] = endpoint
        self._begin(moves)
        self._spare(spares)

    def _port_refused(self, bindings: list[Binding], change: OurChange) -> None:
        """The far end has another connection with that wire flow."""
        again = {}
        for binding in bindings:
            binding.why = "port in use at the far end"
            if binding.port_tries < PORT_TRIES:
                binding.port_tries += 1
                again[binding.conn_id] = change.new
        self._reserve(again, change.purpose, other_port=True)

    # the move

    def _begin(self, moves: Mapping[str, Endpoint]) -> None:
        """Step 1: our inbound rewrite for old and new, then the ACM from the new address.

        Where the correspondent is prepared our outbound opens with it.
        """
        world = self.world
        groups: dict[tuple[str, Address, Address], dict[str, int]] = {}
        moved, opened = [], []
        for conn_id, endpoint in moves.items():
            binding = world.table.bindings[conn_id]
            if not world.usable_source(endpoint.addr):
                continue
            old = binding.locals_[0]
            if endpoint in binding.spare_locals and binding.spare_until > world.now:
                binding.out_local = endpoint
                binding.let_in = True
                opened.append(binding)
            elif old != endpoint:
                binding.let_in = False
            # What is on its way to the old address may still be delivered to us: it is let
            # in until the far end sends to the new one, though the address is gone.
            rest = [
                e for e in binding.locals_ if e != endpoint and (e.addr in world.local or e == old)
            ]
            binding.locals_ = [endpoint, *rest]
            binding.spare_locals, binding.spare_until = [], 0.0
            binding.settled = False
            if old != endpoint:
                binding.moves += 1
                binding.last_move = world.now
            if endpoint not in (old, binding.birth.local):
                binding.second = binding.reserved_second
            moved.append(binding)
            key = binding.peer_id, old.addr, endpoint.addr
            groups.setdefault(key, {})[conn_id] = endpoint.port
        world.apply(moved)
        for (peer_id, old_addr, new), ports in groups.items():
            peer = world.peers.get(peer_id)
            if peer is not None:
                self.announcer.start(peer, old_addr, new, ports, Purpose.MOVE)
        if opened:
            world.emit(Reinject(tuple(b.conn_id for b in opened), wake=False))

    # prepared addresses

    def prepare(self, peer: Peer) -> None:
        """Prove another usable address beforehand, so that a move to it costs no wait."""
        world = self.world
        targets: dict[str, Address] = {}
        renew: dict[str, Endpoint] = {}
        half = world.now + world.settings.timing.prepared / 2
        for binding in world.table.of_peer(peer.peer_id):
            claim = binding.locals_[0]
            idle = binding.settled and not binding.closing and not binding.routed
            if not idle or not world.usable_source(claim.addr):
                continue
            other = self._another(binding, claim.addr)
            spare = next((e for e in binding.spare_locals if e.addr == other), None)
            if other is not None and spare is None:
                targets[binding.conn_id] = other
            elif spare is not None and binding.spare_until < half:
                renew[binding.conn_id] = spare
        if targets or renew:
            self._reserve(targets, Purpose.PREPARE)
            self._spare(renew)
            soon = world.now + world.settings.timing.prepared / 4
            world.timers.set(("prepare", peer.peer_id), soon)

    def _another(self, binding: Binding, claim: Address) -> Address | None:
        """The address to which this connection would move next, as far as one can tell."""
        routed = self._source_towards(binding)
        if routed is not None and routed != claim:
            return routed
        for addr in self.world.local:
            if addr != claim and addr.version == claim.version and self.world.usable_source(addr):
                return addr
        return None

    def prepare_soon(self, peer: Peer) -> None:
        """A connection was bound; others may follow at once."""
        key = ("prepare-soon", peer.peer_id)
        if key not in self.world.timers:
            self.world.timers.set(key, self.world.now + PREPARE_SOON)

    def prepare_timer(self, peer: Peer) -> None:
        self.prepare(peer)
        key = ("prepare", peer.peer_id)
        if any(b.spare_locals for b in self.world.table.of_peer(peer.peer_id)):
            soon = self.world.now + self.world.settings.timing.prepared / 4
            self.world.timers.set(key, soon)

    def _spare(self, spares: Mapping[str, Endpoint]) -> None:
        """Let packets to the other address in, then ask the peer to be prepared for it."""
        world = self.world
        groups: dict[tuple[str, Address, Address], dict[str, int]] = {}
        changed = []
        for conn_id, endpoint in spares.items():
            binding = world.table.bindings[conn_id]
            claim = binding.locals_[0]
            if not world.usable_source(endpoint.addr) or claim.addr == endpoint.addr:
                continue
            if binding.spare_locals != [endpoint]:
                binding.spare_locals, binding.spare_until = [endpoint], 0.0
            changed.append(binding)
            key = binding.peer_id, claim.addr, endpoint.addr
            groups.setdefault(key, {})[conn_id] = endpoint.port
        world.apply(changed)
        for (peer_id, claimed, new), ports in groups.items():
            peer = world.peers.get(peer_id)
            if peer is not None:
                self.announcer.start(peer, claimed, new, ports, Purpose.PREPARE)

    def closed(self, binding: Binding) -> None:
        """A binding is gone; so is what was to be announced about it."""
        self._wanted.pop(binding.conn_id, None)
        self._ready.pop(binding.conn_id, None)
        self.announcer.cancel(binding)
