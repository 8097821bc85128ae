"""netlink(7): the bytes of messages and attributes, and a thin socket.

The codec is pure.  Attributes that do not fit their message end the parsing of it:
what stands before them is kept, nothing is guessed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from ..api import BackendError

NETLINK_ROUTE = 0
NETLINK_SOCK_DIAG = 4
NETLINK_NETFILTER = 12

NLM_F_REQUEST = 0x1
NLM_F_ACK = 0x4
NLM_F_REPLACE = 0x100
NLM_F_EXCL = 0x200
NLM_F_CREATE = 0x400
NLM_F_DUMP = 0x300

NLMSG_NOOP = 1
NLMSG_ERROR = 2
NLMSG_DONE = 3

NLA_F_NESTED = 0x8000
NLA_TYPE_MASK = 0x3FFF

SOL_NETLINK = 270
NETLINK_ADD_MEMBERSHIP = 1
NETLINK_EXT_ACK = 11
SO_SNDBUFFORCE = 32
SO_RCVBUFFORCE = 33

_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_ERRNO = struct.Struct("=i")

RECEIVE_SIZE = 256 * 1024  # the kernel's dumps come in pieces of at most 32 KiB


@dataclass(frozen=True, slots=True)
class Message:
    """One netlink message without its header."""

    kind: int
    flags: int
    seq: int
    payload: memoryview

    @property
    def error(self) -> int | None:
        """errno of an NLMSG_ERROR (0: acknowledged); None for other messages."""
        if self.kind != NLMSG_ERROR or len(self.payload) < 4:
            return None
        number: int = _ERRNO.unpack_from(self.payload)[0]
        return -number


def message(kind: int, flags: int, seq: int, payload: bytes) -> bytes:
    return _pad(_HEADER.pack(16 + len(payload), kind, flags, seq, 0) + payload)


def attribute(kind: int, value: bytes) -> bytes:
    """ValueError when ``value`` is longer than an attribute can say (65,531 bytes)."""
    if len(value) > 0xFFFF - 4:
        raise ValueError(f"netlink attribute {kind} with {len(value)} bytes")
    return _pad(_ATTRIBUTE.pack(4 + len(value), kind) + value)


def nested(kind: int, *attributes: bytes) -> bytes:
    return attribute(kind | NLA_F_NESTED, b"".join(attributes))


def _pad(data: bytes) -> bytes:
    return data + bytes(-len(data) & 3)


def parse(data: bytes | memoryview) -> Iterator[Message]:
    """The messages of one datagram; a message that does not fit ends it."""
    view = memoryview(data)
    offset, end = 0, len(view)
    while offset + 16 <= end:
        length, kind, flags, seq, _ = _HEADER.unpack_from(view, offset)
        if length < 16 or offset + length > end:
            return
        yield Message(kind, flags, seq, view[offset + 16 : offset + length])
        offset += length + (-length & 3)


def attributes(view: memoryview, offset: int = 0) -> dict[int, memoryview]:
    """Attribute type -> value, from ``offset`` on; the last of its type counts."""
    found: dict[int, memoryview] = {}
    end = len(view)
    while offset + 4 <= end:
        length, kind = _ATTRIBUTE.unpack_from(view, offset)
        if length < 4 or offset + length > end:
            break
        found[kind & NLA_TYPE_MASK] = view[offset + 4 : offset + length]
        offset += length + (-length & 3)
    return found


def u16be(value: memoryview | None) -> int | None:
    return None if value is None or len(value) != 2 else int.from_bytes(value, "big")


def u32be(value: memoryview | None) -> int | None:
    return None if value is None or len(value) != 4 else int.from_bytes(value, "big")


class NetlinkError(BackendError):
    """The kernel answered with an error; ``errno`` tells which."""

    def __init__(self, what: str, number: int) -> None:
        super().__init__(f"{what}: {os.strerror(number)}")
        self.errno = number


class NetlinkSocket:
    """A netlink socket, used either for requests or for notifications.

    groups   multicast groups to join, by number
    receive  wanted size of the receive buffer in bytes; beyond the system's limit
             where CAP_NET_ADMIN allows it
    """

    def __init__(
        self, protocol: int, groups: tuple[int, ...] = (), receive: int = 0, send: int = 0
    ) -> None:
        self.sock = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol
        )
        self.sock.bind((0, 0))
        for size, forced, plain in (
            (receive, SO_RCVBUFFORCE, socket.SO_RCVBUF),
            (send, SO_SNDBUFFORCE, socket.SO_SNDBUF),
        ):
            if size:
                try:
                    self.sock.setsockopt(socket.SOL_SOCKET, forced, size)
                except PermissionError:
                    self.sock.setsockopt(socket.SOL_SOCKET, plain, size)
        for group in groups:
            self.sock.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group)
        self._seq = 0
        self.overrun = False

    def fileno(self) -> int:
        return self.sock.fileno()

    def close(self) -> None:
        self.sock.close()

    def next_seq(self) -> int:
        self._seq = self._seq % 0x7FFFFFFF + 1
        return self._seq

    def send(self, data: bytes) -> None:
        self.sock.send(data)

    def notifications(self, most: int) -> Iterator[Message]:
        """What is waiting, at most ``most`` datagrams; sets ``overrun`` on a loss."""
        for _ in range(most):
            try:
                data = self.sock.recv(RECEIVE_SIZE, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except OSError as fault:
                if fault.errno != errno.ENOBUFS:
                    raise
                self.overrun = True
                continue
            yield from parse(data)

    def request(self, what: str, kind: int, flags: int, payload: bytes) -> list[Message]:
        """Send one request and wait for the whole answer; NetlinkError names ``what``."""
        seq = self.next_seq()
        dump = flags & NLM_F_DUMP == NLM_F_DUMP
        flags |= NLM_F_REQUEST | (0 if dump else NLM_F_ACK)
        self.send(message(kind, flags, seq, payload))
        answer: list[Message] = []
        while True:
            for part in parse(self.sock.recv(RECEIVE_SIZE)):
                if part.seq != seq:
                    continue  # the rest of an answer that was given up
                if part.kind == NLMSG_DONE:
                    return answer
                number = part.error
                if number is None:
                    answer.append(part)
                elif number:
                    raise NetlinkError(what, number)
                else:
                    return answer

    def batch(self, what: str, messages: list[tuple[int, int, bytes]]) -> list[int]:
        """Send requests as one datagram; the errno of each (0: done)."""
        seqs: dict[int, int] = {}
        parts = []
        for index, (kind, flags, payload) in enumerate(messages):
            seq = self.next_seq()
            seqs[seq] = index
            parts.append(message(kind, flags | NLM_F_REQUEST | NLM_F_ACK, seq, payload))
        results = [-1] * len(messages)
        for first in range(0, len(parts), 64):
            self.send(b"".join(parts[first : first + 64]))
            waiting = len(parts[first : first + 64])
            while waiting:
                for part in parse(self.sock.recv(RECEIVE_SIZE)):
                    number, place = part.error, seqs.get(part.seq)
                    if number is not None and place is not None and results[place] < 0:
                        results[place] = number
                        waiting -= 1
        return results


def ignoring(*numbers: int) -> contextlib.AbstractContextManager[None]:
    """Lets a request fail with one of these errno values."""
    return _Ignoring(numbers)


class _Ignoring(contextlib.AbstractContextManager[None]):
    def __init__(self, numbers: tuple[int, ...]) -> None:
        self._numbers = numbers

    def __exit__(self, kind: object, fault: BaseException | None, trace: object) -> bool:
        return isinstance(fault, NetlinkError) and fault.errno in self._numbers
