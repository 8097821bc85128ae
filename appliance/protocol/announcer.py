"""Our changes of address under way: announce, answer the challenge, open, finish."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ..rewrite.flow import Address
from .changes import Batch, OurChange
from .commands import Reinject
from .connections import Binding
from .frames import (
    MAX_LISTED,
    Challenge,
    ChallengeReply,
    Frame,
    ListWanted,
    MoveDone,
    MoveRefused,
    Purpose,
    Refusal,
    TargetFault,
)
from .links import PLACES, Links, Origin
from .peer import Peer
from .transitions import MOVER, MoverAction, MoverInput, step
from .world import World, counted

CAP = 30.0
REFUSED_AGAIN = 60.0
TRANSLATED_SURELY = 3  # an eavesdropper who is quicker can cause one such refusal or two
PREPARE_TRIES = 6
SAFE_PART = 0.8  # of the time that the correspondent keeps a prepared address

WHY = {
    TargetFault.PATH_TRANSLATES: "path translates",
    TargetFault.NOT_UNICAST: "the far daemon refuses our address: not a unicast one",
    TargetFault.OWN_ADDRESS: "the far daemon refuses our address: it is its own",
    TargetFault.INSIDE: "the far daemon refuses our address: it lies in its LAN",
    TargetFault.OTHER_FAMILY: "IPv4 and IPv6 can't be exchanged for each other",
    TargetFault.BUSY: "the far daemon is busy",
}


class Announcer:
    """port_refused: the far end has the wire flows of these connections in use."""

    def __init__(self, world: World, links: Links) -> None:
        self.world, self.links = world, links
        self.port_refused: Callable[[list[Binding], OurChange], None] = lambda b, change: None
        self.on_doubt: Callable[[Peer], None] = lambda peer: None
        self.on_settled: Callable[[Peer], None] = lambda peer: None
        self._number = 0
        links.handlers |= {
            Challenge: self._challenge,
            MoveDone: self._done,
            MoveRefused: self._refused,
            ListWanted: self._list_wanted,
        }
        links.on_up.append(self.hurry)
        links.on_moved.append(self.hurry)

    def under_way(self, binding: Binding) -> bool:
        """Whether the peer still has to hear where our end of this connection is."""
        peer = self.world.peers.get(binding.peer_id)
        return peer is not None and any(
            binding.conn_id in c.ports and c.purpose is Purpose.MOVE for c in peer.ours.values()
        )

    def start(
        self, peer: Peer, old: Address, new: Address, ports: dict[str, int], purpose: Purpose
    ) -> None:
        """Announce that these connections are (or may soon be) at ``new``."""
        for number, other in list(peer.ours.items()):
            if other.purpose is Purpose.PREPARE or purpose is Purpose.MOVE:
                for conn_id in ports:
                    other.ports.pop(conn_id, None)  # a newer change replaces an older one
                if not other.ports:
                    self._forget(peer, number)
        bindings = self.world.table.bindings
        own_port = sum(port != bindings[i].birth.local.port for i, port in ports.items())
        whole = len(ports) > 1 and own_port <= MAX_LISTED
        batch = Batch(old, new, self.world.now, len(ports))
        if purpose is Purpose.MOVE and old != new:
            self.world.log(
                "info", "move", f"{counted(len(ports))} with {peer.name}: {old} -> {new}",
                peer, old=str(old), new=str(new), connections=len(ports),
            )  # fmt: skip
        for part in [ports] if whole else _parts(ports):
            self._start(peer, batch, part, purpose, listed=not whole)

    def _start(
        self, peer: Peer, batch: Batch, ports: dict[str, int], purpose: Purpose, listed: bool
    ) -> None:
        world = self.world
        self._number = max(self._number + 1, int(world.now * 1000))
        change = OurChange(
            self._number, peer.peer_id, purpose, batch.new, batch.old,
            world.usable_source(batch.old), ports, batch, listed,
        )  # fmt: skip
        batch.running += 1
        peer.ours[change.number] = change
        self._announce(peer, change)

    def _announce(self, peer: Peer, change: OurChange) -> None:
        frame = change.frame(self.world.table.bindings)
        places = peer.places(self.world.settings.port)
        places = [p for p in places if p.addr.version == change.new.version]
        chosen = places[: 1 if change.sent < 3 and peer.endpoint else PLACES]
        for place in chosen:
            self.links.send(peer, 0, frame, place, change.new)
        change.sent_to = tuple(chosen)
        if peer.session is None:
            self.links.want_session(peer)
        change.sent += 1
        if change.sent > 3:
            self.links.resolve(peer)
        if change.sent in (4, 8, 16):
            self.links.renew(peer)  # perhaps it lost the session
        self._again_in(peer, change)

    def _again_in(self, peer: Peer, change: OurChange) -> None:
        change.interval = min(CAP, 2 * change.interval or max(2 * peer.rtt, 0.1))
        key = ("change", peer.peer_id, change.number)
        self.world.timers.set(key, self.world.now + change.interval)

    def timer(self, peer: Peer, number: int) -> None:
        change = peer.ours.get(number)
        if change is None:
            return
        if change.purpose is Purpose.PREPARE and change.sent + change.replies >= PREPARE_TRIES:
            self._forget(peer, number)
        else:
            self._act(peer, change, MoverInput.TIMER)

    def hurry(self, peer: Peer) -> None:
        """The peer was found: say at once what is to be said."""
        for change in list(peer.ours.values()):
            change.sent = change.replies = 0
            change.interval = 0.0
            self._announce(peer, change)

    def _act(self, peer: Peer, change: OurChange, what: MoverInput) -> MoverAction:
        action, change.state = step(MOVER, change.state, what)
        if action is MoverAction.ANNOUNCE:
            self._announce(peer, change)
        elif action is MoverAction.REPLY:
            self._reply(peer, change)
            if what is MoverInput.TIMER and change.replies <= 2:
                self._again_in(peer, change)
            elif what is MoverInput.TIMER:  # the correspondent may have forgotten it all
                self._announce(peer, change)
        elif action in (MoverAction.OPEN_AND_REPLY, MoverAction.OPEN_AND_FINISH):
            self._open(peer, change, action is MoverAction.OPEN_AND_REPLY)
        return action

    def _open(self, peer: Peer, change: OurChange, reply: bool) -> None:
        """Step 3: the correspondent's inbound rewrite is in place; ours may go out."""
        members = self._members(change)
        for binding in members:
            binding.let_in = True
        usable = self.world.usable_source(change.new)
        opened = [b for b in members if usable and b.out_local != b.locals_[0]]
        for binding in opened:
            binding.out_local = binding.locals_[0]
            binding.why = ""
        self.world.apply(opened)
        if reply:
            change.interval = 0.0
            self._reply(peer, change)
            self._again_in(peer, change)
        if opened:
            self.world.emit(Reinject(tuple(b.conn_id for b in opened), wake=not reply))

    def _members(self, change: OurChange) -> list[Binding]:
        """Connections that are to be moved; none for a preparation."""
        if change.purpose is Purpose.PREPARE:
            return []
        found = (self.world.table.bindings.get(i) for i in change.ports)
        return [b for b in found if b is not None and b.locals_[0].addr == change.new]

    def _reply(self, peer: Peer, change: OurChange) -> None:
        remote = change.reply_to or peer.endpoint
        change.replies += 1
        if not change.replied_at:
            change.replied_at = self.world.now
        if remote is not None and self.links.may_answer(peer, remote):
            reply = ChallengeReply(change.number, change.nonce)
            self.links.send(peer, 0, reply, remote, change.new)

    def _challenge(self, peer: Peer, number: int, frame: Frame, origin: Origin) -> None:
        assert isinstance(frame, Challenge)
        change = peer.ours.get(frame.number)
        if change is not None:
            self._found(peer, change, origin)
            self._drop_refused(peer, change, frame.refused)
            change.nonce, change.reply_to = frame.nonce, origin.remote
            self._act(peer, change, MoverInput.CHALLENGE)

    def _done(self, peer: Peer, number: int, frame: Frame, origin: Origin) -> None:
        """Step 4 has happened at the correspondent."""
        assert isinstance(frame, MoveDone)
        change = peer.ours.get(frame.number)
        if change is None:
            return
        self._found(peer, change, origin)
        self._drop_refused(peer, change, frame.refused)
        self._act(peer, change, MoverInput.MOVE_DONE)
        if change.purpose is Purpose.PREPARE:
            self._prepared(change)
        else:
            self._settled(change)
        self._forget(peer, change.number)
        if not peer.ours:
            self.on_settled(peer)

    def _prepared(self, change: OurChange) -> None:
        """The correspondent lets packets from there in, and will for a while."""
        since = change.replied_at or change.batch.started
        until = since + SAFE_PART * self.world.settings.timing.prepared
        for conn_id in change.ports:
            binding = self.world.table.bindings.get(conn_id)
            if binding is not None and any(e.addr == change.new for e in binding.spare_locals):
                binding.spare_until = until

    def _settled(self, change: OurChange) -> None:
        self.world.timers.cancel(("where", change.peer_id))  # it knows
        settled = self._members(change)
        for binding in settled:
            binding.settled, binding.port_tries = True, 0
            # the newest stays though it may be gone by now: it is what the peer knows
            older = [e for e in binding.locals_[1:] if e.addr in self.world.local]
            binding.locals_ = [binding.locals_[0], *older]
        self.world.apply(settled)
        change.batch.done += len(settled)

    def _log_done(self, peer: Peer, batch: Batch) -> None:
        took = round(1000 * (self.world.now - batch.started), 1)
        are = "is" if batch.done == 1 else "are"
        self.world.log(
            "info", "move-done", f"{counted(batch.done)} with {peer.name} {are} at"
            f" {batch.new} after {took} ms", peer, old=str(batch.old), new=str(batch.new),
            connections=batch.done, refused=batch.refused, handover_ms=took,
        )  # fmt: skip

    def _found(self, peer: Peer, change: OurChange, origin: Origin) -> None:
        """It answered from where we had sent to: so there it is."""
        if origin.remote != peer.endpoint and origin.remote in change.sent_to:
            peer.endpoint = None  # so that nothing is said twice from here
            self.links.moved_to(peer, origin.remote, tell=False)

    def _drop_refused(
        self, peer: Peer, change: OurChange, refused: tuple[tuple[str, Refusal], ...]
    ) -> None:
        taken = []
        for conn_id, why in refused:
            binding = self.world.table.bindings.get(conn_id)
            if change.ports.pop(conn_id, None) is None or binding is None:
                continue
            change.batch.refused += 1
            if why is Refusal.TUPLE_IN_USE:
                taken.append(binding)
            elif change.purpose is Purpose.MOVE:
                binding.why = "the far daemon does not know this connection"
                self.on_doubt(peer)
        if taken:
            self.port_refused(taken, change)

    def _refused(self, peer: Peer, number: int, frame: Frame, origin: Origin) -> None:
        assert isinstance(frame, MoveRefused)
        change = peer.ours.get(frame.number)
        if change is None:
            return
        if frame.fault is TargetFault.PATH_TRANSLATES:
            change.translated += 1
            if change.translated < TRANSLATED_SURELY:
                return  # the copy that came first may have been somebody else's
        if self._act(peer, change, MoverInput.REFUSED) is not MoverAction.FAIL:
            return
        if change.purpose is Purpose.PREPARE:
            self._forget(peer, change.number)
            return
        why = WHY[frame.fault]
        for binding in self._members(change):
            binding.why = why
        self.world.log("warning", "move-refused", f"{peer.name}: {why}", peer,
                       old=str(change.old), new=str(change.new))  # fmt: skip
        key = ("change", peer.peer_id, change.number)
        self.world.timers.set(key, self.world.now + REFUSED_AGAIN)

    def _list_wanted(self, peer: Peer, number: int, frame: Frame, origin: Origin) -> None:
        assert isinstance(frame, ListWanted)
        change = peer.ours.get(frame.number)
        if change is None or change.listed:
            return
        if self._act(peer, change, MoverInput.LIST_WANTED) is MoverAction.LIST:
            for part in _parts(change.ports):
                self._start(peer, change.batch, part, change.purpose, listed=True)
            self._forget(peer, change.number)

    def _forget(self, peer: Peer, number: int) -> None:
        """The change is confirmed, replaced, or of no use any more."""
        change = peer.ours.pop(number, None)
        self.world.timers.cancel(("change", peer.peer_id, number))
        if change is not None:
            batch = change.batch
            batch.running -= 1
            if not batch.running and batch.done and batch.old != batch.new:
                self._log_done(peer, batch)

    def cancel(self, binding: Binding, purpose: Purpose | None = None) -> None:
        """Nothing is to be announced about this connection any more."""
        peer = self.world.peers.get(binding.peer_id)
        for number, change in list(peer.ours.items()) if peer and peer.ours else ():
            if purpose in (None, change.purpose):
                change.ports.pop(binding.conn_id, None)
                if not change.ports and peer is not None:
                    self._forget(peer, number)


def _parts(ports: Mapping[str, int]) -> list[dict[str, int]]:
    items = list(ports.items())
    return [dict(items[at : at + MAX_LISTED]) for at in range(0, len(items), MAX_LISTED)]
