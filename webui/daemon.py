"""The daemon as the pages see it: the operations of docs/control.md with typed answers."""

from __future__ import annotations

import base64
from functools import cache
from typing import Any, TypeVar

import attrs
import cattrs

from .client import ControlClient, DaemonDown, DaemonError


@attrs.frozen
class Address:
    """An address of this machine. ``since``: seconds since the epoch."""

    addr: str
    ifname: str = ""
    since: float | None = None


@attrs.frozen
class Peer:
    """A known host; ``fingerprint`` is equal at both ends."""

    peer_id: str
    name: str
    state: str
    fingerprint: str = ""
    host_id: str = ""
    first_contact: float | None = None
    last_contact: float | None = None
    addresses: tuple[str, ...] = ()
    dns_name: str | None = None
    session: str = "none"
    connections: int = 0


@attrs.frozen
class Connection:
    """One TCP connection; ``inside``, ``birth`` and ``wire`` are (local, remote) endpoints."""

    conn_id: str | None
    peer_id: str | None
    peer_name: str | None
    state: str
    inside: tuple[str, str]
    birth: tuple[str, str]
    why: str = ""
    wire: tuple[str, str] | None = None
    local: bool = True
    since: float | None = None
    bound_at: float | None = None
    moves: int = 0
    last_move: float | None = None
    path: str = "kernel"
    integrity: str = "off"
    held: int = 0
    held_since: float | None = None


@attrs.frozen
class Event:
    """A line of the event log."""

    id: int
    time: float
    level: str
    kind: str
    text: str
    peer_id: str | None = None
    conn_id: str | None = None


@attrs.frozen
class Move:
    """An address change of ours, as the peer was told, or (``ours`` false) of the peer's.
    ``handover_ms``: milliseconds until all connections went on."""

    id: int
    time: float
    old: str
    new: str
    peer_id: str | None = None
    connections: int = 0
    refused: int = 0
    handover_ms: float | None = None
    done: bool = True
    ours: bool = True


@attrs.frozen
class Notice:
    """Something the owner should look at."""

    kind: str
    text: str
    peer_id: str | None = None
    conn_id: str | None = None


@attrs.frozen
class Status:
    """The daemon at a glance. ``peers`` and ``connections``: how many by state."""

    version: str
    since: float
    port: int = 0
    addresses: tuple[Address, ...] = ()
    peers: dict[str, int] = attrs.field(factory=dict)
    connections: dict[str, int] = attrs.field(factory=dict)
    last_move: Move | None = None
    warnings: tuple[Notice, ...] = ()


@attrs.frozen
class DaemonConfig:
    """What the daemon runs with; no secret inside."""

    path: str
    settings: dict[str, Any]


@attrs.frozen
class Forgotten:
    """Answer to peer.forget: how many connections lost their protection."""

    connections: int = 0


@attrs.frozen
class Exported:
    """Answer to peer.export."""

    text: str = attrs.field(repr=False)


@attrs.frozen
class Introduced:
    """Answer to peer.introduce; ``text`` is what the other host imports: a secret."""

    peer: Peer
    text: str = attrs.field(repr=False)


@attrs.frozen
class Capture:
    """Recorded packets of a connection or a peer; ``seconds`` and ``bytes`` are bounds,
    ``size`` is how many bytes there are, ``why`` says why it failed."""

    id: str
    text: str
    state: str
    started: float
    seconds: int
    bytes: int
    conn_id: str | None = None
    peer_id: str | None = None
    size: int = 0
    why: str = ""


@attrs.frozen
class Piece:
    """A part of a capture's file; ``next``: where to go on, None at its end."""

    data: bytes = attrs.field(repr=False)
    next: int | None = None


T = TypeVar("T")


@cache
def _converter() -> cattrs.Converter:
    # Unknown keys are let through: a newer daemon may say more.
    converter = cattrs.Converter(detailed_validation=False)
    converter.register_structure_hook(bytes, lambda text, _: base64.b64decode(text, validate=True))
    return converter


class Daemon:
    """Operations of the daemon. Each raises DaemonDown or DaemonError (see client.py)."""

    def __init__(self, client: ControlClient) -> None:
        self.client = client

    def _typed(self, data: Any, shape: type[T]) -> T:
        try:
            return _converter().structure(data, shape)
        except (cattrs.BaseValidationError, ValueError, TypeError, KeyError, AttributeError) as e:
            raise DaemonDown(
                self.client.path, "redirectd is of another version than this page"
            ) from e

    def status(self) -> Status:
        return self._typed(self.client.call("status"), Status)

    def peers(self) -> tuple[Peer, ...]:
        return self._typed(self.client.call("peers"), tuple[Peer, ...])

    def peer(self, peer_id: str) -> Peer:
        """The peer with exactly this ID; DaemonError ``not-found``."""
        for peer in self.peers():
            if peer.peer_id == peer_id:
                return peer
        raise DaemonError("not-found", "This host is not known, or no longer.")

    def connections(self) -> tuple[Connection, ...]:
        return self._typed(self.client.call("connections"), tuple[Connection, ...])

    def connection(self, conn_id: str) -> Connection:
        """The connection with exactly this ID; DaemonError ``not-found``."""
        for connection in self.connections():
            if connection.conn_id == conn_id:
                return connection
        raise DaemonError("not-found", "This connection has ended.")

    def events(
        self,
        limit: int,
        before: int | None = None,
        level: str | None = None,
        search: str | None = None,
    ) -> tuple[Event, ...]:
        """The newest ``limit`` events older than ``before`` that match, newest first."""
        args = {"limit": limit, "before": before, "level": level, "search": search}
        given = {key: value for key, value in args.items() if value is not None}
        return self._typed(self.client.call("events", **given), tuple[Event, ...])

    def moves(self, limit: int) -> tuple[Move, ...]:
        return self._typed(self.client.call("moves", limit=limit), tuple[Move, ...])

    def config(self) -> DaemonConfig:
        return self._typed(self.client.call("config"), DaemonConfig)

    def accept(self, peer_id: str) -> Peer:
        return self._typed(self.client.call("peer.accept", peer=peer_id), Peer)

    def verify(self, peer_id: str) -> Peer:
        return self._typed(self.client.call("peer.verify", peer=peer_id), Peer)

    def revoke(self, peer_id: str) -> Peer:
        return self._typed(self.client.call("peer.revoke", peer=peer_id), Peer)

    def forget(self, peer_id: str) -> int:
        """How many connections lost their protection."""
        return self._typed(self.client.call("peer.forget", peer=peer_id), Forgotten).connections

    def rename(self, peer_id: str, name: str) -> Peer:
        return self._typed(self.client.call("peer.rename", peer=peer_id, name=name), Peer)

    def set_dns_name(self, peer_id: str, dns_name: str | None) -> Peer:
        data = self.client.call("peer.dns", peer=peer_id, dns_name=dns_name)
        return self._typed(data, Peer)

    def export(self, peer_id: str) -> str:
        """Our keys with that peer: a secret."""
        return self._typed(self.client.call("peer.export", peer=peer_id), Exported).text

    def introduce(self, name: str, address: str | None, port: int | None) -> Introduced:
        args = {"name": name, "address": address, "port": port}
        given = {key: value for key, value in args.items() if value is not None}
        return self._typed(self.client.call("peer.introduce", **given), Introduced)

    def import_peer(self, text: str, name: str | None) -> Peer:
        args = {"text": text} if name is None else {"text": text, "name": name}
        return self._typed(self.client.call("peer.import", **args), Peer)

    def resend(self, conn_id: str) -> None:
        self.client.call("connection.resend", conn=conn_id)

    def drop(self, conn_id: str) -> None:
        self.client.call("connection.drop", conn=conn_id)

    def captures(self) -> tuple[Capture, ...]:
        return self._typed(self.client.call("capture.list"), tuple[Capture, ...])

    def capture(self, capture_id: str) -> Capture:
        """The capture with exactly this ID; DaemonError ``not-found``."""
        for capture in self.captures():
            if capture.id == capture_id:
                return capture
        raise DaemonError("not-found", "This capture is gone.")

    def start_capture(
        self, conn_id: str | None, peer_id: str | None, seconds: int, size: int
    ) -> Capture:
        """Of a connection or of a peer; ``size``: bytes at most."""
        args = {"conn": conn_id, "peer": peer_id, "seconds": seconds, "bytes": size}
        given = {key: value for key, value in args.items() if value is not None}
        return self._typed(self.client.call("capture.start", **given), Capture)

    def capture_piece(self, capture_id: str, offset: int) -> Piece:
        row = self.client.call("capture.get", id=capture_id, offset=offset)
        return self._typed(row, Piece)

    def delete_capture(self, capture_id: str) -> None:
        self.client.call("capture.delete", id=capture_id)

    def close(self) -> None:
        self.client.close()
