"""Records to rows and back: every value is checked on its way in from the disk."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any

from appliance.protocol.records import BindingRecord, PeerRecord, TrustState
from appliance.rewrite.redirect import Entry

Row = dict[str, Any]

_STATES: tuple[TrustState, ...] = ("pending", "trusted", "verified", "revoked")
_SECRET_BYTES = 32


def peer_row(peer: PeerRecord) -> Row:
    """A row of ``peers``; ValueError if the record could not be read back."""
    _check_peer(peer)
    return {
        "peer_id": peer.peer_id,
        "name": peer.name,
        "state": peer.state,
        "fingerprint": peer.fingerprint,
        "host_id": peer.host_id,
        "initiator": int(peer.initiator),
        "first_contact": float(peer.first_contact),
        "last_contact": float(peer.last_contact),
        "addresses": json.dumps(list(peer.addresses)),
        "port": peer.port,
        "dns_name": peer.dns_name,
        "root": peer.root,
        "chain": peer.chain,
        "previous": peer.previous,
    }


def row_peer(row: Mapping[str, Any]) -> PeerRecord:
    """The inverse of :func:`peer_row`; ValueError on anything else."""
    addresses = json.loads(row["addresses"])
    if not isinstance(addresses, list) or not all(isinstance(a, str) for a in addresses):
        raise ValueError("addresses are not a list of texts")
    peer = PeerRecord(
        peer_id=row["peer_id"],
        root=row["root"],
        chain=row["chain"],
        previous=row["previous"],
        initiator=bool(row["initiator"]),
        host_id=row["host_id"],
        name=row["name"],
        fingerprint=row["fingerprint"],
        state=row["state"],
        first_contact=row["first_contact"],
        last_contact=row["last_contact"],
        addresses=tuple(addresses),
        port=row["port"],
        dns_name=row["dns_name"],
    )
    _check_peer(peer)
    return peer


def _check_peer(peer: PeerRecord) -> None:
    if not _is_id(peer.peer_id):
        raise ValueError(f"{peer.peer_id!r} is not a peer ID")
    if peer.state not in _STATES:
        raise ValueError(f"peer {peer.peer_id}: {peer.state!r} is not a state")
    for name, secret in (("root", peer.root), ("chain", peer.chain), ("previous", peer.previous)):
        # the secret itself stays out of the message
        if not isinstance(secret, bytes) or len(secret) != _SECRET_BYTES:
            raise ValueError(f"peer {peer.peer_id}: {name} is not {_SECRET_BYTES} bytes long")


def binding_row(binding: BindingRecord) -> Row:
    """A row of ``bindings`` (its text columns follow from ``entry`` by themselves)."""
    return {
        "conn_id": binding.entry.conn_id,
        "peer_id": binding.peer_id,
        "since": float(binding.since),
        "bound_at": float(binding.bound_at),
        "moves": binding.moves,
        "last_move": None if binding.last_move is None else float(binding.last_move),
        "entry": json.dumps(binding.entry.to_json(), separators=(",", ":")),
    }


def row_binding(row: Mapping[str, Any]) -> BindingRecord:
    """The inverse of :func:`binding_row`; ValueError on anything else."""
    try:
        fields = json.loads(row["entry"])
        if not isinstance(fields, dict):
            raise ValueError("it is not an object")
        entry = Entry.from_json(fields)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"connection {row['conn_id']}: entry: {error}") from None
    if entry.conn_id != row["conn_id"]:
        raise ValueError(f"connection {row['conn_id']}: entry names {entry.conn_id}")
    return BindingRecord(
        peer_id=row["peer_id"],
        entry=entry,
        since=row["since"],
        bound_at=row["bound_at"],
        moves=row["moves"],
        last_move=row["last_move"],
    )


def put(conn: sqlite3.Connection, table: str, key: str, made: Sequence[Row]) -> None:
    """Insert rows, or replace those with the same key (by ON CONFLICT, so that nothing
    that refers to them is deleted); within a transaction of the caller's.

    Not sqlite-utils' upsert: it finds out whether SQLite knows ON CONFLICT by making a
    table, and if the disk is full just then it falls back for good to INSERT OR IGNORE,
    which drops rows of a table with NOT NULL columns without a word.
    """
    names = list(made[0])
    conn.executemany(
        f"INSERT INTO {table} ({', '.join(names)})"  # noqa: S608 -- names of ours
        f" VALUES ({', '.join(':' + n for n in names)})"
        f" ON CONFLICT ({key}) DO UPDATE SET"
        f" {', '.join(f'{n} = excluded.{n}' for n in names if n != key)}",
        made,
    )


def _is_id(text: object) -> bool:
    return isinstance(text, str) and len(text) == 32 and set(text) <= set("0123456789abcdef")
