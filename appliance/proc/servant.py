"""What the engine asks of the parent, checked into typed values and carried out."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any

from ..backend.api import BackendError, Host, RedirectTable
from ..rewrite.flow import Flow
from .ipc import EngineLink, Message, ProtocolError, entries_of, text_list
from .recording import Order, Recordings, Scope

log = logging.getLogger("redirectd.parent")


@dataclass
class Servant:
    """Executes the engine's requests, each checked into typed values first."""

    table: RedirectTable
    host: Host
    recordings: Recordings | None = None
    serves: bool = False
    keep: bool = True
    _do: dict[Message, Callable[[dict[str, Any]], Any]] = field(init=False)

    def __post_init__(self) -> None:
        table, host = self.table, self.host
        self._do = {
            Message.REPLACE_ALL: self._replace_all,
            Message.APPLY: self._apply,
            Message.REMOVE: self._remove,
            Message.OBSERVE: lambda b: table.observe(
                [Flow.parse(f) for f in text_list(b, "flows")]
            ),
            Message.PARK: lambda b: host.park(ip_address(b["addr"])),
            Message.UNPARK: lambda b: host.unpark(ip_address(b["addr"])),
            Message.RESERVE: self._reserve,
            Message.RESTORE_NAT: lambda b: host.restore_nat(entries_of(b)),
            Message.ABORT: lambda b: host.abort(Flow.parse(b["inside"]), bool(b["local"])),
            Message.DUMP: lambda b: host.request_connections(),
            Message.READY: self._ready,
            Message.RECORD: self._record,
            Message.RECORD_MORE: self._record_more,
            Message.BYE: self._bye,
        }

    def engine_starts(self) -> None:
        """What the one before it said counts no more."""
        self.serves, self.keep = False, True

    def _apply(self, body: dict[str, Any]) -> None:
        entries = entries_of(body)
        self.table.apply(entries)
        self.host.keep(entries)

    def _replace_all(self, body: dict[str, Any]) -> None:
        entries = entries_of(body)
        self.table.replace_all(entries)
        self.host.adopt(entries)

    def _remove(self, body: dict[str, Any]) -> None:
        conn_ids = text_list(body, "conn_ids")
        self.table.remove(conn_ids)
        self.host.release(conn_ids)

    def _reserve(self, body: dict[str, Any]) -> dict[str, str | None]:
        wanted = {str(c): Flow.parse(f) for c, f in body["wanted"].items()}
        got = self.host.reserve(wanted)
        return {c: None if flow is None else str(flow) for c, flow in got.items()}

    def _bye(self, body: dict[str, Any]) -> None:
        self.keep = bool(body["keep"])

    def _record(self, body: dict[str, Any]) -> None:
        if self.recordings is None:
            raise BackendError("this daemon records no packets")
        self.recordings.start(Order.from_json(body))

    def _record_more(self, body: dict[str, Any]) -> None:
        if self.recordings is not None:
            self.recordings.widen(str(body["id"]), Scope.from_json(body))

    def _ready(self, body: dict[str, Any]) -> None:
        self.serves = True

    def verify(self) -> None:
        """Somebody may have flushed all rules (``nft flush ruleset``, a firewall's reload)."""
        try:
            if self.table.verify():
                log.warning("our rules were gone; they are back")
        except BackendError as fault:
            log.error("our rules can't be put back: %s", fault)

    def serve_one(self, link: EngineLink) -> None:
        """Read one request and answer it; EOFError when the engine is gone."""
        kind, body = link.receive()
        try:
            if kind not in self._do:
                raise ProtocolError(f"{kind.name} is not a request")
            value = self._do[kind](body)
        except (BackendError, ProtocolError, ValueError, KeyError, TypeError, OSError) as fault:
            log.error("%s: %s", kind.name, fault)
            link.answer(Message.FAILED, {"why": f"{type(fault).__name__}: {fault}"})
        else:
            link.answer(Message.DONE, value)
