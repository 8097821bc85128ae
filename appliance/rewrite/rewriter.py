"""Translate packets in place: the way of an ordinary segment.

The way of every packet is one dictionary look-up by the packed tuple, which is a
slice of its header, and two or three stores.  What is rare (IP options, extension
headers, fragments, ICMP errors, broken packets) goes through :mod:`.exceptional`, by
the rules written there.
"""

from __future__ import annotations

from collections.abc import Iterable
from struct import Struct

from .checksum import Buffer
from .exceptional import Exceptional, tuple_of
from .headers import TCP, locate
from .redirect import Entry
from .table import Near, Record, Table, Verdict

# IPv4 without options, then TCP, bytes 0 to 37 (RFC 791 3.1, RFC 9293 3.1): total
# length, flags and fragment offset, protocol, header checksum, addresses and ports
# as one string, TCP flags, TCP checksum.
_READ4 = Struct("!2xH2xHxBH12s9xB2xH")
_WRITE4 = Struct("!H12s")
# IPv6, then TCP, bytes 0 to 57 (RFC 8200 3): payload length, next header, addresses
# and ports, TCP flags, TCP checksum.
_READ6 = Struct("!4xHBx36s9xB2xH")
_WRITE6 = Struct("!36s")
_CHECK = Struct("!H")

_RST = 0x04
_PASS = Verdict.PASS


class Rewriter:
    """All connections of one packet worker, and the translation of their packets.

    near             which tuple packets carry on our side (see :class:`.table.Table`)
    withhold_resets  answer RESET to a RST that came in for a connection of ours

    No object is made for a packet, and nothing is kept of one but what rule 3 of
    :mod:`.exceptional` says of fragments.  Not thread-safe.
    """

    def __init__(self, near: Near = "birth", withhold_resets: bool = False) -> None:
        self._table = Table(near)
        self._inward = self._table.inward
        self._outward = self._table.outward
        self._reset_bit = _RST if withhold_resets else 0
        self._exceptional = Exceptional(self._table, withhold_resets)

    def __len__(self) -> int:
        """Number of connections."""
        return len(self._table)

    def load(self, entries: Iterable[Entry]) -> None:
        """Exactly these connections; ValueError, and no change, on mixed families."""
        self._table.load(entries)

    def apply(self, entries: Iterable[Entry]) -> None:
        """Add or replace these; ValueError, and no change, on mixed families."""
        self._table.apply(entries)

    def remove(self, conn_ids: Iterable[str]) -> None:
        """Forget these connections; unknown ones are ignored."""
        self._table.remove(conn_ids)

    def rewrite(
        self,
        buf: bytearray | memoryview,
        offset: int,
        length: int,
        inbound: bool,
        partial: bool = False,
    ) -> Verdict:
        """Translate the IP packet at ``buf[offset:offset + length]`` in place.

        inbound  it goes from the network to our end
        partial  its TCP checksum is only the sum of the pseudo-header (Linux:
                 CHECKSUM_PARTIAL); it stays so, and :func:`.checksum.finish` or the
                 kernel completes it

        The range must lie in the buffer; nothing that stands in it raises.
        """
        if length < 40:
            return self._exceptional.rewrite(buf, offset, length, inbound, partial)
        first = buf[offset]
        if first == 0x45:
            total, place, proto, ip_check, key, flags, check = _READ4.unpack_from(buf, offset)
            if proto == 6 and not place & 0x3FFF and 40 <= total <= length:
                record = (self._inward if inbound else self._outward).get(key)
                if record is None:
                    return _PASS
                new, addresses, everything, verdict, _ = record
                if new is None or (inbound and flags & self._reset_bit):
                    return self._special(record, inbound, flags)
                # RFC 1624, eqn. 3, as in checksum.update: a call costs more than it.
                ip_check = (ip_check ^ 0xFFFF) + addresses
                _WRITE4.pack_into(
                    buf, offset + 10, (ip_check + (ip_check >> 16)) & 0xFFFF ^ 0xFFFF, new
                )
                if partial:
                    check += addresses
                    check = (check + (check >> 16)) & 0xFFFF
                else:
                    check = (check ^ 0xFFFF) + everything
                    check = (check + (check >> 16)) & 0xFFFF ^ 0xFFFF
                _CHECK.pack_into(buf, offset + 36, check)
                return verdict
        elif first >> 4 == 6 and length >= 60:
            total, proto, key, flags, check = _READ6.unpack_from(buf, offset)
            if proto == 6 and 20 <= total <= length - 40:
                record = (self._inward if inbound else self._outward).get(key)
                if record is None:
                    return _PASS
                new, addresses, everything, verdict, _ = record
                if new is None or (inbound and flags & self._reset_bit):
                    return self._special(record, inbound, flags)
                _WRITE6.pack_into(buf, offset + 8, new)
                if partial:
                    check += addresses
                    check = (check + (check >> 16)) & 0xFFFF
                else:
                    check = (check ^ 0xFFFF) + everything
                    check = (check + (check >> 16)) & 0xFFFF ^ 0xFFFF
                _CHECK.pack_into(buf, offset + 56, check)
                return verdict
        return self._exceptional.rewrite(buf, offset, length, inbound, partial)

    def connection_of(self, buf: Buffer, offset: int, length: int, inbound: bool) -> str | None:
        """Whose segment this packet is, not yet translated; None: nobody's."""
        at = locate(buf, offset, length)
        if at is None or at.proto != TCP:
            return None
        key = tuple_of(buf, offset, at)
        if key is None:
            return None
        record = (self._inward if inbound else self._outward).get(key)
        return None if record is None else record.conn_id

    def _special(self, record: Record, inbound: bool, flags: int) -> Verdict:
        """Not to be translated, or a RST from the network."""
        if record.tuple is None and record.verdict is not _PASS:
            return record.verdict
        if inbound and flags & self._reset_bit:
            return Verdict.RESET
        return record.verdict
