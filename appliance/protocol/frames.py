"""What the two ends of a session tell each other: requests and answers.

A frame is: kind (1 byte), request ID (4 bytes), length of the body (2 bytes), body.
An answer carries the ID of its request.  Whoever receives a request twice answers
twice and acts once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import ClassVar

from ..rewrite.flow import Address, Endpoint, Flow
from .message import DATA_OVERHEAD, MAX_DATAGRAM
from .wire import (
    ADDRESS,
    ENDPOINT,
    FLAG,
    FLOW,
    ID,
    U16,
    U32,
    U64,
    Fixed,
    Layout,
    Many,
    MessageError,
    Pair,
    Reader,
    Word,
    get_fields,
    put_fields,
)

FRAME_HEAD = 7
MAX_PAYLOAD = MAX_DATAGRAM - DATA_OVERHEAD
MAX_TAGS = 16
MAX_LISTED = 48  # connections that one address change can name
MAX_HELD_IDS = 32
MAX_CLOSED = 64
SPARE_REFUSALS = 8  # refusals that an address change without a list leaves room for


class Kind(IntEnum):
    PING = 1
    PONG = 2
    STATUS = 3
    STATUS_ANSWER = 4
    HAVE = 5
    HAVE_ANSWER = 6
    CLOSED = 7
    CLOSED_ANSWER = 8
    ASK = 9
    TOLD = 10
    OFFER = 16
    READY = 17
    REJECT = 18
    PROOF = 19
    ACCEPT = 20
    NOT_YET = 21
    CONFIRM = 22
    CONFIRMED = 23
    ADDRESS_CHANGE = 32
    CHALLENGE = 33
    CHALLENGE_REPLY = 34
    MOVE_DONE = 35
    MOVE_REFUSED = 36
    LIST_WANTED = 37


class Reason(IntEnum):
    """Why a connection is not bound."""

    UNKNOWN_CONNECTION = 1
    OTHER_PEER = 2
    PATH_TRANSLATES = 3
    BUSY = 4
    NOT_WANTED = 5
    NOT_PROVEN = 6
    UNKNOWN_OFFER = 7


class Refusal(IntEnum):
    """Why one connection can't follow a change of address."""

    UNKNOWN = 1
    TUPLE_IN_USE = 2


class TargetFault(IntEnum):
    """Why an address is refused for all connections."""

    PATH_TRANSLATES = 1
    NOT_UNICAST = 2
    OWN_ADDRESS = 3
    INSIDE = 4
    OTHER_FAMILY = 5
    BUSY = 6


class Purpose(IntEnum):
    """MOVE: use the new address from now on; PREPARE: it may be used soon."""

    MOVE = 1
    PREPARE = 2


class Fate(IntEnum):
    ALIVE = 1
    CLOSED = 2
    UNKNOWN = 3


@dataclass(frozen=True, slots=True)
class Ping:
    KIND: ClassVar[Kind] = Kind.PING
    SIZE: ClassVar[int] = 0
    LAYOUT: ClassVar[Layout] = ()


@dataclass(frozen=True, slots=True)
class Pong:
    KIND: ClassVar[Kind] = Kind.PONG
    SIZE: ClassVar[int] = 0
    LAYOUT: ClassVar[Layout] = ()


@dataclass(frozen=True, slots=True)
class Status:
    """What the sender has bound to the receiver, and where; its host ID, masked."""

    count: int
    digest: bytes
    masked_host: bytes
    KIND: ClassVar[Kind] = Kind.STATUS
    SIZE: ClassVar[int] = 0
    LAYOUT: ClassVar[Layout] = (
        ("count", U32),
        ("digest", Fixed(32)),
        ("masked_host", Fixed(16)),
    )


@dataclass(frozen=True, slots=True)
class StatusAnswer:
    """``same``: the receiver has the same; else the sender tells in HAVE what it has."""

    same: bool
    KIND: ClassVar[Kind] = Kind.STATUS_ANSWER
    SIZE: ClassVar[int] = 0
    LAYOUT: ClassVar[Layout] = (("same", FLAG),)


@dataclass(frozen=True, slots=True)
class Have:
    entries: tuple[tuple[str, Endpoint], ...]
    KIND: ClassVar[Kind] = Kind.HAVE
    SIZE: ClassVar[int] = 0
    LAYOUT: ClassVar[Layout] = (("entries", Many(Pair(ID, ENDPOINT), MAX_HELD_IDS)),)


@dataclass(frozen=True, slots=True)
class HaveAnswer:
    """Out of HAVE: connections not known here, and those known at another endpoint."""

    unknown: tuple[str, ...]
    elsewhere: tuple[str, ...]
    KIND: ClassVar[Kind] = Kind.HAVE_ANSWER
    SIZE: ClassVar[int] = 0
    LAYOUT: ClassVar[Layout] = (
        ("unknown", Many(ID, MAX_HELD_IDS)),
        ("elsewhere", Many(ID, MAX_HELD_IDS)),
    )


@dataclass(frozen=True, slots=True)
class Closed:
    """The sender's end of these connections ended."""

    conn_ids: tuple[str, ...]
    KIND: ClassVar[Kind] = Kind.CLOSED
    SIZE: ClassVar[int] = 0
    LAYOUT: ClassVar[Layout] = (("conn_ids", Many(ID, MAX_CLOSED)),)


@dataclass(frozen=True, slots=True)
class ClosedAnswer:
    KIND: ClassVar[Kind] = Kind.CLOSED_ANSWER
    SIZE: ClassVar[int] = 0
    LAYOUT: ClassVar[Layout] = ()


@dataclass(frozen=True, slots=True)
class Ask:
    """Does your end of this connection live?  (A RST for it came to us.)"""

    conn_id: str
    KIND: ClassVar[Kind] = Kind.ASK
    SIZE: ClassVar[int] = 0
    LAYOUT: ClassVar[Layout] = (("conn_id", ID),)


@dataclass(frozen=True, slots=True)
class Told:
    conn_id: str
    fate: Fate
    KIND: ClassVar[Kind] = Kind.TOLD
    SIZE: ClassVar[int] = 0
    LAYOUT: ClassVar[Layout] = (("conn_id", ID), ("fate", Word(Fate)))


@dataclass(frozen=True, slots=True)
class Offer:
    """``flow``: the connection as the sender sees it; ``nonce``: its part of the tags."""

    flow: Flow
    nonce: bytes
    KIND: ClassVar[Kind] = Kind.OFFER
    SIZE: ClassVar[int] = 0
    LAYOUT: ClassVar[Layout] = (("flow", FLOW), ("nonce", Fixed(16)))


@dataclass(frozen=True, slots=True)
class Ready:
    """The receiver watches the connection now, or (``guess``) connections that it may be."""

    guess: bool
    nonce: bytes
    KIND: ClassVar[Kind] = Kind.READY
    SIZE: ClassVar[int] = 0
    LAYOUT: ClassVar[Layout] = (("guess", FLAG), ("nonce", Fixed(16)))


@dataclass(frozen=True, slots=True)
class Reject:
    reason: Reason
    KIND: ClassVar[Kind] = Kind.REJECT
    SIZE: ClassVar[int] = 0
    LAYOUT: ClassVar[Layout] = (("reason", Word(Reason)),)


@dataclass(frozen=True, slots=True)
class Proof:
    """``offer``: request ID of the OFFER; tags over segments that the sender saw."""

    offer: int
    tags: tuple[bytes, ...]
    KIND: ClassVar[Kind] = Kind.PROOF
    SIZE: ClassVar[int] = 0
    LAYOUT: ClassVar[Layout] = (("offer", U32), ("tags", Many(Fixed(16), MAX_TAGS)))


@dataclass(frozen=True, slots=True)
class Accept:
    """The proof holds; ``tags`` are the counter-proof."""

    conn_id: str
    tags: tuple[bytes, ...]
    KIND: ClassVar[Kind] = Kind.ACCEPT
    SIZE: ClassVar[int] = 0
    LAYOUT: ClassVar[Layout] = (("conn_id", ID), ("tags", Many(Fixed(16), MAX_TAGS)))


@dataclass(frozen=True, slots=True)
class NotYet:
    """None of the tags is known here (yet)."""

    KIND: ClassVar[Kind] = Kind.NOT_YET
    SIZE: ClassVar[int] = 0
    LAYOUT: ClassVar[Layout] = ()


@dataclass(frozen=True, slots=True)
class Confirm:
    """The counter-proof holds; the sender has the binding on disk."""

    offer: int
    conn_id: str
    KIND: ClassVar[Kind] = Kind.CONFIRM
    SIZE: ClassVar[int] = 0
    LAYOUT: ClassVar[Layout] = (("offer", U32), ("conn_id", ID))


@dataclass(frozen=True, slots=True)
class Confirmed:
    KIND: ClassVar[Kind] = Kind.CONFIRMED
    SIZE: ClassVar[int] = 0
    LAYOUT: ClassVar[Layout] = ()


@dataclass(frozen=True, slots=True)
class AddressChange:
    """The ACM.  Sent from ``new``; ``number`` grows with every change of this sender.

    whole      True: all connections bound to the sender's peer that were at ``old``;
               ``count`` and ``digest`` name them and ``entries`` are those whose port
               differs from the one at birth.  False: the connections in ``entries``.
    old_alive  packets from the old address may still be on their way
    """

    number: int
    purpose: Purpose
    new: Address
    old: Address
    old_alive: bool
    whole: bool
    count: int
    digest: bytes
    entries: tuple[tuple[str, int], ...]
    KIND: ClassVar[Kind] = Kind.ADDRESS_CHANGE
    SIZE: ClassVar[int] = 8 + 16 + 1 + SPARE_REFUSALS * 17  # no answer is longer
    LAYOUT: ClassVar[Layout] = (
        ("number", U64),
        ("purpose", Word(Purpose)),
        ("new", ADDRESS),
        ("old", ADDRESS),
        ("old_alive", FLAG),
        ("whole", FLAG),
        ("count", U32),
        ("digest", Fixed(32)),
        ("entries", Many(Pair(ID, U16), MAX_LISTED)),
    )


@dataclass(frozen=True, slots=True)
class Challenge:
    """Sent to the new address: whoever receives there returns the nonce."""

    number: int
    nonce: bytes
    refused: tuple[tuple[str, Refusal], ...]
    KIND: ClassVar[Kind] = Kind.CHALLENGE
    SIZE: ClassVar[int] = 0
    LAYOUT: ClassVar[Layout] = (
        ("number", U64),
        ("nonce", Fixed(16)),
        ("refused", Many(Pair(ID, Word(Refusal)), MAX_LISTED)),
    )


@dataclass(frozen=True, slots=True)
class ChallengeReply:
    number: int
    nonce: bytes
    KIND: ClassVar[Kind] = Kind.CHALLENGE_REPLY
    SIZE: ClassVar[int] = 0
    LAYOUT: ClassVar[Layout] = (("number", U64), ("nonce", Fixed(16)))


@dataclass(frozen=True, slots=True)
class MoveDone:
    """The receiver of the change sends to the new address now (or is prepared to)."""

    number: int
    refused: tuple[tuple[str, Refusal], ...]
    KIND: ClassVar[Kind] = Kind.MOVE_DONE
    SIZE: ClassVar[int] = 0
    LAYOUT: ClassVar[Layout] = (
        ("number", U64),
        ("refused", Many(Pair(ID, Word(Refusal)), MAX_LISTED)),
    )


@dataclass(frozen=True, slots=True)
class MoveRefused:
    number: int
    fault: TargetFault
    KIND: ClassVar[Kind] = Kind.MOVE_REFUSED
    SIZE: ClassVar[int] = 0
    LAYOUT: ClassVar[Layout] = (("number", U64), ("fault", Word(TargetFault)))


@dataclass(frozen=True, slots=True)
class ListWanted:
    """The digest names a set that the receiver does not know: name each connection."""

    number: int
    KIND: ClassVar[Kind] = Kind.LIST_WANTED
    SIZE: ClassVar[int] = 0
    LAYOUT: ClassVar[Layout] = (("number", U64),)


Frame = (
    Ping | Pong | Status | StatusAnswer | Have | HaveAnswer | Closed | ClosedAnswer | Ask | Told
    | Offer | Ready | Reject | Proof | Accept | NotYet | Confirm | Confirmed
    | AddressChange | Challenge | ChallengeReply | MoveDone | MoveRefused | ListWanted
)  # fmt: skip
FRAMES: tuple[type[Frame], ...] = (
    Ping, Pong, Status, StatusAnswer, Have, HaveAnswer, Closed, ClosedAnswer, Ask, Told,
    Offer, Ready, Reject, Proof, Accept, NotYet, Confirm, Confirmed,
    AddressChange, Challenge, ChallengeReply, MoveDone, MoveRefused, ListWanted,
)  # fmt: skip
_KINDS: dict[int, type[Frame]] = {kind.KIND: kind for kind in FRAMES}


def encode_frame(request: int, frame: Frame) -> bytes:
    body = put_fields(frame)
    return bytes((frame.KIND,)) + request.to_bytes(4, "big") + len(body).to_bytes(2, "big") + body


def parse_frames(payload: bytes) -> Iterator[tuple[int, Frame]]:
    """The frames of a packet, one by one; MessageError at the first faulty one."""
    reader = Reader(payload)
    while not reader.empty():
        head = reader.take(FRAME_HEAD)
        kind = _KINDS.get(head[0])
        if kind is None:
            raise MessageError(f"unknown frame {head[0]}")
        body = reader.take(int.from_bytes(head[5:7], "big"))
        yield int.from_bytes(head[1:5], "big"), get_fields(kind, body)
