"""pf's states, from both of their forms, to one shape.  Pure.

*Binary*: ``pfsync_state`` records of 264 bytes, as the ioctl DIOCGETSTATES hands them
out.  *Text*: what ``pfctl -ss -vv`` prints.  Both give the same :class:`PfState`, except
for what the text does not print (see there).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Final, Literal

from ...rewrite.flow import Address, Endpoint

RECORD: Final = 264
PF_IN, PF_OUT = 1, 2
AF_INET, AF_INET6 = 2, 24
TCP: Final = 6

ESTABLISHED, FIN_WAIT_2, TIME_WAIT = 4, 9, 10
TCP_STATES: Final = (
    "CLOSED", "LISTEN", "SYN_SENT", "SYN_RCVD", "ESTABLISHED", "CLOSE_WAIT", "FIN_WAIT_1",
    "CLOSING", "LAST_ACK", "FIN_WAIT_2", "TIME_WAIT",
)  # fmt: skip
PROXY_SRC, PROXY_DST = 11, 12  # synproxy: pf itself speaks to one end
FLAG_SLOPPY: Final = 0x0002
NO_NUMBER: Final = 0xFFFFFFFF
_PROTOCOLS: Final = {1: "icmp", 2: "igmp", TCP: "tcp", 17: "udp", 47: "gre", 58: "ipv6-icmp"}
_SCRUB_VALID: Final = 0x01
_TIMESTAMP: Final = 0x0001  # PFSS_TIMESTAMP: reassemble tcp modulates timestamps

_KEY = struct.Struct(">16s16sHHHB")  # addr[2] port[2] rdomain af
_PEER = struct.Struct(">HBBIIIIHHBB")  # scrub(flags ttl flag ts_mod) seqlo seqhi seqdiff …
_TAIL = struct.Struct(">IIIII")  # rule anchor nat_rule creation expire, at 184


class StateError(ValueError):
    """Not a record, or not a line, of the known form."""


@dataclass(frozen=True, slots=True)
class Key:
    """One name of a state: both endpoints.

    In pf's words ``near`` is addr[1] and ``far`` addr[0]: an outbound packet goes from
    near to far, an inbound one from far to near.
    """

    near: Endpoint
    far: Endpoint
    rdomain: int = 0


@dataclass(frozen=True, slots=True)
class Peer:
    """One direction of a state as pf tracks it.

    seqlo, window  highest sequence number sent, and room beyond it
    seqdiff        what pf adds to sequence numbers (modulate state, synproxy); 0: nothing
    state          TCP state number; 11 and 12 are synproxy's own
    wscale         window scale, None when not negotiated (or not printed)
    timestamps     pf modulates timestamps (reassemble tcp); the text does not show it
    """

    seqlo: int
    window: int
    seqdiff: int
    state: int
    wscale: int | None
    timestamps: bool = False


@dataclass(frozen=True, slots=True)
class PfState:
    """One entry of pf's state table.

    wire, stack  the key on the network side, and towards this machine's stack; they are
                 equal when nothing is translated
    src, dst     the side that opened the state, and the other
    age, expire  seconds
    """

    state_id: str
    creatorid: int
    ifname: str
    proto: str
    direction: Literal["in", "out"]
    wire: Key
    stack: Key
    src: Peer
    dst: Peer
    age: int
    expire: int
    rule: int | None
    anchor: int | None
    sloppy: bool
    packets: tuple[int, int] = (0, 0)
    octets: tuple[int, int] = (0, 0)

    @property
    def translated(self) -> bool:
        return self.wire != self.stack

    @property
    def hands_off(self) -> str | None:
        """Why killing this state would break its connection; None: it may be killed.

        openbsd.md: "States made with modulate state, synproxy or reassemble tcp hold
        sequence or timestamp offsets: killing them loses these."
        """
        peers = (self.src, self.dst)
        if any(peer.state >= PROXY_SRC for peer in peers):
            return "pf answers for one end (synproxy state)"
        if any(peer.seqdiff for peer in peers):
            return "pf changes its sequence numbers (modulate state or synproxy state)"
        if any(peer.timestamps for peer in peers):
            return "pf changes its timestamps (scrub reassemble tcp)"
        return None


def parse_records(data: bytes) -> Iterator[PfState]:
    """Records as DIOCGETSTATES returns them, one after another.

    StateError at a TCP state of unknown form; states of other protocols may have forms
    that are none of our business, and are then left out.
    """
    if len(data) % RECORD:
        raise StateError(f"{len(data)} bytes are not a multiple of {RECORD}")
    for at in range(0, len(data), RECORD):
        try:
            yield parse_record(data[at : at + RECORD])
        except StateError:
            if data[at + 251] == TCP:
                raise


def parse_record(record: bytes) -> PfState:
    """One ``pfsync_state``: id 0, ifname 8, keys 24 and 64, peers 104 and 136, creation
    196, creatorid 236, af 250, proto 251, direction 252, state_flags 260."""
    if len(record) != RECORD:
        raise StateError(f"a record has {RECORD} bytes, not {len(record)}")
    rule, anchor, _, age, expire = _TAIL.unpack_from(record, 184)
    packets = struct.unpack_from(">QQQQ", record, 204)
    direction = record[252]
    if direction not in (PF_IN, PF_OUT):
        raise StateError(f"direction {direction}")
    (flags,) = struct.unpack_from(">H", record, 260)
    return PfState(
        state_id=record[:8].hex(),
        creatorid=int.from_bytes(record[236:240]),
        ifname=record[8:24].split(b"\0", 1)[0].decode("ascii", "replace"),
        proto=_PROTOCOLS.get(record[251], str(record[251])),
        direction="in" if direction == PF_IN else "out",
        wire=_key(record, 24),
        stack=_key(record, 64),
        src=_peer(record, 104),
        dst=_peer(record, 136),
        age=age,
        expire=expire,
        rule=None if rule == NO_NUMBER else rule,
        anchor=None if anchor == NO_NUMBER else anchor,
        sloppy=bool(flags & FLAG_SLOPPY),
        packets=packets[:2],
        octets=packets[2:],
    )


def _key(record: bytes, at: int) -> Key:
    addr0, addr1, port0, port1, rdomain, family = _KEY.unpack_from(record, at)
    near, far = _address(addr1, family), _address(addr0, family)
    return Key(Endpoint(near, port1), Endpoint(far, port0), rdomain)


def _address(raw: bytes, family: int) -> Address:
    if family == AF_INET:
        return IPv4Address(raw[:4])
    if family == AF_INET6:
        return IPv6Address(raw)
    raise StateError(f"address family {family}")


def _peer(record: bytes, at: int) -> Peer:
    flags, _, valid, ts_mod, seqlo, seqhi, diff, _, _, state, wscale = _PEER.unpack_from(record, at)
    modulated = bool(valid & _SCRUB_VALID) and bool(flags & _TIMESTAMP) and ts_mod != 0
    scale = wscale & 0x0F if wscale else None
    return Peer(seqlo, (seqhi - seqlo) & NO_NUMBER, diff, state, scale, modulated)


# -- text

_HOST = r"(?:\((\d+)\) )?([0-9a-fA-F:.]+?)(?::(\d+)|\[(\d+)\])?"
_LINE = re.compile(
    rf"(\S+) (\S+) {_HOST}(?: \({_HOST}\))? (->|<-) {_HOST}(?: \({_HOST}\))?\s{{2,}}(\S+)\s*\Z"
)
_SEQ = r"\[(\d+) \+ (\d+)\](?:\(\+(\d+)\))?(?: wscale (\d+))?"
_SEQ_LINE = re.compile(rf"\s+{_SEQ}\s+{_SEQ}\s*\Z")
_AGE_LINE = re.compile(
    r"\s+age (\d+):(\d+):(\d+), expires in (\d+):(\d+):(\d+), (\d+):(\d+) pkts, "
    r"(\d+):(\d+) bytes(?:, anchor (\d+))?(?:, rule (\d+))?((?:, [a-z-]+)*)\s*\Z"
)
_ID_LINE = re.compile(r"\s+id: ([0-9a-f]{1,16}) creatorid: ([0-9a-f]{1,8})")
_NO_PEER = Peer(0, 0, 0, 0, None)


@dataclass(slots=True)
class _Draft:
    """A state while its lines are read."""

    ifname: str
    proto: str
    direction: Literal["in", "out"]
    wire: Key
    stack: Key
    left: int
    right: int
    left_seq: tuple[int, int, int, int | None] = (0, 0, 0, None)
    right_seq: tuple[int, int, int, int | None] = (0, 0, 0, None)
    age: int = 0
    expire: int = 0
    rule: int | None = None
    anchor: int | None = None
    sloppy: bool = False
    packets: tuple[int, int] = (0, 0)
    octets: tuple[int, int] = (0, 0)
    state_id: str = ""
    creatorid: int = 0

    def finish(self) -> PfState:
        left = _text_peer(self.left_seq, self.left)
        right = _text_peer(self.right_seq, self.right)
        # outbound states print the opener first, inbound ones last
        src, dst = (left, right) if self.direction == "out" else (right, left)
        return PfState(
            self.state_id.rjust(16, "0") if self.state_id else "", self.creatorid, self.ifname,
            self.proto, self.direction, self.wire, self.stack, src, dst, self.age, self.expire,
            self.rule, self.anchor, self.sloppy, self.packets, self.octets,
        )  # fmt: skip


def parse_text(text: str) -> Iterator[PfState]:
    """The states in ``pfctl -ss``, ``-ss -v`` or ``-ss -vv`` output.

    Raises StateError at a TCP state of unknown form; states of other protocols that are
    not understood are left out.  Not in the text: whether timestamps are modulated;
    without ``-v`` sequence numbers and age, without ``-vv`` the id.
    """
    draft: _Draft | None = None
    skipping = False
    for line in text.splitlines():
        if not line.strip():
            continue
        if not line[0].isspace():
            if draft is not None:
                yield draft.finish()
            draft = _first_line(line) if not _is_foreign(line) else None
            skipping = draft is None
        elif draft is not None:
            _further_line(draft, line)
        elif not skipping:
            raise StateError(f"{line!r} stands before any state")
    if draft is not None:
        yield draft.finish()


def _is_foreign(line: str) -> bool:
    """Not TCP, and printed in a way of its own."""
    words = line.split()
    return len(words) > 1 and words[1] != "tcp" and _LINE.match(line) is None


def _first_line(line: str) -> _Draft:
    found = _LINE.match(line)
    if found is None:
        raise StateError(f"{line!r} is not a state")
    words = found.groups()
    direction: Literal["in", "out"] = "out" if words[10] == "->" else "in"
    near, far = _host(words[2:6], line), _host(words[11:15], line)
    near_other = _host(words[6:10], line) if words[7] else near
    far_other = _host(words[15:19], line) if words[16] else far
    shown = Key(near[0], far[0], near[1])
    other = Key(near_other[0], far_other[0], near_other[1])
    # outbound prints the wire key and, in brackets, where the stack key differs
    wire, stack = (shown, other) if direction == "out" else (other, shown)
    left, right = _levels(words[19], line)
    return _Draft(words[0], words[1], direction, wire, stack, left, right)


def _host(words: tuple[str | None, ...], line: str) -> tuple[Endpoint, int]:
    rdomain, addr, port4, port6 = words
    text = addr or ""
    try:
        parsed: Address = IPv6Address(text) if ":" in text else IPv4Address(text)
    except ValueError as fault:
        raise StateError(f"{line!r}: {fault}") from None
    port = int(port4 or port6 or 0)
    if port > 65535:
        raise StateError(f"{line!r}: port {port}")
    return Endpoint(parsed, port), int(rdomain or 0)


def _levels(text: str, line: str) -> tuple[int, int]:
    """``ESTABLISHED:CLOSED``; a synproxy state prints PROXY:SRC or PROXY:DST."""
    if text in ("PROXY:SRC", "PROXY:DST"):
        number = PROXY_SRC if text.endswith("SRC") else PROXY_DST
        return number, number
    left, sep, right = text.partition(":")
    if not sep:
        raise StateError(f"{line!r}: no state levels")
    return _level(left), _level(right)


def _level(word: str) -> int:
    """A TCP state's number; levels of other protocols (MULTIPLE, SINGLE, 0) are 0."""
    return TCP_STATES.index(word) if word in TCP_STATES else 0


def _further_line(draft: _Draft, line: str) -> None:
    if found := _SEQ_LINE.match(line):
        w = found.groups()
        draft.left_seq = (int(w[0]), int(w[1]), int(w[2] or 0), int(w[3]) if w[3] else None)
        draft.right_seq = (int(w[4]), int(w[5]), int(w[6] or 0), int(w[7]) if w[7] else None)
    elif found := _AGE_LINE.match(line):
        w = found.groups()
        n = [int(x) for x in w[:10]]
        draft.age = (n[0] * 60 + n[1]) * 60 + n[2]
        draft.expire = (n[3] * 60 + n[4]) * 60 + n[5]
        draft.packets, draft.octets = (n[6], n[7]), (n[8], n[9])
        draft.anchor = int(w[10]) if w[10] else None
        draft.rule = int(w[11]) if w[11] else None
        draft.sloppy = "sloppy" in (w[12] or "").split(", ")
    elif found := _ID_LINE.match(line):
        draft.state_id, draft.creatorid = found[1], int(found[2], 16)
    else:
        raise StateError(f"{line!r} is not a line of a state")


def _text_peer(seq: tuple[int, int, int, int | None], state: int) -> Peer:
    return Peer(seq[0], seq[1], seq[2], state, seq[3])
