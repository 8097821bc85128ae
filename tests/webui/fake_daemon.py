"""A daemon without a network: speaks docs/control.md over a real Unix socket.

Its state is plain dicts that a test changes as the world would; requests change it as the
daemon would. A thread a client; ``stop()`` ends them all.
"""

from __future__ import annotations

import base64
import copy
import json
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Json = dict[str, Any]
LEVELS = ("debug", "info", "notice", "warning", "alert")


class Refusal(Exception):
    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def peer(number: int, **changes: Any) -> Json:
    """A peer as docs/control.md has it."""
    words = ["amber", "basil", "cedar", "delta", "ember", "flint", "grove", "hazel", "indigo"]
    return {
        "peer_id": f"{number:032x}",
        "name": f"host-{number}",
        "state": "trusted",
        "fingerprint": " ".join(words[(number + i) % len(words)] for i in range(8)),
        "host_id": f"{number + 7:032x}",
        "first_contact": time.time() - 86400 * 9,
        "last_contact": time.time() - 60,
        "addresses": [f"198.51.100.{number % 250 + 1}"],
        "dns_name": None,
        "session": "up",
        "connections": 0,
    } | changes


def connection(number: int, **changes: Any) -> Json:
    """A connection as docs/control.md has it; long-lived, not bound."""
    pair = [f"192.168.1.10:{20000 + number}", f"198.51.100.{number % 250 + 1}:22"]
    birth = [f"203.0.113.7:{20000 + number}", pair[1]]
    return {
        "conn_id": None,
        "peer_id": None,
        "peer_name": None,
        "state": "long",
        "why": "far end does not run redirectd",
        "inside": pair,
        "birth": birth,
        "wire": None,
        "local": False,
        "since": time.time() - 300,
        "bound_at": None,
        "moves": 0,
        "last_move": None,
        "path": "kernel",
        "integrity": "off",
        "held": 0,
        "held_since": None,
    } | changes


def bound(number: int, of: Json, **changes: Any) -> Json:
    """A connection that is bound to a peer."""
    extra = {
        "conn_id": f"{number + 0xC0:016x}",
        "peer_id": of["peer_id"],
        "peer_name": of["name"],
        "state": "bound",
        "why": "",
        "bound_at": time.time() - 290,
    }
    base = connection(number, **(extra | changes))
    return base | {"wire": changes.get("wire", base["birth"])}


def move(number: int, **changes: Any) -> Json:
    """An address change of ours as docs/control.md has it."""
    return {
        "id": number,
        "time": time.time() - 3600 * number,
        "old": f"203.0.113.{number + 6}",
        "new": f"203.0.113.{number + 7}",
        "peer_id": None,
        "connections": 3,
        "refused": 0,
        "handover_ms": 43.2,
        "done": True,
        "ours": True,
    } | changes


def event(number: int, **changes: Any) -> Json:
    """A line of the log as docs/control.md has it."""
    return {
        "id": number,
        "time": time.time() - 1000 + number,
        "level": "info",
        "kind": "first-contact",
        "text": f"met host number {number}",
        "peer_id": None,
        "conn_id": None,
        "data": {},
    } | changes


def capture(number: int, **changes: Any) -> Json:
    """Recorded packets as docs/control.md has them."""
    return {
        "id": f"{number:016x}",
        "conn_id": None,
        "peer_id": None,
        "text": f"host host-{number}",
        "started": time.time() - 20,
        "seconds": 60,
        "bytes": 4 << 20,
        "state": "done",
        "size": len(CAPTURED),
        "why": "",
    } | changes


CAPTURED = b"recorded"
CONFIG: Json = {
    "port": 4787,
    "state-dir": "/var/lib/redirectd",
    "first-contact": "ask",
    "discover": "any",
    "long-lived-after": 10,
    "interfaces": {"inside": ["em1"], "outside": ["em0"], "ignore": []},
    "rule": [{"ports": [22], "path": "kernel", "integrity": "prefer"}],
}


class FakeDaemon:
    """``peers``, ``connections``, ``moves`` and ``events`` (both newest first) are the state."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lock = threading.RLock()
        self.peers: list[Json] = []
        self.connections: list[Json] = []
        self.moves: list[Json] = []
        self.events: list[Json] = []
        self.captures: list[Json] = []
        self.warnings: list[Json] = []
        self.addresses: list[Json] = [
            {"addr": "203.0.113.7", "ifname": "em0", "since": time.time() - 7200}
        ]
        self.config: Json = copy.deepcopy(CONFIG)
        self.asked: list[tuple[str, Json]] = []
        self.raw_answer: bytes | None = None
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen(64)
        self._clients: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Hangs up on everybody and takes the socket away, as a daemon that ends does."""
        self.path.unlink(missing_ok=True)
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(5)
        with self.lock:
            for client in self._clients:
                client.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(5)

    def done(self, operation: str) -> list[Json]:
        """The arguments of each call of ``operation`` so far."""
        with self.lock:
            return [args for name, args in self.asked if name == operation]

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with self.lock:
                self._clients.add(client)
            thread = threading.Thread(target=self._serve, args=(client,), daemon=True)
            self._threads = [t for t in self._threads if t.is_alive()] + [thread]
            thread.start()

    def _serve(self, client: socket.socket) -> None:
        with client, client.makefile("rb") as lines:
            try:
                for line in lines:
                    client.sendall(self._answer(line))
            except OSError:
                pass
            finally:
                with self.lock:
                    self._clients.discard(client)

    def _answer(self, line: bytes) -> bytes:
        request = json.loads(line)
        with self.lock:
            self.asked.append((request["do"], request["args"]))
            if self.raw_answer is not None:
                return self.raw_answer
            operation: Callable[..., Any] | None = getattr(
                self, "do_" + request["do"].replace(".", "_"), None
            )
            answer: Json = {"id": request["id"], "ok": True}
            try:
                if operation is None:
                    raise Refusal("bad-request", f"no operation {request['do']!r}")
                answer["data"] = operation(**request["args"])
            except Refusal as error:
                answer |= {"ok": False, "error": {"code": error.code, "message": str(error)}}
            return json.dumps(answer).encode() + b"\n"

    def _peer(self, name: str) -> Json:
        for known in self.peers:
            if name in (known["peer_id"], known["name"]):
                return known
        raise Refusal("not-found", f"no peer \"{name}\": see 'redirectctl show peers'")

    def _connection(self, name: str) -> Json:
        for known in self.connections:
            if known["conn_id"] == name:
                return known
        raise Refusal("not-found", f'no connection "{name}"')

    def _count(self, rows: list[Json], states: tuple[str, ...]) -> dict[str, int]:
        return {state: sum(row["state"] == state for row in rows) for state in states}

    def do_status(self) -> Json:
        return {
            "version": "0.1.0",
            "since": time.time() - 86400 * 3,
            "port": 4787,
            "addresses": self.addresses,
            "peers": self._count(self.peers, ("pending", "trusted", "verified", "revoked")),
            "connections": self._count(
                self.connections, ("short", "long", "bound", "held", "redirected")
            ),
            "last_move": self.moves[0] if self.moves else None,
            "warnings": self.warnings,
        }

    def do_peers(self) -> list[Json]:
        return [
            known | {"connections": sum(c["peer_id"] == known["peer_id"] for c in self.connections)}
            for known in self.peers
        ]

    def do_connections(self, state: str | None = None, peer: str | None = None) -> list[Json]:
        return [
            row
            for row in self.connections
            if state in (None, row["state"]) and peer in (None, row["peer_id"])
        ]

    def do_events(
        self,
        limit: int = 100,
        before: int | None = None,
        level: str | None = None,
        search: str | None = None,
    ) -> list[Json]:
        if not 1 <= limit <= 1000:
            raise Refusal("bad-request", "limit: 1 to 1000")
        found = [
            row
            for row in self.events
            if (before is None or row["id"] < before)
            and (level is None or LEVELS.index(row["level"]) >= LEVELS.index(level))
            and (search is None or search.casefold() in row["text"].casefold())
        ]
        return found[:limit]

    def do_moves(self, limit: int = 100) -> list[Json]:
        return self.moves[:limit]

    def do_config(self) -> Json:
        return {"path": "/etc/redirectd/redirectd.toml", "settings": self.config}

    def do_peer_accept(self, peer: str) -> Json:
        self._peer(peer)["state"] = "trusted"
        return self._peer(peer)

    def do_peer_verify(self, peer: str) -> Json:
        self._peer(peer)["state"] = "verified"
        return self._peer(peer)

    def do_peer_revoke(self, peer: str) -> Json:
        self._peer(peer)["state"] = "revoked"
        return self._peer(peer)

    def do_peer_forget(self, peer: str) -> Json:
        gone = self._peer(peer)
        self.peers.remove(gone)
        lost = [row for row in self.connections if row["peer_id"] == gone["peer_id"]]
        for row in lost:
            row.update(state="long", peer_id=None, peer_name=None, conn_id=None)
        return {"connections": len(lost)}

    def do_peer_rename(self, peer: str, name: str) -> Json:
        if any(known["name"] == name for known in self.peers):
            raise Refusal("conflict", f'another peer is called "{name}"')
        self._peer(peer)["name"] = name
        return next(known for known in self.peers if known["name"] == name)

    def do_peer_dns(self, peer: str, dns_name: str | None) -> Json:
        self._peer(peer)["dns_name"] = dns_name
        return self._peer(peer)

    def do_peer_export(self, peer: str) -> Json:
        return {"text": f"redirectd-pair-1\nSECRET-KEYS-OF {self._peer(peer)['name']}\n"}

    def do_peer_introduce(
        self, name: str, address: str | None = None, port: int | None = None
    ) -> Json:
        made = peer(len(self.peers) + 1000, name=name, session="none")
        made["addresses"] = [address] if address else []
        self.peers.append(made)
        return {"peer": made, "text": f"redirectd-pair-1\nSECRET-KEYS-FOR {name}\n"}

    def do_peer_import(self, text: str, name: str | None = None) -> Json:
        head, _, rest = text.strip().partition("\n")
        if head.strip() != "redirectd-pair-1":
            raise Refusal("bad-request", "this is not an export of redirectd")
        made = peer(len(self.peers) + 2000, name=name or rest.split()[-1], session="none")
        self.peers.append(made)
        return made

    def do_capture_start(
        self, seconds: int, bytes: int, conn: str | None = None, peer: str | None = None
    ) -> Json:
        known = self._connection(conn) if conn else self._peer(peer or "")
        text = f"connection {known['inside'][0]}" if conn else f"host {known['name']}"
        made = capture(
            len(self.captures) + 1, text=text, seconds=seconds, bytes=bytes,
            conn_id=conn, peer_id=peer, state="running",
        )  # fmt: skip
        self.captures.insert(0, made)
        return made

    def do_capture_list(self) -> list[Json]:
        return self.captures

    def _capture(self, number: str) -> Json:
        for known in self.captures:
            if known["id"] == number:
                return known
        raise Refusal("not-found", f"no capture {number!r}")

    def do_capture_get(self, id: str, offset: int = 0) -> Json:
        """Pieces of three bytes."""
        self._capture(id)
        piece = CAPTURED[offset : offset + 3]
        end = offset + len(piece)
        after = None if end == len(CAPTURED) else end
        return {"data": base64.b64encode(piece).decode(), "next": after}

    def do_capture_delete(self, id: str) -> Json:
        self.captures.remove(self._capture(id))
        return {}

    def do_connection_resend(self, conn: str) -> Json:
        self._connection(conn)
        return {}

    def do_connection_drop(self, conn: str) -> Json:
        self._connection(conn).update(state="long", conn_id=None, peer_id=None, peer_name=None)
        return {}
