"""Sessions with known peers: brings them up, keeps them, carries frames over them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from ..rewrite.flow import Address, Endpoint
from .commands import Resolve, SavePeer, Send
from .frames import MAX_PAYLOAD, Frame, Ping, encode_frame, parse_frames
from .keys import PairKeys
from .limits import BucketTable, TokenBucket
from .message import Data, Unknown, encode
from .peer import MAX_ADDRESSES, Peer, Request
from .records import PeerRecord
from .session import Session
from .transitions import TransitionError
from .wire import MessageError
from .world import World

MAX_PENDING = 4
PENDING_LIFE = 10.0
OLDER_LIFE = 10.0
ASK_TRIES = 6
ASK_CAP = 30.0
PLACES = 6
MAX_HINTS = 4


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a packet came from, where to, how long it was, in which session."""

    remote: Endpoint
    local: Address
    size: int
    serial: int


Handler = Callable[[Peer, int, Frame, Origin], None]


class Links:
    def __init__(self, world: World) -> None:
        self.world = world
        self.handlers: dict[type[Frame], Handler] = {}
        self.renew: Callable[[Peer], None] = lambda peer: None
        self.confirm: Callable[[Data, Endpoint], bool] = lambda data, remote: False
        self.on_silence: list[Callable[[Peer], None]] = []
        self.on_up: list[Callable[[Peer], None]] = []
        self.on_heard: list[Callable[[Peer, Endpoint], None]] = []
        self.on_silent: list[Callable[[Peer], None]] = []
        self.on_moved: list[Callable[[Peer], None]] = []
        self._handles: dict[bytes, Peer] = {}
        self._sessions: dict[int, tuple[Peer, Session]] = {}
        self._by_remote_index: dict[int, Peer] = {}
        self._serial = 0
        self._dirty: dict[str, None] = {}
        self._unknown_rate = BucketTable(rate=1.0, burst=3, size=1024)

    # peers

    def add(self, record: PeerRecord) -> Peer:
        """A new peer, or a new record for one: then everything about it begins afresh."""
        self.remove(record.peer_id)
        world = self.world
        limits = world.settings.limits
        challenges, answers = (
            TokenBucket(rate, 3 * rate, world.now)
            for rate in (limits.challenge_rate, limits.answer_rate)
        )
        peer = Peer(record, PairKeys.of(record.root, record.initiator), challenges, answers)
        world.peers[record.peer_id] = peer
        self._handles[peer.keys.in_handle] = peer
        return peer

    def remove(self, peer_id: str) -> None:
        peer = self.world.peers.pop(peer_id, None)
        if peer is not None:
            self.silence(peer)
            del self._handles[peer.keys.in_handle]

    def silence(self, peer: Peer) -> None:
        """No session, no exchange, no request any more."""
        for session in (peer.session, peer.older):
            if session is not None:
                self._drop_session(peer, session)
        peer.session = peer.older = None
        for callback in self.on_silence:
            callback(peer)
        for number in list(peer.requests):
            self.answered(peer, number)
        peer.outbox.clear()
        for name in ("ask", "rekey", "idle", "older", "where"):
            self.world.timers.cancel((name, peer.peer_id))

    def save(self, peer: Peer, record: PeerRecord) -> None:
        peer.record = record
        self.world.emit(SavePeer(record))

    def by_handle(self, handle: bytes) -> Peer | None:
        return self._handles.get(handle)

    def by_remote_index(self, index: int) -> Peer | None:
        return self._by_remote_index.get(index)

    # sessions

    def has(self, index: int) -> bool:
        return index in self._sessions

    def next_serial(self) -> int:
        """Sessions are numbered in the order in which they came up."""
        self._serial += 1
        return self._serial

    def look_at(self, peer: Peer, ends: Iterable[Endpoint]) -> None:
        """Ends of connections, the best first: the peer's record may be older than they are
        (it is written last, and a crash may come before)."""
        port = peer.record.port or self.world.settings.port
        hints = (Endpoint(end.addr, port) for end in ends)
        peer.hints = list(dict.fromkeys([*peer.hints, *hints]))[:MAX_HINTS]

    def want_session(self, peer: Peer, hint: Endpoint | None = None) -> None:
        """Begin the exchange unless a session or an exchange is there already."""
        if hint is not None and hint not in peer.hints:
            peer.hints = [hint, *peer.hints][:MAX_HINTS]
        if peer.trusted and peer.session is None:
            self.renew(peer)

    def wanted(self, peer: Peer) -> bool:
        """Whether a session with the peer is of use."""
        return bool(peer.requests) or self.world.table.count_of(peer.peer_id) > 0

    def resolve(self, peer: Peer) -> None:
        """Ask for the peer's DNS name, at most twice a minute."""
        if peer.record.dns_name and self.world.now >= peer.resolve_at:
            peer.resolve_at = self.world.now + 30
            self.world.emit(Resolve(peer.peer_id, peer.record.dns_name))

    def up(self, peer: Peer, session: Session, remote: Endpoint, rekey: float) -> None:
        world = self.world
        if peer.older is not None:
            self._drop_session(peer, peer.older)
        peer.older, peer.session = peer.session, session
        self._sessions[session.index] = (peer, session)
        self._by_remote_index[session.remote_index] = peer
        self.moved_to(peer, remote)
        timers, name = world.timers, peer.peer_id
        if peer.older is not None:
            timers.set(("older", name), world.now + OLDER_LIFE)
        timers.set(("rekey", name), world.now + rekey)
        timers.set(("idle", name), world.now + world.settings.timing.idle)
        world.log("debug", "session", f"session with {peer.name} at {remote}", peer)
        for callback in self.on_up:
            callback(peer)
        for request in list(peer.requests.values()):
            request.interval, request.sent = 0.0, 0
            self._send_request(peer, request)

    def moved_to(self, peer: Peer, remote: Endpoint, tell: bool = True) -> None:
        """The peer proved to be at ``remote``."""
        before = peer.endpoint
        peer.endpoint = peer.seen = remote
        peer.source = self.world.paths.source.get(remote.addr, peer.source)
        peer.hints.clear()
        text = str(remote.addr)
        record = peer.record
        if record.addresses[:1] != (text,) or record.port != remote.port:
            rest = tuple(a for a in record.addresses if a != text)
            addresses = (text, *rest)[:MAX_ADDRESSES]
            record = replace(record, addresses=addresses, port=remote.port)
        if record != peer.record or self.world.now - record.last_contact > 60:
            self.save(peer, replace(record, last_contact=self.world.now))
        if tell and before is not None and before != remote:
            for callback in self.on_moved:
                callback(peer)

    def _drop_session(self, peer: Peer, session: Session) -> None:
        self._sessions.pop(session.index, None)
        if self._by_remote_index.get(session.remote_index) is peer:
            del self._by_remote_index[session.remote_index]

    def older_timer(self, peer: Peer) -> None:
        if peer.older is not None:
            self._drop_session(peer, peer.older)
            peer.older = None
            if peer.session is not None:
                self._by_remote_index[peer.session.remote_index] = peer

    def idle_timer(self, peer: Peer) -> None:
        """A session without use ends; one with bindings stays, so that a move needs no
        exchange before it."""
        session, idle = peer.session, self.world.settings.timing.idle
        if session is None:
            return
        if self.wanted(peer) or session.used + idle > self.world.now:
            self.world.timers.set(("idle", peer.peer_id), self.world.now + idle)
            return
        self._drop_session(peer, session)
        peer.session = None
        self.world.timers.cancel(("rekey", peer.peer_id))

    def rekey_timer(self, peer: Peer) -> None:
        if self.wanted(peer):
            self.renew(peer)
            # should the exchange fail for good, it is tried again by and by
            self.world.timers.set(("rekey", peer.peer_id), self.world.now + 600)

    # packets of a session

    def take_data(self, data: Data, remote: Endpoint, local: Address, size: int) -> None:
        found = self._sessions.get(data.to)
        if found is None:
            if not self.confirm(data, remote):
                self._tell_unknown(data, remote, local)
                return
            found = self._sessions[data.to]
        elif not found[1].open(data):
            self.world.log_rarely(
                "debug", "forged", f"forged or repeated packet from {remote}", found[0]
            )
            return
        peer, session = found
        session.used = self.world.now
        peer.seen = remote
        for callback in self.on_heard:
            callback(peer, remote)
        origin = Origin(remote, local, size, session.serial)
        try:
            for number, frame in parse_frames(data.payload):
                self._dispatch(peer, number, frame, origin)
        except MessageError as error:
            self._fault(peer, str(error))

    def _dispatch(self, peer: Peer, number: int, frame: Frame, origin: Origin) -> None:
        if not peer.trusted:
            return
        try:
            self.handlers[type(frame)](peer, number, frame, origin)
        except TransitionError as error:
            self._fault(peer, f"{type(frame).__name__}: {error}")

    def _fault(self, peer: Peer, text: str) -> None:
        self.world.log_rarely("notice", "protocol-error", f"{peer.name}: {text}", peer)

    def _tell_unknown(self, data: Data, remote: Endpoint, local: Address) -> None:
        if self._unknown_rate.take(remote.addr, self.world.now):
            self.world.emit(Send(encode(Unknown(data.to, data.mac)), remote, local))

    # requests and answers

    def request(
        self,
        peer: Peer,
        frame: Frame,
        context: object = None,
        *,
        tries: int | None = 6,
        cap: float = 5.0,
        failed: Callable[[Peer, Request], None] | None = None,
    ) -> int:
        """Send ``frame`` until it is answered; goes out at the end of the input."""
        number = peer.next_request
        peer.next_request = number % 0xFFFFFFFF + 1
        request = Request(number, frame, context, tries, cap, failed)
        peer.requests[number] = request
        if peer.session is None:
            self.want_session(peer)
        self._send_request(peer, request)
        return number

    def _send_request(self, peer: Peer, request: Request) -> None:
        request.sent += 1
        request.sent_at = self.world.now
        self.queue(peer, request.number, request.frame)
        request.interval = min(request.cap, 2 * request.interval or max(2 * peer.rtt, 0.1))
        key = ("request", peer.peer_id, request.number)
        self.world.timers.set(key, self.world.now + request.interval)

    def request_timer(self, peer: Peer, number: int) -> None:
        request = peer.requests.get(number)
        if request is None:
            return
        if request.tries is not None and request.sent >= request.tries:
            self.answered(peer, number)
            if request.failed is not None:
                request.failed(peer, request)
            return
        if request.sent == 4:
            self.renew(peer)  # perhaps the peer lost the session, or is elsewhere now
        self._send_request(peer, request)
        if request.sent > 2 and peer.seen is not None and peer.seen != peer.endpoint:
            self.send(peer, request.number, request.frame, peer.seen)

    def again(self, peer: Peer, number: int, pause: float) -> bool:
        """Repeat a request now, and quickly from now on; at most once in ``pause`` seconds."""
        request = peer.requests.get(number)
        if request is None or self.world.now - request.sent_at < pause:
            return False
        request.interval = 0.0
        self._send_request(peer, request)
        return True

    def answered(self, peer: Peer, number: int) -> Request | None:
        """The request that an answer belongs to, once."""
        request = peer.requests.pop(number, None)
        if request is not None:
            self.world.timers.cancel(("request", peer.peer_id, number))
            if request.sent == 1:
                self.measure(peer, self.world.now - request.sent_at)
        return request

    def withdraw(self, peer: Peer, number: int) -> None:
        """The answer to a request is of no use any more."""
        if peer.requests.pop(number, None) is not None:
            self.world.timers.cancel(("request", peer.peer_id, number))

    def measure(self, peer: Peer, sample: float) -> None:
        peer.rtt += (min(max(sample, 0.001), 5.0) - peer.rtt) / (1 if peer.rtt == 0.1 else 4)

    def queue(self, peer: Peer, number: int, frame: Frame, origin: Origin | None = None) -> None:
        """Send at the end of this input, together with others; an answer goes back to
        where the request came from."""
        place = None if origin is None else (origin.remote, origin.local)
        peer.outbox.setdefault(place, []).append(encode_frame(number, frame))
        self._dirty[peer.peer_id] = None

    def send(
        self,
        peer: Peer,
        number: int,
        frame: Frame,
        remote: Endpoint,
        source: Address | None = None,
    ) -> int:
        """Send at once, in a packet of its own; its length (0: there is no session)."""
        if peer.session is None:
            self.want_session(peer)
            return 0
        data = peer.session.seal(encode_frame(number, frame))
        self.world.emit(Send(data, remote, source))
        return len(data)

    def may_answer(self, peer: Peer, remote: Endpoint) -> bool:
        """Where the peer has not proved to be a victim may be: not more often than so."""
        proved = peer.endpoint is not None and peer.endpoint.addr == remote.addr
        proved = proved or peer.prepared.get(remote.addr, 0.0) > self.world.now
        return proved or peer.answers.take(self.world.now)

    def answer(self, peer: Peer, frame: Frame, origin: Origin) -> None:
        """Send at once to where something came from."""
        if self.may_answer(peer, origin.remote):
            self.send(peer, 0, frame, origin.remote, origin.local)

    def flush(self) -> None:
        """Pack what is queued into as few packets as it takes."""
        for peer_id in self._dirty:
            peer = self.world.peers.get(peer_id)
            if peer is None:
                continue
            boxes, peer.outbox = peer.outbox, {}
            for place, frames in boxes.items():
                if place is not None and not self.may_answer(peer, place[0]):
                    continue
                remote, source = place or (peer.endpoint, None)
                # without a session: requests are sent again when there is one
                if peer.session is not None and remote is not None:
                    for payload in _packed(frames):
                        self.world.emit(Send(peer.session.seal(payload), remote, source))
        self._dirty.clear()

    def ping(self, peer: Peer) -> None:
        self.request(peer, Ping(), tries=3)


def _packed(frames: list[bytes]) -> list[bytes]:
    payloads = [b""]
    for frame in frames:
        if payloads[-1] and len(payloads[-1]) + len(frame) > MAX_PAYLOAD:
            payloads.append(b"")
        payloads[-1] += frame
    return payloads
