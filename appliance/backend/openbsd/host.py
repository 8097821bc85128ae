"""What a change of address needs besides the packet path (:class:`..api.Host`)."""

from __future__ import annotations

import contextlib
import errno
import logging
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Final, Protocol

from ...rewrite.flow import Address, Endpoint, Flow
from ...rewrite.redirect import Entry
from .. import segment as seg
from ..api import BackendError
from . import ifconfig
from .connections import Roles, find
from .divert import PacketSocket
from .pfstates import PfState
from .sysctl import Sysctls
from .system import IFCONFIG, TCPDROP, Runner, run
from .table import PfTable
from .tap import inject

log = logging.getLogger("redirectd.openbsd")

#: RFC 6335 6: dynamic ports; pf's NAT draws from 50001 to 65535 (pf.conf(5), nat-to)
FIRST_PORT, LAST_PORT = 49152, 65535
#: ports tried beyond the one that was wanted
TRIES: Final = 64
#: addresses parked on lo0; both are gone after a boot
PARKED: Final = Path("/var/run/redirectd.parked")


class States(Protocol):
    """What is used of :class:`.statetable.StateSource`."""

    def states(self) -> list[PfState]: ...

    def send(self) -> None: ...


class Ports:
    """Ports on new addresses, kept by bound sockets and by guards in pf.

    A socket keeps our own programs off a port; NAT does not ask for sockets, so a guard
    after the NAT rule drops the SYN of a connection for which it drew that port.
    """

    def __init__(self, table: PfTable, states: Callable[[], Iterable[PfState]]) -> None:
        self._table, self._states = table, states
        self._flows: dict[str, Flow] = {}
        self._sockets: dict[Endpoint, socket.socket] = {}

    def reserve(self, wanted: Mapping[str, Flow]) -> dict[str, Flow | None]:
        taken = {
            (Flow(s.wire.near, s.wire.far)) for s in self._states() if s.proto == "tcp"
        }  # fmt: skip
        taken -= set(wanted.values()) & set(self._flows.values())
        got: dict[str, Flow | None] = {}
        for conn_id, flow in wanted.items():
            others = {f for c, f in self._flows.items() if c != conn_id}
            found = choose_port(flow, taken | others, self._bind)
            got[conn_id] = found
            if found is not None:
                self._flows[conn_id] = found
        self._install()
        return got

    def release(self, conn_ids: Iterable[str]) -> None:
        for conn_id in conn_ids:
            self._flows.pop(conn_id, None)
        self._install()

    def close(self) -> None:
        self.release(list(self._flows))

    @property
    def flows(self) -> Mapping[str, Flow]:
        return self._flows

    def _install(self) -> None:
        needed = {flow.local for flow in self._flows.values()}
        for end in [e for e in self._sockets if e not in needed]:
            self._sockets.pop(end).close()
        self._table.reserve(self._flows)

    def _bind(self, end: Endpoint) -> bool:
        """Whether no socket of ours has it; an address that is not ours needs none."""
        if end in self._sockets:
            return True
        family = socket.AF_INET if end.addr.version == 4 else socket.AF_INET6
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.bind((str(end.addr), end.port))
        except OSError as fault:
            sock.close()
            return fault.errno == errno.EADDRNOTAVAIL
        self._sockets[end] = sock
        return True


def choose_port(wanted: Flow, taken: set[Flow], bind: Callable[[Endpoint], bool]) -> Flow | None:
    """``wanted``, or the same with the next free local port; None when none was found."""
    port = wanted.local.port
    for _ in range(TRIES + 1):
        flow = wanted.with_local(wanted.local.addr, port)
        if flow not in taken and bind(flow.local):
            return flow
        port = port + 1 if FIRST_PORT <= port < LAST_PORT else FIRST_PORT
    return None


class PfHost:
    """Parking, ports, lost NAT states and the end of connections; needs root.

    parks   the divert path is in use: its inbound packets need the old address on lo0
            ("lo0 /32: works with sendto OLD"); the kernel path needs none (divert-to)
    record  file with the addresses that are parked, in a folder that is emptied at boot
    """

    def __init__(
        self,
        table: PfTable,
        source: States,
        sockets: Mapping[int, PacketSocket],
        roles: Roles,
        spare: Callable[[int], Address | None],
        sysctls: Sysctls,
        parks: bool = False,
        runner: Runner = run,
        record: Path = PARKED,
    ) -> None:
        self._record = record
        self._table, self._source, self._sockets = table, source, sockets
        self._roles, self._spare, self._sysctls = roles, spare, sysctls
        self._parks, self._run = parks, runner
        self._parked: set[Address] = set()
        self._ports = Ports(table, source.states)

    def park(self, addr: Address) -> None:
        if not self._parks or addr in self._parked:
            return
        if addr.version == 4:
            self._run([IFCONFIG, "lo0", "inet", f"{addr}/32", "alias"], "")
        else:
            self._run([IFCONFIG, "lo0", "inet6", str(addr), "prefixlen", "128", "alias"], "")
        self._parked.add(addr)
        self._note()

    def unpark(self, addr: Address) -> None:
        if addr in self._parked:
            family = "inet" if addr.version == 4 else "inet6"
            self._run([IFCONFIG, "lo0", family, str(addr), "-alias"], "")
            self._parked.discard(addr)
            self._note()

    def _note(self) -> None:
        with contextlib.suppress(OSError):
            self._record.write_text("".join(f"{addr}\n" for addr in sorted(map(str, self._parked))))

    def _noted(self) -> set[Address]:
        """What an earlier run parked; a damaged record is as good as none."""
        try:
            return {ip_address(line) for line in self._record.read_text().split()}
        except (OSError, ValueError):
            return set()

    def keep(self, entries: Sequence[Entry]) -> None:
        """No address is parked on pf: divert-to finds the socket."""

    def reserve(self, wanted: Mapping[str, Flow]) -> dict[str, Flow | None]:
        own: dict[str, Flow | None] = {}
        others: dict[str, Flow] = {}
        for conn_id, flow in wanted.items():
            entry = self._table.entry(conn_id)
            # back at the first address, its own socket or state holds the port
            if entry is not None and flow == entry.birth:
                own[conn_id] = flow
            else:
                others[conn_id] = flow
        self._ports.release(own)
        return own | self._ports.reserve(others)

    def release(self, conn_ids: Iterable[str]) -> None:
        self._ports.release(conn_ids)

    def restore_nat(self, entries: Sequence[Entry]) -> None:
        """The rules re-create a mapping with the next packet from either side."""
        self._table.restore(entries)

    def abort(self, inside: Flow, local: bool) -> None:
        """Our own socket by tcpdrop(8); a LAN host by a RST with the number it expects."""
        if local:
            try:
                self._run([TCPDROP, *tcpdrop_words(inside)], "")
            except BackendError as fault:
                log.info("%s was gone already: %s", inside, fault)
            return
        found = find(self._source.states(), self._roles, 0.0)
        numbers = next(
            (f.numbers for f in found.values() if f.connection.inside == inside and f.numbers), None
        )
        if numbers is None:
            raise BackendError(f"{inside}: pf has no state that tells its sequence number")
        reset = seg.build_tcp(inside.reversed(), numbers[0], numbers[1], seg.RST | seg.ACK)
        if not inject(self._sockets, reset, inside, self._roles.is_local, self._spare):
            raise BackendError(f"{inside}: the RST could not be sent")

    def adopt(self, entries: Sequence[Entry]) -> None:
        """Parked addresses of an earlier run are in its record; should that be lost, an alias
        of lo0 at which a connection was born is ours, and any other the administrator's."""
        used = {wire for entry in entries for wire in (*entry.wires, *entry.stale)}
        self._ports.release([c for c, flow in self._ports.flows.items() if flow not in used])
        born = {entry.birth.local.addr for entry in entries if entry.local}
        self._parked |= self._noted()
        if self._parks:
            for interface in ifconfig.parse(self._run([IFCONFIG, "lo0"], "")):
                self._parked |= born & interface.addresses.keys()
        for addr in self._parked - born:
            with contextlib.suppress(BackendError):
                self.unpark(addr)

    def request_connections(self) -> None:
        self._source.send()

    def close(self) -> None:
        self._ports.close()
        for addr in list(self._parked):
            with contextlib.suppress(BackendError):
                self.unpark(addr)
        self._sysctls.restore()


def tcpdrop_words(flow: Flow) -> list[str]:
    """``laddr lport faddr fport`` (tcpdrop(8))."""
    local, remote = flow
    return [str(local.addr), str(local.port), str(remote.addr), str(remote.port)]
