"""Copies of packets by pypcap: the port behind Flag.SNIFF, and the only user of pcap.

pypcap's iterator would take SIGINT for itself; ``fileno`` and ``dispatch`` don't.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable, Sequence
from typing import Any

import pcap

from .consts import Direction, Layer
from .filter import Filter
from .filter_kernel import pcap as pcap_expression
from .packet import Packet
from .port import UnsupportedError

# Link types (pcap-linktype(7)) and the bytes in front of the IP packet.
_NULL, _ETHERNET, _SLL, _LOOP, _SLL2 = 0, 1, 113, 108, 276
_RAW = frozenset((12, 14, 101))
_HEADER = {_NULL: 4, _ETHERNET: 14, _SLL: 16, _LOOP: 4, _SLL2: 20}
_SENT_BY_US = 4
_ARPHRD_LOOPBACK = 772
_ETHERTYPE_VLAN = 0x8100
_ETHERTYPES = (0x0800, 0x86DD)
_DISPATCH = 64


class Tap:
    """An open capture: whole packets with their times, for :mod:`appliance.proc.recording`.

    ``interface`` None: all of them (Linux).  What it reads starts at the IP header.
    """

    def __init__(self, interface: str | None, expression: str) -> None:
        """``expression``: pcap-filter(7), made of typed values.  UnsupportedError."""
        self._handle = _opened(interface, in_ns=False)
        self._link = self._handle.datalink()
        self._found: list[tuple[float, bytes]] = []
        self.narrow(expression)

    def fileno(self) -> int:
        number: int = self._handle.fileno()
        return number

    def narrow(self, expression: str) -> None:
        """Take another filter from now on; needs no privilege."""
        self._handle.setfilter(expression)

    def read(self) -> list[tuple[float, bytes]]:
        """What has come (some of it): seconds since the epoch, and the IP packet."""
        self._found = []
        self._handle.dispatch(_DISPATCH, self._take)
        return self._found

    def close(self) -> None:
        self._handle.close()

    def _take(self, timestamp: float, frame: bytes) -> None:
        packet = decode(self._link, frame, ours=lambda address: False)
        if packet is not None:
            self._found.append((float(timestamp), bytes(packet.raw)))


def _opened(interface: str | None, in_ns: bool) -> Any:
    name = interface or "any"
    try:
        handle = pcap.pcap(
            name=name, snaplen=65535, promisc=False, immediate=True, timestamp_in_ns=in_ns
        )
    except OSError as fault:
        raise UnsupportedError(f"can't capture on {name}: {fault}") from None
    link = handle.datalink()
    if link not in _HEADER and link not in _RAW:
        raise UnsupportedError(f"link type {link} of {name} is not known here")
    handle.setnonblock(True)
    return handle


class CapturePort:
    """Copies of what passes ``interface``; on Linux all interfaces without one.

    Directions: on all interfaces the system tells them; on a single one, a packet is
    outbound when its source is an address of this machine.  Packets that stay on this
    machine are seen once, outbound.  Checksums that a network card would finish are
    not finished in the copies.
    """

    def __init__(self, chosen: Filter, layer: Layer, interface: str | None) -> None:
        if layer is not Layer.NETWORK:
            raise UnsupportedError("SNIFF exists on Layer.NETWORK only")
        if interface is None and not sys.platform.startswith("linux"):
            raise UnsupportedError("here SNIFF needs an interface: Divert(..., interface='em0')")
        self._filter = chosen
        self._interface = interface
        self._handle: Any = None
        self._found: list[Packet] = []

    def open(self) -> None:
        handle = _opened(self._interface, in_ns=True)
        self._link = handle.datalink()
        expression = pcap_expression(self._filter.node)
        if expression:
            handle.setfilter(expression)
        self._index = 0
        if self._interface is not None:
            self._index = socket.if_nametoindex(self._interface)
        self._handle = handle

    def close(self) -> None:
        self._handle.close()

    def fileno(self) -> int:
        number: int = self._handle.fileno()
        return number

    def receive(self, limit: int) -> Sequence[Packet]:
        if len(self._found) < limit:
            self._handle.dispatch(min(limit, _DISPATCH), self._take)
        taken, self._found = self._found[:limit], self._found[limit:]
        return taken

    def release(self, packet: Packet) -> None:
        """A copy: the packet itself has gone on."""

    def drop(self, packet: Packet) -> None:
        """A copy."""

    def inject(self, packet: Packet) -> None:
        raise UnsupportedError("a handle with SNIFF only listens")

    def _take(self, timestamp: int, frame: bytes) -> None:
        packet = decode(self._link, frame, int(timestamp), self._index)
        if packet is not None:
            self._found.append(packet)


def _is_ours(address: str) -> bool:
    """Whether a socket could be bound to it."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True


def decode(
    link: int,
    frame: bytes,
    timestamp: int = 0,
    interface: int = 0,
    ours: Callable[[str], bool] = _is_ours,
) -> Packet | None:
    """The IP packet in a frame of a link type; None: there is none, or it is a second
    copy of one that stays on this machine."""
    size = 0 if link in _RAW else _HEADER[link]
    outbound = loopback = False
    if len(frame) < size:
        return None
    if link == _ETHERNET:
        kind = int.from_bytes(frame[12:14], "big")
        if kind == _ETHERTYPE_VLAN:
            size += 4
            kind = int.from_bytes(frame[16:18], "big")
        if kind not in _ETHERTYPES:
            return None
    elif link == _SLL:
        outbound = int.from_bytes(frame[0:2], "big") == _SENT_BY_US
        loopback = int.from_bytes(frame[2:4], "big") == _ARPHRD_LOOPBACK
    elif link == _SLL2:
        outbound = frame[10] == _SENT_BY_US
        loopback = int.from_bytes(frame[8:10], "big") == _ARPHRD_LOOPBACK
        interface = int.from_bytes(frame[4:8], "big")
    elif link in (_NULL, _LOOP):
        loopback = outbound = True
    if loopback and not outbound:
        return None
    packet = Packet(
        frame[size:],
        interface=interface,
        direction=Direction.OUTBOUND if outbound else Direction.INBOUND,
        timestamp=timestamp,
        loopback=loopback,
        sniffed=True,
    )
    if packet.ip is None:
        return None
    if link == _ETHERNET or link in _RAW:
        packet.is_outbound = ours(packet.src_addr or "")
    packet.raw = packet.raw[: packet.end]  # without the padding of short frames
    return packet
