"""Copies of packets that the rules set aside, and what is injected in answer.

The rules copy: segments of shut connections (and drop them), segments sent into a
silence, small segments of observed flows, RSTs that are withheld, and ICMP errors that
may carry a wire tuple.  A copy needs no verdict, so a daemon that is gone blocks nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal

from pfconf import nft
from pfconf.nftmap import half_way

from ...protocol.inputs import Segment
from ...rewrite.flow import Flow
from ...rewrite.redirect import Entry
from .. import segment as seg
from ..api import TapHandler
from ..heldstore import HeldStore
from ..said import Said
from . import inject
from . import netlink as nl
from .persist import Repetitions, answer
from .sockets import Sockets

_DATAGRAMS_A_READ = 512
_PACKET = 4 << 8  # NFNL_SUBSYS_ULOG, NFULNL_MSG_PACKET
_NFULA_PAYLOAD, _NFULA_PREFIX = 9, 10

EXPIRE_EVERY = 60.0

AGAIN = 3  # times that segments are sent anew because what they say had become old

# So long may one segment be repeated into a silence before the core hears of it.
SILENCE = 1.0


class LogTap:
    """:class:`..api.SegmentTap`; needs no capability once it has its sockets.

    clock  seconds, never going back
    """

    def __init__(self, sockets: Sockets, handler: TapHandler, clock: Callable[[], float]) -> None:
        self._copies, self._raw = sockets.copies, sockets.raw
        self._handler, self._clock = handler, clock
        self._entries: dict[str, Entry] = {}
        self._births: dict[Flow, Flow] = {}  # inbound wire packet -> birth flow
        self._sent: dict[Flow, str] = {}  # outbound packet as on the wire -> connection
        self._copied: dict[Flow, str] = {}  # outbound packet as it is copied -> connection
        self._store = HeldStore()
        self._repeated = Repetitions()
        self._said = Said()
        self._guarded: frozenset[str] = frozenset()
        self._expired = clock()
        self.lost = 0
        self._do: dict[bytes, Callable[[bytes], None]] = {
            nft.HELD.encode(): self._held,
            nft.QUIET.encode(): self._quiet,
            nft.SEEN_IN.encode(): lambda raw: self._seen(raw, "in"),
            nft.SEEN_OUT.encode(): lambda raw: self._seen(raw, "out"),
            nft.RESET.encode(): self._reset,
            nft.PMTU.encode(): self._too_big,
        }

    def fileno(self) -> int:
        return self._copies.fileno()

    def read(self) -> None:
        for part in self._copies.notifications(_DATAGRAMS_A_READ):
            if part.kind != _PACKET:
                continue
            found = nl.attributes(part.payload, 4)
            raw, prefix = found.get(_NFULA_PAYLOAD), found.get(_NFULA_PREFIX)
            if raw is None or prefix is None:
                continue
            handle = self._do.get(bytes(prefix).rstrip(b"\0"))
            if handle is not None:
                handle(bytes(raw))
        if self._copies.overrun:
            self._copies.overrun = False
            self.lost += 1
        now = self._clock()
        if now - self._expired > EXPIRE_EVERY:
            self._expired = now
            self._store.expire(now)

    def update(self, entries: Iterable[Entry]) -> None:
        """These connections have that packet path now (after each change of the table)."""
        for entry in entries:
            self._forget_names(entry.conn_id)
            self._entries[entry.conn_id] = entry
            for wire in entry.wires:
                self._births[wire.reversed()] = entry.birth
            for packet in _outbound(entry):
                self._sent[packet] = entry.conn_id
            for packet in _copied_now(entry):
                self._copied[packet] = entry.conn_id

    def forget(self, conn_ids: Iterable[str]) -> None:
        gone = list(conn_ids)
        for conn in gone:
            entry = self._entries.get(conn)
            if entry is not None:
                self._store.forget(_copied_as(entry))
                self._forget_names(conn)
                del self._entries[conn]
        self._repeated.forget(gone)
        self._said.forget(gone)

    def _forget_names(self, conn: str) -> None:
        entry = self._entries.get(conn)
        if entry is None:
            return
        for wire in entry.wires:
            self._births.pop(wire.reversed(), None)
        for packet in _outbound(entry):
            if self._sent.get(packet) == conn:
                del self._sent[packet]
        for packet in _copied_now(entry):
            if self._copied.get(packet) == conn:
                del self._copied[packet]

    def held(self) -> Mapping[str, int]:
        counts = {
            conn: sum(self._store.count(packet) for packet in _copied_as(entry))
            for conn, entry in self._entries.items()
            if entry.wire_out is None or conn in self._guarded
        }
        return {conn: count for conn, count in counts.items() if count}

    def reinject(self, entries: Sequence[Entry]) -> int:
        """Send what is kept of these connections on their present wire flow, cut to its
        path's MTU and with fresh checksums; how many packets left.
        """
        self.read()  # what was copied a moment ago belongs to it
        kept = {}
        for entry in entries:
            if entry.wire_out is not None:
                segments = self._store.take(_copied_as(entry), self._clock())
                if segments:
                    kept[entry.conn_id] = entry.wire_out, segments
        sent = sum(self._send_again(conn, *each) for conn, each in kept.items())
        for _ in range(AGAIN if sent else 0):
            # Our end may have spoken between the look at what it said last and the sending.
            used = {conn: self._said.newest(conn) for conn in kept}
            self.read()
            late = [conn for conn, last in used.items() if self._said.newest(conn) != last]
            if not late:
                break
            for conn in late:
                self._send_again(conn, *kept[conn])
        return sent

    def _send_again(self, conn: str, wire: Flow, kept: Sequence[seg.TcpSegment]) -> int:
        mtu = inject.path_mtu(wire.local.addr, wire.remote.addr)
        sent = 0
        for segment in kept:
            fresh = self._said.freshen(conn, segment)
            for packet in seg.retarget(fresh, wire, mtu):
                sent += inject.send(self._raw, packet, wire.local.addr, wire.remote.addr)
        return sent

    def prompt(self, inside: Flow, local: bool) -> None:
        inject.prompt(self._raw, inside)

    def guard(self, conn_ids: Iterable[str]) -> None:
        """Answer what our end of these connections repeats, though they are open; of no
        others (shut ones are answered anyway)."""
        self._guarded = frozenset(conn_ids)

    # -- one method a kind of copy

    def _held(self, raw: bytes) -> None:
        if (segment := seg.parse_tcp(raw)) is not None:
            self._store.hold(segment, self._clock())
            self._repeats(segment)

    def _quiet(self, raw: bytes) -> None:
        if (segment := seg.parse_tcp(raw)) is not None:
            self._store.quiet(segment, self._clock())
            self._repeats(segment)

    def _repeats(self, segment: seg.TcpSegment) -> None:
        """Our end must not give up while nobody can answer it.

        The answers acknowledge nothing, so a connection of whose far end we are wrong goes
        on with the first real acknowledgment.
        """
        conn = self._copied.get(segment.packet)
        if conn is None:
            return
        entry = self._entries[conn]
        self._said.note(conn, segment)
        self._repeated.note(conn, segment, self._clock())
        if entry.wire_out is not None:
            if self._repeated.stuck_for(conn, segment) > SILENCE:
                self._handler.silence(entry.birth)
            if conn not in self._guarded:
                return
        first = self._repeated.unacknowledged(conn, segment)
        if first is not None:
            packet = answer(segment, first, entry.inside)
            inject.send(self._raw, packet, entry.inside.remote.addr, entry.inside.local.addr)

    def _seen(self, raw: bytes, direction: Literal["in", "out"]) -> None:
        segment = seg.parse_tcp(raw)
        if segment is None or segment.span or segment.flags & seg.RST:
            return
        if not segment.flags & seg.ACK:
            return
        if direction == "in":
            birth = self._births.get(segment.packet, segment.packet.reversed())
        else:
            conn = self._sent.get(segment.packet)
            birth = segment.packet if conn is None else self._entries[conn].birth
            if conn is not None:
                self._said.note(conn, segment)
        self._handler.segment(Segment(birth, direction, segment.seq, segment.ack))

    def _reset(self, raw: bytes) -> None:
        segment = seg.parse_tcp(raw)
        if segment is not None and segment.flags & seg.RST:
            self._handler.reset_withheld(segment.packet.reversed())

    def _too_big(self, raw: bytes) -> None:
        """Tell our end, in its own terms, that the path is narrower.

        Routers answer to the wire tuple, which no stack knows.  What is passed on is
        checked twice more: the floors here, and the number in flight by the stack that
        gets it (RFC 5927 4.1: a number outside the window is an attack).
        """
        error = seg.parse_too_big(raw)
        if error is None:
            return
        conn = self._sent.get(error.packet)
        entry = None if conn is None else self._entries[conn]
        if entry is None or (entry.local and error.packet == entry.birth):
            return
        inside = Flow(entry.inside.local, entry.inside.remote)
        if (packet := seg.retarget_too_big(error, inside)) is not None:
            inject.send(self._raw, packet, error.router, inside.local.addr)


def _outbound(entry: Entry) -> tuple[Flow, ...]:
    """The tuples that a packet of our end has on its way out, as errors may name them."""
    if entry.wire_out is None:
        return (entry.birth,)
    if entry.local:
        return (entry.birth, entry.wire_out)
    return (entry.birth, entry.wire_out, Flow(entry.inside.local, entry.wire_out.remote))


def _copied_now(entry: Entry) -> tuple[Flow, ...]:
    """The tuples under which its outbound segments are copied at present."""
    if entry.wire_out is not None:
        return (entry.wire_out,)
    return (entry.birth, half_way(entry))


def _copied_as(entry: Entry) -> set[Flow]:
    """The tuples under which copies of its outbound segments may be kept."""
    kept = {entry.birth, half_way(entry), *entry.wires, *entry.stale}
    if entry.wire_out is not None:
        kept.add(entry.wire_out)
    return kept
