"""Binds connections to peers: finds the peer, lets one side propose, keeps the result."""

from __future__ import annotations

from collections.abc import Callable

from ..rewrite.flow import Address, Endpoint, Flow
from .commands import Apply, SaveBindings
from .connections import Binding, Known
from .links import Links
from .peer import Peer
from .proposer import Proposer
from .status import released
from .transitions import Conn, ConnInput
from .watching import Watching
from .witness import Witness
from .world import World

AGAIN = (5.0, 60.0, 600.0)


class Binder:
    """seek: nobody is known at the far end; bound: a binding was made; forget: it ends."""

    def __init__(self, world: World, links: Links) -> None:
        self.world, self.links = world, links
        self.seek: Callable[[Flow], None] = lambda birth: None
        self.forget: Callable[[Binding], None] = lambda binding: None
        self.bound: Callable[[Peer, Binding], None] = lambda peer, binding: None
        self.watching = Watching(world)
        self.proposer = Proposer(world, links, self.watching, self)
        self.witness = Witness(world, links, self.watching, self)
        self._attempts: dict[Flow, int] = {}
        links.on_up.append(self._peer_up)
        links.on_silent.append(self._peer_silent)

    # looking for the peer at the far end

    def find(self, known: Known, waited: bool = False) -> None:
        """A connection became long-lived, or something changed that may help it."""
        birth = known.c.birth
        if known.state not in (Conn.LONG, Conn.OFFERED) or self.proposer.busy_with(birth):
            return
        peer = self.candidate(known)
        if known.state is Conn.OFFERED and (
            peer is None or self.witness.watches(birth, peer.peer_id)
        ):
            return
        if peer is None:
            if not self._talks_with(birth.remote.addr):
                self.seek(birth)
            return
        if peer.session is None:
            known.why = f"no session with {peer.name} yet"
            port = peer.record.port or self.world.settings.port
            self.links.want_session(peer, Endpoint(birth.remote.addr, port))
        elif not known.c.inside_opened and not waited:
            known.why = "waits for the far end's offer"
            wait = self.world.settings.timing.responder
            self.world.timers.set(("offer", birth), self.world.now + wait)
        else:
            known.why = "waits for its turn"
            self.proposer.add(birth)

    def _talks_with(self, addr: Address) -> bool:
        """Somebody there is known and answers: then nobody else is looked for."""
        peers = self.world.peers.values()
        return any(p.session and p.endpoint and p.endpoint.addr == addr for p in peers)

    def candidate(self, known: Known) -> Peer | None:
        addr = known.c.birth.remote.addr
        text = str(addr)
        found = [
            p for p in self.world.peers.values()
            if p.trusted and p.peer_id not in known.tried
            and ((p.endpoint and p.endpoint.addr == addr) or text in p.record.addresses)
        ]  # fmt: skip
        found.sort(key=lambda p: (p.session is None, p.record.addresses[:1] != (text,)))
        return found[0] if found else None

    def offer_timer(self, birth: Flow) -> None:
        known = self.world.table.known.get(birth)
        if known is not None:
            self.find(known, waited=True)

    def again_timer(self, birth: Flow) -> None:
        known = self.world.table.known.get(birth)
        if known is not None:
            known.tried.clear()
            self.find(known)

    def _peer_up(self, peer: Peer) -> None:
        for addr in dict.fromkeys([e.addr for e in (peer.endpoint,) if e] + peer.addresses()):
            for known in self.world.table.with_remote(addr):
                self.find(known)

    def _peer_silent(self, peer: Peer) -> None:
        for addr in peer.addresses():
            for known in self.world.table.with_remote(addr):
                if known.state is Conn.LONG:
                    known.tried.add(peer.peer_id)
                    known.why = "the far daemon does not answer"
                    self.later(known)
                    self.find(known)

    def later(self, known: Known) -> None:
        """Try again, ever more rarely; in the end not any more."""
        birth = known.c.birth
        count = self._attempts.get(birth, 0)
        if count < len(AGAIN):
            self._attempts[birth] = count + 1
            self.world.timers.set(("again", birth), self.world.now + AGAIN[count])

    def bind(self, birth: Flow, peer: Peer, conn_id: str) -> None:
        """Proved from both sides: on disk, then in the kernel, still without any change."""
        world = self.world
        known = world.table.known[birth]
        known.take(ConnInput.PROVED)
        known.why, known.conn_id = "", conn_id
        self._attempts.pop(birth, None)
        path = world.settings.path_for(known.c, peer.peer_id)
        binding = Binding.new(conn_id, peer.peer_id, known.c, path, world.now)
        world.table.bind(binding)
        world.emit(SaveBindings((binding.record(),)))
        world.emit(Apply((binding.entry,)))
        self.bound(peer, binding)
        world.log("info", "bound", f"{birth} is bound to {peer.name}", peer, conn_id)

    def failed(self, birth: Flow) -> None:
        """A proof came to nothing; another peer's may still be in progress."""
        known = self.world.table.known.get(birth)
        going_on = self.proposer.proposes(birth) or self.witness.watches(birth)
        if known is not None and known.state is Conn.OFFERED and not going_on:
            known.take(ConnInput.FAILED)

    def give_up(self, conn_id: str, why: str) -> None:
        """A binding is worth nothing any more: the connection is plain again."""
        binding = self.world.table.unbind(conn_id)
        if binding is None:
            return
        known = self.world.table.known.get(binding.birth)
        if known is not None and known.state is Conn.BOUND:
            known.take(ConnInput.DROPPED)
            known.why, known.conn_id = why, None
            self.later(known)
        self.forget(binding)
        self.world.emit(released(conn_id))

    def replace(self, earlier: Binding) -> None:
        """The peer had lost it, and has proved it anew."""
        self.world.table.unbind(earlier.conn_id)
        self.forget(earlier)
        self.world.emit(released(earlier.conn_id))
        known = self.world.table.known[earlier.birth]
        known.take(ConnInput.DROPPED)
        known.take(ConnInput.OFFER)

    def closed(self, birth: Flow) -> None:
        """The connection ended, or its address is gone: no proof any more."""
        self.proposer.end(birth)
        self.witness.closed(birth)
        self._attempts.pop(birth, None)
        for name in ("offer", "again"):
            self.world.timers.cancel((name, birth))
