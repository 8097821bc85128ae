"""The Linux backend: nftables, netlink and NFLOG; the standard library alone.

The parent opens (:func:`open_backend`), the engine reads (:func:`engine_side`).

    nft, nfnl            the redirect table: rules as text, elements by netlink
    host, ports, routes  parking, reserved ports, NAT state, the end of connections
    conntrack, ctnetlink, sockdiag   which connections exist
    watcher, routes      addresses, links, routes
    tap, inject          copies of packets and what is sent in answer
    nfqueue, queue_rules, divert_worker  the divert path
    netlink, sockets     the sockets below all of it
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from pfconf import nft as rules

from ...rewrite.rewriter import Rewriter
from ..api import BackendError, ConnectionHandler, TapHandler
from . import queue_rules
from .conntrack import ConntrackTable
from .divert_worker import DivertWorker
from .host import LinuxHost
from .nfqueue import NfQueue
from .nft import NftTable
from .settings import Settings
from .sockets import Sockets, open_privileged
from .tap import LogTap
from .watcher import RouteWatcher

__all__ = [
    "Settings",
    "Sockets",
    "engine_side",
    "open_backend",
    "open_queue",
    "packet_worker",
    "settings_of",
    "steady_clock",
]


def settings_of(
    *,
    table: str = "redirectd",
    group: int = 4787,
    queue: int = 4787,
    inside: Iterable[str] = (),
    outside: Iterable[str] = (),
    ignore: Iterable[str] = (),
) -> Settings:
    """Settings from plain values; BackendError names what can't be used."""
    if not rules.table_name_is_valid(table):
        raise BackendError(f"{table!r} is no name for an nftables table: use letters and digits")
    if not 0 < group < 65536:
        raise BackendError(f"{group} is no NFLOG group: choose 1 to 65535")
    if not 0 <= queue < 65536:
        raise BackendError(f"{queue} is no NFQUEUE: choose 0 to 65535")
    return Settings(
        rules.Settings(table=table, group=group, queue=queue),
        tuple(inside), tuple(outside), tuple(ignore),
    )  # fmt: skip


def open_backend(settings: Settings) -> tuple[NftTable, LinuxHost, Sockets]:
    """The parent's half, with rules in place; needs CAP_NET_ADMIN and CAP_NET_RAW."""
    table = NftTable(settings.rules)
    table.open()
    sockets = open_privileged(settings)
    return table, LinuxHost(settings, table, sockets), sockets


def open_queue(settings: Settings) -> NfQueue:
    """The parent's half of a packet worker; needs CAP_NET_ADMIN.  Once it is closed in both
    processes the kernel drops what waits in it, and what comes."""
    queue_rules.check(settings.rules.queue)
    return NfQueue(settings.rules.queue)


def packet_worker(queue: NfQueue) -> DivertWorker:
    """The worker's half; needs CAP_NET_ADMIN too, for each verdict."""
    return DivertWorker(queue, Rewriter())


def steady_clock() -> Callable[[], float]:
    """Seconds since the epoch that never go back, whatever is done to the date."""
    base = time.time() - time.monotonic()
    return lambda: base + time.monotonic()


def engine_side(
    settings: Settings,
    sockets: Sockets,
    connections: ConnectionHandler,
    tap: TapHandler,
    clock: Callable[[], float] | None = None,
) -> tuple[LogTap, ConntrackTable, RouteWatcher]:
    """The engine's half; needs no privilege.

    clock  seconds since the epoch that never go back
    """
    clock = clock or steady_clock()
    watcher = RouteWatcher(settings)
    table = ConntrackTable(sockets, watcher, connections, settings.rules.mark, clock)
    return LogTap(sockets, tap, clock), table, watcher
