"""Changes of address under way: ours towards a peer, and a peer's towards us."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ..rewrite.flow import Address, Endpoint
from .connections import Binding
from .frames import MAX_LISTED, AddressChange, Purpose, Refusal
from .transitions import Far, Mover


def digest(ports: Iterable[tuple[str, int]]) -> bytes:
    """SHA-256 over the connections, sorted by ID: 16 bytes ID and 16-bit port each."""
    whole = b"".join(bytes.fromhex(i) + port.to_bytes(2, "big") for i, port in sorted(ports))
    return hashlib.sha256(whole).digest()


@dataclass(slots=True)
class Batch:
    """What the operator sees as one move: it may take several messages.

    started  seconds; running: messages that are not confirmed yet
    """

    old: Address
    new: Address
    started: float
    connections: int
    running: int = 0
    done: int = 0
    refused: int = 0


@dataclass(slots=True)
class OurChange:
    """ports: connection -> our port at the new address; listed: they are named one by one;
    translated: how often the peer saw it come from another address."""

    number: int
    peer_id: str
    purpose: Purpose
    new: Address
    old: Address
    old_alive: bool
    ports: dict[str, int]
    batch: Batch
    listed: bool
    state: Mover = Mover.ANNOUNCED
    sent: int = 0
    replies: int = 0
    translated: int = 0
    interval: float = 0.0
    nonce: bytes = b""
    reply_to: Endpoint | None = None
    sent_to: tuple[Endpoint, ...] = ()
    replied_at: float = 0.0

    def frame(self, bindings: Mapping[str, Binding]) -> AddressChange:
        """The ACM.  Listed: exactly the connections; else those with a port of their own."""
        entries = [
            (i, port)
            for i, port in self.ports.items()
            if self.listed or port != bindings[i].birth.local.port
        ]
        whole = digest(self.ports.items())
        return AddressChange(
            self.number, self.purpose, self.new, self.old, self.old_alive, not self.listed,
            len(self.ports), whole, tuple(entries[:MAX_LISTED]),
        )  # fmt: skip


@dataclass(slots=True)
class FarChange:
    """members: connection -> the peer's endpoint after the change."""

    number: int
    serial: int
    purpose: Purpose
    new: Address
    old_alive: bool
    nonce: bytes
    members: dict[str, Endpoint]
    refused: tuple[tuple[str, Refusal], ...]
    since: float
    state: Far = Far.CHALLENGED


def members_of(frame: AddressChange, bindings: list[Binding]) -> dict[str, int] | None:
    """Which of the peer's ``bindings`` the ACM means, with their ports.

    The digest decides; tried are the sets that a mover can mean: all that are at the old
    address, all that are at the old or (said again) at the new one, all of the family.
    None: none of them fits.
    """
    if not frame.whole:
        return dict(frame.entries)
    changed = dict(frame.entries)
    family = [b for b in bindings if b.birth.version == frame.new.version and not b.closing]
    known = {b.conn_id for b in family}
    if not changed.keys() <= known:
        return None
    at_old = [b for b in family if b.remotes[0].addr == frame.old]
    was_old = [b for b in family if any(r.addr in (frame.old, frame.new) for r in b.remotes)]
    for chosen in (at_old, was_old, family):
        if len(chosen) == frame.count:
            ports = {b.conn_id: changed.get(b.conn_id, b.birth.remote.port) for b in chosen}
            if digest(ports.items()) == frame.digest:
                return ports
    return None
