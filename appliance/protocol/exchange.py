"""The known-peer exchange at work: when to begin, whom to answer, what comes of it."""

from __future__ import annotations

from ..rewrite.flow import Address, Endpoint
from .commands import Send
from .cookies import CookieJar
from .handshake import answer_k1, k1_good, k3_good, make_k1, make_k3, take_k2
from .keys import same
from .limits import TokenBucket
from .links import PLACES, Links
from .message import K1, K2, K3, Cookie, Data, Unknown, encode
from .peer import Asking, Peer, Pending
from .session import Session
from .transitions import Shake, ShakeAction, ShakeInput
from .world import World

MAX_PENDING = 4
PENDING_LIFE = 10.0
ASK_TRIES = 6
ASK_CAP = 30.0


class Exchange:
    """Brings sessions up; Links keeps and uses them."""

    def __init__(self, world: World, links: Links, cookies: CookieJar) -> None:
        self.world, self.links, self.cookies = world, links, cookies
        self._asking: dict[int, Peer] = {}
        self._pending: dict[int, tuple[Peer, Pending]] = {}
        rate = world.settings.limits.handshake_rate
        self._rate = TokenBucket(rate, rate, world.now)
        links.renew = self.renew
        links.confirm = self.confirm
        links.on_silence.append(self._silence)

    def renew(self, peer: Peer) -> None:
        """Begin the exchange though there is a session (it stays until the new one is up)."""
        if peer.trusted and peer.take(ShakeInput.WANTED) is ShakeAction.SEND_K1:
            self._ask(peer)

    def _ask(self, peer: Peer) -> None:
        world = self.world
        asking = peer.asking
        if asking is None or asking.record != peer.record:
            self._stop_asking(peer)
            index = self._new_index()
            k1 = make_k1(peer.record, peer.keys, world.rng(16), index)
            asking = peer.asking = Asking(k1, peer.record, interval=max(0.25, 2 * peer.rtt))
            self._asking[index] = peer
        data = encode(asking.k1)
        places = peer.places(world.settings.port)
        anywhere = asking.sent >= 2 or peer.endpoint is None
        for place in places[: PLACES if anywhere else 1]:
            world.emit(Send(data, place))
        asking.sent += 1
        asking.sent_at = world.now
        if asking.sent > 2:
            self.links.resolve(peer)
        if asking.sent >= ASK_TRIES and not world.table.count_of(peer.peer_id):
            self._stop_asking(peer)
            peer.take(ShakeInput.GIVE_UP)
            world.timers.set(("ask", peer.peer_id), world.now + 10 * ASK_CAP)
            for callback in self.links.on_silent:
                callback(peer)
            return
        world.timers.set(("ask", peer.peer_id), world.now + asking.interval)
        asking.interval = min(2 * asking.interval, ASK_CAP)

    def ask_timer(self, peer: Peer) -> None:
        if peer.shake is Shake.PAUSED and not self.links.wanted(peer):
            peer.shake = Shake.NONE
        elif peer.take(ShakeInput.TIMER) is ShakeAction.SEND_K1:
            if peer.asking is not None:
                peer.asking.cookie_taken = False
            self._ask(peer)

    def _stop_asking(self, peer: Peer) -> None:
        if peer.asking is not None:
            self._asking.pop(peer.asking.k1.index, None)
            peer.asking = None
        self.world.timers.cancel(("ask", peer.peer_id))

    def _new_index(self) -> int:
        while True:
            index = int.from_bytes(self.world.rng(4), "big")
            taken = index in self._asking or index in self._pending or self.links.has(index)
            if index and not taken:
                return index

    def take_cookie(self, message: Cookie) -> None:
        """Only who saw our nonce can send it; so one is believed for each time that we ask.

        A later one replaces it: a cookie belongs to the address that we had.
        """
        for peer in self._asking.values():
            asking = peer.asking
            if asking is not None and same(asking.k1.nonce, message.nonce):
                if not asking.cookie_taken and (
                    peer.take(ShakeInput.COOKIE) is ShakeAction.SEND_K1
                ):
                    nonce, index = asking.k1.nonce, asking.k1.index
                    asking.cookie_taken = True
                    asking.k1 = make_k1(asking.record, peer.keys, nonce, index, message.cookie)
                    self._ask(peer)
                return

    def take_k1(self, k1: K1, remote: Endpoint, local: Address) -> None:
        world = self.world
        peer = self.links.by_handle(k1.handle)
        if peer is None or not peer.trusted or not k1_good(k1, peer.keys):
            world.log_rarely("debug", "stranger", f"key exchange from {remote} refused")
            return
        pending = peer.incoming.get(k1.nonce)
        if pending is not None:
            world.emit(Send(pending.answer, remote, local))
            return
        self._forget_old(peer)
        crowded = len(peer.incoming) >= 2 or not self._rate.take(world.now)
        if crowded and not self.cookies.good(k1.cookie, remote, k1.nonce, world.now):
            cookie = self.cookies.make(remote, k1.nonce, world.now)
            world.emit(Send(encode(Cookie(k1.nonce, cookie)), remote, local))
            return
        if peer.asking is not None and peer.shake is Shake.ASKED:
            if peer.asking.k1.nonce < k1.nonce:
                # both began; ours is the one to be finished: make sure that it arrives
                world.emit(Send(encode(peer.asking.k1), remote, local))
                return
            peer.take(ShakeInput.LOWER_K1)
            # a replayed K1 leads nowhere: then our own exchange goes on
            world.timers.set(("ask", peer.peer_id), world.now + max(1.0, 4 * peer.rtt))
        index, nonce = self._new_index(), world.rng(16)
        k2, agreed = answer_k1(peer.record, k1, nonce, index)
        answer = encode(k2)
        pending = Pending(k1.nonce, index, k1.index, answer, agreed, world.now)
        while len(peer.incoming) >= MAX_PENDING:
            self._forget(peer, next(iter(peer.incoming)))
        peer.incoming[k1.nonce] = pending
        self._pending[index] = (peer, pending)
        world.emit(Send(answer, remote, local))

    def _forget_old(self, peer: Peer) -> None:
        for nonce, pending in list(peer.incoming.items()):
            if self.world.now - pending.since > PENDING_LIFE:
                self._forget(peer, nonce)

    def _forget(self, peer: Peer, nonce: bytes) -> None:
        del self._pending[peer.incoming.pop(nonce).index]

    def take_k2(self, k2: K2, remote: Endpoint, local: Address) -> None:
        peer = self._asking.get(k2.to)
        if peer is None or peer.asking is None or not peer.trusted:
            return
        asking = peer.asking
        agreed = take_k2(asking.record, asking.k1, k2)
        if agreed is None:
            self.world.log_rarely("notice", "forged", f"forged K2 from {remote}", peer)
            return
        if asking.sent == 1:
            self.links.measure(peer, self.world.now - asking.sent_at)
        peer.take(ShakeInput.K2)
        self._stop_asking(peer)
        self._note_resync(peer, agreed.resync)
        self.links.save(peer, agreed.ratcheted(asking.record))
        session = Session.of(
            agreed.keys, True, asking.k1.index, k2.index, self.world.now, self.links.next_serial()
        )
        self.world.emit(Send(encode(make_k3(agreed, k2.index)), remote, local))
        self.links.up(peer, session, remote, self.world.settings.timing.rekey)

    def take_k3(self, k3: K3, remote: Endpoint) -> None:
        found = self._pending.get(k3.to)
        if found is not None and found[0].trusted and k3_good(k3, found[1].agreed):
            self._finish(found[0], found[1], self._pending_session(found[1]), remote)

    def _pending_session(self, pending: Pending) -> Session:
        return Session.of(
            pending.agreed.keys, False, pending.index, pending.remote_index, self.world.now, 0
        )

    def _finish(self, peer: Peer, pending: Pending, session: Session, remote: Endpoint) -> None:
        self._stop_asking(peer)
        peer.take(ShakeInput.UP)
        self._note_resync(peer, pending.agreed.resync)
        self.links.save(peer, pending.agreed.ratcheted(peer.record))
        for other in peer.incoming.values():
            del self._pending[other.index]
        peer.incoming.clear()
        session.serial = self.links.next_serial()
        # the side that asked renews; this one only if the other has not
        self.links.up(peer, session, remote, 1.2 * self.world.settings.timing.rekey)

    def confirm(self, data: Data, remote: Endpoint) -> bool:
        """A packet under keys that wait for K3: it proves the same; whether it was one."""
        found = self._pending.get(data.to)
        if found is None or not found[0].trusted:
            return False
        session = self._pending_session(found[1])
        if session.open(data):
            self._finish(found[0], found[1], session, remote)
            return True
        return False

    def _silence(self, peer: Peer) -> None:
        for pending in peer.incoming.values():
            self._pending.pop(pending.index, None)
        peer.incoming.clear()
        self._stop_asking(peer)
        peer.shake = Shake.NONE

    def _note_resync(self, peer: Peer, resync: bool) -> None:
        if resync:
            self.world.log(
                "notice", "resync",
                f"{peer.name}: no chain in common (a restored backup?); keys begin anew"
                " from the pair's root", peer,
            )  # fmt: skip

    def take_unknown(self, message: Unknown, remote: Endpoint) -> None:
        """Not authenticated: ends nothing, begins at most one exchange a second."""
        peer = self.links.by_remote_index(message.to)
        if peer is None or peer.session is None or self.world.now < peer.unknown_at + 1:
            return
        if peer.session.remote_index == message.to and same(peer.session.last_mac, message.mac):
            peer.unknown_at = self.world.now
            self.renew(peer)
