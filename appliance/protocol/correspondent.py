"""A peer's address changes: check, let in, challenge, open."""

from __future__ import annotations

from ..rewrite.flow import Address, Endpoint, Flow
from .changes import FarChange, members_of
from .commands import Reinject
from .connections import Binding
from .frames import (
    FRAME_HEAD,
    MAX_LISTED,
    AddressChange,
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
from .keys import same
from .links import Links, Origin
from .message import DATA_OVERHEAD
from .peer import Peer
from .targets import target_fault
from .transitions import FAR, FarAction, FarInput, step
from .wire import put_fields
from .world import World, counted

MAX_CHANGES = 64
MAX_REMOTES = 4
MAX_PREPARED = 4


class FarMoves:
    def __init__(self, world: World, links: Links) -> None:
        self.world, self.links = world, links
        links.handlers |= {AddressChange: self._change, ChallengeReply: self._reply}

    def _change(self, peer: Peer, number: int, frame: Frame, origin: Origin) -> None:
        assert isinstance(frame, AddressChange)
        known = peer.theirs.get(frame.number)
        if known is not None and known.serial == origin.serial:
            if origin.remote.addr == known.new:
                self._act(peer, known, FarInput.CHANGE, origin)
            return
        fault = self._fault(frame, origin)
        if fault is not None:
            self.world.log_rarely(
                "warning", "target-refused",
                f"{peer.name} asks for {frame.new}: {fault.name.lower().replace('_', ' ')}", peer,
            )  # fmt: skip
            self.links.answer(peer, MoveRefused(frame.number, fault), origin)
            return
        ports = members_of(frame, self.world.table.of_peer(peer.peer_id))
        if ports is None:
            self.links.answer(peer, ListWanted(frame.number), origin)
            return
        members, refused = self._sort(peer, frame, ports, origin.serial)
        change = FarChange(
            frame.number, origin.serial, frame.purpose, frame.new, frame.old_alive,
            self.world.rng(16), members, tuple(refused), self.world.now,
        )  # fmt: skip
        if frame.whole and (len(refused) > MAX_LISTED or _size(change) > origin.size):
            self.links.answer(peer, ListWanted(frame.number), origin)
            return
        self._remember(peer, change)
        self._let_in(peer, change)
        if self._proven(peer, change):
            self._act(peer, change, FarInput.RIGHT_REPLY, origin)
        else:
            self._act(peer, change, FarInput.CHANGE, origin)

    def _fault(self, frame: AddressChange, origin: Origin) -> TargetFault | None:
        if origin.remote.addr != frame.new:
            return TargetFault.PATH_TRANSLATES
        if frame.new.version != frame.old.version:
            return TargetFault.OTHER_FAMILY
        return target_fault(frame.new, self.world.local.values())

    def _sort(
        self, peer: Peer, frame: AddressChange, ports: dict[str, int], serial: int
    ) -> tuple[dict[str, Endpoint], list[tuple[str, Refusal]]]:
        """Which connections may follow; what is older news is left out silently."""
        table = self.world.table
        members: dict[str, Endpoint] = {}
        refused: list[tuple[str, Refusal]] = []
        for conn_id, port in ports.items():
            binding = table.bindings.get(conn_id)
            if binding is None or binding.peer_id != peer.peer_id:
                if binding is not None:
                    self.world.log_rarely(
                        "alert", "foreign-claim",
                        f"{peer.name} claims a connection bound to another peer", peer, conn_id,
                    )  # fmt: skip
                refused.append((conn_id, Refusal.UNKNOWN))
                continue
            if peer.newest_change.get(conn_id, (0, 0)) > (serial, frame.number):
                continue
            endpoint = Endpoint(frame.new, port)
            wires = [Flow(mine, endpoint) for mine in binding.locals_]
            if binding.birth.version != frame.new.version:
                refused.append((conn_id, Refusal.UNKNOWN))
            elif any(table.taken(wire, conn_id) for wire in wires):
                refused.append((conn_id, Refusal.TUPLE_IN_USE))
            else:
                members[conn_id] = endpoint
        return members, refused

    def _remember(self, peer: Peer, change: FarChange) -> None:
        if change.purpose is Purpose.MOVE:
            for older in peer.theirs.values():
                for conn_id in change.members if older.purpose is Purpose.MOVE else ():
                    older.members.pop(conn_id, None)
            for conn_id in change.members:
                peer.newest_change[conn_id] = (change.serial, change.number)
        peer.theirs[change.number] = change
        while len(peer.theirs) > MAX_CHANGES:
            del peer.theirs[min(peer.theirs)]

    def _members(self, change: FarChange) -> list[tuple[Binding, Endpoint]]:
        found = ((self.world.table.bindings.get(i), e) for i, e in change.members.items())
        return [(b, e) for b, e in found if b is not None]

    def _let_in(self, peer: Peer, change: FarChange) -> None:
        """Step 2: the inbound rewrite; what we send goes on as before."""
        if change.purpose is Purpose.PREPARE:
            return
        moved = []
        for binding, endpoint in self._members(change):
            rest = [e for e in binding.remotes if e != endpoint]
            keep = rest[: MAX_REMOTES - 1]
            if binding.out_remote != endpoint and binding.out_remote not in keep:
                keep[-1] = binding.out_remote
            binding.remotes = [endpoint, *keep]
            binding.spare_remotes = [e for e in binding.spare_remotes if e != endpoint]
            moved.append(binding)
        self.world.apply(moved)

    def _proven(self, peer: Peer, change: FarChange) -> bool:
        return peer.prepared.get(change.new, 0.0) > self.world.now

    def _act(self, peer: Peer, change: FarChange, what: FarInput, origin: Origin) -> None:
        action, change.state = step(FAR, change.state, what)
        if action is FarAction.CHALLENGE:
            if _size(change) <= origin.size and peer.challenges.take(self.world.now):
                frame = Challenge(change.number, change.nonce, change.refused)
                self.links.send(peer, 0, frame, origin.remote, origin.local)
            return
        if action is FarAction.OPEN_AND_DONE:
            self._open(peer, change, origin)
        else:
            self.links.answer(peer, MoveDone(change.number, change.refused), origin)

    def _open(self, peer: Peer, change: FarChange, origin: Origin) -> None:
        """Step 4: the new address proved itself; what we send goes there."""
        world = self.world
        if change.purpose is Purpose.PREPARE:
            self._prepare(peer, change)
            self.links.answer(peer, MoveDone(change.number, change.refused), origin)
            return
        moved = []
        old: Address | None = None
        for binding, endpoint in self._members(change):
            if binding.out_remote.addr != endpoint.addr:
                old = old or binding.out_remote.addr
            if binding.out_remote != endpoint:
                binding.moves += 1
                binding.last_move = world.now
            binding.out_remote = endpoint
            if not change.old_alive:
                binding.remotes = [endpoint]
            moved.append(binding)
        world.apply(moved)
        world.emit(Reinject(tuple(b.conn_id for b in moved)))
        self.links.answer(peer, MoveDone(change.number, change.refused), origin)
        if change.old_alive:
            settle = world.now + world.settings.timing.settle
            world.timers.set(("settle", peer.peer_id, change.number), settle)
        world.log(
            "info", "peer-moved", f"{peer.name} is at {change.new}: {counted(len(moved))}",
            peer, old=None if old is None else str(old), new=str(change.new),
            connections=len(moved), refused=len(change.refused),
        )  # fmt: skip
        self.links.moved_to(peer, origin.remote)  # a write to disk: last

    def _prepare(self, peer: Peer, change: FarChange) -> None:
        """Let packets from there in already; what we send goes on as before."""
        world = self.world
        prepared = []
        for binding, endpoint in self._members(change):
            binding.spare_remotes = [endpoint]
            prepared.append(binding)
        world.apply(prepared)
        until = world.now + world.settings.timing.prepared
        peer.prepared[change.new] = until
        world.timers.set(("prepared", peer.peer_id, change.new), until)
        while len(peer.prepared) > MAX_PREPARED:
            self.prepared_timer(peer, min(peer.prepared, key=peer.prepared.__getitem__))

    def prepared_timer(self, peer: Peer, addr: Address) -> None:
        """Not renewed: what would come from there is not the peer's any more."""
        peer.prepared.pop(addr, None)
        past = []
        for binding in self.world.table.of_peer(peer.peer_id):
            kept = [e for e in binding.spare_remotes if e.addr != addr]
            if kept != binding.spare_remotes:
                binding.spare_remotes = kept
                past.append(binding)
        self.world.apply(past)

    def settle_timer(self, peer: Peer, number: int) -> None:
        """The old address lived on for a while; now it is the past."""
        change = peer.theirs.get(number)
        if change is None:
            return
        past = []
        for binding, _ in self._members(change):
            if binding.out_remote in binding.remotes:
                newest = binding.remotes.index(binding.out_remote)
                binding.remotes = binding.remotes[: newest + 1]
                past.append(binding)
        self.world.apply(past)

    def _reply(self, peer: Peer, number: int, frame: Frame, origin: Origin) -> None:
        assert isinstance(frame, ChallengeReply)
        change = peer.theirs.get(frame.number)
        if change is None or origin.remote.addr != change.new:
            return
        if same(frame.nonce, change.nonce):
            self._act(peer, change, FarInput.RIGHT_REPLY, origin)


def _size(change: FarChange) -> int:
    """Length of the packet with the challenge: never more than that of the ACM."""
    challenge = Challenge(change.number, change.nonce, change.refused)
    return DATA_OVERHEAD + FRAME_HEAD + len(put_fields(challenge))
