"""The kernel's packet path through nftables: the rules as text once, elements by netlink.

Raw netlink installs 10,000 connections in a quarter of the time that libnftables needs
for the same text, and a change of one costs .1 ms, so only the whole rule set (at the
start, and after somebody flushed it) passes through ``nft -f -``.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from pfconf import nft as text
from pfconf.nftmap import pack
from pfconf.nfttable import CollisionError, ElementTable, Plan

from ...rewrite.flow import Address, Flow
from ...rewrite.redirect import Entry
from ..api import BackendError
from . import netlink as nl
from . import nfnl, queue_rules
from .nftrun import run_nft

log = logging.getLogger("redirectd.nft")

_T = TypeVar("_T")

_NFT_MSG_GETTABLE, _NFT_MSG_GETCHAIN = 1, 4
_NFTA_CHAIN_TABLE, _NFTA_CHAIN_TYPE = 1, 7
_NFTA_TABLE_NAME = 1

# What the kernel says when the table, or an element of it, is not as we left it.
_CHANGED_BY_OTHERS = (errno.ENOENT, errno.EEXIST, errno.EBUSY)

SEND_BUFFER = 32 * 1024 * 1024  # one transaction is one datagram


class NftTable:
    """The redirect table (:class:`..api.RedirectTable`); keeps in memory what it installed."""

    def __init__(self, settings: text.Settings) -> None:
        if not text.table_name_is_valid(settings.table):
            raise BackendError(f"{settings.table!r} is not a usable name for an nftables table")
        self._settings = settings
        self._elements = ElementTable()
        self._parked: set[Address] = set()
        self._routed = False
        self._queueing: text.Queueing | None = None
        self._netlink = nl.NetlinkSocket(nl.NETLINK_NETFILTER, send=SEND_BUFFER)

    def open(self) -> None:
        """Make sure that rules are there.

        Those of an earlier run stay until :meth:`replace_all`: connections live by them.
        """
        for version in (4, 6):
            if not self._is_loaded(version):
                run_nft(text.ruleset(self._settings, routed=self._user_translates()))
                return

    def replace_all(self, entries: Sequence[Entry]) -> None:
        fresh = ElementTable()
        fresh.commit(fresh.plan_observe(self._elements.observed))
        fresh.commit(_checked(lambda: fresh.plan(entries)))
        self._routed = self._must_route(entries)
        self._queueing = self._queueing_for(entries)
        self._load(fresh)
        self._elements = fresh

    def apply(self, entries: Sequence[Entry]) -> None:
        """The path of an entry too may be another one than before."""
        plan = _checked(lambda: self._elements.plan(entries))
        more = self._queueing is None and any(entry.path == "divert" for entry in entries)
        if more:
            self._queueing = self._queueing_for(entries)
        new = any(entry.conn_id not in self._elements for entry in entries)
        if new and not self._routed and self._must_route(entries):
            self._routed = more = True
        if more:
            self._elements.commit(plan)
            self._load(self._elements)
        else:
            self._carry_out(plan)

    def remove(self, conn_ids: Iterable[str]) -> None:
        self._carry_out(self._elements.plan((), conn_ids))

    def observe(self, flows: Sequence[Flow]) -> None:
        self._carry_out(self._elements.plan_observe(flows))

    def verify(self) -> bool:
        """Put the rules back if somebody flushed them; True when that was needed."""
        if all(self._is_loaded(version) for version in (4, 6)):
            return False
        self._reload()
        return True

    def close(self, keep: bool) -> None:
        if not keep:
            run_nft(text.removal(self._settings))
            self._parked.clear()
        self._netlink.close()

    # -- what the host (host.py) needs of the rules

    def birth_of(self, conn_id: str) -> Flow | None:
        return self._elements.birth_of(conn_id)

    def is_parked(self, addr: Address) -> bool:
        return addr in self._parked

    def park(self, addr: Address, parked: bool) -> None:
        """Keep ``addr`` for our own sockets alone, or no longer."""
        if parked == (addr in self._parked):
            return
        if parked:
            self._parked.add(addr)
        else:
            self._parked.discard(addr)
        kind = nfnl.NFT_MSG_NEWSETELEM if parked else nfnl.NFT_MSG_DELSETELEM
        families = [nfnl.NFPROTO[addr.version]]
        if addr.version == 4:
            families.append(nfnl.NFPROTO_ARP)
        raws = [nfnl.element(addr.packed, None)]
        messages = [
            message
            for family in families
            for message in nfnl.set_messages(kind, self._settings.table, family, "parked", raws)
        ]
        try:
            self._transaction(messages)
        except nl.NetlinkError as fault:
            if fault.errno not in _CHANGED_BY_OTHERS:
                raise
            self._reload()

    def doom(self, inside: Flow, seconds: float) -> None:
        """Answer whatever our end sends on ``inside`` with RST, for that long."""
        if not self._routed:
            self._routed = True
            self._load(self._elements)
        packet, family = pack(*inside), nfnl.NFPROTO[inside.version]
        new = [nfnl.element(packet, "told_off", int(seconds * 1000))]
        old = [nfnl.element(packet, None)]
        add, gone = (
            list(nfnl.set_messages(kind, self._settings.table, family, "via_go", raws))
            for kind, raws in ((nfnl.NFT_MSG_NEWSETELEM, new), (nfnl.NFT_MSG_DELSETELEM, old))
        )
        try:
            self._transaction(add)
        except nl.NetlinkError as fault:
            if fault.errno != errno.EEXIST:
                raise
            self._transaction([*gone, *add])

    # -- internal

    def _carry_out(self, plan: Plan) -> None:
        """First the kernel, so that a refused change leaves memory alone as well."""
        messages = nfnl.delta_messages(self._settings.table, plan.delta)
        try:
            if messages:
                self._transaction(messages)
        except nl.NetlinkError as fault:
            if fault.errno not in _CHANGED_BY_OTHERS:
                raise
            self._elements.commit(plan)
            self._reload()
        else:
            self._elements.commit(plan)

    def _must_route(self, entries: Iterable[Entry]) -> bool:
        return any(not entry.local for entry in entries) or self._user_translates()

    def _user_translates(self) -> bool:
        """Whether anybody else has NAT rules: they would be asked for our connections too."""
        payload = nfnl.family_header(0)
        kind = nfnl.NFNL_SUBSYS_NFTABLES << 8 | _NFT_MSG_GETCHAIN
        for part in self._netlink.request("list of chains", kind, nl.NLM_F_DUMP, payload):
            found = nl.attributes(part.payload, 4)
            ours = bytes(found.get(_NFTA_CHAIN_TABLE, b"")).rstrip(b"\0").decode()
            if bytes(found.get(_NFTA_CHAIN_TYPE, b"")) == b"nat\0" and ours != self._settings.table:
                return True
        return Path("/proc/net/ip_tables_names").exists() and any(
            "nat" in Path(f"/proc/net/{name}").read_text().split()
            for name in ("ip_tables_names", "ip6_tables_names")
            if Path(f"/proc/net/{name}").exists()
        )

    def _queueing_for(self, entries: Iterable[Entry]) -> text.Queueing | None:
        """How packets get to the packet worker, if any must; BackendError if they can't."""
        if not any(entry.path == "divert" for entry in entries):
            return None
        queue_rules.check(self._settings.queue)
        return queue_rules.probe()

    def _reload(self) -> None:
        """Somebody flushed or edited our table: put all of it back in one step."""
        log.warning("the nftables table %s was changed by others", self._settings.table)
        self._load(self._elements)

    def _load(self, elements: ElementTable) -> None:
        script = text.ruleset(
            self._settings, elements.elements(), routed=self._routed, queueing=self._queueing
        )
        script += text.parked(self._settings, self._parked)
        run_nft(script)
        if self._queueing == "xt":
            for family in nfnl.NFPROTO.values():
                queue_rules.add_target(
                    family, self._settings.table, text.TO_WORKER, self._settings.queue
                )

    def _is_loaded(self, version: int) -> bool:
        payload = nfnl.family_header(nfnl.NFPROTO[version]) + nl.attribute(
            _NFTA_TABLE_NAME, self._settings.table.encode() + b"\0"
        )
        kind = nfnl.NFNL_SUBSYS_NFTABLES << 8 | _NFT_MSG_GETTABLE
        try:
            self._netlink.request(f"table {self._settings.table}", kind, 0, payload)
        except nl.NetlinkError as fault:
            if fault.errno != errno.ENOENT:
                raise
            return False
        return True

    def _transaction(self, messages: list[tuple[int, int, bytes]]) -> None:
        """All or nothing; NetlinkError carries the first errno."""
        sock = self._netlink
        begin = nfnl.family_header(0, nfnl.NFNL_SUBSYS_NFTABLES)
        first, last = sock.next_seq(), 0
        parts = [nl.message(nfnl.NFNL_MSG_BATCH_BEGIN, nl.NLM_F_REQUEST, first, begin)]
        for index, (kind, flags, payload) in enumerate(messages):
            last = sock.next_seq()
            flags |= nl.NLM_F_REQUEST | (nl.NLM_F_ACK if index == len(messages) - 1 else 0)
            parts.append(nl.message(kind, flags, last, payload))
        parts.append(nl.message(nfnl.NFNL_MSG_BATCH_END, nl.NLM_F_REQUEST, sock.next_seq(), begin))
        sock.send(b"".join(parts))
        failed = 0
        while True:
            for answer in nl.parse(sock.sock.recv(nl.RECEIVE_SIZE)):
                number = answer.error
                if number is None or not first <= answer.seq <= last:
                    continue
                failed = failed or number
                # A failed commit is reported on the first message, all else in order.
                if answer.seq in (first, last):
                    if failed:
                        raise nl.NetlinkError(f"nftables table {self._settings.table}", failed)
                    return


def _checked(action: Callable[[], _T]) -> _T:
    try:
        return action()
    except CollisionError as fault:
        raise BackendError(str(fault)) from None
