"""What an operating system must offer: one Protocol a concern, no code.

``linux`` and ``openbsd`` implement these, :mod:`appliance.backend.fake` does in
memory for tests.  *Privileged* parts run in the parent, the others in the engine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

from ..protocol.inputs import Connection, LocalAddress, Segment
from ..rewrite.flow import Address, Flow
from ..rewrite.redirect import Entry


class BackendError(Exception):
    """The system refused; the text names the call, the object and the remedy."""


class RedirectTable(Protocol):
    """Privileged: the kernel's packet path of all bound connections."""

    def open(self) -> None:
        """Install the empty rule set; replaces whatever an earlier run left."""

    def replace_all(self, entries: Sequence[Entry]) -> None:
        """Exactly these entries, in one step without a gap (used after a restart)."""

    def apply(self, entries: Sequence[Entry]) -> None:
        """Add or replace these entries in one step."""

    def remove(self, conn_ids: Iterable[str]) -> None:
        """Forget connections; unknown ones are ignored."""

    def observe(self, flows: Sequence[Flow]) -> None:
        """Copy pure ACKs of these birth flows to the segment tap, and of no others."""

    def verify(self) -> bool:
        """Put the rules back if somebody else took them away; True when that was needed.
        Cheap: it is called every few seconds."""

    def close(self, keep: bool) -> None:
        """``keep``: leave the rules to the kernel (connections go on)."""


class PacketWorker(Protocol):
    """The divert path, in a process of its own: translates what is queued."""

    def fileno(self) -> int:
        """Readable when packets wait."""

    def read(self) -> int:
        """Translate what is there (bounded); how many packets."""

    def drain(self) -> None:
        """Translate all that was queued before this call."""

    def load(self, entries: Iterable[Entry]) -> None:
        """Exactly these connections."""

    def apply(self, entries: Iterable[Entry]) -> None:
        """Add or replace these."""

    def remove(self, conn_ids: Iterable[str]) -> None:
        """Forget these; unknown ones are ignored."""


class Host(Protocol):
    """Privileged: everything else that a change of address needs."""

    def park(self, addr: Address) -> None: ...

    def unpark(self, addr: Address) -> None: ...

    def keep(self, entries: Sequence[Entry]) -> None:
        """These are bound: make sure that what is on its way to our own sockets arrives
        even in the moment between the end of their address and ``park``; ``release``
        ends it."""

    def reserve(self, wanted: Mapping[str, Flow]) -> dict[str, Flow | None]:
        """Keep new connections off these wire flows; another local port if taken."""

    def release(self, conn_ids: Iterable[str]) -> None:
        """Give reserved ports back."""

    def restore_nat(self, entries: Sequence[Entry]) -> None:
        """Re-create connection tracking entries with the mapping of ``entries``."""

    def abort(self, inside: Flow, local: bool) -> None:
        """End our end of a connection at once."""

    def request_connections(self) -> None:
        """Start a dump of all connections; they arrive on the table's socket."""

    def adopt(self, entries: Sequence[Entry]) -> None:
        """After a (re)start: let go whatever an earlier run left (parked addresses,
        reserved ports) that ``entries`` do not need."""

    def close(self) -> None:
        """Undo everything that must not outlive the last connection."""


class SegmentTap(Protocol):
    """Copies of packets that the kernel path sets aside; non-blocking."""

    def fileno(self) -> int: ...

    def read(self) -> None:
        """Read what is there (bounded) and call the handlers given at creation."""

    def update(self, entries: Iterable[Entry]) -> None:
        """These connections have that packet path now (after each change of the table)."""

    def reinject(self, entries: Sequence[Entry]) -> int:
        """Send the segments held for these connections; returns how many."""

    def prompt(self, inside: Flow, local: bool) -> None:
        """Provoke a pure ACK from our end."""

    def guard(self, conn_ids: Iterable[str]) -> None:
        """Keep our end of these connections (and of no others that are open) from giving
        up, though nobody answers it; shut ones are kept from it anyway."""

    def forget(self, conn_ids: Iterable[str]) -> None: ...

    def held(self) -> Mapping[str, int]:
        """Connection -> number of segments held now."""


class TapHandler(Protocol):
    def segment(self, seen: Segment) -> None: ...

    def reset_withheld(self, wire: Flow) -> None: ...

    def silence(self, birth: Flow) -> None:
        """Our end repeats a segment of an open connection, and nothing comes back."""


class AddressWatcher(Protocol):
    """Unprivileged: addresses, links and routes of this machine."""

    def fileno(self) -> int: ...

    def read(self) -> bool:
        """Read notifications; True when anything of interest changed."""

    def addresses(self) -> tuple[LocalAddress, ...]: ...

    def source_for(self, remote: Address) -> Address | None:
        """The source address that routing would choose now; None without a route."""


class ConnectionTable(Protocol):
    """Unprivileged after creation: TCP connections that exist."""

    def fileno(self) -> int: ...

    def read(self) -> None:
        """Read notifications and dumps (bounded) and call the handlers."""

    def overran(self) -> bool:
        """Notifications were lost: ask for a new dump."""

    def next_timer(self) -> float | None:
        """When ``read`` wants to be called although nothing is readable."""


class ConnectionHandler(Protocol):
    def opened(self, connection: Connection) -> None: ...

    def closed(self, birth: Flow) -> None:
        """It ended (RST, FIN in both directions, or its socket is gone)."""

    def nat_lost(self, birth: Flow) -> None:
        """The kernel dropped the NAT state of a connection that had not ended."""

    def all_known(self, connections: list[Connection]) -> None:
        """The end of a dump: these exist, and no others."""


WakeUp = Callable[[], None]
