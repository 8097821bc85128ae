"""What the protocol core asks its surroundings to do.

The engine executes commands strictly in the order in which the core gave them,
each one finished before the next begins: the order of a move (docs/protocol.md)
is nothing but the order of commands, and a crash can fall only between two.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..rewrite.flow import Address, Endpoint, Flow
from ..rewrite.redirect import Entry
from .records import BindingRecord, PeerRecord


@dataclass(frozen=True, slots=True)
class Send:
    """Send a datagram; ``source`` None leaves the choice to the kernel."""

    data: bytes
    remote: Endpoint
    source: Address | None = None


@dataclass(frozen=True, slots=True)
class SavePeer:
    """Write a peer's record to disk (durable before the next command)."""

    peer: PeerRecord


@dataclass(frozen=True, slots=True)
class ForgetPeer:
    peer_id: str


@dataclass(frozen=True, slots=True)
class SaveBindings:
    """Write bindings to disk, all or none (durable before the next command)."""

    bindings: tuple[BindingRecord, ...]


@dataclass(frozen=True, slots=True)
class Apply:
    """Make the kernel's packet path agree with these entries, in one step."""

    entries: tuple[Entry, ...]


@dataclass(frozen=True, slots=True)
class Release:
    """Connections that ended: out of the kernel, then off the disk."""

    conn_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RestoreNat:
    """Re-create the NAT state of these connections (the kernel flushed it)."""

    conn_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Park:
    """Keep ``addr`` usable by our own sockets though no interface has it."""

    addr: Address


@dataclass(frozen=True, slots=True)
class Unpark:
    addr: Address


@dataclass(frozen=True, slots=True)
class ReservePorts:
    """Reserve the local port of each wire flow, or another one if it is taken.

    Answered by the input ``ports_reserved`` with the flow got (None: no port free).
    The key is a connection ID, or one with ``+`` behind it: a connection has up to two
    reservations, so that the one in use stays until the next is.  A reservation ends with
    ``Release``, which names both; a newer one under the same key replaces it.
    """

    wanted: Mapping[str, Flow]


@dataclass(frozen=True, slots=True)
class Observe:
    """Report pure ACKs of these birth flows through ``segment_seen``; replaces the
    set observed before (empty: stop)."""

    flows: tuple[Flow, ...]


@dataclass(frozen=True, slots=True)
class Prompt:
    """Make our end of the connection emit a pure ACK (RFC 9293 3.10.7.4: an
    unacceptable segment is answered by an acknowledgment)."""

    inside: Flow
    local: bool


@dataclass(frozen=True, slots=True)
class Reinject:
    """Send the held segments of these connections on their present wire flow.

    wake  then make our end speak: a far end that could send nothing looks again at the next
          ACK.  Not while the far end still sends elsewhere: its answer would be lost, and
          it gives no second one for a while (Linux: half a second).
    """

    conn_ids: tuple[str, ...]
    wake: bool = True


@dataclass(frozen=True, slots=True)
class Guard:
    """Keep our end of these open connections from giving up: what it repeats is answered
    as by a far end whose window is shut.  Replaces the set guarded before.  (Of held
    connections the packet path takes care by itself.)"""

    conn_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Abort:
    """End our end of a connection at once (RST inwards)."""

    inside: Flow
    local: bool


@dataclass(frozen=True, slots=True)
class Resolve:
    """Look up a peer's DNS name; answered by the input ``resolved``."""

    peer_id: str
    name: str


@dataclass(frozen=True, slots=True)
class Log:
    """An event for the operator: ``kind`` is a stable word, never a secret inside.

    level: debug, info, notice, warning, alert
    """

    level: str
    kind: str
    text: str
    peer_id: str | None = None
    conn_id: str | None = None
    data: Mapping[str, Any] = field(default_factory=dict)


Command = (
    Send | SavePeer | ForgetPeer | SaveBindings | Apply | Release | RestoreNat | Park
    | Unpark | ReservePorts | Observe | Prompt | Reinject | Guard | Abort | Resolve | Log
)  # fmt: skip
