"""A socket filter: of connection tracking events, only those that say something to us.

A busy server opens thousands of connections a second, and the kernel tells each step of
each.  Of interest are the moment when one is established, its end, and entries that go
although their connection has not ended.  The program (classic BPF, linux/filter.h) is
pure; :func:`attach` gives it to a socket.
"""

from __future__ import annotations

import array
import socket
import struct
import sys
from collections.abc import Sequence

from . import ctnetlink
from .nfnl import NFNL_SUBSYS_CTNETLINK

SO_ATTACH_FILTER = 26

# linux/bpf_common.h
_CODES = {
    "ldb": 0x30,  # A = byte at k
    "ldbx": 0x50,  # A = byte at X + k
    "ld": 0x00,  # A = k
    "ldx": 0x01,  # X = k
    "ldm": 0x60,  # A = M[k]
    "st": 0x02,  # M[k] = A
    "tax": 0x07,
    "txa": 0x87,
    "find": 0x20,  # A = where the attribute of type X is, from A on; 0: nowhere
    "nested": 0x20,  # the same inside the attribute at A
    "jeq": 0x15,
    "jset": 0x45,
    "ret": 0x06,
}
_NLATTR, _NLATTR_NEST = 0xFFFFF000 + 12, 0xFFFFF000 + 16  # SKF_AD_OFF, -0x1000
_INSTRUCTION = struct.Struct("=HBBI")

_Step = tuple[str, int] | tuple[str, int, str] | str  # a jump has a label, a label is alone

# struct nlmsghdr: both halves of the type, the low half of the flags
_LOW, _HIGH = (0, 1) if sys.byteorder == "little" else (1, 0)
_MESSAGE, _SUBSYSTEM, _FLAGS = 4 + _LOW, 4 + _HIGH, 6 + _LOW
_NLM_F_MULTI = 0x2
_FIRST_ATTRIBUTE = 16 + 4  # behind struct nlmsghdr and struct nfgenmsg
_DELETE = ctnetlink.CT_DELETE & 0xFF

# States of which an update is read, and in which the end of an entry is: after TIME-WAIT
# or CLOSE the update has said it, before ESTABLISHED there was nothing to keep.
ENDS = (
    ctnetlink.ESTABLISHED, ctnetlink.FIN_WAIT, ctnetlink.CLOSE_WAIT, ctnetlink.LAST_ACK,
)  # fmt: skip
UPDATES = (*ENDS, ctnetlink.TIME_WAIT, ctnetlink.CLOSE)


def _walk(kinds: Sequence[int], missing: str) -> list[_Step]:
    """Leave A at the value of an attribute inside attributes."""
    steps: list[_Step] = [("ld", _FIRST_ATTRIBUTE)]
    for depth, kind in enumerate(kinds):
        steps += [
            ("ldx", kind),
            ("nested", _NLATTR_NEST) if depth else ("find", _NLATTR),
            ("jeq", 0, missing),
        ]
    return [*steps, ("tax", 0), ("ldbx", 4)]


def program() -> bytes:
    """The instructions, as struct sock_filter."""
    steps: list[_Step] = [
        # Parts of dumps and errors pass.
        ("ldb", _SUBSYSTEM),
        ("jeq", NFNL_SUBSYS_CTNETLINK, "event"),
        "pass",
        ("ret", 0xFFFFFFFF),
        "event",
        ("ldb", _FLAGS),
        ("jset", _NLM_F_MULTI, "dumped"),
        ("ldb", _MESSAGE),
        ("st", 0),
        # CTA_PROTOINFO, CTA_PROTOINFO_TCP, CTA_PROTOINFO_TCP_STATE
        *_walk((4, 1, 1), "stateless"),
        ("st", 1),
        ("ldm", 0),
        ("jeq", _DELETE, "end"),
        ("ldm", 1),
        *(("jeq", state, "wanted") for state in UPDATES),
        ("ret", 0),
        "end",
        ("ldm", 1),
        *(("jeq", state, "wanted") for state in ENDS),
        ("ret", 0),
        # Older kernels don't tell the state of an entry that ends.
        "stateless",
        ("ldm", 0),
        ("jeq", _DELETE, "which"),
        ("ret", 0),
        # CTA_TUPLE_ORIG, CTA_TUPLE_PROTO, CTA_PROTO_NUM
        "which",
        *_walk((1, 2, 1), "nothing"),
        ("jeq", ctnetlink.TCP, "wanted"),
        "nothing",
        ("ret", 0),
        "dumped",
        "wanted",
        ("ret", 0xFFFFFFFF),
    ]
    return _assemble(steps)


def _assemble(steps: Sequence[_Step]) -> bytes:
    places: dict[str, int] = {}
    plain: list[tuple[str, int] | tuple[str, int, str]] = []
    for step in steps:
        if isinstance(step, str):
            places[step] = len(plain)
        else:
            plain.append(step)
    parts = []
    for at, instruction in enumerate(plain):
        ahead = places[instruction[2]] - at - 1 if len(instruction) == 3 else 0
        parts.append(_INSTRUCTION.pack(_CODES[instruction[0]], ahead, 0, instruction[1]))
    return b"".join(parts)


def attach(sock: socket.socket) -> None:
    code = array.array("B", program())
    address, size = code.buffer_info()
    sock.setsockopt(
        socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("@HP", size // _INSTRUCTION.size, address)
    )
