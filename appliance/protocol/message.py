"""The datagrams: discovery, first contact, known-peer exchange, envelope of a session.

Every datagram begins with ``RD``, the version and the type.  ``parse`` raises
MessageError and nothing else, whatever the bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import ClassVar

from . import cookies
from .wire import Fixed, Layout, MessageError, Number, Word, get_fields, put_fields

MAGIC = b"RD\x01"
HEADER = len(MAGIC) + 1
MAX_DATAGRAM = 1200  # fits every IPv6 path (RFC 8200, 5: 1280) and almost every IPv4 path
NO_COOKIE = bytes(cookies.SIZE)
_INDEX, _NONCE, _MAC = Number(4), Fixed(16), Fixed(16)


class Type(IntEnum):
    HELLO = 1
    HELLO_ACK = 2
    CONTACT_1 = 3
    CONTACT_2 = 4
    CONTACT_3 = 5
    CONTACT_4 = 6
    K1 = 7
    K2 = 8
    K3 = 9
    COOKIE = 10
    DATA = 11
    UNKNOWN = 12


class Chain(IntEnum):
    """Which of the initiator's chains both sides have; NONE: resynchronise by the root."""

    CURRENT = 0
    PREVIOUS = 1
    NONE = 2


@dataclass(frozen=True, slots=True)
class Hello:
    """Is there a daemon?  Names nobody; longer than any answer to it."""

    nonce: bytes
    TYPE: ClassVar[Type] = Type.HELLO
    SIZE: ClassVar[int] = 64
    LAYOUT: ClassVar[Layout] = (("nonce", _NONCE),)


@dataclass(frozen=True, slots=True)
class HelloAck:
    nonce: bytes
    cookie: bytes
    TYPE: ClassVar[Type] = Type.HELLO_ACK
    SIZE: ClassVar[int] = 0
    LAYOUT: ClassVar[Layout] = (("nonce", _NONCE), ("cookie", Fixed(cookies.SIZE)))


@dataclass(frozen=True, slots=True)
class Contact1:
    """``public``: X25519 public key, made for this contact alone."""

    nonce: bytes
    cookie: bytes
    public: bytes
    TYPE: ClassVar[Type] = Type.CONTACT_1
    SIZE: ClassVar[int] = 112
    LAYOUT: ClassVar[Layout] = (
        ("nonce", _NONCE),
        ("cookie", Fixed(cookies.SIZE)),
        ("public", Fixed(32)),
    )


@dataclass(frozen=True, slots=True)
class Contact2:
    """``sealed``: the responder's host ID under the key ``seal responder``."""

    nonce: bytes
    public: bytes
    sealed: bytes
    TYPE: ClassVar[Type] = Type.CONTACT_2
    SIZE: ClassVar[int] = 0
    LAYOUT: ClassVar[Layout] = (("nonce", _NONCE), ("public", Fixed(32)), ("sealed", Fixed(32)))


@dataclass(frozen=True, slots=True)
class Contact3:
    """``sealed``: the initiator's host ID under the key ``seal initiator``."""

    nonce: bytes
    sealed: bytes
    TYPE: ClassVar[Type] = Type.CONTACT_3
    SIZE: ClassVar[int] = 0
    LAYOUT: ClassVar[Layout] = (("nonce", _NONCE), ("sealed", Fixed(32)))


@dataclass(frozen=True, slots=True)
class Contact4:
    """``mac`` under the new root: the responder has the pair on disk."""

    nonce: bytes
    mac: bytes
    TYPE: ClassVar[Type] = Type.CONTACT_4
    SIZE: ClassVar[int] = 0
    LAYOUT: ClassVar[Layout] = (("nonce", _NONCE), ("mac", _MAC))


@dataclass(frozen=True, slots=True)
class K1:
    """``handle`` names the pair; the checks tell, bound to the nonce, which chains we have."""

    handle: bytes
    nonce: bytes
    index: int
    check: bytes
    check_previous: bytes
    cookie: bytes
    mac: bytes
    TYPE: ClassVar[Type] = Type.K1
    SIZE: ClassVar[int] = 0
    LAYOUT: ClassVar[Layout] = (
        ("handle", Fixed(8)),
        ("nonce", _NONCE),
        ("index", _INDEX),
        ("check", _MAC),
        ("check_previous", _MAC),
        ("cookie", Fixed(cookies.SIZE)),
        ("mac", _MAC),
    )


@dataclass(frozen=True, slots=True)
class K2:
    """``to``: the index out of K1; ``index``: where the responder receives."""

    to: int
    nonce: bytes
    index: int
    chain: Chain
    check: bytes
    check_previous: bytes
    mac: bytes
    TYPE: ClassVar[Type] = Type.K2
    SIZE: ClassVar[int] = 0
    LAYOUT: ClassVar[Layout] = (
        ("to", _INDEX),
        ("nonce", _NONCE),
        ("index", _INDEX),
        ("chain", Word(Chain)),
        ("check", _MAC),
        ("check_previous", _MAC),
        ("mac", _MAC),
    )


@dataclass(frozen=True, slots=True)
class K3:
    to: int
    mac: bytes
    TYPE: ClassVar[Type] = Type.K3
    SIZE: ClassVar[int] = 0
    LAYOUT: ClassVar[Layout] = (("to", _INDEX), ("mac", _MAC))


@dataclass(frozen=True, slots=True)
class Cookie:
    """Send K1 again with this cookie: the responder is under load."""

    nonce: bytes
    cookie: bytes
    TYPE: ClassVar[Type] = Type.COOKIE
    SIZE: ClassVar[int] = 0
    LAYOUT: ClassVar[Layout] = (("nonce", _NONCE), ("cookie", Fixed(cookies.SIZE)))


@dataclass(frozen=True, slots=True)
class Data:
    """A session's packet: ``payload`` is a row of frames (frames.py)."""

    to: int
    counter: int
    payload: bytes
    mac: bytes
    TYPE: ClassVar[Type] = Type.DATA


@dataclass(frozen=True, slots=True)
class Unknown:
    """No session has the index ``to``; ``mac`` is the one of the packet that named it.

    Not authenticated: it may at most cause one K1.
    """

    to: int
    mac: bytes
    TYPE: ClassVar[Type] = Type.UNKNOWN
    SIZE: ClassVar[int] = 0
    LAYOUT: ClassVar[Layout] = (("to", _INDEX), ("mac", _MAC))


Plain = (
    Hello | HelloAck | Contact1 | Contact2 | Contact3 | Contact4 | K1 | K2 | K3 | Cookie | Unknown
)
Message = Plain | Data
PLAIN: tuple[type[Plain], ...] = (
    Hello, HelloAck, Contact1, Contact2, Contact3, Contact4, K1, K2, K3, Cookie, Unknown,
)  # fmt: skip
_KINDS: dict[int, type[Plain]] = {kind.TYPE: kind for kind in PLAIN}
DATA_OVERHEAD = HEADER + 4 + 8 + 16


def encode(message: Plain) -> bytes:
    return MAGIC + bytes((message.TYPE,)) + put_fields(message)


def data_head(to: int, counter: int) -> bytes:
    """The bytes before the payload; the MAC covers them and the payload."""
    return MAGIC + bytes((Type.DATA,)) + to.to_bytes(4, "big") + counter.to_bytes(8, "big")


def parse(data: bytes) -> Message:
    """One datagram; MessageError on anything that is not exactly one message."""
    if len(data) > MAX_DATAGRAM:
        raise MessageError(f"{len(data)} bytes are too many")
    if len(data) < HEADER or data[:3] != MAGIC:
        raise MessageError("not a datagram of this protocol and version")
    number = data[3]
    if number == Type.DATA:
        if len(data) < DATA_OVERHEAD:
            raise MessageError("session packet cut short")
        return Data(
            int.from_bytes(data[4:8], "big"),
            int.from_bytes(data[8:16], "big"),
            data[16:-16],
            data[-16:],
        )
    kind = _KINDS.get(number)
    if kind is None:
        raise MessageError(f"unknown type {number}")
    return get_fields(kind, data[HEADER:])
