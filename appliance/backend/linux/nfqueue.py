"""NFQUEUE: packets in batches, answered in batches, changed where they were received.

A batch is one recvmmsg(2) and one sendmsg(2).  The verdict of a changed packet is
written into the receive buffer in front of the packet itself, so that answer and
packet leave as one piece and nothing is copied in Python.

Numbers from linux/netfilter/nfnetlink_queue.h; byte order is the machine's in netlink
headers and big-endian in the values.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
from collections.abc import Callable, Iterable
from enum import IntEnum
from typing import Final, NamedTuple, Self

from . import netlink as nl
from .nfnl import family_header

NFNL_SUBSYS_QUEUE: Final = 3
_MSG_PACKET: Final = NFNL_SUBSYS_QUEUE << 8
_MSG_VERDICT: Final = NFNL_SUBSYS_QUEUE << 8 | 1
_MSG_CONFIG: Final = NFNL_SUBSYS_QUEUE << 8 | 2

_CFG_CMD, _CFG_PARAMS, _CFG_MAXLEN, _CFG_MASK, _CFG_FLAGS = 1, 2, 3, 4, 5
_CMD_BIND, _CMD_UNBIND = 1, 2
_COPY_PACKET: Final = 2
_FLAG_FAIL_OPEN, _FLAG_GSO = 1, 4

_PACKET_HDR, _VERDICT_HDR, _MARK, _INDEV, _OUTDEV = 1, 2, 3, 5, 6
_PAYLOAD, _CAP_LEN, _SKB_INFO = 10, 13, 14
_NF_DROP, _NF_ACCEPT = 0, 1

# An attribute says at most 65,535 bytes, its own header included.
MAX_COPY: Final = 0xFFFF - 4
_NETLINK_NO_ENOBUFS: Final = 5

_PREFIX: Final = 20  # nlmsghdr and nfgenmsg
_MAX_HEADERS: Final = 512  # all attributes before the payload; ~100 in fact
_SEND_AT_ONCE: Final = 1 << 20

_HEAD = struct.Struct("=IH")
_ID = struct.Struct("4s")
_ATTRIBUTE = struct.Struct("=HH")
# A verdict: length; the rest of both headers, the verdict attribute and the verdict;
# packet ID; and the header of the payload attribute.
_CHANGED = struct.Struct("=I24s4sHH")
_PLAIN = struct.Struct("=I24s4s")


class Hook(IntEnum):
    """Where in the kernel a packet was queued."""

    PREROUTING = 0
    INPUT = 1
    FORWARD = 2
    OUTPUT = 3
    POSTROUTING = 4


class Info(IntEnum):
    """Bits of a packet's state.

    CSUM_NOT_READY  its transport checksum holds the pseudo-header's sum only
    GSO             a super-packet that will be cut into segments later on
    NOT_VERIFIED    nobody has checked its checksum
    TRUNCATED       (ours) more was there than could be copied: it can't be changed
    """

    CSUM_NOT_READY = 1
    GSO = 2
    NOT_VERIFIED = 4
    TRUNCATED = 1 << 16


class Answer(IntEnum):
    """What ``decide`` says of a packet; KEEP: nothing yet, see :meth:`NfQueue.verdict`."""

    ACCEPT = 0
    ACCEPT_CHANGED = 1
    DROP = 2
    KEEP = 3


_ACCEPT, _ACCEPT_CHANGED, _DROP, _KEEP = Answer

# decide(buffer, offset, length, hook, info): may change the packet in place.
Decide = Callable[[bytearray, int, int, int, int], int]


class Queued(NamedTuple):
    """One packet with all that is known of it, for those who aren't in a hurry."""

    packet_id: int
    data: bytes
    hook: int
    indev: int
    outdev: int
    mark: int
    info: int


class _Layout(NamedTuple):
    """How messages of one shape look: the same attributes in front of the payload.

    payload  index of the payload in the message
    mask     of the bytes from the message's type to the payload, as a little-endian
             number: 1 where the type or an attribute header stands
    heads    what stands there; the length of the payload counts as 0
    info     index of the NFQA_SKB_INFO value; 0: the packet has no such attribute
    truncated  there is an attribute NFQA_CAP_LEN
    """

    payload: int
    mask: int
    heads: int
    info: int
    truncated: bool


class _Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class _Msghdr(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_void_p),
        ("namelen", ctypes.c_uint),
        ("iov", ctypes.POINTER(_Iovec)),
        ("iovlen", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("controllen", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )


class _Mmsghdr(ctypes.Structure):
    _fields_ = (("hdr", _Msghdr), ("length", ctypes.c_uint))


_libc = ctypes.CDLL(None, use_errno=True)


class NfQueue:
    """One NFQUEUE, bound to this process.

    number     queue number
    copy       bytes of each packet that are wanted; a changed packet needs all of it
    length     packets that wait in the kernel at most; the next ones are dropped, or
               accepted unchanged with ``fail_open``
    gso        take super-packets whole (see :class:`Info`); without it the kernel cuts
               them and finishes checksums before they are queued
    fail_open  a full queue lets packets pass: only for packets that may
    slots      packets received in one batch
    receive    bytes of the socket's receive buffer

    BackendError: no permission (CAP_NET_ADMIN), or another process has the queue.
    """

    def __init__(
        self,
        number: int,
        *,
        copy: int = MAX_COPY,
        length: int = 4096,
        gso: bool = True,
        fail_open: bool = False,
        slots: int = 32,
        receive: int = 16 << 20,
    ) -> None:
        self.number, self.length = number, length
        self._socket = nl.NetlinkSocket(nl.NETLINK_NETFILTER, receive=receive, send=8 << 20)
        try:
            self._configure(number, copy, length, gso, fail_open)
        except BaseException:
            self._socket.close()
            raise
        self._fd = self._socket.fileno()
        self._prepare(number, copy, slots)

    def _configure(self, number: int, copy: int, length: int, gso: bool, fail_open: bool) -> None:
        head = family_header(0, number)
        flags = (_FLAG_GSO if gso else 0) | (_FLAG_FAIL_OPEN if fail_open else 0)
        # One request each: the kernel looks for the queue before it reads the command.
        for attributes in (
            nl.attribute(_CFG_CMD, struct.pack(">BxH", _CMD_BIND, 0)),
            nl.attribute(_CFG_PARAMS, struct.pack(">IB", copy, _COPY_PACKET)),
            nl.attribute(_CFG_MAXLEN, struct.pack(">I", length)),
            nl.attribute(_CFG_FLAGS, struct.pack(">I", flags))
            + nl.attribute(_CFG_MASK, struct.pack(">I", _FLAG_GSO | _FLAG_FAIL_OPEN)),
        ):
            self._socket.request(f"NFQUEUE {number}", _MSG_CONFIG, 0, head + attributes)
        # A full receive buffer loses packets in either case; it need not be an error too.
        self._socket.sock.setsockopt(nl.SOL_NETLINK, _NETLINK_NO_ENOBUFS, 1)
        self._socket.sock.setblocking(False)

    def _prepare(self, number: int, copy: int, slots: int) -> None:
        """Everything but the socket."""
        self.errors = 0
        self.malformed = 0
        self._slot = (copy + _MAX_HEADERS + 63) & ~63
        self._slots = slots
        self._buffer = bytearray(self._slot * slots)
        self._view = memoryview(self._buffer)
        self._headers = self._make_headers()
        self._lengths = struct.Struct(f"={ctypes.sizeof(_Mmsghdr) // 4 * slots}I")
        self._length_at = _Mmsghdr.length.offset // 4
        self._layouts: dict[int, _Layout] = {}
        self._current = 0
        common = struct.pack("=HHII", _MSG_VERDICT, nl.NLM_F_REQUEST, 0, 0)
        common += family_header(0, number) + _ATTRIBUTE.pack(12, _VERDICT_HDR)
        self._accept = common + struct.pack(">I", _NF_ACCEPT)
        self._drop = common + struct.pack(">I", _NF_DROP)

    def _make_headers(self) -> ctypes.Array[_Mmsghdr]:
        base = ctypes.addressof(ctypes.c_char.from_buffer(self._buffer))
        headers = (_Mmsghdr * self._slots)()
        self._iovecs = (_Iovec * self._slots)()
        for i in range(self._slots):
            self._iovecs[i].base = base + i * self._slot
            self._iovecs[i].length = self._slot
            headers[i].hdr.iov = ctypes.pointer(self._iovecs[i])
            headers[i].hdr.iovlen = 1
        return headers

    def fileno(self) -> int:
        """Readable when packets wait."""
        return self._fd

    def close(self) -> None:
        """Give the queue back; the kernel drops what has no verdict yet."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *fault: object) -> None:
        self.close()

    def dispatch(self, decide: Decide, limit: int = 256) -> int:
        """Answer what waits, ``limit`` packets at most (rounded up to a batch); how many.

        ``decide(buffer, offset, length, hook, info)`` gives an :class:`Answer`; what it
        raises is raised here, after the answers before it have been sent.
        """
        done = 0
        while done < limit:
            count = self._receive()
            if count:
                done += self._answer(decide, count)
            if count < self._slots:
                break
        return done

    def current_id(self) -> int:
        """ID of the packet that ``decide`` is being asked about; for KEEP."""
        start = self._current + _PREFIX + 4
        return int.from_bytes(self._buffer[start : start + 4], "big")

    def _receive(self) -> int:
        count: int = _libc.recvmmsg(self._fd, self._headers, self._slots, socket.MSG_DONTWAIT, None)
        if count >= 0:
            return count
        number = ctypes.get_errno()
        if number in (errno.EAGAIN, errno.EINTR, errno.ENOBUFS):
            return 0
        raise OSError(number, os.strerror(number))

    def _answer(self, decide: Decide, count: int) -> int:
        buffer, view, layouts = self._buffer, self._view, self._layouts
        lengths = self._lengths.unpack_from(self._headers)[self._length_at :: _STRIDE]
        pieces: list[memoryview] = []
        size = packets = 0
        base = -self._slot
        try:
            for i in range(count):
                base += self._slot
                layout = layouts.get(buffer[base + _HOOK])
                if (
                    layout is None
                    or lengths[i] < layout.payload
                    or (
                        int.from_bytes(buffer[base + 4 : base + layout.payload], "little")
                        & layout.mask
                        != layout.heads
                    )
                ):
                    layout = self._read_layout(base, lengths[i])
                    if layout is None:
                        continue
                offset = base + layout.payload
                length = lengths[i] - layout.payload
                info = buffer[base + layout.info + 3] if layout.info else 0
                if layout.truncated:
                    info |= _TRUNCATED
                self._current = base
                packets += 1
                answer = decide(buffer, offset, length, buffer[base + _HOOK], info)
                packet_id = buffer[base + 24 : base + 28]
                if answer == _ACCEPT_CHANGED and not info & _TRUNCATED:
                    start = offset - 36
                    _CHANGED.pack_into(
                        buffer, start, 36 + length, self._accept, packet_id, 4 + length, _PAYLOAD
                    )
                    pieces.append(view[start : offset + (length + 3 & ~3)])
                    size += length
                elif answer != _KEEP:
                    start = offset - 36
                    # What was cut off can't be put back: a changed stump is no packet.
                    verdict = self._accept if answer == _ACCEPT else self._drop
                    _PLAIN.pack_into(buffer, start, 32, verdict, packet_id)
                    pieces.append(view[start : start + 32])
                if size > _SEND_AT_ONCE:
                    self._send(pieces)
                    pieces, size = [], 0
        finally:
            if pieces:
                self._send(pieces)
        return packets

    def _read_layout(self, base: int, length: int) -> _Layout | None:
        """Walk a message of a shape not seen last; None: it is no packet."""
        view = self._view[base : base + length]
        if length < _PREFIX + 16 or _HEAD.unpack_from(view)[1] != _MSG_PACKET:
            self._note(view)
            return None
        at, info, truncated = _PREFIX, 0, False
        mask, heads = 0xFFFF, int.from_bytes(view[4:6], "little")
        while at + 4 <= length:
            size, kind = _ATTRIBUTE.unpack_from(view, at)
            shift = (at - 4) * 8
            if (at == _PREFIX) != (kind == _PACKET_HDR and size == 11):
                break  # struct nfqnl_msg_packet_hdr comes first, and once
            if kind == _PAYLOAD:
                # The last attribute, not padded; the fast way relies on both.
                if at + size != length or at > _MAX_HEADERS:
                    break
                mask |= 0xFFFF << shift + 16
                heads |= int.from_bytes(view[at + 2 : at + 4], "little") << shift + 16
                layout = _Layout(at + 4, mask, heads, info, truncated)
                self._layouts[view[_HOOK]] = layout
                return layout
            if size < 4 or at + size > length:
                break
            mask |= 0xFFFFFFFF << shift
            heads |= int.from_bytes(view[at : at + 4], "little") << shift
            if kind == _SKB_INFO:
                info = at + 4
            truncated = truncated or kind == _CAP_LEN
            at += size + 3 & ~3
        self.malformed += 1
        return None

    def _note(self, view: memoryview) -> None:
        """An error means that a verdict came too late, or that it named no packet."""
        for part in nl.parse(view):
            if part.error:
                self.errors += 1

    def _send(self, pieces: list[memoryview]) -> None:
        # More pieces than IOV_MAX (1,024) can't come together: a batch is ``slots``.
        while pieces:
            try:
                self._socket.sock.sendmsg(pieces)
                return
            except BlockingIOError:
                continue  # netlink handles a request within the call: nothing to wait for
            except OSError as fault:
                if fault.errno not in (errno.EMSGSIZE, errno.ENOBUFS) or len(pieces) == 1:
                    raise
            half = len(pieces) // 2
            self._send(pieces[:half])
            pieces = pieces[half:]

    # One by one, for packets that were kept and for tools.

    def receive(self, limit: int = 1) -> list[Queued]:
        """Packets that wait, without answering them; at most ``limit``."""
        found: list[Queued] = []
        for _ in range(limit):
            try:
                size = self._socket.sock.recv_into(self._view[: self._slot])
            except (BlockingIOError, InterruptedError):
                break
            view = self._view[:size]
            for part in nl.parse(view):
                if part.kind != _MSG_PACKET:
                    self._note(view)
                    continue
                packet = _queued(nl.attributes(part.payload, 4))
                if packet is None:
                    self.malformed += 1
                else:
                    found.append(packet)
        return found

    def verdict(self, packet_id: int, accept: bool, data: bytes | None = None) -> None:
        """Answer a packet that was kept or received; ``data``: what goes on in its place.

        ValueError: ``data`` is longer than NFQUEUE can take back.
        """
        self.verdicts([packet_id], accept, data)

    def verdicts(self, packet_ids: Iterable[int], accept: bool, data: bytes | None = None) -> None:
        """The same answer to several."""
        head = self._accept if accept else self._drop
        tail = b"" if data is None else nl.attribute(_PAYLOAD, data)
        pieces = []
        for packet_id in packet_ids:
            raw = packet_id.to_bytes(4, "big")
            pieces.append(memoryview(_PLAIN.pack(32 + len(tail), head, raw) + tail))
        for first in range(0, len(pieces), 256):
            self._send(pieces[first : first + 256])


def _queued(found: dict[int, memoryview]) -> Queued | None:
    head, payload = found.get(_PACKET_HDR), found.get(_PAYLOAD)
    if head is None or len(head) < 7 or payload is None:
        return None
    info = nl.u32be(found.get(_SKB_INFO)) or 0
    if _CAP_LEN in found:
        info |= _TRUNCATED
    return Queued(
        int.from_bytes(head[:4], "big"),
        bytes(payload),
        head[6],
        nl.u32be(found.get(_INDEV)) or 0,
        nl.u32be(found.get(_OUTDEV)) or 0,
        nl.u32be(found.get(_MARK)) or 0,
        info,
    )


_HOOK: Final = _PREFIX + 4 + 6
_STRIDE: Final = ctypes.sizeof(_Mmsghdr) // 4
_TRUNCATED: Final = int(Info.TRUNCATED)
