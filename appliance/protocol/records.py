"""What outlives the process: peers and bindings, as the keystore keeps them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..rewrite.redirect import Entry

TrustState = Literal["pending", "trusted", "verified", "revoked"]


@dataclass(frozen=True, slots=True)
class PeerRecord:
    """A known host (paper, 3.1: ``ID K_A K_B timestamp``).

    peer_id      32 hex digits, derived from the pair's root: the same at both ends
    root         32 bytes, fixed, pairwise; resynchronisation alone uses it
    chain        32 bytes, ratcheted with every session
    previous     32 bytes, the chain before (a crash may fall between the halves)
    initiator    True: we are side A of the pair (fixes the directions of keys)
    host_id      32 hex digits: the ID that the far host gave at first contact
    fingerprint  text, equal at both ends, to be compared aloud
    times        seconds since the epoch
    addresses    where the peer was last seen, newest first (text)
    dns_name     fallback when both ends moved at once; None: no fallback
    """

    peer_id: str
    root: bytes
    chain: bytes
    previous: bytes
    initiator: bool
    host_id: str
    name: str
    fingerprint: str
    state: TrustState
    first_contact: float
    last_contact: float
    addresses: tuple[str, ...] = ()
    port: int = 0
    dns_name: str | None = None

    def __repr__(self) -> str:
        return f"PeerRecord({self.peer_id!r}, {self.name!r}, {self.state!r})"


@dataclass(frozen=True, slots=True)
class BindingRecord:
    """A connection bound to a peer, with the packet path it has now.

    since      when the connection was first seen; bound_at: when it was bound;
               both seconds since the epoch
    moves      how often the wire flow changed
    """

    peer_id: str
    entry: Entry
    since: float
    bound_at: float
    moves: int = 0
    last_move: float | None = None
