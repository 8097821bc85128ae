"""One peer, as long as we run: its record, session, requests, and where it may be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

from ..rewrite.flow import Address, Endpoint
from .frames import Frame
from .handshake import Agreed
from .keys import PairKeys
from .limits import TokenBucket
from .message import K1
from .records import PeerRecord
from .session import Session
from .transitions import HANDSHAKE, Shake, ShakeAction, ShakeInput, step

if TYPE_CHECKING:
    from .changes import FarChange, OurChange

MAX_ADDRESSES = 8
FIRST_RTT = 0.1


@dataclass(slots=True)
class Request:
    """A frame that is sent again until it is answered.

    context   whatever the sender needs when the answer comes
    tries     how often it may be sent; None: for as long as it is wanted
    failed    called when the tries are used up
    """

    number: int
    frame: Frame
    context: Any
    tries: int | None
    cap: float
    failed: Callable[[Peer, Request], None] | None
    sent: int = 0
    interval: float = 0.0
    sent_at: float = 0.0


@dataclass(slots=True)
class Asking:
    """A known-peer exchange that we began; the record as it was in K1."""

    k1: K1
    record: PeerRecord
    sent: int = 0
    interval: float = 0.25
    sent_at: float = 0.0
    cookie_taken: bool = False


@dataclass(slots=True)
class Pending:
    """A known-peer exchange that the peer began: K2 is out, K3 has not come."""

    nonce: bytes
    index: int
    remote_index: int
    answer: bytes
    agreed: Agreed
    since: float


@dataclass(slots=True)
class Peer:
    """endpoint: where the peer proved to be; seen: where its last packet came from;
    source: our address that routing chose towards it last."""

    record: PeerRecord
    keys: PairKeys
    challenges: TokenBucket
    answers: TokenBucket
    session: Session | None = None
    older: Session | None = None
    shake: Shake = Shake.NONE
    asking: Asking | None = None
    incoming: dict[bytes, Pending] = field(default_factory=dict)
    endpoint: Endpoint | None = None
    seen: Endpoint | None = None
    source: Address | None = None
    hints: list[Endpoint] = field(default_factory=list)
    resolved: list[Endpoint] = field(default_factory=list)
    resolve_at: float = 0.0
    rtt: float = FIRST_RTT
    requests: dict[int, Request] = field(default_factory=dict)
    next_request: int = 1
    outbox: dict[tuple[Endpoint, Address] | None, list[bytes]] = field(default_factory=dict)
    unknown_at: float = 0.0
    ours: dict[int, OurChange] = field(default_factory=dict)
    theirs: dict[int, FarChange] = field(default_factory=dict)
    newest_change: dict[str, tuple[int, int]] = field(default_factory=dict)
    prepared: dict[Address, float] = field(default_factory=dict)

    @property
    def peer_id(self) -> str:
        return self.record.peer_id

    @property
    def name(self) -> str:
        return self.record.name

    @property
    def trusted(self) -> bool:
        return self.record.state in ("trusted", "verified")

    def take(self, what: ShakeInput) -> ShakeAction:
        action, self.shake = step(HANDSHAKE, self.shake, what)
        return action

    def addresses(self) -> list[Address]:
        """Addresses of the record, newest first; what is no address is left out."""
        found: list[Address] = []
        for text in self.record.addresses:
            try:
                found.append(ip_address(text))
            except ValueError:
                continue
        return found

    def places(self, port: int) -> list[Endpoint]:
        """Where to look for the peer, best first."""
        port = self.record.port or port
        known = [Endpoint(addr, port) for addr in self.addresses()]
        first = [e for e in (self.endpoint, self.seen) if e is not None]
        return list(dict.fromkeys(first + self.hints + known + self.resolved))
