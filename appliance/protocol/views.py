"""What the operator sees: the fields of docs/control.md."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..rewrite.flow import Flow
from ..rewrite.redirect import DataPath
from .connections import Binding, Known
from .peer import Peer
from .records import TrustState
from .transitions import Conn, Shake
from .world import World

ConnectionState = Literal["short", "long", "bound", "held", "redirected"]


@dataclass(frozen=True, slots=True)
class PeerView:
    peer_id: str
    name: str
    state: TrustState
    fingerprint: str
    host_id: str
    first_contact: float
    last_contact: float
    addresses: tuple[str, ...]
    dns_name: str | None
    session: Literal["none", "handshake", "up"]
    connections: int


@dataclass(frozen=True, slots=True)
class ConnectionView:
    conn_id: str | None
    peer_id: str | None
    peer_name: str | None
    state: ConnectionState
    why: str
    inside: Flow
    birth: Flow
    wire: Flow | None
    local: bool
    since: float | None
    bound_at: float | None
    moves: int
    last_move: float | None
    path: DataPath
    held_since: float | None


def peer_view(world: World, peer: Peer) -> PeerView:
    r = peer.record
    asking = peer.shake in (Shake.ASKED, Shake.YIELDED) or bool(peer.incoming)
    session: Literal["none", "handshake", "up"] = "handshake" if asking else "none"
    return PeerView(
        r.peer_id, r.name, r.state, r.fingerprint, r.host_id, r.first_contact, r.last_contact,
        r.addresses, r.dns_name, "up" if peer.session else session,
        world.table.count_of(r.peer_id),
    )  # fmt: skip


def bound_view(world: World, b: Binding) -> ConnectionView:
    peer = world.peers.get(b.peer_id)
    state: ConnectionState = "redirected" if b.entry.redirected else "bound"
    if b.waiting_since is not None or b.entry.wire_out is None:
        state = "held"
    return ConnectionView(
        b.conn_id, b.peer_id, peer.name if peer else None, state, b.why, b.inside, b.birth,
        b.entry.wire_out or b.entry.wires[0], b.local, b.since, b.bound_at, b.moves, b.last_move,
        b.path, b.waiting_since,
    )  # fmt: skip


_WHY = {Conn.PLAIN: "off by a rule", Conn.SHORT: "too young"}


def known_view(known: Known) -> ConnectionView:
    c = known.c
    state: ConnectionState = "long" if known.state in (Conn.LONG, Conn.OFFERED) else "short"
    return ConnectionView(
        None, None, None, state, known.why or _WHY.get(known.state, ""), c.inside, c.birth, None,
        c.local, c.since, None, 0, None, "kernel", None,
    )  # fmt: skip
