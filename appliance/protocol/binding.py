"""The proof that both ends see the same connection.

Both daemons watch pure acknowledgments.  A tag is a MAC over one of them: who sent it,
its sequence and its acknowledgment number, exactly; so 64 bits that only those know who
see the connection.  The side that asks and the side that answers use different roles,
so nobody can answer with what it was sent.
"""

from __future__ import annotations

import heapq
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from ..rewrite.flow import Flow
from .keys import mac

KEPT = 32
AGE = 2.0
PROPOSER, RESPONDER = b"proposer\0", b"responder\0"


class Seen(NamedTuple):
    """One acknowledgment; ``ours``: our end sent it."""

    ours: bool
    seq: int
    ack: int

    def order(self) -> int:
        """The same at both ends, and unrelated to when it was seen."""
        return zlib.crc32(self.seq.to_bytes(4, "big") + self.ack.to_bytes(4, "big"))


class Sample:
    """Which acknowledgments were seen within the last seconds, bounded.

    A fast connection has thousands between two daemons' looks.  Both ends therefore keep
    those that come first in an order of their own (bottom-k sampling), not the newest:
    so the two samples overlap at any rate and delay.
    """

    __slots__ = ("_heaps", "_since")

    def __init__(self, now: float) -> None:
        self._heaps: list[dict[Seen, int]] = [{}, {}]
        self._since = now

    def add(self, seen: Seen, now: float) -> None:
        if now - self._since > AGE:
            self._heaps = [{}, self._heaps[0]]
            self._since = now
        kept = self._heaps[0]
        kept[seen] = seen.order()
        if len(kept) > 2 * KEPT:
            self._heaps[0] = dict(heapq.nsmallest(KEPT, kept.items(), key=lambda item: item[1]))

    def segments(self) -> list[Seen]:
        """At most ``KEPT`` a generation, in the common order."""
        found = self._heaps[0] | self._heaps[1]
        return heapq.nsmallest(KEPT, found, key=Seen.order)


@dataclass(frozen=True, slots=True, repr=False)
class Terms:
    """What both sides agree on before the proof.

    key      the pair's key for tags
    offered  the flow as the proposer named it in OFFER
    nonces   the proposer's out of OFFER and the responder's out of READY: so a proof is
             good for this one proposal
    """

    key: bytes
    offered: Flow
    nonces: bytes


def tag(terms: Terms, role: bytes, by_proposer: bool, seq: int, ack: int) -> bytes:
    """16 bytes for one acknowledgment."""
    offered = terms.offered
    version = bytes((offered.version,))
    return mac(
        terms.key, b"tag of the ", role, terms.nonces,
        version, offered.local.packed(), offered.remote.packed(),
        b"\1" if by_proposer else b"\0", seq.to_bytes(4, "big"), ack.to_bytes(4, "big"),
    )  # fmt: skip


def tags(
    terms: Terms, role: bytes, we_propose: bool, segments: Iterable[Seen]
) -> dict[bytes, Seen]:
    """Tag -> acknowledgment, as this side has seen it."""
    return {tag(terms, role, s.ours == we_propose, s.seq, s.ack): s for s in segments}
