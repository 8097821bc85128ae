"""The connection table of the engine: dumps of pf's states, asked for when pflog prompts.

pflog tells at once of a new outbound state, but nothing of its end nor of inbound ones: so
a dump is also due every few seconds.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Iterable, Mapping
from typing import Final, Protocol

from ...protocol.inputs import Connection
from ...rewrite.flow import Flow
from ...rewrite.redirect import Entry
from ..api import ConnectionHandler
from .connections import Found, Roles, compare, find
from .pfstates import PfState, StateError
from .poll import nested
from .statetable import Assembler

log = logging.getLogger("redirectd.openbsd")

#: seconds between two dumps, however many prompts come ...
LEAST: Final = 1.0
#: ... and at most, and a second more for each 500 states, so that reading them stays
#: below one per cent of a processor (pf keeps closed states for 90 s)
MOST: Final = 10.0
STATES_A_SECOND: Final = 500
MESSAGES_A_READ: Final = 4096


class Prompts(Protocol):
    """Something that becomes readable when a new state was made (:class:`.bpf.BpfDevice`)."""

    def fileno(self) -> int: ...

    def read(self) -> bytes: ...


class Known:
    """Bound connections by their inside flow; the tap, which is told them, fills it."""

    def __init__(self) -> None:
        self.by_inside: dict[Flow, Entry] = {}
        self._inside: dict[str, Flow] = {}

    def update(self, entries: Iterable[Entry]) -> None:
        for entry in entries:
            self.forget([entry.conn_id])
            self.by_inside[entry.inside] = entry
            self._inside[entry.conn_id] = entry.inside

    def forget(self, conn_ids: Iterable[str]) -> None:
        for conn_id in conn_ids:
            inside = self._inside.pop(conn_id, None)
            if inside is not None:
                self.by_inside.pop(inside, None)


class PfConnections:
    """:class:`..api.ConnectionTable`; needs no privilege.

    channel  where the parent's dumps arrive
    prompts  pflog; None: dumps are timed alone
    clock    seconds since the epoch, never going back
    rebooted the machine started since the daemon last ran: its own sockets are gone
    """

    def __init__(
        self,
        channel: socket.socket,
        prompts: Prompts | None,
        roles: Roles,
        known: Known,
        handler: ConnectionHandler,
        clock: Callable[[], float],
        rebooted: bool = False,
    ) -> None:
        self._rebooted = rebooted
        self._channel, self._prompts = channel, prompts
        self._roles, self._known, self._handler, self._clock = roles, known, handler, clock
        self._assembler = Assembler()
        self._found: dict[Flow, Found] = {}
        self._by_inside: dict[Flow, Found] = {}
        self._asked = clock()
        self._wanted = False
        self._most = MOST
        self.left_alone: dict[Flow, str] = {}
        self._poller = nested([channel, *([prompts] if prompts else [])])

    def fileno(self) -> int:
        return self._poller.fileno()

    def read(self) -> None:
        if self._prompts is not None:
            # what it copied says nothing that the table would not say better
            while self._prompts.read():
                self._wanted = True
        for _ in range(MESSAGES_A_READ):
            try:
                message = self._channel.recv(65536)
            except (BlockingIOError, InterruptedError):
                break
            if not message:
                break
            try:
                states = self._assembler.take(message)
            except StateError as fault:
                log.warning("state table: %s", fault)
                continue
            if states is not None:
                self.take(states)

    def overran(self) -> bool:
        """True: ask for a dump now.  Prompts are answered at most once a second."""
        now = self._clock()
        due = now - self._asked
        if due >= (LEAST if self._wanted else self._most):
            self._wanted, self._asked = False, now
            return True
        return False

    def next_timer(self) -> float | None:
        return self._asked + (LEAST if self._wanted else self._most)

    def take(self, states: Iterable[PfState]) -> None:
        """Tell the handler what a dump changes, then that it was whole."""
        listed = list(states)
        self._most = MOST + len(listed) / STATES_A_SECOND
        found = find(listed, self._roles, self._clock(), self._known.by_inside)
        change = compare(self._found, found)
        self._found = found
        self._by_inside = {f.connection.inside: f for f in found.values()}
        for birth, why in change.left_alone:
            log.info("%s is left alone: %s", birth, why)
        self.left_alone = {b: f.left_alone for b, f in found.items() if f.left_alone}
        for connection in change.opened:
            self._handler.opened(connection)
        for birth in change.closed:
            self._handler.closed(birth)
        bound = {entry.birth: entry for entry in self._known.by_inside.values()}
        for birth in change.lost:
            entry = bound.get(birth)
            # the rules of a redirected connection re-create its state by themselves
            if entry is None or not entry.redirected:
                self._handler.nat_lost(birth)
        if self._rebooted:
            self._rebooted = False
            bound = {birth: entry for birth, entry in bound.items() if not entry.local}
        self._handler.all_known([*change.present, *_stateless(bound, found)])

    def numbers(self, inside: Flow) -> tuple[int, int] | None:
        """(what our end expects next, what the far end expects next), if pf knows."""
        found = self._by_inside.get(inside)
        return None if found is None else found.numbers


def _stateless(bound: Mapping[Flow, Entry], found: Mapping[Flow, Found]) -> list[Connection]:
    """Redirected connections without a state are not gone: a flush took it, or a day of
    silence, and the next packet brings it back."""
    return [
        Connection(e.birth, e.inside, e.local, e.inside_opened, None)
        for birth, e in bound.items()
        if birth not in found and e.redirected
    ]
