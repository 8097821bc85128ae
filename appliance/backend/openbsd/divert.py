"""divert(4) sockets: packets out of pf and back into the stack.

What openbsd.md measured, in the words used here:

- ``recvfrom`` names the unspecified address for an outbound packet; for an inbound one it
  names the first address of the receiving interface.
- ``sendto`` the unspecified address means output; any other address means input and must
  be local *now*, or EADDRNOTAVAIL: an address change between the two loses the packet
  unless it is remapped.
- pf skips a re-injected packet exactly once.
- Re-injection recomputes checksums, so it repairs corrupted packets silently: they are
  verified first.
- IPv6: an inbound link-local name carries the interface index in its third and fourth
  byte; it is echoed unchanged.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Protocol

from ...rewrite import checksum
from ...rewrite.flow import Address
from ...rewrite.headers import UDP, locate
from ...rewrite.rewriter import Rewriter
from ...rewrite.table import Verdict
from ..api import BackendError

IPPROTO_DIVERT = 258
#: the default of 64 KB holds 44 packets of 1,500 bytes
BUFFER = 1024 * 1024
PACKET_MAX = 65535

Name = tuple[str, int] | tuple[str, int, int, int]
OUT4: Name = ("0.0.0.0", 0)
OUT6: Name = ("::", 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Diverted:
    """One packet and where it stood: ``name`` is what recvfrom gave."""

    data: bytes
    name: Name

    @property
    def inbound(self) -> bool:
        return not is_output(self.name)


def is_output(name: Name) -> bool:
    return name[0] in ("0.0.0.0", "::")


def output_name(version: int) -> Name:
    """Outbound ``sendto`` is always ("0.0.0.0", 0)."""
    return OUT4 if version == 4 else OUT6


def input_name(addr: Address) -> Name:
    """As input, by way of a local address."""
    return (str(addr), 0) if addr.version == 4 else (str(addr), 0, 0, 0)


def inject_name(
    dest: Address | None, came: Name, is_local: Callable[[Address], bool], spare: Address | None
) -> Name:
    """Where an inbound packet goes: "the rewritten destination when it is local, else the
    address that recvfrom gave", and when that one has left us meanwhile, ``spare``.

    A link-local name of IPv6 stays as it is: it tells the interface by its index.
    """
    if dest is not None and is_local(dest):
        return input_name(dest)
    text = came[0]
    addr = ip_address(text)
    if (isinstance(addr, IPv6Address) and addr.is_link_local) or is_local(addr) or spare is None:
        return came
    return input_name(spare) if spare.version == addr.version else came


def destination(packet: bytes | bytearray) -> Address | None:
    """Destination in the IP header; None when it is none."""
    if len(packet) >= 20 and packet[0] >> 4 == 4:
        return IPv4Address(bytes(packet[16:20]))
    if len(packet) >= 40 and packet[0] >> 4 == 6:
        return IPv6Address(bytes(packet[24:40]))
    return None


def is_intact(packet: bytes | bytearray) -> bool:
    """The TCP checksum is right, or there is none to check (other protocols, fragments).

    The IP checksum says nothing: it is bad on inbound packets that pf translated.
    """
    at = locate(packet, 0, len(packet))
    if at is None:
        return False
    wanted = checksum.transport(packet, 0, at)
    place = checksum.checksum_place(at)
    if wanted is None or place is None:
        return True
    found = int.from_bytes(packet[place : place + 2])
    if at.proto == UDP and found == 0:
        return True  # RFC 768: none was sent
    return found == wanted or {found, wanted} == {0, 0xFFFF}


class PacketSocket(Protocol):
    """What is used of a divert socket; the system's own is :class:`DivertSocket`."""

    version: int

    def fileno(self) -> int: ...

    def receive(self) -> Diverted | None: ...

    def send(self, packet: bytes | bytearray, name: Name) -> bool: ...


class DivertSocket:
    """A divert socket of one family; root opens it, nobody else can.

    No listener: packets drop, no fail-open exists.  Two listeners on a port would share
    nothing (one receives all), so the address is never reused.
    """

    def __init__(self, version: int, port: int) -> None:
        family = socket.AF_INET if version == 4 else socket.AF_INET6
        self.version, self.port = version, port
        try:
            self._sock = socket.socket(family, socket.SOCK_RAW, IPPROTO_DIVERT)
            self._sock.bind(("0.0.0.0", port) if version == 4 else ("::", port))
        except OSError as fault:
            raise BackendError(opening_failed(port, fault)) from None
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
        self._sock.setblocking(False)

    def fileno(self) -> int:
        return self._sock.fileno()

    def receive(self) -> Diverted | None:
        """The next packet, None when there is none."""
        try:
            data, name = self._sock.recvfrom(PACKET_MAX)
        except (BlockingIOError, InterruptedError):
            return None
        return Diverted(data, name)

    def send(self, packet: bytes | bytearray, name: Name) -> bool:
        """False: the kernel did not take it (TCP repeats itself)."""
        try:
            self._sock.sendto(packet, name)
        except OSError as fault:
            if fault.errno in TRANSIENT:
                return False
            raise
        return True

    def close(self) -> None:
        self._sock.close()


#: what a network does: no buffer, no route, an address that left, a packet too large
TRANSIENT = frozenset(
    {
        errno.EADDRNOTAVAIL, errno.ENOBUFS, errno.EHOSTUNREACH, errno.ENETUNREACH,
        errno.EMSGSIZE, errno.EAGAIN, errno.EHOSTDOWN, errno.ENETDOWN, errno.EACCES,
        errno.EINVAL,
    }
)  # fmt: skip


def opening_failed(port: int, fault: OSError) -> str:
    """Why a divert socket could not be had, and what to do."""
    remedies = {
        errno.EADDRINUSE: "another program has it: is a second redirectd running?",
        errno.EPERM: "start redirectd as root",
        errno.EACCES: "start redirectd as root",
        errno.EPROTONOSUPPORT: "this kernel has no divert(4)",
    }
    remedy = remedies.get(fault.errno or 0, "see divert(4)")
    return f"divert port {port}: {fault.strerror}; {remedy}"


@dataclass(slots=True)
class Counters:
    passed: int = 0
    rewritten: int = 0
    dropped: int = 0
    broken: int = 0
    lost: int = 0


class DivertWorker:
    """The loop of a packet worker: receive, verify, translate, send.

    rewriter  made with ``near="inside"``: pf translates before the divert, so a packet
              must go straight to the inside tuple
    is_local  whether an address is ours now (kept up to date by the engine's messages)
    spare     an address of ours to name when the packet's own has left
    hold      gets what the rewriter holds, and whether it came from the network
    """

    def __init__(
        self,
        sock: PacketSocket,
        rewriter: Rewriter,
        is_local: Callable[[Address], bool],
        spare: Callable[[int], Address | None],
        hold: Callable[[bytes, bool], None] = lambda packet, inbound: None,
    ) -> None:
        self._sock, self._rewriter = sock, rewriter
        self._is_local, self._spare, self._hold = is_local, spare, hold
        self.counters = Counters()

    def fileno(self) -> int:
        return self._sock.fileno()

    def read(self, most: int = 256) -> int:
        """Handle what is there; at most ``most`` packets, how many it were."""
        for done in range(most):
            diverted = self._sock.receive()
            if diverted is None:
                return done
            self.handle(diverted)
        return most

    def handle(self, diverted: Diverted) -> None:
        count, inbound = self.counters, diverted.inbound
        if not is_intact(diverted.data):
            count.broken += 1  # sending it would make its checksum right
            return
        packet = bytearray(diverted.data)
        verdict = self._rewriter.rewrite(packet, 0, len(packet), inbound)
        if verdict is Verdict.HOLD:
            self._hold(bytes(packet), inbound)
            return
        if verdict not in (Verdict.PASS, Verdict.REWRITTEN):
            count.dropped += 1
            return
        if verdict is Verdict.PASS:
            count.passed += 1
        else:
            count.rewritten += 1
        version = self._sock.version
        if inbound:
            dest = destination(packet)
            name = inject_name(dest, diverted.name, self._is_local, self._spare(version))
        else:
            name = output_name(version)
        if not self._sock.send(packet, name):
            count.lost += 1


def spare_address(addresses: Iterable[Address], version: int) -> Address | None:
    """Any address of ours that is neither loopback nor link-local."""
    for addr in addresses:
        if addr.version == version and not addr.is_loopback and not addr.is_link_local:
            return addr
    return None
