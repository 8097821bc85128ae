"""The port of :class:`.divert.Divert` on OpenBSD: divert(4) behind a rule of the user's.

pf picks packets, so there the kernel's selection is a rule, and what it lets pass is for
the owner of pf.conf to say; a handle makes none.  The rule names :data:`PORT`:

    pass out quick on em0 proto tcp to port 80 no state divert-packet port 710

Packets of such a rule that match no filter go on at once.  While no handle is open the
kernel drops them.
"""

from __future__ import annotations

import errno
import selectors
from collections.abc import Callable, Sequence
from ipaddress import ip_address
from typing import Final, Protocol

from ..backend.api import BackendError
from ..backend.openbsd.divert import (
    DivertSocket,
    Name,
    PacketSocket,
    inject_name,
    input_name,
    output_name,
)
from ..rewrite.flow import Address
from .consts import Direction, Flag, Layer
from .filter import Filter
from .packet import Packet
from .port import UnsupportedError, is_local

PORT: Final = 710


class PfSocket(PacketSocket, Protocol):
    def close(self) -> None: ...


class OpenBSDPort:
    """See :class:`.port.PacketPort`; needs root.

    number   the divert port; functools.partial makes a port of another number
    sockets  makes the socket of a family (4 or 6)
    """

    def __init__(
        self,
        chosen: Filter,
        layer: Layer,
        priority: int,
        flags: Flag,
        interface: str | None,
        number: int = PORT,
        sockets: Callable[[int, int], PfSocket] = DivertSocket,
    ) -> None:
        if layer is not Layer.NETWORK:
            raise UnsupportedError("pf diverts forwarded packets like others: use Layer.NETWORK")
        if priority:
            raise UnsupportedError("the order of pf's rules says who sees packets first")
        if flags & Flag.DROP:
            raise UnsupportedError("pf drops by itself: write a rule «block»")
        if flags & Flag.FRAGMENTS:
            raise UnsupportedError("pf reassembles fragments before it diverts")
        if interface is not None:
            raise UnsupportedError("the interface is the pf rule's affair: «on em0»")
        self._number = number
        self._make = sockets
        self._listens = not flags & Flag.SEND_ONLY
        self._sockets: dict[int, PfSocket] = {}
        self._names: dict[int, Name] = {}
        self._last_token = 0

    def open(self) -> None:
        # One descriptor for both families; epoll and kqueue can be waited for themselves.
        self._selector = selectors.DefaultSelector()
        try:
            for version in (4, 6):
                # Port 0 is nobody's: what is opened for sending alone receives nothing.
                made = self._make(version, self._number if self._listens else 0)
                self._sockets[version] = made
                if self._listens:
                    self._selector.register(made, selectors.EVENT_READ)
        except BackendError as fault:
            self.close()
            raise UnsupportedError(str(fault)) from None

    def close(self) -> None:
        self._names.clear()
        self._selector.close()
        for made in self._sockets.values():
            made.close()
        self._sockets.clear()

    def fileno(self) -> int:
        number: int = self._selector.fileno()
        return number

    def receive(self, limit: int) -> Sequence[Packet]:
        found: list[Packet] = []
        for made in self._sockets.values() if self._listens else ():
            while len(found) < limit:
                diverted = made.receive()
                if diverted is None:
                    break
                self._last_token += 1
                self._names[self._last_token] = diverted.name
                inbound = Direction.INBOUND if diverted.inbound else Direction.OUTBOUND
                found.append(Packet(diverted.data, direction=inbound, token=self._last_token))
        return found

    def release(self, packet: Packet) -> None:
        """Back to where it was, by the name that it came with."""
        name = self._names.pop(packet.token, None) if packet.token is not None else None
        if name is None:
            raise OSError(errno.EINVAL, "not a packet of this handle, or answered already")
        version, target = self._target(packet)
        if packet.is_inbound:
            name = inject_name(target, name, is_local, None)
        else:
            name = output_name(version)
        self._send(version, packet, name)

    def drop(self, packet: Packet) -> None:
        if packet.token is not None:
            self._names.pop(packet.token, None)

    def inject(self, packet: Packet) -> None:
        version, target = self._target(packet)
        if packet.is_outbound:
            self._send(version, packet, output_name(version))
        elif is_local(target):
            self._send(version, packet, input_name(target))
        else:
            raise UnsupportedError(
                f"an inbound packet to {target} can't be injected: no address of this machine"
            )

    @staticmethod
    def _target(packet: Packet) -> tuple[int, Address]:
        if packet.dst_addr is None:
            raise OSError(errno.EINVAL, "not an IP packet")
        target = ip_address(packet.dst_addr)
        return target.version, target

    def _send(self, version: int, packet: Packet, name: Name) -> None:
        if not self._sockets[version].send(bytes(packet.raw), name):
            raise OSError(errno.EHOSTUNREACH, f"the kernel did not take a packet to {name[0]}")
