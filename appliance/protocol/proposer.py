"""Our proposals: OFFER, then a proof, then a binding."""

from __future__ import annotations

from collections import deque
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
from .peer import Peer, Request
from .transitions import Conn, ConnInput
from .watching import Watching
from .world import World

if TYPE_CHECKING:
    from .binder import Binder

PROMPTS = 3
PROMPT_EVERY = 0.6
SETTLE = 0.03
NOT_YETS = 5
PROPOSAL_LIFE = 20.0

WHY = {
    Reason.UNKNOWN_CONNECTION: "the far daemon does not know this connection",
    Reason.OTHER_PEER: "bound to another peer at the far end",
    Reason.PATH_TRANSLATES: "path translates",
    Reason.BUSY: "the far daemon is busy",
    Reason.NOT_WANTED: "the far daemon does not keep this connection",
    Reason.NOT_PROVEN: "no proof that both ends see the same connection",
    Reason.UNKNOWN_OFFER: "the far daemon was restarted",
}


@dataclass(slots=True)
class Proposal:
    """Ours: OFFER is out (number), later READY came (sample)."""

    birth: Flow
    peer_id: str
    number: int
    nonce: bytes
    terms: Terms | None = None
    sample: Sample | None = None
    prompts: int = 0
    not_yets: int = 0
    proving: bool = False


class Proposer:
    def __init__(self, world: World, links: Links, watching: Watching, binder: Binder) -> None:
        self.world, self.links = world, links
        self.watching, self.binder = watching, binder
        watching.seen = self._seen
        self._ours: dict[Flow, Proposal] = {}
        self._queue: deque[Flow] = deque()
        links.handlers |= {
            Ready: self._ready,
            Reject: self._reject,
            Accept: self._accept,
            NotYet: self._not_yet,
            Confirmed: self._confirmed,
        }

    def proposes(self, birth: Flow, peer_id: str | None = None) -> bool:
        """Whether we propose it (to that peer)."""
        proposal = self._ours.get(birth)
        return proposal is not None and peer_id in (None, proposal.peer_id)

    def busy_with(self, birth: Flow) -> bool:
        return birth in self._ours or birth in self._queue

    def add(self, birth: Flow) -> None:
        self._queue.append(birth)
        self._next()

    def withdraw(self, birth: Flow) -> None:
        """The other side proposes the same."""
        self.end(birth)
        if birth in self._queue:
            self._queue.remove(birth)

    def _next(self) -> None:
        while self._queue and len(self._ours) < self.world.settings.limits.bindings:
            birth = self._queue.popleft()
            known = self.world.table.known.get(birth)
            if known is None or known.state not in (Conn.LONG, Conn.OFFERED):
                continue
            peer = self.binder.candidate(known)
            if peer is None or peer.session is None:
                self.binder.find(known)
                continue
            if self.binder.witness.watches(birth, peer.peer_id):
                continue
            known.take(ConnInput.OFFER)
            known.why = "proof in progress"
            nonce = self.world.rng(16)
            offer = Offer(birth, nonce)
            number = self.links.request(peer, offer, birth, failed=self._unanswered)
            self._ours[birth] = Proposal(birth, peer.peer_id, number, nonce)
            life = self.world.now + PROPOSAL_LIFE
            self.world.timers.set(("proposal", birth), life)

    def _unanswered(self, peer: Peer, request: Request) -> None:
        self._fail(request.context, "the far daemon does not answer")

    def proposal_timer(self, birth: Flow) -> None:
        self._fail(birth, WHY[Reason.NOT_PROVEN])

    def _fail(self, birth: Flow, why: str, again: bool = True) -> None:
        proposal = self.end(birth)
        known = self.world.table.known.get(birth)
        if proposal is None or known is None:
            return
        self.binder.failed(birth)
        known.why = why
        known.tried.add(proposal.peer_id)
        if again:
            self.binder.later(known)
        if self.binder.candidate(known) is not None:
            self.binder.find(known, waited=True)

    def end(self, birth: Flow) -> Proposal | None:
        proposal = self._ours.pop(birth, None)
        if proposal is None:
            return None
        peer = self.world.peers.get(proposal.peer_id)
        if peer is not None:
            self.links.answered(peer, proposal.number)
        if proposal.sample is not None:
            self.watching.stop(birth, proposal.sample)
        for name in ("proposal", "prompt", "prove"):
            self.world.timers.cancel((name, birth))
        self._next()
        return proposal

    def _ready(self, peer: Peer, number: int, frame: Frame, origin: Origin) -> None:
        assert isinstance(frame, Ready)
        request = self.links.answered(peer, number)
        proposal = self._ours.get(request.context) if request else None
        if proposal is not None and proposal.number == number and proposal.sample is None:
            nonces = proposal.nonce + frame.nonce
            proposal.terms = Terms(peer.keys.binding, proposal.birth, nonces)
            proposal.sample = self.watching.start(proposal.birth)
            self.watching.prompt(proposal.birth)
            self.world.timers.set(("prompt", proposal.birth), self.world.now + PROMPT_EVERY)

    def prompt_timer(self, birth: Flow) -> None:
        proposal = self._ours.get(birth)
        if proposal is None or proposal.sample is None or proposal.proving:
            return
        proposal.prompts += 1
        if proposal.prompts >= PROMPTS:
            self._fail(birth, "our end does not answer")
            return
        self.watching.prompt(birth)
        self.world.timers.set(("prompt", birth), self.world.now + PROMPT_EVERY)

    def prove_timer(self, birth: Flow) -> None:
        proposal = self._ours.get(birth)
        peer = self.world.peers.get(proposal.peer_id) if proposal else None
        if proposal is None or peer is None or proposal.terms is None or proposal.sample is None:
            return
        found = tags(proposal.terms, PROPOSER, True, proposal.sample.segments())
        proof = Proof(proposal.number, tuple(found)[:MAX_TAGS])
        self.links.request(peer, proof, birth, failed=self._unanswered)

    def _not_yet(self, peer: Peer, number: int, frame: Frame, origin: Origin) -> None:
        request = self.links.answered(peer, number)
        proposal = self._ours.get(request.context) if request else None
        if proposal is not None:
            self._once_more(proposal)

    def _once_more(self, proposal: Proposal) -> None:
        """With fresh acknowledgments, a little later."""
        proposal.not_yets += 1
        if proposal.not_yets > NOT_YETS:
            self._fail(proposal.birth, WHY[Reason.NOT_PROVEN])
            return
        self.watching.prompt(proposal.birth)
        wait = 0.1 * 2**proposal.not_yets
        self.world.timers.set(("prove", proposal.birth), self.world.now + wait)

    def _reject(self, peer: Peer, number: int, frame: Frame, origin: Origin) -> None:
        assert isinstance(frame, Reject)
        request = self.links.answered(peer, number)
        if request is None:
            return
        if isinstance(request.frame, Confirm):
            # the peer was restarted between proof and confirmation
            self.binder.give_up(request.frame.conn_id, WHY[frame.reason])
            return
        again = frame.reason not in (Reason.PATH_TRANSLATES, Reason.NOT_WANTED)
        self._fail(request.context, WHY[frame.reason], again)

    def _accept(self, peer: Peer, number: int, frame: Frame, origin: Origin) -> None:
        assert isinstance(frame, Accept)
        request = self.links.answered(peer, number)
        proposal = self._ours.get(request.context) if request else None
        if proposal is None or proposal.sample is None or proposal.terms is None:
            return
        birth = proposal.birth
        want = tags(proposal.terms, RESPONDER, True, proposal.sample.segments())
        if not want.keys() & set(frame.tags) or frame.conn_id in self.world.table.bindings:
            self.world.log_rarely(
                "warning", "false-proof", f"{peer.name} did not prove {birth}", peer
            )
            self._once_more(proposal)  # on a slow path its proof may be too old by now
            return
        offer = proposal.number
        self.end(birth)
        self.binder.bind(birth, peer, frame.conn_id)
        self.links.request(peer, Confirm(offer, frame.conn_id), birth, tries=None, cap=30.0)

    def _confirmed(self, peer: Peer, number: int, frame: Frame, origin: Origin) -> None:
        self.links.answered(peer, number)

    def _seen(self, birth: Flow) -> None:
        """Something to prove with; the far daemon sees it in a moment, too."""
        proposal = self._ours.get(birth)
        if proposal is not None and proposal.sample is not None and not proposal.proving:
            proposal.proving = True
            self.world.timers.set(("prove", birth), self.world.now + SETTLE)
