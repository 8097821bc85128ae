"""Which TCP connections exist, from connection tracking and sock_diag.

Connection tracking knows forwarded connections and their NAT, and tells of beginnings
and ends at once; it never saw what is older than itself.  sock_diag knows our own
sockets for certain, but not when they began.  Both together miss none.
"""

from __future__ import annotations

import select
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from ...protocol.inputs import Connection
from ...rewrite.flow import Address, Flow
from ..api import ConnectionHandler
from . import ctnetlink, sockdiag
from . import netlink as nl
from .ctnetlink import Tracked
from .sockets import Sockets

_DATAGRAMS_A_READ = 256

# After both FINs only repetitions follow; the redirect stays for them (RFC 9293 3.4.2
# waits longer, for what may still wander about; our end's stack does that anyway).
LINGER = 10.0

# A connection that begins shows as an update of an entry in SYN-SENT.  Parts of a dump
# (NLM_F_MULTI) and entries that begin in ESTABLISHED (NLM_F_CREATE) are older than that.
_OLD = 0x2 | nl.NLM_F_CREATE

_CLOSING = (
    ctnetlink.FIN_WAIT, ctnetlink.CLOSE_WAIT, ctnetlink.LAST_ACK, ctnetlink.TIME_WAIT,
)  # fmt: skip


class Roles(Protocol):
    """Whose an address is (:class:`.watcher.RouteWatcher`)."""

    def is_local(self, addr: Address) -> bool: ...

    def is_inside(self, addr: Address) -> bool: ...


@dataclass(slots=True)
class _Known:
    connection: Connection
    state: int | None
    tracked: bool
    seen: bool = True


class ConntrackTable:
    """:class:`..api.ConnectionTable`.

    clock  seconds since the epoch, never going back
    """

    def __init__(
        self,
        sockets: Sockets,
        roles: Roles,
        handler: ConnectionHandler,
        mark: int,
        clock: Callable[[], float],
    ) -> None:
        self._events, self._destroyed = sockets.conntrack, sockets.destroyed
        self._roles, self._handler, self._mark, self._clock = roles, handler, mark, clock
        self._requests = nl.NetlinkSocket(nl.NETLINK_SOCK_DIAG)
        self._known: dict[Flow, _Known] = {}  # by birth flow
        self._ending: dict[Flow, float] = {}  # when the last repetitions are over
        self._by_orig: dict[Flow, Flow] = {}
        self._overran = False
        self._poll = select.epoll()
        self._poll.register(self._events.fileno(), select.EPOLLIN)
        self._poll.register(self._destroyed.fileno(), select.EPOLLIN)

    def fileno(self) -> int:
        """Readable when any of the sockets is."""
        return self._poll.fileno()

    def filenos(self) -> list[int]:
        return [self.fileno()]

    def close(self) -> None:
        self._poll.close()
        self._requests.close()

    def overran(self) -> bool:
        lost, self._overran = self._overran, False
        return lost

    def next_timer(self) -> float | None:
        """When :meth:`read` should be called although nothing is readable."""
        return min(self._ending.values(), default=None)

    def read(self) -> None:
        # Tracking sees the last segment before the socket does: what it says of an end
        # has to be known before that of the socket is judged.
        destroyed = list(self._destroyed.notifications(_DATAGRAMS_A_READ))
        self._read_events()
        self._sockets_ended(destroyed)
        now = self._clock()
        for birth in [b for b, ends_at in self._ending.items() if ends_at <= now]:
            self._close(birth)
        for lossy in (self._events, self._destroyed):
            self._overran |= lossy.overrun
            lossy.overrun = False

    # -- connection tracking

    def _read_events(self) -> None:
        lost: dict[Flow, None] = {}
        for part in self._events.notifications(_DATAGRAMS_A_READ):
            if part.kind == nl.NLMSG_DONE:
                self._dump_done()
            elif part.kind == ctnetlink.CT_NEW:
                entry = ctnetlink.parse(part.payload)
                if entry is not None and entry.mark != self._mark:
                    birth = self._updated(entry, new=not part.flags & _OLD)
                    if birth is not None:
                        lost.pop(birth, None)
            elif part.kind == ctnetlink.CT_DELETE:
                entry = ctnetlink.parse(part.payload)
                if entry is not None and entry.mark != self._mark:
                    birth = self._destroyed_entry(entry)
                    if birth is not None:
                        lost[birth] = None
        for birth in lost:
            self._handler.nat_lost(birth)

    def _updated(self, entry: Tracked, new: bool) -> Flow | None:
        birth = self._by_orig.get(entry.orig)
        known = None if birth is None else self._known.get(birth)
        if known is None or birth is None:
            if entry.state != ctnetlink.ESTABLISHED:
                return None
            return self._discovered(entry, new)
        known.seen = known.tracked = True
        if entry.state is not None:
            known.state = entry.state
        if known.state == ctnetlink.CLOSE:
            # Tracking believes any RST that leaves; of our own sockets the kernel knows.
            if not known.connection.local or not sockdiag.exists(self._requests, birth):
                self._close(birth)
        elif known.state == ctnetlink.TIME_WAIT:
            self._ending.setdefault(birth, self._clock() + LINGER)
        return birth

    def _discovered(self, entry: Tracked, new: bool) -> Flow | None:
        since = entry.started
        if since is None and new:
            since = self._clock()
        connection = classify(entry, self._roles, since)
        if connection is None:
            return None
        birth = connection.birth
        self._by_orig[entry.orig] = birth
        known = self._known.get(birth)
        if known is not None:
            known.state, known.seen, known.tracked = entry.state, True, True
            return birth
        self._known[birth] = _Known(connection, entry.state, tracked=True)
        self._handler.opened(connection)
        return birth

    def _destroyed_entry(self, entry: Tracked) -> Flow | None:
        """The birth flow when the entry went although its connection had not ended."""
        birth = self._by_orig.pop(entry.orig, None)
        known = None if birth is None else self._known.get(birth)
        if known is None or birth is None:
            return None
        state = known.state if entry.state is None else entry.state
        known.tracked = False
        if state == ctnetlink.ESTABLISHED:
            if not known.connection.local:
                del self._known[birth]
                self._ending.pop(birth, None)
            return birth
        if not known.connection.local or birth in self._ending:
            self._close(birth)
        return None

    def _close(self, birth: Flow) -> None:
        known = self._known.pop(birth, None)
        self._ending.pop(birth, None)
        if known is None:
            return
        for orig in (birth, birth.reversed(), known.connection.inside):
            if self._by_orig.get(orig) == birth:
                del self._by_orig[orig]
        self._handler.closed(birth)

    # -- our own sockets

    def _sockets_ended(self, destroyed: Iterable[nl.Message]) -> None:
        for part in destroyed:
            if part.kind != sockdiag.SOCK_DIAG_BY_FAMILY:
                continue
            gone = sockdiag.parse(part.payload)
            known = None if gone is None else self._known.get(gone.flow)
            if gone is None or known is None or not known.connection.local:
                continue
            if known.tracked and known.state in _CLOSING:
                # TIME-WAIT has no socket of its own in the kernel's eyes.
                self._ending.setdefault(gone.flow, self._clock() + LINGER)
            else:
                self._close(gone.flow)

    def _dump_done(self) -> None:
        """End of a dump: add our own sockets, and say what exists in all."""
        flows: set[Flow] = set()
        for version in (4, 6):
            for sock in sockdiag.sockets(self._requests, version):
                flows.add(sock.flow)
        listening = None
        for flow in flows:
            known = self._known.get(flow)
            if known is not None:
                known.seen = True
                continue
            if flow.local.addr.is_loopback or self._roles.is_inside(flow.remote.addr):
                continue
            if self._roles.is_local(flow.remote.addr) or not self._roles.is_local(flow.local.addr):
                continue
            if listening is None:
                listening = _listening_ports(self._requests)
            opened = flow.local.port not in listening
            connection = Connection(flow, flow, True, opened, None)
            self._known[flow] = _Known(connection, None, tracked=False)
            self._handler.opened(connection)
        for birth, known in list(self._known.items()):
            alive = birth in flows if known.connection.local else known.seen
            if not alive and birth not in self._ending:
                self._close(birth)
            known.seen = False
        everything = [known.connection for known in self._known.values()]
        self._handler.all_known(everything)


def _listening_ports(sock: nl.NetlinkSocket) -> set[int]:
    ports: set[int] = set()
    for version in (4, 6):
        ports |= sockdiag.listening(sock, version)
    return ports


def classify(entry: Tracked, roles: Roles, since: float | None) -> Connection | None:
    """Which connection an entry stands for; None when it never leaves this machine or LAN.

    Without NAT the reply tuple is the original one reversed; source NAT shows in the
    reply's destination, destination NAT in its source.
    """
    orig, reply = entry.orig, entry.reply
    if any(end.addr.is_loopback for end in (*orig, *reply)):
        return None
    snat = reply.remote != orig.local
    dnat = reply.local != orig.remote
    if roles.is_local(orig.local.addr):
        if snat or dnat or roles.is_local(orig.remote.addr) or roles.is_inside(orig.remote.addr):
            return None
        return Connection(orig, orig, True, True, since)
    if roles.is_local(reply.local.addr):
        if snat or dnat or roles.is_inside(orig.local.addr):
            return None
        return Connection(reply, reply, True, False, since)
    if snat and not dnat:
        if roles.is_inside(orig.remote.addr):
            return None
        return Connection(reply.reversed(), orig, False, True, since)
    if dnat and not snat:
        if roles.is_inside(orig.local.addr):
            return None
        return Connection(orig.reversed(), reply, False, False, since)
    if snat or dnat:
        return None
    opened_inside = roles.is_inside(orig.local.addr)
    if opened_inside == roles.is_inside(orig.remote.addr):
        return None
    flow = orig if opened_inside else orig.reversed()
    return Connection(flow, flow, False, opened_inside, since)
