"""Keeping new connections off the wire flows of redirected ones.

Two things choose local ports behind our back: connect(2) (and bind(2) with port 0) of
our own programs, and masquerade for the LAN.  A socket bound to the port without
SO_REUSEADDR keeps off the first, an entry in connection tracking the second.
"""

from __future__ import annotations

import errno
import logging
import resource
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from ...rewrite.flow import Endpoint, Flow
from ...rewrite.redirect import Entry
from . import ctnetlink, sockdiag
from . import netlink as nl

log = logging.getLogger("redirectd.ports")

_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_DEFAULT_RANGE = (32768, 60999)  # ip(7)

# The kernel cuts it to what it can count: 24 days at 1,000 ticks a second.
RESERVED_SECONDS = 0xFFFFFFFF // 1000
_TRIES = 512

_IP_FREEBIND = 15  # the new address may be there only in a moment; also for IPv6


class Ports:
    """Reservations: connection -> wire flow."""

    def __init__(self, conntrack: nl.NetlinkSocket, diag: nl.NetlinkSocket, mark: int) -> None:
        self._conntrack, self._diag, self._mark = conntrack, diag, mark
        self._flows: dict[str, Flow] = {}
        self._owner: dict[Flow, str] = {}
        self._bound: dict[Endpoint, tuple[socket.socket | None, set[Flow]]] = {}
        self._next = 0
        with suppress(ValueError, OSError):  # a file a connection, in the worst case
            _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

    def reserve(self, wanted: Mapping[str, Flow]) -> dict[str, Flow | None]:
        """What each connection got: its own port when it is free, else another one."""
        got = {conn: self._reserve(conn, flow) for conn, flow in wanted.items()}
        if log.isEnabledFor(logging.DEBUG):  # thousands of flows as text cost more than ports
            log.debug("reserve %s got %s", {c: str(f) for c, f in wanted.items()},
                      {c: str(f) for c, f in got.items()})  # fmt: skip
        return got

    def release(self, conn_ids: list[str]) -> None:
        for conn in conn_ids:
            flow = self._flows.pop(conn, None)
            if flow is not None:
                self._let_go(flow)

    def adopt(self, entries: Sequence[Entry]) -> None:
        """Of what an earlier engine or parent reserved, keep what these connections use,
        each under the connection's own ID; the engine reserves it again in a moment."""
        used: dict[Flow, str] = {}
        wanted: set[Flow] = set()
        for entry in entries:
            ours = entry.wires[0].local
            if ours == entry.birth.local:
                continue
            for wire in (*entry.wires, *entry.stale):
                if wire.local == ours:  # the far end may have moved since
                    used[wire] = entry.conn_id
            wanted.add(Flow(ours, (entry.wire_out or entry.wires[-1]).remote))
        log.debug("adopt wanted=%s used=%s have=%s", [*map(str, wanted)], [*map(str, used)],
                  {c: str(f) for c, f in self._flows.items()})  # fmt: skip
        kept: dict[str, Flow] = {}
        for conn, flow in list(self._flows.items()):
            owner = used.get(flow)
            if owner is None or owner in kept:
                self.release([conn])
            else:
                kept[owner] = flow
        for conn, flow in kept.items():
            self._owner[flow] = conn
        self._flows = kept
        dump = ctnetlink.dump_request(self._mark)
        for part in self._conntrack.request("reservations", ctnetlink.CT_GET, nl.NLM_F_DUMP, dump):
            found = ctnetlink.parse(part.payload)
            if found is None or found.mark != self._mark:
                continue
            flow = found.orig.reversed()
            log.debug("adopt found %s", flow)
            if flow not in self._owner and flow not in wanted:
                self._untrack(flow)

    def close(self) -> None:
        self.release(list(self._flows))

    def flows(self) -> Mapping[str, Flow]:
        return self._flows

    def _reserve(self, conn: str, flow: Flow) -> Flow | None:
        had = self._flows.get(conn)
        if had == flow:
            self._refresh(flow)
            return flow
        got = flow if self._take(flow, strict=False) else self._another(flow)
        if had is not None:
            self.release([conn])
        if got is not None:
            self._flows[conn] = got
            self._owner[got] = conn
        return got

    def _another(self, flow: Flow) -> Flow | None:
        low, high = _port_range()
        for _ in range(_TRIES):
            self._next = (self._next * 6364136223846793005 + 1442695040888963407) % 2**64
            port = low + (self._next >> 33) % (high - low + 1)
            candidate = flow.with_local(flow.local.addr, port)
            if self._take(candidate, strict=True):
                return candidate
        return None

    def _take(self, flow: Flow, strict: bool) -> bool:
        """``strict``: nobody else may have the port at all (a port of our own choice)."""
        if flow in self._owner or sockdiag.exists(self._diag, flow):
            return False
        if not self._bind(flow, strict):
            return False
        if not self._track(flow):
            self._unbind(flow)
            return False
        return True

    # -- connect(2) and bind(2)

    def _bind(self, flow: Flow, strict: bool) -> bool:
        end = flow.local
        if end in self._bound:
            if not strict:
                self._bound[end][1].add(flow)
            return not strict
        sock: socket.socket | None = socket.socket(
            socket.AF_INET if end.addr.version == 4 else socket.AF_INET6, socket.SOCK_STREAM
        )
        assert sock is not None
        try:
            sock.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
            sock.bind((str(end.addr), end.port))
        except OSError as fault:
            sock.close()
            if fault.errno not in (errno.EADDRINUSE, errno.EACCES) or strict:
                return False
            # A server listens on it, or connections to others use it: no conflict, since
            # this very flow does not exist; and a port with a listener is never chosen.
            sock = None
        self._bound[end] = (sock, {flow})
        return True

    def _unbind(self, flow: Flow) -> None:
        end = flow.local
        entry = self._bound.get(end)
        if entry is None:
            return
        entry[1].discard(flow)
        if not entry[1]:
            if entry[0] is not None:
                entry[0].close()
            del self._bound[end]

    # -- masquerade

    def _track(self, flow: Flow) -> bool:
        """False when a living connection of somebody else has that tuple already."""
        try:
            self._create(flow)
        except nl.NetlinkError as fault:
            if fault.errno != errno.EEXIST:
                raise
            return self._is_ours(flow)
        return True

    def _create(self, flow: Flow) -> None:
        # The reply to what masquerade would make: from the far end to our port.
        payload = ctnetlink.established(
            flow.reversed(), seconds=RESERVED_SECONDS, mark=self._mark, fixed=True
        )
        flags = nl.NLM_F_CREATE | nl.NLM_F_EXCL
        self._conntrack.request(f"reservation of {flow}", ctnetlink.CT_NEW, flags, payload)

    def _is_ours(self, flow: Flow) -> bool:
        answer = self._conntrack.request(
            f"entry of {flow}", ctnetlink.CT_GET, 0, ctnetlink.by_tuple(flow.reversed())
        )
        found = [ctnetlink.parse(part.payload) for part in answer]
        return any(each is not None and each.mark == self._mark for each in found)

    def _refresh(self, flow: Flow) -> None:
        self._untrack(flow)
        with nl.ignoring(errno.EEXIST):
            self._create(flow)

    def _let_go(self, flow: Flow) -> None:
        self._unbind(flow)
        del self._owner[flow]
        self._untrack(flow)

    def _untrack(self, flow: Flow) -> None:
        with nl.ignoring(errno.ENOENT):
            self._conntrack.request(
                f"reservation of {flow}",
                ctnetlink.CT_DELETE,
                0,
                ctnetlink.by_tuple(flow.reversed()),
            )


def _port_range() -> tuple[int, int]:
    try:
        low, high = (int(word) for word in _RANGE.read_text().split())
    except (OSError, ValueError):
        return _DEFAULT_RANGE
    return (low, high) if 0 < low <= high <= 65535 else _DEFAULT_RANGE
