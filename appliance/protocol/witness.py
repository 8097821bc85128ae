"""Proposals of others: watch what they offer, check their proof, answer with ours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..rewrite.flow import Flow
from .binding import PROPOSER, RESPONDER, Sample, Terms, tags
from .frames import (
    MAX_TAGS,
    Accept,
    Confirm,
    Confirmed,
    Frame,
    NotYet,
    Offer,
    Proof,
    Ready,
    Reason,
    Reject,
)
from .links import Links, Origin
from .peer import Peer
from .proposer import PROMPT_EVERY, PROMPTS, PROPOSAL_LIFE, WHY
from .transitions import Conn, ConnInput
from .watching import Watching
from .world import World

if TYPE_CHECKING:
    from .binder import Binder

PROMPT_FIRST = 0.5
MAX_GUESSES = 8
MAX_WATCHED = 64  # for one peer


@dataclass(slots=True)
class Watch:
    """A peer's proposal; the connections that it may mean.

    conn_id  given when the proof held
    """

    terms: Terms
    nonce: bytes
    exact: bool
    samples: dict[Flow, Sample]
    since: float
    prompts: int = 0
    conn_id: str | None = None


class Witness:
    def __init__(self, world: World, links: Links, watching: Watching, binder: Binder) -> None:
        self.world, self.links = world, links
        self.watching, self.binder = watching, binder
        self._theirs: dict[tuple[str, int], Watch] = {}
        links.handlers |= {Offer: self._offer, Proof: self._proof, Confirm: self._confirm}

    def _offer(self, peer: Peer, number: int, frame: Frame, origin: Origin) -> None:
        assert isinstance(frame, Offer)
        key = peer.peer_id, number
        watch = self._theirs.get(key)
        if watch is not None and watch.terms.nonces[:16] != frame.nonce:
            self._forget(key)  # the peer was restarted and counts anew
            watch = None
        if watch is None:
            found = self._consider(peer, frame, origin)
            if isinstance(found, Reason):
                self.links.queue(peer, number, Reject(found), origin)
                return
            watch = self._theirs[key] = found
            self.world.timers.set(("watch", *key), self.world.now + PROMPT_FIRST)
            for birth in watch.samples if watch.exact else ():
                # it may be offered by somebody to whom it does not belong
                self.binder.find(self.world.table.known[birth])
        self.links.queue(peer, number, Ready(not watch.exact, watch.nonce), origin)

    def _consider(self, peer: Peer, offer: Offer, origin: Origin) -> Watch | Reason:
        world, flow = self.world, offer.flow
        birth = flow.reversed()
        known = world.table.known.get(birth)
        theirs = {key: w for key, w in self._theirs.items() if key[0] == peer.peer_id}
        before = [key for key, watch in theirs.items() if watch.terms.offered == flow]
        for key in before:
            self._forget(key)  # the same was offered anew
        if len(theirs) - len(before) >= MAX_WATCHED:
            return Reason.BUSY
        if known is None:
            guesses = [
                k.c.birth for k in world.table.with_remote(origin.remote.addr)
                if k.state is Conn.LONG and k.c.birth.local.port == flow.remote.port
            ][:MAX_GUESSES]  # fmt: skip
            if not guesses:
                return Reason.UNKNOWN_CONNECTION
            return self._watch(peer, offer, guesses, exact=False)
        binding = world.table.born(birth)
        if binding is not None and binding.peer_id != peer.peer_id:
            world.log_rarely(
                "alert", "foreign-claim",
                f"{peer.name} claims {birth}, which is bound to another peer", peer,
            )  # fmt: skip
            return Reason.OTHER_PEER
        if binding is not None and binding.entry.redirected:
            return Reason.BUSY
        if world.settings.long_lived_after(known.c, peer.peer_id) is None:
            return Reason.NOT_WANTED
        if known.state is Conn.SHORT:
            known.take(ConnInput.AGED)  # the peer's clock says so, ours will in a moment
            world.timers.cancel(("age", birth))
        if self.binder.proposer.proposes(birth, peer.peer_id):
            if birth.local.packed() < birth.remote.packed():
                return Reason.BUSY  # both propose: the smaller endpoint's offer stands
            self.binder.proposer.withdraw(birth)
        if binding is None:
            known.take(ConnInput.OFFER)
        return self._watch(peer, offer, [birth], exact=True)

    def _watch(self, peer: Peer, offer: Offer, births: list[Flow], exact: bool) -> Watch:
        nonce = self.world.rng(16)
        terms = Terms(peer.keys.binding, offer.flow, offer.nonce + nonce)
        samples = {birth: self.watching.start(birth) for birth in births}
        return Watch(terms, nonce, exact, samples, self.world.now)

    def watch_timer(self, peer_id: str, number: int) -> None:
        key = peer_id, number
        watch = self._theirs.get(key)
        if watch is None:
            return
        if self.world.now - watch.since > PROPOSAL_LIFE:
            self._forget(key)
            return
        silent = not any(s.segments() for s in watch.samples.values())
        if silent and watch.prompts < PROMPTS:
            watch.prompts += 1
            for birth in watch.samples:
                self.watching.prompt(birth)
        self.world.timers.set(("watch", *key), self.world.now + PROMPT_EVERY)

    def _forget(self, key: tuple[str, int]) -> None:
        watch = self._theirs.pop(key)
        self.world.timers.cancel(("watch", *key))
        for birth, sample in watch.samples.items():
            self.watching.stop(birth, sample)
            self.binder.failed(birth)

    def watches(self, birth: Flow, peer_id: str | None = None) -> bool:
        """Whether somebody (that peer) has offered it, and the proof is in progress."""
        return any(
            watch.exact and birth in watch.samples and peer_id in (None, key[0])
            for key, watch in self._theirs.items()
        )

    def _proof(self, peer: Peer, number: int, frame: Frame, origin: Origin) -> None:
        assert isinstance(frame, Proof)
        watch = self._theirs.get((peer.peer_id, frame.offer))
        if watch is None:
            self.links.queue(peer, number, Reject(Reason.UNKNOWN_OFFER), origin)
            return
        for birth, sample in watch.samples.items():
            segments = sample.segments()
            mine = tags(watch.terms, PROPOSER, False, segments)
            common = [mine[t] for t in frame.tags if t in mine]
            if common and not watch.exact:
                self._translated(peer, birth)
                self._forget((peer.peer_id, frame.offer))
                self.links.queue(peer, number, Reject(Reason.PATH_TRANSLATES), origin)
                return
            if common:
                watch.conn_id = watch.conn_id or self.world.rng(16).hex()
                rest = [s for s in segments if s not in common]
                answer = tuple(tags(watch.terms, RESPONDER, False, common + rest))[:MAX_TAGS]
                self.links.queue(peer, number, Accept(watch.conn_id, answer), origin)
                return
        for birth in watch.samples:
            self.watching.prompt(birth)
        self.links.queue(peer, number, NotYet(), origin)

    def _translated(self, peer: Peer, birth: Flow) -> None:
        known = self.world.table.known[birth]
        known.why = WHY[Reason.PATH_TRANSLATES]
        known.tried.add(peer.peer_id)
        self.world.log_rarely(
            "notice", "path-translates", f"{birth} to {peer.name} is translated", peer
        )

    def _confirm(self, peer: Peer, number: int, frame: Frame, origin: Origin) -> None:
        assert isinstance(frame, Confirm)
        table = self.world.table
        key = peer.peer_id, frame.offer
        watch = self._theirs.get(key)
        bound = table.bindings.get(frame.conn_id)
        if bound is not None and bound.peer_id == peer.peer_id:
            self.links.queue(peer, number, Confirmed(), origin)
            return
        birth = next(iter(watch.samples)) if watch else None
        known = table.known.get(birth) if birth else None
        if watch is None or known is None or birth is None or watch.conn_id != frame.conn_id:
            self.links.queue(peer, number, Reject(Reason.UNKNOWN_OFFER), origin)
            return
        earlier = table.born(birth)
        if earlier is not None and earlier.peer_id != peer.peer_id:
            self.links.queue(peer, number, Reject(Reason.OTHER_PEER), origin)
            return
        if earlier is not None:
            self.binder.replace(earlier)
        self.binder.bind(birth, peer, frame.conn_id)
        self.binder.proposer.withdraw(birth)
        self._forget(key)
        self.links.queue(peer, number, Confirmed(), origin)

    def expects(self, peer: Peer, conn_id: str) -> bool:
        """Whether a binding of this ID is on its way."""
        return any(
            w.conn_id == conn_id and key[0] == peer.peer_id for key, w in self._theirs.items()
        )

    def closed(self, birth: Flow) -> None:
        for key in [k for k, w in self._theirs.items() if birth in w.samples]:
            self._forget(key)
