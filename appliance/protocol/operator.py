"""What the operator can do."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from ..rewrite.flow import Address, Endpoint
from ..rewrite.redirect import DataPath
from .binder import Binder
from .commands import ForgetPeer
from .connections import Binding
from .keys import before_first_chain, derive, fingerprint, first_chain, peer_id
from .links import Links
from .mover import OurMoves
from .peer import Peer
from .records import PeerRecord, TrustState
from .status import Ends
from .world import World


class Refused(Exception):
    """The operator asked for what can't be done; the text says why."""


class Operator:
    """The part of the core that the control socket reaches; see Core."""

    world: World
    links: Links
    binder: Binder
    mover: OurMoves
    ends: Ends
    _at: Callable[[float], None]
    _finish: Callable[[], None]

    def _peer(self, peer_id: str) -> Peer:
        try:
            return self.world.peers[peer_id]
        except KeyError:
            raise Refused(f"there is no peer {peer_id}") from None

    def _set_state(self, peer_id: str, state: TrustState, now: float) -> Peer:
        self._at(now)
        peer = self._peer(peer_id)
        self.links.save(peer, replace(peer.record, state=state))
        return peer

    def accept(self, peer_id: str, now: float) -> None:
        """Trust a peer; its connections are bound from now on."""
        self._trust(self._set_state(peer_id, "trusted", now))

    def verify(self, peer_id: str, now: float) -> None:
        """Trust a peer whose fingerprint was compared."""
        self._trust(self._set_state(peer_id, "verified", now))

    def _trust(self, peer: Peer) -> None:
        self.world.log("notice", "trusted", f"{peer.name} is {peer.record.state}", peer)
        self.links.want_session(peer)
        self._finish()

    def revoke(self, peer_id: str, now: float) -> None:
        """Nothing that the peer says counts any more; its connections become plain."""
        peer = self._set_state(peer_id, "revoked", now)
        self._drop_all(peer, "the peer was revoked")
        self.links.silence(peer)
        self.world.log("notice", "revoked", f"{peer.name} is revoked", peer)
        self._finish()

    def rename(self, peer_id: str, name: str, now: float) -> None:
        self._at(now)
        peer = self._peer(peer_id)
        self.links.save(peer, replace(peer.record, name=name))
        self._finish()

    def set_dns_name(self, peer_id: str, dns_name: str | None, now: float) -> None:
        self._at(now)
        peer = self._peer(peer_id)
        peer.resolved = []
        self.links.save(peer, replace(peer.record, dns_name=dns_name))
        self._finish()

    def forget(self, peer_id: str, now: float) -> int:
        """Delete a peer's keys; how many connections lost their protection."""
        self._at(now)
        peer = self._peer(peer_id)
        count = self._drop_all(peer, "the peer was forgotten")
        self.links.remove(peer_id)
        self.world.emit(ForgetPeer(peer_id))
        self._finish()
        return count

    def _drop_all(self, peer: Peer, why: str) -> int:
        bindings = self.world.table.of_peer(peer.peer_id)
        for binding in bindings:
            binding.why = why
            self._drop(binding.conn_id, why)
        return len(bindings)

    def _drop(self, conn_id: str, why: str) -> None:
        binding = self.world.table.bindings[conn_id]
        if binding.entry.redirected:
            self.ends.far_gone(binding)
        else:
            self.binder.give_up(conn_id, why)

    def introduce(
        self, name: str, address: Endpoint | None, now: float
    ) -> tuple[PeerRecord, PeerRecord]:
        """A new pair of keys: our record, and the one for the other host to import.

        In the other host's record we have no name and no address; it knows both better.
        """
        self._at(now)
        root = self.world.rng(32)
        ours = PeerRecord(
            peer_id(root), root, first_chain(root), before_first_chain(root), True, "", name,
            fingerprint(derive(root, "fingerprint")), "verified", now, now,
            () if address is None else (str(address.addr),), 0 if address is None else address.port,
        )  # fmt: skip
        theirs = replace(
            ours, initiator=False, host_id=self.world.host_id, name="", addresses=(), port=0
        )
        self._add(ours)
        return ours, theirs

    def add_peer(self, record: PeerRecord, now: float) -> None:
        """A peer out of an introduction or a backup; replaces what we have of it."""
        self._at(now)
        if not record.name:
            record = replace(record, name=record.peer_id[:8])
        self._add(record)

    def _add(self, record: PeerRecord) -> None:
        peer = self.links.add(record)
        self.links.save(peer, record)
        if record.addresses:
            for known in self.world.table.known.values():
                known.tried.discard(record.peer_id)
            for addr in peer.addresses():
                for known in self.world.table.with_remote(addr):
                    self.binder.find(known)
        self._finish()

    def resend(self, conn_id: str, now: float) -> None:
        """Send the newest address change of a connection again."""
        self._at(now)
        self.mover.again([self.world.table.bindings[self._bound(conn_id)]])
        self._finish()

    def drop(self, conn_id: str, now: float) -> None:
        """Give a binding up; a redirected connection ends with it."""
        self._at(now)
        self._drop(self._bound(conn_id), "dropped by the operator")
        self._finish()

    def choose_path(self, conn_id: str, path: DataPath, now: float) -> None:
        """Let the kernel translate a connection, or a packet worker, from now on."""
        self._at(now)
        binding = self.world.table.bindings[self._bound(conn_id)]
        self._set_path([(binding, path)])
        self._finish()

    def choose_paths(self, now: float) -> None:
        """Every connection takes the path that the settings say."""
        self._at(now)
        path_for = self.world.settings.path_for
        bindings = self.world.table.all_bindings()
        self._set_path((b, path_for(b.connection(), b.peer_id)) for b in bindings)
        self._finish()

    def _set_path(self, wanted: Iterable[tuple[Binding, DataPath]]) -> None:
        changed = []
        for binding, path in wanted:
            if path != binding.path and not binding.closing:
                binding.path = path
                changed.append(binding)
        self.world.apply(changed)
        for binding in changed:
            peer = self.world.peers.get(binding.peer_id)
            text = f"{binding.birth} takes the {binding.path} path"
            self.world.log("info", "path", text, peer, binding.conn_id)

    def _bound(self, conn_id: str) -> str:
        if conn_id not in self.world.table.bindings:
            raise Refused(f"no connection {conn_id} is bound")
        return conn_id

    def move(self, to: Address, frm: Address | None, now: float) -> int:
        """Move bound connections to another of our addresses; how many."""
        self._at(now)
        if not self.world.usable_source(to):
            raise Refused(f"{to} is not a usable address of this host")
        count = self.mover.move(to, frm)
        self._finish()
        return count
