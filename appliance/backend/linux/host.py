"""What a change of address needs besides the packet path (:class:`..api.Host`)."""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterable, Mapping, Sequence

from ...rewrite.flow import Address, Flow
from ...rewrite.redirect import Entry
from . import ctnetlink, inject, sockdiag
from . import netlink as nl
from .nft import NftTable
from .ports import Ports
from .routes import Parking
from .settings import Settings
from .sockets import Sockets

log = logging.getLogger("redirectd.host")

# nf_conntrack_tcp_timeout_established, unless the user set another one; traffic renews it.
NAT_SECONDS = 432_000

# How long whatever a doomed end sends is answered by RST.
DOOM_SECONDS = 120.0


class LinuxHost:
    """Parking, ports, NAT state and the end of connections; needs CAP_NET_ADMIN."""

    def __init__(self, settings: Settings, table: NftTable, sockets: Sockets) -> None:
        self._table, self._sockets = table, sockets
        self._mark = settings.rules.mark
        self._conntrack = nl.NetlinkSocket(nl.NETLINK_NETFILTER)
        self._diag = nl.NetlinkSocket(nl.NETLINK_SOCK_DIAG)
        self._parking = Parking()
        self._ports = Ports(self._conntrack, self._diag, self._mark)
        self._kept: dict[Address, set[str]] = {}

    # -- the old address

    def park(self, addr: Address) -> None:
        self._parking.park(addr)
        self._table.park(addr, True)

    def unpark(self, addr: Address) -> None:
        self._table.park(addr, False)
        if addr not in self._kept:
            self._parking.unpark(addr)

    def keep(self, entries: Sequence[Entry]) -> None:
        """The route stands beside the address's own, so that nothing is lost between the
        end of an address and the order to park it."""
        for entry in entries:
            if entry.local:
                addr = entry.birth.local.addr
                if addr not in self._kept:
                    self._parking.park(addr)
                self._kept.setdefault(addr, set()).add(entry.conn_id)

    def _keep_no_more(self, gone: set[str]) -> None:
        for addr, users in list(self._kept.items()):
            users -= gone
            if not users:
                del self._kept[addr]
                if not self._table.is_parked(addr):
                    self._parking.unpark(addr)

    # -- ports on the new address

    def reserve(self, wanted: Mapping[str, Flow]) -> dict[str, Flow | None]:
        own: dict[str, Flow | None] = {}
        others: dict[str, Flow] = {}
        for conn, flow in wanted.items():
            if flow == self._table.birth_of(conn):
                own[conn] = flow  # back home: its own socket or NAT state holds the port
            else:
                others[conn] = flow
        self._ports.release(list(own))
        return own | self._ports.reserve(others)

    def release(self, conn_ids: Iterable[str]) -> None:
        gone = list(conn_ids)
        self._ports.release(gone)
        self._keep_no_more(set(gone))

    # -- NAT

    def restore_nat(self, entries: Sequence[Entry]) -> None:
        for entry in entries:
            self._restore(entry)

    def _restore(self, entry: Entry) -> None:
        orig, reply, payload = nat_entry(entry)
        found = self._tracked(orig)
        if found is not None and found.reply == reply:
            return
        # Whatever else holds one of the two tuples was made by a packet that found no
        # entry: it would shut the right one out.
        for packet, is_reply in ((orig, False), (reply, False)):
            with nl.ignoring(errno.ENOENT):
                self._conntrack.request(
                    f"stray entry of {packet}",
                    ctnetlink.CT_DELETE,
                    0,
                    ctnetlink.by_tuple(packet, is_reply),
                )
        with nl.ignoring(errno.EEXIST):
            self._conntrack.request(
                f"NAT state of {entry.birth}",
                ctnetlink.CT_NEW,
                nl.NLM_F_CREATE | nl.NLM_F_EXCL,
                payload,
            )

    def _tracked(self, orig: Flow) -> ctnetlink.Tracked | None:
        try:
            answer = self._conntrack.request(
                f"entry of {orig}", ctnetlink.CT_GET, 0, ctnetlink.by_tuple(orig)
            )
        except nl.NetlinkError as fault:
            if fault.errno != errno.ENOENT:
                raise
            return None
        return ctnetlink.parse(answer[0].payload) if answer else None

    # -- the end of a connection

    def abort(self, inside: Flow, local: bool) -> None:
        if local:
            sockdiag.destroy(self._diag, inside)
            return
        # The kernel answers the LAN host's next segment with the RST that fits it (its
        # number is that segment's ACK), and we make the host speak now.
        self._table.doom(inside, DOOM_SECONDS)
        inject.prompt(self._sockets.raw, inside)

    def request_connections(self) -> None:
        sock = self._sockets.conntrack
        flags = nl.NLM_F_REQUEST | nl.NLM_F_DUMP
        sock.send(nl.message(ctnetlink.CT_GET, flags, sock.next_seq(), ctnetlink.dump_request()))

    def adopt(self, entries: Sequence[Entry]) -> None:
        """After a restart: let go what an earlier run left and ``entries`` do not need.

        Which of the others are parked and which only kept is said by the next ``park``.
        """
        self._kept.clear()
        self.keep(entries)
        for addr in self._parking.parked() - self._kept.keys():
            self.unpark(addr)
        self._ports.adopt(entries)

    def close(self) -> None:
        """Undo everything that must not outlive the last connection."""
        self._ports.close()
        self._kept.clear()
        for addr in self._parking.parked():
            self.unpark(addr)
        self._parking.forget_all()
        self._parking.close()
        self._conntrack.close()
        self._diag.close()


def nat_entry(entry: Entry) -> tuple[Flow, Flow, bytes]:
    """Original tuple, reply tuple and message of the conntrack entry of a connection."""
    birth, inside = entry.birth, entry.inside
    if entry.local or inside.local == birth.local:
        orig = birth if entry.inside_opened else birth.reversed()
        return orig, orig.reversed(), ctnetlink.established(orig, seconds=NAT_SECONDS)
    if entry.inside_opened:
        payload = ctnetlink.established(inside, seconds=NAT_SECONDS, source_to=birth.local)
        return inside, birth.reversed(), payload
    orig = birth.reversed()
    payload = ctnetlink.established(orig, seconds=NAT_SECONDS, destination_to=inside.local)
    return orig, inside, payload
