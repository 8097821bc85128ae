"""What the control socket can ask for (docs/control.md), carried out on the core."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, TypeVar

from .. import __version__, introduction
from ..protocol.commands import Log
from ..protocol.operator import Refused
from ..protocol.views import ConnectionView, PeerView
from ..rewrite.flow import Address, Endpoint, Flow
from ..rewrite.redirect import DataPath
from .backends import can_divert
from .captures import scope_of
from .control_requests import ControlError
from .recording import MAX_SCOPE, Scope

if TYPE_CHECKING:
    from .engine import Engine

T = TypeVar("T")
Json = dict[str, Any]

WARNINGS_FOR = 86400.0  # seconds that an alert stays among the warnings
WARNINGS_MAX = 20
PREFIX_MIN = 4  # digits of an ID that name something


class Operator:
    """Implements ``control.Operations``."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._core = engine.core
        self._since = engine.now()
        self.subscribe = engine.journal.subscribe

    # -- looking

    async def status(self) -> Json:
        connections = self._core.connections()
        peers = Counter(peer.state for peer in self._core.peers())
        states = Counter(view.state for view in connections)
        moves = self._engine.store.moves(limit=1, only_ours=True)
        return {
            "version": __version__,
            "since": self._since,
            "port": self._engine.port,
            "addresses": self._engine.addresses(),
            "peers": {s: peers[s] for s in ("pending", "trusted", "verified", "revoked")},
            "connections": {s: states[s] for s in ("short", "long", "bound", "held", "redirected")},
            "last_move": moves[0].to_json() if moves else None,
            "warnings": self._warnings(connections),
        }

    def _warnings(self, connections: list[ConnectionView]) -> list[Json]:
        """Alerts of the last day, hosts that wait for a decision, paths that can't be kept."""
        found: dict[tuple[str, str | None], Json] = {}
        oldest = self._engine.now() - WARNINGS_FOR
        for event in self._engine.store.events(limit=200, level="alert"):
            if event.time >= oldest:
                row = {"kind": event.kind, "text": event.text, "peer_id": event.peer_id,
                       "conn_id": event.conn_id}  # fmt: skip
                found.setdefault((event.kind, event.peer_id), row)
        for peer in self._core.peers():
            if peer.state == "pending":
                text = f"{peer.name} waits: compare fingerprints, then accept or forget it"
                row = {"kind": "pending", "text": text, "peer_id": peer.peer_id, "conn_id": None}
                found[("pending", peer.peer_id)] = row
        for view in connections:
            if view.conn_id is not None and view.why:
                row = {"kind": "connection", "text": f"{view.birth}: {view.why}",
                       "peer_id": view.peer_id, "conn_id": view.conn_id}  # fmt: skip
                found[("connection", view.conn_id)] = row
        return list(found.values())[:WARNINGS_MAX]

    async def peers(self) -> list[Json]:
        return [_peer_row(peer) for peer in self._core.peers()]

    async def connections(self, state: str | None, peer: str | None) -> list[Json]:
        wanted = None if peer is None else self._peer(peer).peer_id
        held = self._engine.tap.held()
        return [
            _connection_row(view, held)
            for view in self._core.connections()
            if (state is None or view.state == state) and (wanted is None or view.peer_id == wanted)
        ]

    async def redirects(self) -> list[Json]:
        shown = ("redirected", "held")
        held = self._engine.tap.held()
        views = self._core.connections()
        return [_connection_row(view, held) for view in views if view.state in shown]

    async def events(
        self, limit: int, before: int | None, level: str | None, search: str | None
    ) -> list[Json]:
        found = self._engine.store.events(limit, before, level, search)
        return [event.to_json() for event in found]

    async def moves(self, limit: int) -> list[Json]:
        return [move.to_json() for move in self._engine.store.moves(limit)]

    async def config(self) -> Json:
        config = self._engine.config
        return {"path": str(config.source), "settings": config.settings()}

    # -- peers

    async def peer_accept(self, peer: str) -> Json:
        return self._change(peer, self._core.accept)

    async def peer_verify(self, peer: str) -> Json:
        return self._change(peer, self._core.verify)

    async def peer_revoke(self, peer: str) -> Json:
        return self._change(peer, self._core.revoke)

    async def peer_forget(self, peer: str) -> Json:
        return {"connections": self._do(self._core.forget, self._peer(peer).peer_id)}

    async def peer_rename(self, peer: str, name: str) -> Json:
        if any(other.name == name for other in self._core.peers()):
            raise ControlError("conflict", f"another peer is called {name!r} already")
        return self._change(peer, lambda found, now: self._core.rename(found, name, now))

    async def peer_dns(self, peer: str, dns_name: str | None) -> Json:
        return self._change(peer, lambda found, now: self._core.set_dns_name(found, dns_name, now))

    async def peer_export(self, peer: str) -> Json:
        found = self._peer(peer)
        record = next(r for r in self._engine.store.peers() if r.peer_id == found.peer_id)
        return {"text": introduction.write_pair(record, "backup")}

    async def peer_introduce(self, name: str, address: Address | None, port: int | None) -> Json:
        if any(other.name == name for other in self._core.peers()):
            raise ControlError("conflict", f"a peer is called {name!r} already")
        place = None if address is None else Endpoint(address, port or self._engine.port)
        ours, theirs = self._core.introduce(name, place, self._engine.now())
        await self._engine.settle()
        return {
            "peer": _peer_row(self._peer(ours.peer_id)),
            "text": introduction.write_pair(theirs, "introduction"),
        }

    async def peer_import(self, text: str, name: str | None) -> Json:
        try:
            record = introduction.read_pair(text).record
        except introduction.IntroductionError as fault:
            raise ControlError("bad-request", str(fault)) from None
        if name is not None:
            record = replace(record, name=name)
        self._do(self._core.add_peer, record)
        return _peer_row(self._peer(record.peer_id))

    # -- connections

    async def connection_resend(self, conn: str) -> Json:
        self._do(self._core.resend, self._connection(conn))
        return {}

    async def connection_drop(self, conn: str) -> Json:
        self._do(self._core.drop, self._connection(conn))
        return {}

    async def connection_path(self, conn: str, path: DataPath) -> Json:
        if path == "divert" and not can_divert():
            raise ControlError("refused", "this system has no packet worker for the divert path")
        conn_id = self._connection(conn)
        for wanted in (path, "kernel"):
            try:
                self._core.choose_path(conn_id, wanted, self._engine.now())
            except Refused as why:
                raise ControlError("refused", str(why)) from None
            await self._engine.settle()
            entry = self._engine.executor.entries.get(conn_id)
            if entry is None or entry.path == path:
                return {}
        raise ControlError("refused", "the system has refused; redirectd's log says why")

    async def move(self, to: Address, from_: Address | None) -> Json:
        try:
            count = self._core.move(to, from_, self._engine.now())
        except Refused as why:
            raise ControlError("refused", str(why)) from None
        self._engine.drain()
        return {"connections": count}

    # -- captures

    async def capture_start(
        self, conn: str | None, peer: str | None, seconds: int, most: int
    ) -> Json:
        if (conn is None) == (peer is None):
            raise ControlError("bad-request", "a capture is of a connection or of a peer")
        captures = self._engine.captures
        if conn is not None:
            conn_id = self._connection(conn)
            entry = self._engine.executor.entries.get(conn_id)
            if entry is None:
                raise ControlError("conflict", "this connection is only just being bound")
            text = f"connection {entry.inside.local} to {entry.inside.remote}"
            row = await captures.start(text, scope_of(entry), seconds, most, conn_id=conn_id)
        elif peer is not None:
            found = self._peer(peer)
            wires = (v.wire for v in self._core.connections() if v.peer_id == found.peer_id)
            hosts = [wire.remote.addr for wire in wires if wire is not None]
            hosts += [ip_address(text) for text in found.addresses]
            if not hosts:
                raise ControlError("refused", f"no address of {found.name!r} is known")
            scope = Scope((), tuple(dict.fromkeys(hosts))[:MAX_SCOPE])
            row = await captures.start(
                f"host {found.name}", scope, seconds, most, peer_id=found.peer_id
            )
        what = f"packets of {row['text']} are recorded, {seconds} s or {most} bytes at most"
        self._engine.logged(Log("notice", "capture", what, row["peer_id"], row["conn_id"]))
        return row

    async def capture_list(self) -> list[Json]:
        return self._engine.captures.rows()

    async def capture_get(self, capture: str, offset: int) -> Json:
        return self._engine.captures.get(capture, offset)

    async def capture_delete(self, capture: str) -> Json:
        self._engine.captures.delete(capture)
        return {}

    # -- how

    def _do(self, act: Callable[[Any, float], T], argument: Any) -> T:
        try:
            result = act(argument, self._engine.now())
        except Refused as why:
            raise ControlError("refused", str(why)) from None
        self._engine.drain()
        return result

    def _change(self, peer: str, act: Callable[[str, float], None]) -> Json:
        peer_id = self._peer(peer).peer_id
        self._do(act, peer_id)
        return _peer_row(self._peer(peer_id))

    def _peer(self, name: str) -> PeerView:
        peers = self._core.peers()
        exact = [peer for peer in peers if name in (peer.peer_id, peer.name)]
        found = exact or [
            peer for peer in peers if len(name) >= PREFIX_MIN and peer.peer_id.startswith(name)
        ]
        if not found:
            raise ControlError("not-found", f"no peer {name!r}: see 'redirectctl show peers'")
        if len(found) > 1:
            raise ControlError("ambiguous", f"{name!r} names {len(found)} peers: use the ID")
        return found[0]

    def _connection(self, name: str) -> str:
        bound = [view.conn_id for view in self._core.connections() if view.conn_id is not None]
        found = [conn for conn in bound if len(name) >= PREFIX_MIN and conn.startswith(name)]
        if not found:
            raise ControlError(
                "not-found", f"no bound connection {name!r}: see 'redirectctl show connections'"
            )
        if len(found) > 1:
            raise ControlError("ambiguous", f"{name!r} names {len(found)} connections")
        return found[0]


def _flow(flow: Flow) -> list[str]:
    return [str(flow.local), str(flow.remote)]


def _peer_row(peer: PeerView) -> Json:
    return {
        "peer_id": peer.peer_id,
        "name": peer.name,
        "state": peer.state,
        "fingerprint": peer.fingerprint,
        "host_id": peer.host_id,
        "first_contact": peer.first_contact,
        "last_contact": peer.last_contact,
        "addresses": list(peer.addresses),
        "dns_name": peer.dns_name,
        "session": peer.session,
        "connections": peer.connections,
    }


def _connection_row(view: ConnectionView, held: Mapping[str, int]) -> Json:
    return {
        "conn_id": view.conn_id,
        "peer_id": view.peer_id,
        "peer_name": view.peer_name,
        "state": view.state,
        "why": view.why,
        "inside": _flow(view.inside),
        "birth": _flow(view.birth),
        "wire": None if view.wire is None else _flow(view.wire),
        "local": view.local,
        "since": view.since,
        "bound_at": view.bound_at,
        "moves": view.moves,
        "last_move": view.last_move,
        "path": view.path,
        "integrity": "off",
        "held": 0 if view.conn_id is None else held.get(view.conn_id, 0),
        "held_since": view.held_since,
    }
