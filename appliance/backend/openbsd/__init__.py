"""The OpenBSD backend: pf anchors and divert sockets; the standard library alone.

The parent opens (:func:`open_backend`), the engine reads (:func:`engine_side`).

    table, pfctl, preflight   the redirect table: anchors, kills and their order
    host, sysctl              reserved ports, parking, the end of connections
    statetable, pfstates      pf's states, from the parent to the engine
    conntable, connections    which connections exist
    watcher, routemsg, ifconfig   addresses, links, routes
    tap, bpf, divert          segments observed and held, packets diverted
    sandbox                   pledge and unveil
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from pfconf.anchor import Layout
from pfconf.rule import interface_name

from ...rewrite.flow import Address, Flow
from ..api import BackendError, ConnectionHandler, TapHandler
from . import preflight, statetable
from .bpf import LINK_HEADER, BpfDevice, pure_ack_filter
from .conntable import Known, PfConnections
from .divert import DivertSocket, spare_address
from .host import PfHost
from .pfctl import Pfctl
from .settings import KEEP_A_DAY, Settings
from .sysctl import Sysctls
from .system import IFCONFIG, run
from .table import PfTable
from .tap import PfTap
from .watcher import Picture, RouteWatcher, ipv6_flags

__all__ = ["Settings", "Sockets", "engine_side", "open_backend", "settings_of"]

log = logging.getLogger("redirectd.openbsd")

#: /var/run is emptied at boot: when this is not there, our own sockets did not live on
BOOT_MARK = "/var/run/redirectd.booted"


@dataclass(frozen=True)
class Sockets:
    """Open descriptors; each survives fork and the change of user.

    channel   dumps of the state table arrive here
    taps      bpf on the external interfaces; the parent sets their filters
    prompts   bpf on the pflog interface; None: there is none
    divert    IP version -> divert socket of the hold port
    rebooted  the machine started since the daemon last ran
    """

    channel: socket.socket
    taps: Sequence[BpfDevice]
    prompts: BpfDevice | None
    divert: dict[int, DivertSocket]
    rebooted: bool


def settings_of(
    *,
    anchor: str = "redirect",
    inside: Iterable[str] = (),
    outside: Iterable[str] = (),
    ignore: Iterable[str] = (),
) -> Settings:
    """Settings from plain values; BackendError names what can't be used."""
    for name in outside:
        try:
            interface_name(name)
        except ValueError as fault:
            raise BackendError(f"interfaces.outside: {fault}") from None
    return Settings(
        anchor=anchor, inside=tuple(inside), outside=tuple(outside), ignore=tuple(ignore)
    )


def open_backend(settings: Settings) -> tuple[PfTable, PfHost, Sockets]:
    """The parent's half; refuses when pf is off or its ruleset does not fit."""
    pfctl = Pfctl()
    for warning in preflight.check(pfctl):
        log.warning("%s", warning)
    live = LivePicture(settings)
    outside = list(settings.outside) or sorted(filter(None, [live.now().outside_name()]))
    taps = [BpfDevice(name) for name in outside]
    observe(taps, [])
    divert = {version: DivertSocket(version, settings.hold_port) for version in (4, 6)}
    ours, theirs = statetable.open_channel()
    source = statetable.StateSource(statetable.open_pf(), pfctl, ours)
    if (why := source.check()) is not None:
        log.warning("the state table is read as text: %s", why)
    table = PfTable(
        pfctl,
        Layout(
            outside[0] if len(outside) == 1 else None,
            divert_port=settings.divert_port,
            hold_port=settings.hold_port,
            state_options=KEEP_A_DAY,
        ),
        settings.anchor,
        settings.reserved,
        lan_of=lambda addr: live.now().interface_of(addr),
        observe=lambda flows: observe(taps, flows),
        states=source.states,
    )
    sysctls = Sysctls()
    if settings.divert:
        sysctls.set()
    host = PfHost(
        table, source, divert, live, live.spare, sysctls, parks=settings.divert
    )  # fmt: skip
    sockets = Sockets(theirs, taps, _prompts(settings.pflog), divert, _mark_boot())
    return table, host, sockets


def engine_side(
    settings: Settings, sockets: Sockets, connections: ConnectionHandler, tap: TapHandler
) -> tuple[PfTap, PfConnections, RouteWatcher]:
    """The engine's half; needs no privilege.  Call it before :func:`.sandbox.enter`."""
    base = time.time() - time.monotonic()

    def clock() -> float:
        return base + time.monotonic()

    watcher = RouteWatcher(settings, once(lambda: run([IFCONFIG])))
    known = Known()

    def spare(version: int) -> Address | None:
        return spare_address((a.addr for a in watcher.addresses() if a.usable), version)

    made = PfTap(
        sockets.taps, LINK_HEADER, sockets.divert, tap, known, watcher.picture.is_local, spare,
        clock,
    )  # fmt: skip
    table = PfConnections(
        sockets.channel, sockets.prompts, watcher.picture, known, connections, clock,
        sockets.rebooted,
    )  # fmt: skip
    made.numbers = table.numbers
    return made, table, watcher


def once(snapshot: Callable[[], str]) -> Callable[[], str]:
    """Under pledge nothing can be run.  Where a second picture is needed (the route socket
    overflowed) the engine ends, and the next one begins with a new picture."""
    taken = False

    def take() -> str:
        nonlocal taken
        if taken:
            log.error("too many changes at once: a new engine looks anew")
            raise SystemExit("the route socket overflowed")
        taken = True
        return snapshot()

    return take


class LivePicture:
    """The parent's view of addresses.  It asks seldom, and keeps no route socket: the
    picture is read anew when it is older than a second."""

    def __init__(
        self,
        settings: Settings,
        read: Callable[[], str] = lambda: run([IFCONFIG]),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings, self._read, self._clock = settings, read, clock
        self._picture: tuple[float, Picture] | None = None

    def now(self) -> Picture:
        at = self._clock()
        if self._picture is None or at - self._picture[0] > 1.0:
            self._picture = at, Picture(self._settings, self._read(), ipv6_flags)
        return self._picture[1]

    def is_local(self, addr: Address) -> bool:
        return self.now().is_local(addr)

    def is_inside(self, addr: Address) -> bool:
        return self.now().is_inside(addr)

    def spare(self, version: int) -> Address | None:
        return spare_address((a.addr for a in self.now().addresses() if a.usable), version)


def observe(taps: Iterable[BpfDevice], flows: Sequence[Flow]) -> None:
    """Let the taps copy pure ACKs of these flows, and nothing else."""
    for tap in taps:
        header = LINK_HEADER.get(tap.link)
        if header is None:
            raise BackendError(f"bpf: link type {tap.link} is unknown")
        try:
            tap.set_filter(pure_ack_filter(flows, header))
        except OSError as fault:
            raise BackendError(f"bpf: the filter was refused: {fault.strerror}") from None


def _prompts(pflog: str) -> BpfDevice | None:
    try:
        return BpfDevice(pflog)
    except BackendError as fault:
        log.warning("%s; new connections are noticed later (create it in hostname.if(5))", fault)
        return None


def _mark_boot() -> bool:
    rebooted = not os.path.exists(BOOT_MARK)
    with contextlib.suppress(OSError):
        os.close(os.open(BOOT_MARK, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600))
    return rebooted
