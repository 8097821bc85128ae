"""Peers that do not answer, and how long their connections are kept.

A peer counts as gone only when probes are lost *and* a connection with it makes no
progress.  Even then our end goes on sending: it is merely kept from giving up, so being
wrong about a peer (its UDP is blocked, say) costs a healthy connection nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from ..rewrite.flow import Endpoint, Flow
from .commands import Abort, Guard, Reinject
from .connections import Binding
from .frames import Ping
from .inputs import Segment
from .links import Links
from .peer import Peer
from .watching import Watching
from .world import World

PROBE_CAP = 3.0  # seconds between two probes at most (RFC 8085 3.1.3 allows one in 3 s)
LOST = 1.5  # a probe that is repeated for so long (or four round trips) is lost
# TCP repeats itself every 120 s at the latest (Linux; RFC 6298 2.5 wants 60 at least): what
# was silent and repeats nothing for so long goes on.
FORGOTTEN = 250.0
SIGN_EVERY = 0.2  # seconds between two probes for signs of life
MOVE_FIRST = 2.0  # heard from elsewhere: its change of address is on the way


@dataclass(slots=True)
class _Probe:
    """number: of the PING; since: when it went out first; silent: connection -> when its
    end last repeated something in vain (seconds)."""

    number: int
    since: float
    silent: dict[str, float] = field(default_factory=dict)


class Absence:
    def __init__(self, world: World, links: Links, watching: Watching) -> None:
        self.world, self.links, self.watching = world, links, watching
        self.ended: Callable[[Flow], None] = lambda birth: None
        self._probes: dict[str, _Probe] = {}
        self._absent: dict[str, Flow] = {}  # connection -> birth flow
        links.on_heard.append(self._heard)
        links.on_silence.append(self._forget)

    def silence(self, binding: Binding) -> None:
        """Our end repeats itself, and nothing comes back."""
        peer = self.world.peers.get(binding.peer_id)
        if peer is None or not peer.trusted or binding.closing or binding.out_local is None:
            return
        now = self.world.now
        probe = self._probes.get(peer.peer_id)
        if probe is None:
            number = self.links.request(peer, Ping(), tries=None, cap=PROBE_CAP)
            probe = self._probes[peer.peer_id] = _Probe(number, now)
        probe.silent[binding.conn_id] = now
        self.world.timers.set(("silent", peer.peer_id), now + FORGOTTEN)
        if binding.absent_since is None and now - probe.since >= max(LOST, 4 * peer.rtt):
            self._guard(peer, binding)

    def seen(self, segment: Segment) -> None:
        """A segment of an observed connection: while it waits, a sign of life.

        With the far end's first segment our end's window opens, and its next time-out ends
        the connection; so what is kept must go out before.
        """
        binding = self.world.table.born(segment.flow)
        if binding is None or binding.conn_id not in self._absent:
            return
        peer, probe = self.world.peers.get(binding.peer_id), self._probes.get(binding.peer_id)
        if peer is not None and probe is not None:
            self.links.again(peer, probe.number, SIGN_EVERY)
        if segment.direction == "in":
            self._unguard([binding])

    def _guard(self, peer: Peer, binding: Binding) -> None:
        binding.absent_since = self.world.now
        binding.why = "peer does not answer"
        self._absent[binding.conn_id] = binding.birth
        self.world.limit(binding)
        self._changed()
        self.world.log_rarely(
            "notice", "peer-silent", f"{peer.name} does not answer; {binding.birth} waits for it",
            peer, binding.conn_id,
        )  # fmt: skip

    def _unguard(self, bindings: list[Binding]) -> None:
        if not bindings:
            return
        for binding in bindings:
            binding.absent_since, binding.why = None, ""
            self._absent.pop(binding.conn_id, None)
        self._changed()
        self.world.emit(Reinject(tuple(b.conn_id for b in bindings)))

    def _changed(self) -> None:
        self.world.emit(Guard(tuple(self._absent)))
        self.watching.guard(self._absent.values())

    def _absent_of(self, peer: Peer) -> list[Binding]:
        return [b for b in self.world.table.of_peer(peer.peer_id) if b.conn_id in self._absent]

    def _heard(self, peer: Peer, remote: Endpoint) -> None:
        """The peer lives.  Heard from elsewhere it has probably moved: what is sent again
        must go there, so its change of address comes first."""
        if peer.peer_id not in self._probes:
            return
        self._end_probe(peer)
        absent = self._absent_of(peer)
        self._unguard([b for b in absent if b.out_remote.addr == remote.addr])
        if any(b.conn_id in self._absent for b in absent):
            self.world.timers.set(("heard", peer.peer_id), self.world.now + MOVE_FIRST)

    def heard_timer(self, peer: Peer) -> None:
        self._unguard(self._absent_of(peer))

    def silent_timer(self, peer: Peer) -> None:
        """Connections that have said nothing in vain lately are no longer waited for."""
        probe = self._probes.get(peer.peer_id)
        if probe is None:
            return
        now = self.world.now
        probe.silent = {i: at for i, at in probe.silent.items() if now - at < FORGOTTEN}
        self._unguard([b for b in self._absent_of(peer) if b.conn_id not in probe.silent])
        if not probe.silent:
            self._end_probe(peer)

    def _end_probe(self, peer: Peer) -> None:
        probe = self._probes.pop(peer.peer_id, None)
        self.world.timers.cancel(("silent", peer.peer_id))
        if probe is not None:
            self.links.withdraw(peer, probe.number)

    def _forget(self, peer: Peer) -> None:
        self._end_probe(peer)
        self._unguard(self._absent_of(peer))

    def unbound(self, binding: Binding) -> None:
        """A binding is about to be released."""
        self.world.timers.cancel(("hold-max", binding.conn_id))
        if self._absent.pop(binding.conn_id, None) is not None:
            self._changed()
        peer = self.world.peers.get(binding.peer_id)
        probe = self._probes.get(binding.peer_id)
        if peer is not None and probe is not None:
            probe.silent.pop(binding.conn_id, None)
            if not probe.silent:
                self._end_probe(peer)

    # the end of patience

    def hold_max_timer(self, conn_id: str) -> None:
        """Nobody could answer the connection for as long as the operator wants to wait."""
        binding = self.world.table.bindings.get(conn_id)
        since = None if binding is None else binding.waiting_since
        if binding is None or since is None or binding.closing:
            return
        left = self.world.limit(binding)
        if left is None or left > 0:
            return
        self.world.log(
            "warning", "held-too-long",
            f"{binding.birth} was held for {self.world.now - since:.0f} s (hold-max): it is ended",
            self.world.peers.get(binding.peer_id), conn_id,
        )  # fmt: skip
        self.world.emit(Abort(binding.inside, binding.local))
        self.ended(binding.birth)
