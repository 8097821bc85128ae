"""What a system must offer for :class:`.divert.Divert`: a place where packets come out."""

from __future__ import annotations

import importlib
import socket
import sys
from collections.abc import Sequence
from typing import Protocol, cast

from ..rewrite.flow import Address
from .consts import Flag, Layer
from .filter import Filter
from .packet import Packet


class PacketPort(Protocol):
    """Packets of one handle; every call returns at once.

    A packet that :meth:`receive` gave is out of the network stack until it is answered
    by its ``token``: released once, changed or not, or dropped.
    """

    def open(self) -> None:
        """Begin; OSError or BackendError says what is missing."""

    def close(self) -> None:
        """End; what has no answer yet is dropped."""

    def fileno(self) -> int:
        """Readable when packets wait."""

    def receive(self, limit: int) -> Sequence[Packet]:
        """At most ``limit`` packets; not all of them need match the filter."""

    def release(self, packet: Packet) -> None:
        """Let a packet go on, with the bytes that it has now."""

    def drop(self, packet: Packet) -> None: ...

    def inject(self, packet: Packet) -> None:
        """Put a packet in that did not come from here, or comes again."""


class PortFactory(Protocol):
    def __call__(
        self, chosen: Filter, layer: Layer, priority: int, flags: Flag, interface: str | None
    ) -> PacketPort: ...


class UnsupportedError(OSError):
    """This system has no such thing; the text says what and what to do instead."""


# Chosen by sys.platform, imported only when a handle is opened.
_PORTS = {
    "linux": ("appliance.backend.linux.divert_port", "LinuxPort"),
    "openbsd": ("appliance.packet.pf_port", "OpenBSDPort"),
}


def port_factory() -> PortFactory:
    """The port of this system; UnsupportedError."""
    for prefix, (module, name) in _PORTS.items():
        if sys.platform.startswith(prefix):
            return cast(PortFactory, getattr(importlib.import_module(module), name))
    raise UnsupportedError(
        f"packets can't be diverted on {sys.platform}, only on Linux and OpenBSD; Flag.SNIFF works"
    )


def is_local(address: Address | str) -> bool:
    """Whether it is an address of this machine: a socket can be bound to it."""
    text = str(address)
    family = socket.AF_INET6 if ":" in text else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((text, 0))
        except OSError:
            return False
    return True
