"""pf's state table, from the parent that may read it to the engine that understands it.

No pledge allows DIOCGETSTATES, so the parent asks the kernel and hands the bytes on as
they are; the engine parses them.  At the start the records are compared with the text
of pfctl once: should a kernel have another layout, the text is used instead.
"""

from __future__ import annotations

import array
import fcntl
import itertools
import logging
import os
import socket
import struct
from collections.abc import Callable, Iterable, Iterator
from typing import Final, Literal

from ..api import BackendError
from .pfctl import Pfctl
from .pfstates import RECORD, PfState, StateError, parse_records, parse_text

log = logging.getLogger("redirectd.openbsd")

DIOCGETSTATES: Final = 0xC0104419
Form = Literal["records", "text"]
_FORMS: Final[tuple[Form, ...]] = ("records", "text")

#: one message of the channel: number of the dump, form, whether it is the last, data
_HEAD = struct.Struct("=IBB")
CHUNK: Final = 31 * RECORD
CHANNEL_BUFFER: Final = 256 * 1024
DUMP_MOST: Final = 64 * 1024 * 1024

#: states made between the two readings of the check, and one tick of a clock, may differ
TRIES: Final = 5


def read_records(fd: int, ask: Callable[[int, bytearray], object] | None = None) -> bytes:
    """All ``pfsync_state`` records.  ``fd``: /dev/pf, read-only is enough."""
    call = ask or (lambda number, argument: fcntl.ioctl(number, DIOCGETSTATES, argument))
    room = 0
    for _ in range(8):
        buffer = array.array("B", bytes(room))
        address, _ = buffer.buffer_info()
        argument = bytearray(struct.pack("=QQ", room, address if room else 0))
        call(fd, argument)
        (length, _) = struct.unpack("=QQ", argument)
        # a length of nothing asks how much there is; a full buffer may have been too small
        if room and length <= room - RECORD:
            return buffer.tobytes()[:length]
        room = min(DUMP_MOST, int(length * 1.25) // RECORD * RECORD + 64 * RECORD)
    raise BackendError("the state table grows faster than it can be read")


def same_states(records: Iterable[PfState], text: Iterable[PfState]) -> str | None:
    """None when both forms tell the same of the states that both know, else what differs.

    Numbers that traffic changes are not compared, nor other protocols than TCP (whose names
    and ports each form writes in its own way).
    """
    by_id = {state.state_id: state for state in text}
    known = 0
    for record in records:
        other = by_id.get(record.state_id)
        if other is None:
            continue
        known += 1
        for field in ("creatorid", "ifname", "proto", "direction", "wire", "stack", "sloppy"):
            mine, theirs = getattr(record, field), getattr(other, field)
            if mine != theirs and "tcp" in (record.proto, other.proto):
                return f"{field} of state {record.state_id}: {mine} and {theirs}"
    if by_id and not known:
        return "no state of the one is in the other"
    return None


class StateSource:
    """The parent's half: reads, checks once, sends."""

    def __init__(self, fd: int, pfctl: Pfctl, channel: socket.socket) -> None:
        self._fd, self._pfctl, self._channel = fd, pfctl, channel
        self._numbers = itertools.count(1)
        self.form: Form = "records"

    def check(self) -> str | None:
        """Choose the form; why it is the text, None when the records are right."""
        why: str | None = None
        for _ in range(TRIES):
            try:
                records = list(parse_records(read_records(self._fd)))
                why = same_states(records, parse_text(self._pfctl.states()))
            except (OSError, StateError, BackendError) as fault:
                why = str(fault)
            if why is None:
                self.form = "records"
                return None
        self.form = "text"
        return why

    def states(self) -> list[PfState]:
        """For the parent's own few questions."""
        if self.form == "records":
            return list(parse_records(read_records(self._fd)))
        return list(parse_text(self._pfctl.states()))

    def send(self) -> None:
        """One whole dump into the channel."""
        data = (
            read_records(self._fd)
            if self.form == "records"
            else self._pfctl.states().encode("ascii", "replace")
        )
        try:
            for message in messages(next(self._numbers), self.form, data):
                self._channel.send(message)
        except (BrokenPipeError, ConnectionError, TimeoutError) as fault:
            raise BackendError(f"the engine does not take the state table: {fault}") from None


def messages(number: int, form: Form, data: bytes) -> Iterator[bytes]:
    """A dump as messages of at most CHUNK bytes of data; an empty one is one message."""
    parts = [data[at : at + CHUNK] for at in range(0, len(data), CHUNK)] or [b""]
    for at, part in enumerate(parts, 1):
        yield _HEAD.pack(number & 0xFFFFFFFF, _FORMS.index(form), at == len(parts)) + part


class Assembler:
    """The engine's half: messages in, whole dumps out.

    An engine that starts anew may find the rest of an earlier dump: a dump whose
    beginning it has not seen is thrown away.
    """

    def __init__(self) -> None:
        self._number: int | None = None
        self._parts: list[bytes] = []
        self._size = 0

    def take(self, message: bytes) -> list[PfState] | None:
        """The states of a dump that is whole now; StateError when it can't be read."""
        if len(message) < _HEAD.size:
            raise StateError(f"a message of {len(message)} bytes")
        number, form, last = _HEAD.unpack_from(message)
        if number != self._number:
            self._number, self._parts, self._size = number, [], 0
        self._parts.append(message[_HEAD.size :])
        self._size += len(message)
        if self._size > DUMP_MOST:
            raise StateError("a dump without end")
        if not last:
            return None
        data, self._number, self._parts = b"".join(self._parts), None, []
        if form >= len(_FORMS):
            raise StateError(f"form {form}")
        if _FORMS[form] == "records":
            return list(parse_records(data))
        return list(parse_text(data.decode("ascii", "replace")))


def open_channel() -> tuple[socket.socket, socket.socket]:
    """(parent's end, engine's end): messages keep their bounds (SOCK_SEQPACKET)."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in (ours, theirs):
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            end.setsockopt(socket.SOL_SOCKET, option, CHANNEL_BUFFER)
    ours.settimeout(5.0)
    theirs.setblocking(False)
    return ours, theirs


def open_pf() -> int:
    """/dev/pf, read-only; it works on after setuid."""
    try:
        return os.open("/dev/pf", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as fault:
        raise BackendError(f"/dev/pf: {fault.strerror}; start redirectd as root") from None
