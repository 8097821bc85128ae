"""The state tables.  ``(state, input) -> (action, state)``; a missing key is a fault
of whoever caused the input, which is logged and otherwise ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import TypeVar

S = TypeVar("S", bound=Enum)
I = TypeVar("I", bound=Enum)  # noqa: E741
A = TypeVar("A", bound=Enum)


class TransitionError(Exception):
    """An input that the state does not know."""


def step(table: Mapping[tuple[S, I], tuple[A, S]], state: S, what: I) -> tuple[A, S]:
    try:
        return table[state, what]
    except KeyError:
        raise TransitionError(f"{what.name} in state {state.name}") from None


class Conn(Enum):
    """A connection (the paper's Fig. 5; *idle* is not to have a connection)."""

    PLAIN = "plain"  # by a rule never ours to keep
    SHORT = "short"
    LONG = "long"
    OFFERED = "offered"
    BOUND = "bound"
    ENDED = "ended"


class ConnInput(Enum):
    AGED = "aged"
    EXEMPT = "exempt"
    OFFER = "offer"
    PROVED = "proved"
    FAILED = "failed"
    ADDRESS_LOST = "address lost"
    DROPPED = "dropped"
    CLOSED = "closed"


class ConnAction(Enum):
    NOTHING = "nothing"
    FIND_PEER = "find peer"
    FORGET = "forget"
    ABORT = "abort"
    HOLD = "hold"
    TELL_PEER = "tell peer"


CONNECTION: Mapping[tuple[Conn, ConnInput], tuple[ConnAction, Conn]] = {
    (Conn.SHORT, ConnInput.EXEMPT): (ConnAction.NOTHING, Conn.PLAIN),
    (Conn.SHORT, ConnInput.AGED): (ConnAction.FIND_PEER, Conn.LONG),
    (Conn.SHORT, ConnInput.ADDRESS_LOST): (ConnAction.ABORT, Conn.ENDED),
    (Conn.SHORT, ConnInput.CLOSED): (ConnAction.FORGET, Conn.ENDED),
    (Conn.PLAIN, ConnInput.ADDRESS_LOST): (ConnAction.NOTHING, Conn.PLAIN),
    (Conn.PLAIN, ConnInput.CLOSED): (ConnAction.FORGET, Conn.ENDED),
    (Conn.LONG, ConnInput.OFFER): (ConnAction.NOTHING, Conn.OFFERED),
    (Conn.LONG, ConnInput.ADDRESS_LOST): (ConnAction.NOTHING, Conn.LONG),
    (Conn.LONG, ConnInput.CLOSED): (ConnAction.FORGET, Conn.ENDED),
    (Conn.OFFERED, ConnInput.OFFER): (ConnAction.NOTHING, Conn.OFFERED),
    (Conn.OFFERED, ConnInput.PROVED): (ConnAction.NOTHING, Conn.BOUND),
    (Conn.OFFERED, ConnInput.FAILED): (ConnAction.NOTHING, Conn.LONG),
    (Conn.OFFERED, ConnInput.ADDRESS_LOST): (ConnAction.NOTHING, Conn.OFFERED),
    (Conn.OFFERED, ConnInput.CLOSED): (ConnAction.FORGET, Conn.ENDED),
    (Conn.BOUND, ConnInput.ADDRESS_LOST): (ConnAction.HOLD, Conn.BOUND),
    (Conn.BOUND, ConnInput.DROPPED): (ConnAction.NOTHING, Conn.LONG),
    (Conn.BOUND, ConnInput.CLOSED): (ConnAction.TELL_PEER, Conn.ENDED),
}


class Shake(Enum):
    """Our side of a known-peer exchange that we began."""

    NONE = "none"
    ASKED = "asked"  # K1 is out
    YIELDED = "yielded"  # the peer began as well, with the lower nonce
    PAUSED = "paused"  # nobody answers; again later


class ShakeInput(Enum):
    WANTED = "wanted"
    TIMER = "timer"
    COOKIE = "cookie"
    K2 = "K2"
    LOWER_K1 = "K1 with a lower nonce"
    UP = "session up"
    GIVE_UP = "tries used up"


class ShakeAction(Enum):
    NOTHING = "nothing"
    SEND_K1 = "send K1"
    FINISH = "finish"
    WAIT = "wait"


HANDSHAKE: Mapping[tuple[Shake, ShakeInput], tuple[ShakeAction, Shake]] = {
    (Shake.NONE, ShakeInput.WANTED): (ShakeAction.SEND_K1, Shake.ASKED),
    (Shake.NONE, ShakeInput.UP): (ShakeAction.NOTHING, Shake.NONE),
    (Shake.NONE, ShakeInput.LOWER_K1): (ShakeAction.NOTHING, Shake.NONE),
    (Shake.ASKED, ShakeInput.WANTED): (ShakeAction.NOTHING, Shake.ASKED),
    (Shake.ASKED, ShakeInput.TIMER): (ShakeAction.SEND_K1, Shake.ASKED),
    (Shake.ASKED, ShakeInput.COOKIE): (ShakeAction.SEND_K1, Shake.ASKED),
    (Shake.ASKED, ShakeInput.K2): (ShakeAction.FINISH, Shake.NONE),
    (Shake.ASKED, ShakeInput.LOWER_K1): (ShakeAction.WAIT, Shake.YIELDED),
    (Shake.ASKED, ShakeInput.UP): (ShakeAction.NOTHING, Shake.NONE),
    (Shake.ASKED, ShakeInput.GIVE_UP): (ShakeAction.WAIT, Shake.PAUSED),
    (Shake.YIELDED, ShakeInput.WANTED): (ShakeAction.NOTHING, Shake.YIELDED),
    (Shake.YIELDED, ShakeInput.TIMER): (ShakeAction.SEND_K1, Shake.ASKED),
    (Shake.YIELDED, ShakeInput.COOKIE): (ShakeAction.SEND_K1, Shake.ASKED),
    (Shake.YIELDED, ShakeInput.K2): (ShakeAction.FINISH, Shake.NONE),
    (Shake.YIELDED, ShakeInput.LOWER_K1): (ShakeAction.NOTHING, Shake.YIELDED),
    (Shake.YIELDED, ShakeInput.UP): (ShakeAction.NOTHING, Shake.NONE),
    (Shake.PAUSED, ShakeInput.WANTED): (ShakeAction.SEND_K1, Shake.ASKED),
    (Shake.PAUSED, ShakeInput.TIMER): (ShakeAction.SEND_K1, Shake.ASKED),
    (Shake.PAUSED, ShakeInput.COOKIE): (ShakeAction.NOTHING, Shake.PAUSED),
    (Shake.PAUSED, ShakeInput.K2): (ShakeAction.FINISH, Shake.NONE),
    (Shake.PAUSED, ShakeInput.LOWER_K1): (ShakeAction.NOTHING, Shake.PAUSED),
    (Shake.PAUSED, ShakeInput.UP): (ShakeAction.NOTHING, Shake.NONE),
}


class Mover(Enum):
    """One change of address of ours, towards one peer."""

    ANNOUNCED = "announced"  # our inbound rewrite is in place, the ACM is out
    ANSWERED = "answered"  # our outbound rewrite is in place, the challenge is answered
    DONE = "done"


class MoverInput(Enum):
    TIMER = "timer"
    CHALLENGE = "challenge"
    MOVE_DONE = "done"
    REFUSED = "refused"
    LIST_WANTED = "list wanted"


class MoverAction(Enum):
    ANNOUNCE = "announce"
    REPLY = "reply"
    OPEN_AND_REPLY = "open outbound, then reply"
    OPEN_AND_FINISH = "open outbound, then finish"
    FINISH = "finish"
    FAIL = "fail"
    LIST = "list"
    NOTHING = "nothing"


MOVER: Mapping[tuple[Mover, MoverInput], tuple[MoverAction, Mover]] = {
    (Mover.ANNOUNCED, MoverInput.TIMER): (MoverAction.ANNOUNCE, Mover.ANNOUNCED),
    (Mover.ANNOUNCED, MoverInput.CHALLENGE): (MoverAction.OPEN_AND_REPLY, Mover.ANSWERED),
    (Mover.ANNOUNCED, MoverInput.MOVE_DONE): (MoverAction.OPEN_AND_FINISH, Mover.DONE),
    (Mover.ANNOUNCED, MoverInput.REFUSED): (MoverAction.FAIL, Mover.ANNOUNCED),
    (Mover.ANNOUNCED, MoverInput.LIST_WANTED): (MoverAction.LIST, Mover.DONE),
    (Mover.ANSWERED, MoverInput.TIMER): (MoverAction.REPLY, Mover.ANSWERED),
    (Mover.ANSWERED, MoverInput.CHALLENGE): (MoverAction.REPLY, Mover.ANSWERED),
    (Mover.ANSWERED, MoverInput.MOVE_DONE): (MoverAction.FINISH, Mover.DONE),
    # a correspondent that lost its memory in between may judge anew
    (Mover.ANSWERED, MoverInput.REFUSED): (MoverAction.NOTHING, Mover.ANSWERED),
    (Mover.ANSWERED, MoverInput.LIST_WANTED): (MoverAction.LIST, Mover.DONE),
}


class Far(Enum):
    """One change of address of a peer's, here at the correspondent."""

    CHALLENGED = "challenged"  # inbound rewrite in place
    OPEN = "open"  # both in place


class FarInput(Enum):
    CHANGE = "address change"
    RIGHT_REPLY = "right reply"


class FarAction(Enum):
    CHALLENGE = "challenge"
    OPEN_AND_DONE = "open outbound, then done"
    DONE = "done"


FAR: Mapping[tuple[Far, FarInput], tuple[FarAction, Far]] = {
    (Far.CHALLENGED, FarInput.CHANGE): (FarAction.CHALLENGE, Far.CHALLENGED),
    (Far.CHALLENGED, FarInput.RIGHT_REPLY): (FarAction.OPEN_AND_DONE, Far.OPEN),
    (Far.OPEN, FarInput.CHANGE): (FarAction.DONE, Far.OPEN),
    (Far.OPEN, FarInput.RIGHT_REPLY): (FarAction.DONE, Far.OPEN),
}
