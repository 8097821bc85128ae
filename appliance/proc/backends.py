"""The only place that knows which operating system this is."""

from __future__ import annotations

import socket
import sys
from dataclasses import dataclass
from typing import Any

from ..backend import linux, openbsd
from ..backend.api import (
    AddressWatcher,
    BackendError,
    ConnectionHandler,
    ConnectionTable,
    Host,
    PacketWorker,
    RedirectTable,
    SegmentTap,
    TapHandler,
)
from ..config import Config

Sockets = Any  # the backend's own type; only the same backend looks inside


@dataclass(frozen=True)
class Privileged:
    """The parent's half of a backend."""

    table: RedirectTable
    host: Host
    sockets: Sockets


@dataclass(frozen=True)
class EngineSide:
    """The engine's half."""

    tap: SegmentTap
    connections: ConnectionTable
    watcher: AddressWatcher


class UnsupportedError(Exception):
    """No backend for this operating system."""


def open_privileged(config: Config) -> Privileged:
    """Needs root; raises BackendError with the remedy."""
    if sys.platform == "linux":
        return Privileged(*linux.open_backend(_linux_settings(config)))
    if sys.platform.startswith("openbsd"):
        return Privileged(*openbsd.open_backend(_openbsd_settings(config)))
    raise UnsupportedError(f"no backend for {sys.platform}: Linux and OpenBSD have one")


def engine_side(
    config: Config, sockets: Sockets, connections: ConnectionHandler, tap: TapHandler
) -> EngineSide:
    """Needs no privilege."""
    if sys.platform == "linux":
        return EngineSide(*linux.engine_side(_linux_settings(config), sockets, connections, tap))
    if sys.platform.startswith("openbsd"):
        return EngineSide(
            *openbsd.engine_side(_openbsd_settings(config), sockets, connections, tap)
        )
    raise UnsupportedError(f"no backend for {sys.platform}: Linux and OpenBSD have one")


def can_divert() -> bool:
    """Whether a packet worker can be started here."""
    return sys.platform == "linux"


def open_queue(config: Config) -> Any:
    """For :func:`packet_worker`; needs root.  BackendError with the remedy."""
    if sys.platform == "linux":
        return linux.open_queue(_linux_settings(config))
    raise BackendError("the divert path is not there yet on this system: choose path \"kernel\"")


def packet_worker(queue: Any) -> PacketWorker:
    """Around what :func:`open_queue` gave, in the worker's process."""
    return linux.packet_worker(queue)


def capture_interfaces(config: Config) -> tuple[str | None, ...]:
    """Where captures listen; None: on every interface at once, which only Linux has."""
    if sys.platform == "linux":
        return (None,)
    named = config.interfaces.inside + config.interfaces.outside
    return named or tuple(name for _, name in socket.if_nameindex())


def _linux_settings(config: Config) -> linux.Settings:
    return linux.settings_of(
        table=config.table,
        group=config.nflog_group,
        queue=config.nfqueue,
        inside=config.interfaces.inside,
        outside=config.interfaces.outside,
        ignore=config.interfaces.ignore,
    )


def _openbsd_settings(config: Config) -> openbsd.Settings:
    return openbsd.settings_of(
        inside=config.interfaces.inside,
        outside=config.interfaces.outside,
        ignore=config.interfaces.ignore,
    )
