"""Do both ends still know the same connections?  What ends at one end ends at the other."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable

from .commands import Abort, Prompt, Release
from .connections import Binding
from .frames import (
    MAX_CLOSED,
    MAX_HELD_IDS,
    Ask,
    Closed,
    ClosedAnswer,
    Fate,
    Frame,
    Have,
    HaveAnswer,
    Ping,
    Pong,
    Purpose,
    Status,
    StatusAnswer,
    Told,
)
from .links import Links, Origin
from .mover import SECOND
from .peer import Peer, Request
from .session import masked
from .transitions import Conn, ConnInput
from .wire import ENDPOINT
from .world import World

FAR_CLOSED_WAIT = 3.0
CLOSED_TRIES = 8


def released(conn_id: str) -> Release:
    """Out of everything: the connection and its second reservation."""
    return Release((conn_id, conn_id + SECOND))


def bound_digest(entries: Iterable[tuple[str, bytes]]) -> bytes:
    """SHA-256 over (ID, endpoint as on the wire) of each connection, sorted by ID."""
    return hashlib.sha256(b"".join(bytes.fromhex(i) + e for i, e in sorted(entries))).digest()


class Ends:
    """STATUS, HAVE, CLOSED, ASK and what follows from them."""

    def __init__(self, world: World, links: Links) -> None:
        self.world, self.links = world, links
        self.expects: Callable[[Peer, str], bool] = lambda peer, conn_id: False
        self.give_up: Callable[[str, str], None] = lambda conn_id, why: None
        self.announce: Callable[[Iterable[Binding]], None] = lambda bindings: None
        self.forget: Callable[[Binding], None] = lambda binding: None
        self.on_host: Callable[[Peer, str], None] = lambda peer, host_id: None
        self._ended: dict[str, list[str]] = {}
        self._asked: dict[str, int] = {}
        links.handlers |= {
            Ping: lambda peer, n, frame, origin: links.queue(peer, n, Pong(), origin),
            Pong: lambda peer, n, frame, origin: self._nothing(peer, n),
            Status: self._status,
            StatusAnswer: self._status_answer,
            Have: self._have,
            HaveAnswer: self._have_answer,
            Closed: self._closed,
            ClosedAnswer: self._closed_answer,
            Ask: self._ask,
            Told: self._told,
        }
        links.on_up.append(self.check)

    def _nothing(self, peer: Peer, number: int) -> None:
        self.links.answered(peer, number)

    # do both know the same?

    def check(self, peer: Peer) -> None:
        """Compare with the peer, unless a change of address has to be finished first."""
        if peer.session is None or any(isinstance(r.frame, Status) for r in peer.requests.values()):
            return
        if any(change.purpose is Purpose.MOVE for change in peer.ours.values()):
            return  # said again when the changes are done
        mine = self._mine(peer)
        host = masked(peer.session.send_mask, self.world.host_id)
        digest = bound_digest((b.conn_id, ENDPOINT.put(b.locals_[0])) for b in mine)
        self.links.request(peer, Status(len(mine), digest, host))

    def _mine(self, peer: Peer) -> list[Binding]:
        return [b for b in self.world.table.of_peer(peer.peer_id) if not b.closing]

    def _status(self, peer: Peer, number: int, frame: Frame, origin: Origin) -> None:
        assert isinstance(frame, Status)
        mine = self._mine(peer)
        digest = bound_digest((b.conn_id, ENDPOINT.put(b.out_remote)) for b in mine)
        same = len(mine) == frame.count and digest == frame.digest
        self.links.queue(peer, number, StatusAnswer(same), origin)
        if peer.session is not None and peer.session.serial == origin.serial:
            self.on_host(peer, masked(peer.session.recv_mask, frame.masked_host.hex()).hex())

    def _status_answer(self, peer: Peer, number: int, frame: Frame, origin: Origin) -> None:
        assert isinstance(frame, StatusAnswer)
        if self.links.answered(peer, number) is None or frame.same:
            return
        mine = self._mine(peer)
        for at in range(0, len(mine), MAX_HELD_IDS):
            part = mine[at : at + MAX_HELD_IDS]
            self.links.request(peer, Have(tuple((b.conn_id, b.locals_[0]) for b in part)))

    def _have(self, peer: Peer, number: int, frame: Frame, origin: Origin) -> None:
        assert isinstance(frame, Have)
        unknown, elsewhere = [], []
        for conn_id, endpoint in frame.entries:
            binding = self.world.table.bindings.get(conn_id)
            if binding is None or binding.peer_id != peer.peer_id:
                if not self.expects(peer, conn_id):
                    unknown.append(conn_id)
            elif binding.out_remote != endpoint:
                elsewhere.append(conn_id)
        self.links.queue(peer, number, HaveAnswer(tuple(unknown), tuple(elsewhere)), origin)

    def _have_answer(self, peer: Peer, number: int, frame: Frame, origin: Origin) -> None:
        assert isinstance(frame, HaveAnswer)
        request = self.links.answered(peer, number)
        if request is None or not isinstance(request.frame, Have):
            return
        asked = {conn_id for conn_id, _ in request.frame.entries}
        for binding in self._own(peer, asked & set(frame.unknown)):
            if binding.entry.redirected:
                self.far_gone(binding)
            else:
                self.give_up(binding.conn_id, "the far daemon lost it")
        again = self._own(peer, asked & set(frame.elsewhere))
        under_way = {i for change in peer.ours.values() for i in change.ports}
        self.announce([b for b in again if b.conn_id not in under_way])

    def _own(self, peer: Peer, conn_ids: Iterable[str]) -> list[Binding]:
        found = (self.world.table.bindings.get(i) for i in conn_ids)
        return [b for b in found if b is not None and b.peer_id == peer.peer_id]

    # our end ended

    def ended(self, binding: Binding) -> None:
        """Tell the peer; the redirect stays a little for the last acknowledgments."""
        if binding.closing:
            return
        binding.closing = True
        if not binding.far_closed:
            self._ended.setdefault(binding.peer_id, []).append(binding.conn_id)
        else:
            self._linger(binding.conn_id)

    def _linger(self, conn_id: str) -> None:
        wait = self.world.settings.timing.linger
        self.world.timers.set(("linger", conn_id), self.world.now + wait)

    def linger_timer(self, conn_id: str) -> None:
        binding = self.world.table.bindings.get(conn_id)
        if binding is not None:
            self.release(binding)

    def flush(self) -> None:
        for peer_id, ids in self._ended.items():
            peer = self.world.peers.get(peer_id)
            for at in range(0, len(ids), MAX_CLOSED):
                part = tuple(ids[at : at + MAX_CLOSED])
                if peer is None:
                    for conn_id in part:
                        self._linger(conn_id)
                else:
                    self.links.request(peer, Closed(part), tries=CLOSED_TRIES, failed=self._unheard)
        self._ended.clear()

    def _unheard(self, peer: Peer, request: Request) -> None:
        assert isinstance(request.frame, Closed)
        for conn_id in request.frame.conn_ids:
            self._linger(conn_id)

    def _closed_answer(self, peer: Peer, number: int, frame: Frame, origin: Origin) -> None:
        request = self.links.answered(peer, number)
        if request is not None and isinstance(request.frame, Closed):
            for conn_id in request.frame.conn_ids:
                self._linger(conn_id)

    # the far end ended

    def _closed(self, peer: Peer, number: int, frame: Frame, origin: Origin) -> None:
        assert isinstance(frame, Closed)
        for binding in self._own(peer, frame.conn_ids):
            if not binding.far_closed:
                binding.far_closed = True
                if not binding.closing:
                    wait = self.world.now + FAR_CLOSED_WAIT
                    self.world.timers.set(("far-closed", binding.conn_id), wait)
        self.links.queue(peer, number, ClosedAnswer(), origin)

    def far_closed_timer(self, conn_id: str) -> None:
        """Our end has had the time to end by itself."""
        binding = self.world.table.bindings.get(conn_id)
        if binding is not None and not binding.closing:
            self.far_gone(binding)

    def far_gone(self, binding: Binding) -> None:
        """Nobody is there any more: our end has to learn it.

        Where nothing is translated a prompt does: the far system answers it with a RST of
        its own.  On a redirected connection no answer could come back.
        """
        if binding.entry.redirected:
            self.world.emit(Abort(binding.inside, binding.local))
            self.release(binding)
        else:
            self.release(binding)
            self.world.emit(Prompt(binding.inside, binding.local))
        self.world.log("info", "far-closed", f"{binding.birth} ended at the far end",
                       self.world.peers.get(binding.peer_id), binding.conn_id)  # fmt: skip

    def release(self, binding: Binding) -> None:
        table = self.world.table
        table.unbind(binding.conn_id)
        known = table.known.get(binding.birth)
        if known is not None and known.conn_id == binding.conn_id:
            known.conn_id, known.why = None, "ended at the far end"
            if known.state is Conn.BOUND:
                known.take(ConnInput.DROPPED)
        for name in ("linger", "far-closed"):
            self.world.timers.cancel((name, binding.conn_id))
        self._asked.pop(binding.conn_id, None)
        self.forget(binding)
        self.world.emit(released(binding.conn_id))

    # a RST came, and was withheld

    def reset_withheld(self, binding: Binding) -> None:
        peer = self.world.peers.get(binding.peer_id)
        if binding.far_closed and not binding.closing:
            self.far_gone(binding)
        elif peer is not None and binding.conn_id not in self._asked:
            self._asked[binding.conn_id] = self.links.request(
                peer, Ask(binding.conn_id), failed=self._untold
            )

    def _untold(self, peer: Peer, request: Request) -> None:
        assert isinstance(request.frame, Ask)
        self._asked.pop(request.frame.conn_id, None)

    def _ask(self, peer: Peer, number: int, frame: Frame, origin: Origin) -> None:
        assert isinstance(frame, Ask)
        binding = self.world.table.bindings.get(frame.conn_id)
        if binding is None or binding.peer_id != peer.peer_id:
            expected = self.expects(peer, frame.conn_id)
            fate = Fate.ALIVE if expected else Fate.UNKNOWN
        else:
            fate = Fate.CLOSED if binding.closing else Fate.ALIVE
        self.links.queue(peer, number, Told(frame.conn_id, fate), origin)

    def _told(self, peer: Peer, number: int, frame: Frame, origin: Origin) -> None:
        assert isinstance(frame, Told)
        request = self.links.answered(peer, number)
        if request is None or request.frame != Ask(frame.conn_id):
            return
        self._asked.pop(frame.conn_id, None)
        for binding in self._own(peer, (frame.conn_id,)):
            if frame.fate is Fate.ALIVE:
                self.world.log_rarely(
                    "alert", "false-reset",
                    f"somebody sent a RST for {binding.birth}; {peer.name} says it lives",
                    peer, frame.conn_id,
                )  # fmt: skip
            elif not binding.closing:
                self.far_gone(binding)
