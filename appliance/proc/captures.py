"""Captures, the engine's half: which there are, what they hold, when they must go.

The parent's half (:mod:`.recording`) writes ``ID.pcap``, or ``ID.failed`` with the reason;
here ``ID.json`` is written beside it, so that a list survives a restart.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import fcntl
import json
import logging
import os
import secrets
import shutil
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from ..backend.api import BackendError
from ..rewrite.redirect import Entry
from .control_requests import ControlError
from .ipc import Message, ParentLink
from .recording import FOLDER, MAX_RUNNING, Order, Scope, is_capture_id

log = logging.getLogger("redirectd.captures")

Json = dict[str, Any]
State = Literal["running", "done", "failed"]

MAX_KEPT = 10
PIECE = 1 << 20  # bytes of one answer
STARTS_WITHIN = 10.0  # seconds in which the file must appear
DISK_SPARE = 32 << 20  # bytes that a capture leaves to others


@dataclass(frozen=True, slots=True)
class Capture:
    """One capture as it was asked for; ``seconds`` and ``bytes`` are its bounds."""

    id: str
    conn_id: str | None
    peer_id: str | None
    text: str
    started: float
    seconds: int
    bytes: int


class Captures:
    """``now``: seconds since the epoch."""

    def __init__(self, state_dir: Path, link: ParentLink, now: Callable[[], float]) -> None:
        self._folder = state_dir / FOLDER
        self._link = link
        self._now = now
        self._live: dict[str, tuple[Capture, float]] = {}  # with the end of each
        self._telling: set[asyncio.Task[None]] = set()

    async def start(
        self, text: str, scope: Scope, seconds: int, most: int,
        *, conn_id: str | None = None, peer_id: str | None = None,
    ) -> Json:  # fmt: skip
        """Begin to record ``scope``; ControlError when it can't be."""
        known = self._known()
        if sum(self._state(capture)[0] == "running" for capture in known) >= MAX_RUNNING:
            raise ControlError(
                "conflict", f"{MAX_RUNNING} captures run already: wait, or delete one"
            )
        made = Capture(secrets.token_hex(8), conn_id, peer_id, text, self._now(), seconds, most)
        try:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            for old in known[MAX_KEPT - 1 :]:
                if self._state(old)[0] != "running":
                    self._remove(old.id)
            if shutil.disk_usage(self._folder).free < most + DISK_SPARE:
                raise ControlError("refused", "the disk is too full for a capture")
            with open(self._path(made.id, "json"), "x", opener=_private) as file:
                json.dump(asdict(made), file)
            order = Order(made.id, scope, seconds, most)
            await self._link.call(Message.RECORD, order.to_json())
        except (BackendError, OSError) as fault:
            with contextlib.suppress(OSError):
                self._remove(made.id)
            raise ControlError("refused", f"no capture: {fault}") from None
        self._live[made.id] = (made, made.started + seconds + STARTS_WITHIN)
        return self._row(made)

    def rows(self) -> list[Json]:
        """*capture* of docs/control.md, newest first."""
        return [self._row(capture) for capture in self._known()]

    def get(self, capture_id: str, offset: int) -> Json:
        """A piece of the file."""
        capture = self._find(capture_id)
        state, _, _ = self._state(capture)  # first: what comes later is not left out unseen
        try:
            with open(self._path(capture.id, "pcap"), "rb") as file:
                file.seek(offset)
                piece = file.read(PIECE)
                size = os.fstat(file.fileno()).st_size
        except FileNotFoundError:
            piece, size = b"", 0
        end = offset + len(piece)
        return {
            "data": base64.b64encode(piece).decode(),
            "next": None if state != "running" and end >= size else end,
        }

    def delete(self, capture_id: str) -> None:
        """Stops it, too, if it runs."""
        self._remove(self._find(capture_id).id)

    def follow(self, entries: Iterable[Entry], peer_of: Callable[[str], str | None]) -> None:
        """Connections have moved: captures of them take their new flows as well."""
        if not self._live:
            return
        now = self._now()
        self._live = {i: (c, end) for i, (c, end) in self._live.items() if now < end}
        entries = list(entries)
        for capture, _ in self._live.values():
            scope = Scope((), ())
            for entry in entries:
                if entry.conn_id == capture.conn_id:
                    scope = scope.plus(scope_of(entry))
                elif capture.peer_id is not None and peer_of(entry.conn_id) == capture.peer_id:
                    hosts = tuple(wire.remote.addr for wire in entry.wires)
                    scope = scope.plus(Scope((), hosts))
            if scope.flows or scope.hosts:
                task = asyncio.create_task(self._tell(capture.id, scope))
                self._telling.add(task)
                task.add_done_callback(self._telling.discard)

    async def _tell(self, capture_id: str, scope: Scope) -> None:
        try:
            body = {"id": capture_id, **scope.to_json()}
            await self._link.call(Message.RECORD_MORE, body)
        except (BackendError, EOFError) as fault:
            log.warning("a capture misses what has moved: %s", fault)

    def _known(self) -> list[Capture]:
        found = []
        for path in self._folder.glob("*.json"):
            with contextlib.suppress(OSError, ValueError, TypeError):  # not ours, or half-made
                capture = Capture(**json.loads(path.read_bytes()))
                if is_capture_id(capture.id) and capture.id == path.stem:
                    found.append(capture)
        return sorted(found, key=lambda capture: capture.started, reverse=True)

    def _find(self, capture_id: str) -> Capture:
        for capture in self._known():
            if capture.id == capture_id:
                return capture
        message = f"no capture {capture_id!r}: see 'redirectctl capture list'"
        raise ControlError("not-found", message)

    def _row(self, capture: Capture) -> Json:
        state, size, why = self._state(capture)
        return {**asdict(capture), "state": state, "size": size, "why": why}

    def _state(self, capture: Capture) -> tuple[State, int, str]:
        """(state, bytes so far, why it failed)"""
        try:
            with open(self._path(capture.id, "pcap"), "rb") as file:
                size = os.fstat(file.fileno()).st_size
                try:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    return "running", size, ""
                return "done", size, ""
        except FileNotFoundError:
            pass
        try:
            why = self._path(capture.id, "failed").read_text(errors="replace")[:500]
        except FileNotFoundError:
            if 0 <= self._now() - capture.started < STARTS_WITHIN:
                return "running", 0, ""
            why = "it did not start"
        return "failed", 0, why

    def _remove(self, capture_id: str) -> None:
        for kind in ("pcap", "failed", "json"):
            self._path(capture_id, kind).unlink(missing_ok=True)

    def _path(self, capture_id: str, kind: str) -> Path:
        return self._folder / f"{capture_id}.{kind}"


def scope_of(entry: Entry) -> Scope:
    """Every name that the connection has now."""
    out = () if entry.wire_out is None else (entry.wire_out,)
    return Scope((), ()).plus(Scope((entry.inside, entry.birth, *entry.wires, *out), ()))


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)
