"""Segments set aside: pure ACKs of observed flows (bpf), and what is held (divert).

Held packets come as pf sees them, before any translation of ours: "released to 0.0.0.0
after the kernel rules are loaded they skip pf, so the LAN source leaks: user space
rewrites them itself".  Segments of our own making go in as input, where pf is skipped
once: a local socket gets them, or the LAN host by way of its LAN-side state.
"""

from __future__ import annotations

import logging
import os
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal, Protocol

from ...protocol.inputs import Segment
from ...rewrite.flow import Address, Flow
from ...rewrite.redirect import Entry
from .. import segment as seg
from ..api import TapHandler
from ..heldstore import HeldStore
from ..said import Said
from .bpf import captures
from .conntable import Known
from .divert import Diverted, PacketSocket, inject_name, input_name, is_intact, output_name
from .poll import nested

log = logging.getLogger("redirectd.openbsd")

PACKETS_A_READ = 512
EXPIRE_EVERY = 60.0
#: openbsd.md clamps to 1440 for the MAC; a held segment was cut to the connection's own
#: MSS before, so this bounds only super-packets that came in spite of tso=0
MTU = 1500


class Tap(Protocol):
    """The part of :class:`.bpf.BpfDevice` that is used here."""

    link: int

    def fileno(self) -> int: ...

    def read(self) -> bytes: ...


class PfTap:
    """:class:`..api.SegmentTap`; needs no privilege once it has its sockets.

    taps      bpf on the external interface(s), whose filter the parent sets
    link      bytes of link header before the IP header, by DLT
    sockets   divert sockets of the hold port, by IP version
    is_local  whether an address is ours now
    spare     an address of ours, to name when a packet's own is not
    numbers   sequence numbers of a connection, as pf's state table knows them
    """

    def __init__(
        self,
        taps: Sequence[Tap],
        link: Mapping[int, int],
        sockets: Mapping[int, PacketSocket],
        handler: TapHandler,
        known: Known,
        is_local: Callable[[Address], bool],
        spare: Callable[[int], Address | None],
        clock: Callable[[], float],
    ) -> None:
        self._taps, self._link, self._sockets = taps, link, dict(sockets)
        self._handler, self._known = handler, known
        self._is_local, self._spare, self._clock = is_local, spare, clock
        self.numbers: Callable[[Flow], tuple[int, int] | None] = lambda inside: None
        self._entries: dict[str, Entry] = {}
        self._store = HeldStore()
        self._said = Said()
        self._expired = clock()
        self._poller = nested([*taps, *self._sockets.values()])

    def fileno(self) -> int:
        return self._poller.fileno()

    def read(self) -> None:
        for tap in self._taps:
            skip = self._link.get(tap.link)
            for frame in captures(tap.read()) if skip is not None else ():
                self._seen(frame[skip:])
        for sock in self._sockets.values():
            for _ in range(PACKETS_A_READ):
                diverted = sock.receive()
                if diverted is None:
                    break
                self._hold(diverted)
        now = self._clock()
        if now - self._expired > EXPIRE_EVERY:
            self._expired = now
            self._store.expire(now)

    def update(self, entries: Iterable[Entry]) -> None:
        changed = list(entries)
        self._known.update(changed)
        for entry in changed:
            self._entries[entry.conn_id] = entry

    def forget(self, conn_ids: Iterable[str]) -> None:
        gone = [self._entries.pop(c) for c in conn_ids if c in self._entries]
        self._said.forget(entry.conn_id for entry in gone)
        self._store.forget(entry.inside for entry in gone)
        self._known.forget(entry.conn_id for entry in gone)

    def held(self) -> Mapping[str, int]:
        counts = {
            conn: self._store.count(entry.inside)
            for conn, entry in self._entries.items()
            if entry.wire_out is None
        }
        return {conn: count for conn, count in counts.items() if count}

    def reinject(self, entries: Sequence[Entry]) -> int:
        """Send what is held on the present wire flow, translated here; how many left."""
        self.read()  # what was diverted a moment ago belongs to it
        sent = 0
        for entry in entries:
            wire = entry.wire_out
            sock = self._sockets.get(entry.inside.version)
            if wire is None or sock is None:
                continue
            for held in self._store.take([entry.inside], self._clock()):
                for packet in seg.retarget(self._said.freshen(entry.conn_id, held), wire, MTU):
                    sent += sock.send(packet, output_name(wire.version))
        return sent

    def prompt(self, inside: Flow, local: bool) -> None:
        """RFC 9293 3.10.7.4: an unacceptable segment is answered by an acknowledgment.

        One byte before what is expected is unacceptable, and inside the window in which
        pf's LAN-side state lets an old segment pass.  Our own socket is behind no state:
        without numbers any will do.
        """
        known = self.numbers(inside)
        if known is None:
            seq, ack = struct.unpack("=II", os.urandom(8))
        else:
            seq, ack = (known[0] - 1) % 2**32, known[1]
        self._inject(seg.build_tcp(inside.reversed(), seq, ack, seg.ACK), inside)

    def guard(self, conn_ids: Iterable[str]) -> None:
        """Nothing to do: open connections are not copied here, so no silence is reported,
        and none is ever to be guarded."""

    def _inject(self, packet: bytes, inside: Flow) -> bool:
        return inject(self._sockets, packet, inside, self._is_local, self._spare)

    def _hold(self, diverted: Diverted) -> None:
        segment = seg.parse_tcp(diverted.data)
        if segment is None or not is_intact(diverted.data):
            return
        entry = self._known.by_inside.get(segment.packet)
        if entry is None or diverted.inbound:
            return
        self._said.note(entry.conn_id, segment)
        if entry.wire_out is None:
            self._store.hold(segment, self._clock())
            return
        # opened while this packet was on its way to us
        for packet in seg.retarget(segment, entry.wire_out, MTU):
            self._sockets[segment.packet.version].send(packet, output_name(entry.inside.version))

    def _seen(self, packet: bytes) -> None:
        segment = seg.parse_tcp(packet)
        if segment is None or segment.span or not segment.flags & seg.ACK:
            return
        if segment.flags & seg.RST:
            return
        outbound = self._is_local(segment.packet.local.addr)
        direction: Literal["in", "out"] = "out" if outbound else "in"
        flow = segment.packet if outbound else segment.packet.reversed()
        self._handler.segment(Segment(flow, direction, segment.seq, segment.ack))


def inject(
    sockets: Mapping[int, PacketSocket],
    packet: bytes,
    inside: Flow,
    is_local: Callable[[Address], bool],
    spare: Callable[[int], Address | None],
) -> bool:
    """Hand a packet to our end as if it had come from the network."""
    sock, some = sockets.get(inside.version), spare(inside.version)
    if sock is None:
        return False
    name = output_name(inside.version) if some is None else input_name(some)
    if some is None and not is_local(inside.local.addr):
        return False  # named as output it would leave by the wrong side
    return sock.send(packet, inject_name(inside.local.addr, name, is_local, some))
