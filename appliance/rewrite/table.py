"""The rewriter's table: packed tuple -> what to write, ready to be used.

Connections come and go one by one; all that can be computed about one is computed
here, once, so that a packet costs a look-up.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum
from typing import Literal, NamedTuple

from .checksum import delta, fold
from .flow import Flow
from .redirect import Entry


class Verdict(IntEnum):
    """What to do with a packet.

    PASS       not translated: let it go on as it is
    REWRITTEN  translated in place: let the new bytes go on
    DROP       nobody may see it
    HOLD       its connection is shut: keep it until the redirect is in place
    RESET      a RST of a bound connection from the network: withhold it until the
               peer confirms (only from a rewriter made with ``withhold_resets``)
    """

    PASS = 0
    REWRITTEN = 1
    DROP = 2
    HOLD = 3
    RESET = 4


Near = Literal["birth", "inside"]


class Record(NamedTuple):
    """What to do with the packets of one tuple in one direction.

    tuple       source, destination, source port, destination port to write, packed;
                None: don't translate, ``verdict`` says it all
    addresses   what the change of the addresses adds to a sum (RFC 1624)
    everything  what the change of addresses and ports adds
    verdict     the answer
    conn_id     whose it is
    """

    tuple: bytes | None
    addresses: int
    everything: int
    verdict: Verdict
    conn_id: str


def outward_key(flow: Flow) -> bytes:
    """The tuple of a packet that our end sends, as it stands in the headers."""
    local, remote = flow
    return (
        local.addr.packed
        + remote.addr.packed
        + local.port.to_bytes(2, "big")
        + remote.port.to_bytes(2, "big")
    )


def inward_key(flow: Flow) -> bytes:
    """The tuple of a packet that our end receives."""
    return outward_key(flow.reversed())


def _record(old: bytes, new: bytes, conn_id: str) -> Record:
    if old == new:
        return Record(None, 0, 0, Verdict.PASS, conn_id)
    addresses = delta(old[:-4], new[:-4])
    ports = delta(old[-4:], new[-4:])
    return Record(new, addresses, fold(addresses + ports), Verdict.REWRITTEN, conn_id)


class Table:
    """The records of all connections.

    ``near`` says which tuple packets carry on our side of the translation: ``birth``
    on Linux, where the rewriter is outermost; ``inside`` on pf, which shows the
    packets of the inside.  What Linux forwards has its new destination already, for the
    route is chosen by it: any of the connection's far endpoints.

    inward, outward  packed tuple -> record, for packets from and to the network
    pairs            packed address pair -> number of tuples that have it

    The three are changed in place, never replaced.
    """

    def __init__(self, near: Near) -> None:
        self._near = near
        self._entries: dict[str, Entry] = {}
        self.inward: dict[bytes, Record] = {}
        self.outward: dict[bytes, Record] = {}
        self.pairs: dict[bytes, int] = {}
        # Some tuple belongs to two connections: a removal may uncover the other's.
        self._contested = False

    def __len__(self) -> int:
        return len(self._entries)

    def load(self, entries: Iterable[Entry]) -> None:
        """Exactly these connections; ValueError, and no change, on mixed families."""
        self._entries = self._checked(entries)
        self._rebuild()

    def apply(self, entries: Iterable[Entry]) -> None:
        """Add or replace these; ValueError, and no change, on mixed families."""
        wanted = self._checked(entries)
        for conn_id in wanted:
            self._take_out(conn_id)
        self._entries.update(wanted)
        if self._contested:
            self._rebuild()
        else:
            for entry in wanted.values():
                self._put(entry)

    def remove(self, conn_ids: Iterable[str]) -> None:
        """Forget these connections; unknown ones are ignored."""
        for conn_id in conn_ids:
            self._take_out(conn_id)
            self._entries.pop(conn_id, None)
        if self._contested:
            self._rebuild()

    def _near_flow(self, entry: Entry) -> Flow:
        return entry.birth if self._near == "birth" else entry.inside

    def _sent_as(self, entry: Entry) -> list[Flow]:
        """The tuples of what our end sends, as they come to the rewriter."""
        near = self._near_flow(entry)
        if entry.local or self._near == "inside" or entry.wire_out is None:
            return [near]
        ends = [entry.wire_out.remote, near.remote, *(wire.remote for wire in entry.wires)]
        return [near.with_remote(*end) for end in dict.fromkeys(ends)]

    def _checked(self, entries: Iterable[Entry]) -> dict[str, Entry]:
        wanted = {entry.conn_id: entry for entry in entries}
        for entry in wanted.values():
            flows = [self._near_flow(entry), *entry.wires, *entry.stale]
            if entry.wire_out is not None:
                flows.append(entry.wire_out)
            families = {end.addr.version for flow in flows for end in flow}
            if len(families) != 1:
                raise ValueError(f"connection {entry.conn_id} mixes IPv4 and IPv6")
        return wanted

    def _rebuild(self) -> None:
        self.inward.clear()
        self.outward.clear()
        self.pairs.clear()
        self._contested = False
        for entry in self._entries.values():
            self._put(entry)

    def _put(self, entry: Entry) -> None:
        conn_id = entry.conn_id
        near = self._near_flow(entry)
        for stale in entry.stale:
            record = Record(None, 0, 0, Verdict.DROP, conn_id)
            self._insert(self.inward, inward_key(stale), record, living=False)
        inner = inward_key(near)
        for wire in entry.wires:
            key = inward_key(wire)
            self._insert(self.inward, key, _record(key, inner, conn_id), living=True)
        for flow in self._sent_as(entry):
            key = outward_key(flow)
            if entry.wire_out is None:
                record = Record(None, 0, 0, Verdict.HOLD, conn_id)
            else:
                record = _record(key, outward_key(entry.wire_out), conn_id)
            self._insert(self.outward, key, record, living=True)

    def _insert(self, table: dict[bytes, Record], key: bytes, record: Record, living: bool) -> None:
        """A living tuple wins over another connection's stale one: the address may
        have been given to somebody else since, and the port with it."""
        before = table.get(key)
        if before is None:
            self.pairs[key[:-4]] = self.pairs.get(key[:-4], 0) + 1
        elif before.conn_id != record.conn_id:
            self._contested = True
            if not living:
                return
        table[key] = record

    def _take_out(self, conn_id: str) -> None:
        entry = self._entries.get(conn_id)
        if entry is None:
            return
        for flow in (*entry.stale, *entry.wires):
            self._delete(self.inward, inward_key(flow), conn_id)
        for flow in self._sent_as(entry):
            self._delete(self.outward, outward_key(flow), conn_id)

    def _delete(self, table: dict[bytes, Record], key: bytes, conn_id: str) -> None:
        record = table.get(key)
        if record is None or record.conn_id != conn_id:
            return
        del table[key]
        left = self.pairs[key[:-4]] - 1
        if left:
            self.pairs[key[:-4]] = left
        else:
            del self.pairs[key[:-4]]
