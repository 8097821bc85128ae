"""Discovery and first contact (paper, 3.2): who is there, and a pair of keys with it.

Expensive work is done only for an address with which a long-lived connection exists,
within the policy, behind a cookie, and at a bounded rate; nothing is kept for a sender
before it has shown that it receives at its address.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from ..rewrite.flow import Address, Endpoint, Flow
from .commands import ForgetPeer, Send
from .contact import FirstContact
from .cookies import CookieJar
from .keys import ContactKeys, before_first_chain, fingerprint, first_chain, mac, peer_id, same
from .limits import BucketTable, TokenBucket
from .links import Links
from .message import Contact1, Contact2, Contact3, Contact4, Hello, HelloAck, Plain, encode
from .peer import Peer
from .records import PeerRecord, TrustState
from .world import World

HELLO_AGAIN = (1.0, 3.0, 5.0)
CONTACT_AGAIN = (0.5, 1.0, 2.0, 4.0)
HALF_OPEN_LIFE = 30.0
YIELD = 5.0  # the other side began as well: so long is its contact waited for
MAX_FORGED = 8
PENDING_STAYS = 600.0  # a pair that waits for the operator is not replaced sooner
_ZERO_NONCE = bytes(12)  # each sealing key seals once (RFC 8439, 2.8 forbids only a second time)


class Stage(Enum):
    ASKING = "asking"  # HELLO is out
    CONTACT = "contact"  # CONTACT_1 is out
    SEALED = "sealed"  # CONTACT_3 is out
    WAITING = "waiting"  # the other side began as well, or the peer is known already
    SILENT = "silent"  # nobody there, or nobody for us


@dataclass(slots=True, repr=False)
class Search:
    """What we know about one far address; until: when it may be asked again."""

    stage: Stage
    nonce: bytes
    source: Address | None
    sent: int = 0
    forged: int = 0
    until: float = 0.0
    secret: bytes = b""
    public: bytes = b""
    message: bytes = b""
    keys: ContactKeys | None = None
    host_id: str = ""
    known_failed: bool = False


@dataclass(slots=True, repr=False)
class HalfOpen:
    """A first contact that somebody else began."""

    keys: ContactKeys
    answer: bytes
    since: float
    final: bytes = b""


class Discovery:
    def __init__(
        self, world: World, links: Links, cookies: CookieJar, contact: FirstContact | None
    ) -> None:
        self.world, self.links, self.cookies, self.contact = world, links, cookies, contact
        self.found: Callable[[Address], None] = lambda addr: None
        self.why: Callable[[Address, str], None] = lambda addr, why: None
        self._searches: OrderedDict[Address, Search] = OrderedDict()
        self._half_open: OrderedDict[tuple[Address, bytes], HalfOpen] = OrderedDict()
        limits = world.settings.limits
        self._all = TokenBucket(limits.hello_rate, limits.hello_rate, world.now)
        self._each = BucketTable(rate=1.0, burst=8, size=1024)
        links.on_silent.append(self._peer_silent)

    # our side

    def seek(self, birth: Flow) -> None:
        """Is there a daemon at the far end of this connection, whom we do not know?"""
        addr = birth.remote.addr
        settings, now = self.world.settings, self.world.now
        search = self._searches.get(addr)
        if self.contact is None or not settings.may_discover(addr):
            self.why(addr, "unknown host, and the policy is not to ask")
        elif search is not None and (search.stage is not Stage.SILENT or now < search.until):
            if search.stage is Stage.SILENT:
                self.why(addr, "far end does not run redirectd")
        elif not self._acquainted(addr):
            source = birth.local.addr if birth.local.addr in self.world.local else None
            search = Search(Stage.ASKING, self.world.rng(16), source)
            search.message = encode(Hello(search.nonce))
            self._searches[addr] = search
            while len(self._searches) > settings.limits.contacts:
                self._stop(next(iter(self._searches)))
            self.why(addr, "asking whether redirectd runs there")
            if self._called_by(addr):
                self._wait(addr, search, YIELD)
            else:
                self._again(addr, search)

    def _acquainted(self, addr: Address) -> bool:
        """Somebody there is known, and waits for the operator or was revoked."""
        for peer in self.world.peers.values():
            if not peer.trusted and peer.record.addresses[:1] == (str(addr),):
                waits = peer.record.state == "pending"
                self.why(addr, f"{peer.name} is not accepted yet" if waits else "revoked")
                return True
        return False

    def _again(self, addr: Address, search: Search) -> None:
        times = HELLO_AGAIN if search.stage is Stage.ASKING else CONTACT_AGAIN
        if search.sent >= len(times):
            self._silent(addr, search)
            return
        remote = Endpoint(addr, self.world.settings.port)
        self.world.emit(Send(search.message, remote, search.source))
        self.world.timers.set(("contact", addr), self.world.now + times[search.sent])
        search.sent += 1

    def timer(self, addr: Address) -> None:
        search = self._searches.get(addr)
        if search is None:
            return
        if search.stage is Stage.WAITING:
            self._stop(addr)
            self.found(addr)  # whoever is known there by now is taken, else asked anew
        elif search.stage is not Stage.SILENT:
            self._again(addr, search)

    def _silent(self, addr: Address, search: Search) -> None:
        """Whoever does not answer is left alone for a while."""
        self._searches[addr] = Search(
            Stage.SILENT, b"", None, until=self.world.now + self.world.settings.timing.silence
        )
        self.world.timers.cancel(("contact", addr))
        self.why(addr, "far end does not run redirectd")

    def _stop(self, addr: Address) -> None:
        self._searches.pop(addr, None)
        self.world.timers.cancel(("contact", addr))

    def _wait(self, addr: Address, search: Search, seconds: float) -> None:
        search.stage, search.sent = Stage.WAITING, 0
        self.world.timers.set(("contact", addr), self.world.now + seconds)

    def _search(self, remote: Endpoint, nonce: bytes, stage: Stage) -> Search | None:
        """Our search that an answer belongs to."""
        search = self._searches.get(remote.addr)
        right = search is not None and search.stage is stage and same(search.nonce, nonce)
        return search if right and remote.port == self.world.settings.port else None

    def _next_stage(self, addr: Address, search: Search, stage: Stage, message: Plain) -> None:
        search.stage, search.message, search.sent = stage, encode(message), 0
        self._again(addr, search)

    def take_hello_ack(self, message: HelloAck, remote: Endpoint) -> None:
        search = self._search(remote, message.nonce, Stage.ASKING)
        if search is None or self.contact is None:
            return
        search.secret, search.public = self.contact.generate()
        contact1 = Contact1(search.nonce, message.cookie, search.public)
        self._next_stage(remote.addr, search, Stage.CONTACT, contact1)

    def take_contact2(self, message: Contact2, remote: Endpoint) -> None:
        search = self._search(remote, message.nonce, Stage.CONTACT)
        if search is None or self.contact is None or search.forged >= MAX_FORGED:
            return
        opened = self._open_answer(search, message)
        if opened is None:
            search.forged += 1
            return
        search.keys, host_id = opened
        if host_id == self.world.host_id:
            self._silent(remote.addr, search)  # ourselves by another name
            return
        known = self._same_host(host_id)
        if known is not None and known.trusted and not search.known_failed:
            # the ID proves nothing, the keys do: try those
            self._wait(remote.addr, search, 30.0)
            self.links.want_session(known, remote)
            return
        search.host_id = host_id
        ours = bytes.fromhex(self.world.host_id)
        keys = search.keys
        sealed = self.contact.seal(keys.seal_first, _ZERO_NONCE, ours, keys.transcript)
        contact3 = Contact3(search.nonce, sealed)
        self._next_stage(remote.addr, search, Stage.SEALED, contact3)

    def _open_answer(self, search: Search, message: Contact2) -> tuple[ContactKeys, str] | None:
        assert self.contact is not None
        try:
            shared = self.contact.shared(search.secret, message.public)
        except ValueError:
            return None
        keys = ContactKeys.of(shared, search.nonce, search.public, message.public)
        host = self.contact.open(keys.seal_second, _ZERO_NONCE, message.sealed, keys.transcript)
        return None if host is None else (keys, host.hex())

    def take_contact4(self, message: Contact4, remote: Endpoint) -> None:
        search = self._search(remote, message.nonce, Stage.SEALED)
        if search is None or search.keys is None:
            return
        if same(message.mac, _final_mac(search.keys)):
            self._stop(remote.addr)
            self._new_peer(search.keys, search.host_id, True, remote)
            self.found(remote.addr)

    def _peer_silent(self, peer: Peer) -> None:
        """Somebody has the ID of a peer, but not its keys."""
        for addr, search in list(self._searches.items()):
            if search.stage is Stage.WAITING and search.keys is not None:
                self._stop(addr)
                again = Search(Stage.ASKING, self.world.rng(16), search.source, known_failed=True)
                again.message = encode(Hello(again.nonce))
                self._searches[addr] = again
                self._again(addr, again)

    # the other side

    def _welcome(self, remote: Endpoint) -> bool:
        """Cheap checks before anything is answered."""
        return (
            self.contact is not None
            and self.world.settings.may_discover(remote.addr)
            and self.world.table.long_lived_with(remote.addr)
            and self._each.take(remote.addr, self.world.now)
            and self._all.take(self.world.now)
        )

    def take_hello(self, message: Hello, remote: Endpoint, local: Address) -> None:
        if self._welcome(remote):
            cookie = self.cookies.make(remote, message.nonce, self.world.now)
            self.world.emit(Send(encode(HelloAck(message.nonce, cookie)), remote, local))

    def take_contact1(self, message: Contact1, remote: Endpoint, local: Address) -> None:
        if not self._welcome(remote) or self.contact is None:
            return
        now = self.world.now
        if not self.cookies.good(message.cookie, remote, message.nonce, now):
            return
        key = remote.addr, message.nonce
        half = self._half_open.get(key)
        if half is None:
            own = self._searches.get(remote.addr)
            if own is not None and _ours_goes_on(own, message):
                return
            half = self._begin(message)
            if half is None or not self._room():
                return
            self._half_open[key] = half
            if own is not None and own.stage in (Stage.ASKING, Stage.CONTACT):
                self._wait(remote.addr, own, YIELD)
        self.world.emit(Send(half.answer, remote, local))

    def _called_by(self, addr: Address) -> bool:
        """Somebody there has begun a first contact just now."""
        return any(
            key[0] == addr and self.world.now - half.since < YIELD
            for key, half in self._half_open.items()
        )

    def _begin(self, message: Contact1) -> HalfOpen | None:
        assert self.contact is not None
        secret, public = self.contact.generate()
        try:
            shared = self.contact.shared(secret, message.public)
        except ValueError:
            return None
        keys = ContactKeys.of(shared, message.nonce, message.public, public)
        ours = bytes.fromhex(self.world.host_id)
        sealed = self.contact.seal(keys.seal_second, _ZERO_NONCE, ours, keys.transcript)
        return HalfOpen(keys, encode(Contact2(message.nonce, public, sealed)), self.world.now)

    def _room(self) -> bool:
        """Old half-open contacts go; while all are young, no further one is begun."""
        while self._half_open:
            oldest = next(iter(self._half_open.values()))
            if self.world.now - oldest.since < HALF_OPEN_LIFE:
                break
            self._half_open.popitem(last=False)
        return len(self._half_open) < self.world.settings.limits.half_open

    def take_contact3(self, message: Contact3, remote: Endpoint, local: Address) -> None:
        half = self._half_open.get((remote.addr, message.nonce))
        if half is None or self.contact is None:
            return
        if not half.final:
            keys = half.keys
            host = self.contact.open(keys.seal_first, _ZERO_NONCE, message.sealed, keys.transcript)
            if host is None or not self._new_peer(keys, host.hex(), False, remote):
                return
            half.final = encode(Contact4(message.nonce, _final_mac(keys)))
        self.world.emit(Send(half.final, remote, local))

    # the new pair

    def _same_host(self, host_id: str) -> Peer | None:
        found = [p for p in self.world.peers.values() if p.record.host_id == host_id]
        found.sort(key=lambda p: not p.trusted)
        return found[0] if found else None

    def _others_at(self, addr: Address, host_id: str) -> list[Peer]:
        """Peers with another ID that are, or were last, at this address."""
        return [
            p for p in self.world.peers.values()
            if p.record.host_id != host_id
            and (
                (p.endpoint is not None and p.endpoint.addr == addr)
                or p.record.addresses[:1] == (str(addr),)
                or any(b.out_remote.addr == addr for b in self.world.table.of_peer(p.peer_id))
            )
        ]  # fmt: skip

    def _new_peer(self, keys: ContactKeys, host_id: str, initiator: bool, remote: Endpoint) -> bool:
        """Write the pair down; False: there is no room for it."""
        world, text = self.world, str(remote.addr)
        others = self._others_at(remote.addr, host_id)
        twin = self._same_host(host_id)
        state: TrustState = "trusted" if world.settings.first_contact == "tofu" else "pending"
        if others or twin is not None:
            state = "pending"
        if not self._make_room(text, state):
            return False
        ids = (world.host_id, host_id) if initiator else (host_id, world.host_id)
        material = keys.transcript + bytes.fromhex(ids[0] + ids[1])
        record = PeerRecord(
            peer_id(keys.root), keys.root, first_chain(keys.root), before_first_chain(keys.root),
            initiator, host_id, f"host-{host_id[:8]}", fingerprint(material), state,
            world.now, world.now, (text,), remote.port,
        )  # fmt: skip
        peer = self.links.add(record)
        self.links.save(peer, record)
        world.log(
            "notice", "first-contact", f"first contact with {peer.name} at {text}: {state};"
            f" fingerprint {record.fingerprint}", peer, fingerprint=record.fingerprint,
        )  # fmt: skip
        if others:
            world.log(
                "alert", "second-id", f"{text} shows a new ID, but {others[0].name} is known"
                " there; nothing is trusted until you accept it", peer,
            )  # fmt: skip
        elif twin is not None:
            world.log(
                "alert", "changed-keys", f"{text} shows the ID of {twin.name} with other keys;"
                " nothing is trusted until you accept it", peer,
            )  # fmt: skip
        return True

    def _make_room(self, text: str, state: TrustState) -> bool:
        """One pending pair an address; when all is full, the oldest pending one goes."""
        peers = self.world.peers
        pending = [p for p in peers.values() if p.record.state == "pending"]
        gone = [p for p in pending if state == "pending" and p.record.addresses[:1] == (text,)]
        if any(self.world.now - p.record.first_contact < PENDING_STAYS for p in gone):
            return False
        if not gone and len(peers) >= self.world.settings.limits.peers:
            gone = sorted(pending, key=lambda p: p.record.first_contact)[:1]
            if not gone:
                self.world.log_rarely("warning", "peers-full", "no room for another known host")
                return False
        for peer in gone:
            self.links.remove(peer.peer_id)
            self.world.emit(ForgetPeer(peer.peer_id))
        return True


def _ours_goes_on(own: Search, theirs: Contact1) -> bool:
    """Both sides began: only one of the two contacts may be finished, and the same at both.

    Whoever has not sent CONTACT_1 yet gives way.  Once both have, the lower nonce goes on.
    After CONTACT_3 there is no way back: the other side may have the pair on disk.
    """
    if own.stage is Stage.CONTACT:
        return own.nonce < theirs.nonce
    return own.stage is Stage.SEALED


def _final_mac(keys: ContactKeys) -> bytes:
    return mac(keys.root, b"contact 4\0", keys.transcript)
