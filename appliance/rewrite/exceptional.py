"""The rare packets: options, extension headers, fragments, ICMP errors, broken ones.

The rules, of which the first that fits applies.  "Ours" is a tuple in the table.

1. What can't be read as far as both ports is nobody's: PASS.  So are AH, ESP, a
   routing header with segments left, more than 16 extension headers: the tuple in
   such a packet is hidden, or not the connection's.
2. A segment that is ours but can't be translated whole is dropped, for half a
   translation is a packet of a third connection: cut short before its end or before
   its checksum, or a first fragment without the checksum (RFC 1858's tiny fragment).
3. Fragments: only the first one shows ports.  It is translated like any segment (its
   checksum covers the whole datagram, and so does the difference), and what was done
   with it is remembered under its addresses and identification.  A later fragment
   follows its first one.  Without a remembered first one it is dropped when its
   addresses belong to some connection of ours (its sender sends it again), and
   passes otherwise.  256 are remembered; the oldest are forgotten.
4. ICMP errors (RFC 792 types 3, 11, 12; RFC 4443 types 1 to 4) that embed a segment
   of ours, on its way in the other direction: the embedded addresses, ports and
   checksums are translated back, the error's destination too, and its source where
   it is the embedded destination (a router keeps its address).  Redirects pass: they
   speak of a route on the wire, which is no business of our end's.
5. Such an error is dropped when it is a fragment, cut short, not addressed to the
   sender of what it embeds, or about a tuple that is stale or shut.
"""

from __future__ import annotations

from typing import Final

from .checksum import Buffer, delta, fold, update, update_partial
from .headers import FIRST, ICMP, ICMPV6, LATER, TCP, WHOLE, Located, locate
from .table import Record, Table, Verdict

MAX_REMEMBERED: Final = 256

_ERRORS4: Final = frozenset((3, 11, 12))
_ERRORS6: Final = frozenset((1, 2, 3, 4))
_RST: Final = 0x04


class Exceptional:
    """Translates what the fast way does not know; shares the rewriter's table."""

    def __init__(self, table: Table, withhold_resets: bool) -> None:
        self._inward = table.inward
        self._outward = table.outward
        self._pairs = table.pairs
        self._withhold_resets = withhold_resets
        self._firsts: dict[tuple[bool, bytes, bytes], Record | None] = {}

    def rewrite(
        self, buf: bytearray | memoryview, offset: int, length: int, inbound: bool, partial: bool
    ) -> Verdict:
        """As :meth:`.rewriter.Rewriter.rewrite`."""
        at = locate(buf, offset, length)
        if at is None:
            return Verdict.PASS
        if at.proto == TCP:
            if at.fragment == LATER:
                return self._later_fragment(buf, offset, at, inbound)
            return self._segment(buf, offset, at, inbound, partial)
        if at.proto == (ICMP if at.version == 4 else ICMPV6) and at.fragment != LATER:
            return self._error(buf, offset, at, inbound, partial)
        return Verdict.PASS

    def _segment(
        self, buf: bytearray | memoryview, offset: int, at: Located, inbound: bool, partial: bool
    ) -> Verdict:
        key = tuple_of(buf, offset, at)
        if key is None:
            return Verdict.PASS
        record = (self._inward if inbound else self._outward).get(key)
        place = at.l4 + 16
        if record is not None and record.tuple is not None:
            if at.truncated or place + 2 > at.end:
                record = Record(None, 0, 0, Verdict.DROP, record.conn_id)
            elif inbound and self._withhold_resets and buf[at.l4 + 13] & _RST:
                record = Record(None, 0, 0, Verdict.RESET, record.conn_id)
        elif record is not None and inbound and self._withhold_resets:
            record = self._reset_unchanged(buf, at, record)
        if at.fragment == FIRST and key[:-4] in self._pairs:
            self._remember((inbound, key[:-4], at.ident), record)
        if record is None:
            return Verdict.PASS
        if record.tuple is None:
            return record.verdict
        _write_addresses(buf, offset, at.version, record.tuple[:-4], record.addresses)
        buf[at.l4 : at.l4 + 4] = record.tuple[-4:]
        check = int.from_bytes(buf[place : place + 2], "big")
        if partial:
            check = update_partial(check, record.addresses)
        else:
            check = update(check, record.everything)
        buf[place : place + 2] = check.to_bytes(2, "big")
        return Verdict.REWRITTEN

    @staticmethod
    def _reset_unchanged(buf: Buffer, at: Located, record: Record) -> Record:
        """A RST is withheld also where the tuple is not translated."""
        if record.verdict is not Verdict.PASS:
            return record
        if at.l4 + 14 > at.end:
            return Record(None, 0, 0, Verdict.DROP, record.conn_id)
        if buf[at.l4 + 13] & _RST:
            return Record(None, 0, 0, Verdict.RESET, record.conn_id)
        return record

    def _remember(self, fragments: tuple[bool, bytes, bytes], record: Record | None) -> None:
        self._firsts.pop(fragments, None)
        if len(self._firsts) >= MAX_REMEMBERED:
            del self._firsts[next(iter(self._firsts))]
        self._firsts[fragments] = record

    def _later_fragment(
        self, buf: bytearray | memoryview, offset: int, at: Located, inbound: bool
    ) -> Verdict:
        pair = addresses_of(buf, offset, at.version)
        if pair not in self._pairs:
            return Verdict.PASS
        fragments = (inbound, pair, at.ident)
        if fragments not in self._firsts:
            return Verdict.DROP
        record = self._firsts[fragments]
        if record is None:
            return Verdict.PASS
        if record.tuple is None:
            return record.verdict
        if at.truncated:
            return Verdict.DROP
        _write_addresses(buf, offset, at.version, record.tuple[:-4], record.addresses)
        return Verdict.REWRITTEN

    def _error(
        self, buf: bytearray | memoryview, offset: int, at: Located, inbound: bool, partial: bool
    ) -> Verdict:
        errors = _ERRORS4 if at.version == 4 else _ERRORS6
        start = at.l4 + 8
        if start > at.end or buf[at.l4] not in errors:
            return Verdict.PASS
        inner = locate(buf, start, at.end - start)
        if inner is None or inner.version != at.version or inner.proto != TCP:
            return Verdict.PASS
        embedded = tuple_of(buf, start, inner)
        if embedded is None:
            return Verdict.PASS
        record = (self._inward if inbound else self._outward).get(_reversed(embedded))
        if record is None:
            return Verdict.PASS
        size = 4 if at.version == 4 else 16
        outer = addresses_of(buf, offset, at.version)
        if at.fragment != WHOLE or at.truncated or outer[size:] != embedded[:size]:
            return Verdict.DROP
        if record.tuple is None:
            return Verdict.PASS if record.verdict is Verdict.PASS else Verdict.DROP
        translated = _reversed(record.tuple)

        # What is summed by the error's checksum changes between these two places.
        # Both are an even number of bytes away from the error's first byte.
        stop = inner.l4 + (18 if inner.l4 + 18 <= inner.end else 4)
        before = bytes(buf[start:stop])
        _write_addresses(buf, start, at.version, translated[:-4], record.addresses)
        buf[inner.l4 : inner.l4 + 4] = translated[-4:]
        if stop == inner.l4 + 18:
            check = int.from_bytes(buf[stop - 2 : stop], "big")
            buf[stop - 2 : stop] = update(check, record.everything).to_bytes(2, "big")
        inside = delta(before, bytes(buf[start:stop]))

        source = outer[:size]
        if source == embedded[size : 2 * size]:
            source = translated[size : 2 * size]
        addresses = source + translated[:size]
        outside = delta(outer, addresses)
        _write_addresses(buf, offset, at.version, addresses, outside)
        place = at.l4 + 2
        check = int.from_bytes(buf[place : place + 2], "big")
        if at.version == 4:  # RFC 792: no pseudo-header
            check = check if partial else update(check, inside)
        elif partial:
            check = update_partial(check, outside)
        else:  # RFC 4443 2.3
            check = update(check, fold(inside + outside))
        buf[place : place + 2] = check.to_bytes(2, "big")
        return Verdict.REWRITTEN


def addresses_of(buf: Buffer, offset: int, version: int) -> bytes:
    """Source and destination address, packed."""
    if version == 4:
        return bytes(buf[offset + 12 : offset + 20])
    return bytes(buf[offset + 8 : offset + 40])


def tuple_of(buf: Buffer, offset: int, at: Located) -> bytes | None:
    """The packed tuple, a key of the table; None when the ports are not there."""
    if at.fragment == LATER or at.l4 + 4 > at.end:
        return None
    return addresses_of(buf, offset, at.version) + bytes(buf[at.l4 : at.l4 + 4])


def _reversed(key: bytes) -> bytes:
    """The same tuple in the other direction."""
    size = (len(key) - 4) // 2
    return key[size : 2 * size] + key[:size] + key[-2:] + key[-4:-2]


def _write_addresses(
    buf: bytearray | memoryview, offset: int, version: int, addresses: bytes, change: int
) -> None:
    if version == 6:
        buf[offset + 8 : offset + 40] = addresses
        return
    check = int.from_bytes(buf[offset + 10 : offset + 12], "big")
    buf[offset + 10 : offset + 12] = update(check, change).to_bytes(2, "big")
    buf[offset + 12 : offset + 20] = addresses
