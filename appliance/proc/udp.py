"""The daemon's UDP sockets: one port, both families, source address chosen by us.

A move is announced *from* the new address and a challenge goes *to* it, so each
datagram carries its local address both ways (IP_PKTINFO, RFC 3542 for IPv6).
"""

from __future__ import annotations

import socket
import struct
import sys
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address

from ..rewrite.flow import Address, Endpoint

MAX_DATAGRAM = 2048  # ours are at most 1,200 bytes; longer ones are cut and fail to parse
BATCH = 64  # datagrams read in one go, so that a flood can't starve the loop

IP_PKTINFO = getattr(socket, "IP_PKTINFO", 8)
IP_RECVDSTADDR = getattr(socket, "IP_RECVDSTADDR", 7)  # ip(4), OpenBSD
_LINUX = sys.platform == "linux"


def open_sockets(port: int) -> list[socket.socket]:
    """Bound sockets, IPv4 first; IPv6 is left out where the kernel has none."""
    sockets = [_open4(port)]
    try:
        sockets.append(_open6(port))
    except OSError:
        if socket.has_ipv6 and not _no_ipv6():
            raise
    return sockets


def _no_ipv6() -> bool:
    try:
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).close()
    except OSError:
        return True
    return False


def _open4(port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.IPPROTO_IP, IP_PKTINFO if _LINUX else IP_RECVDSTADDR, 1)
    sock.bind(("0.0.0.0", port))
    sock.setblocking(False)
    return sock


def _open6(port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
    sock.bind(("::", port))
    sock.setblocking(False)
    return sock


def receive(sock: socket.socket) -> Iterator[tuple[bytes, Endpoint, Address]]:
    """(datagram, far endpoint, our address) for what is waiting, at most BATCH."""
    for _ in range(BATCH):
        try:
            data, ancillary, _, name = sock.recvmsg(MAX_DATAGRAM, 128)
        except BlockingIOError:
            return
        except OSError:
            continue  # an ICMP error of an earlier datagram; the next read goes on
        local = _destination(ancillary)
        if local is None or not name[1]:
            continue
        host = name[0].partition("%")[0]
        remote: Address = IPv4Address(host) if sock.family == socket.AF_INET else IPv6Address(host)
        yield data, Endpoint(remote, name[1]), local


def _destination(ancillary: list[tuple[int, int, bytes]]) -> Address | None:
    for level, kind, value in ancillary:
        if level == socket.IPPROTO_IP and kind == IP_PKTINFO and _LINUX:
            return IPv4Address(value[8:12])  # in_pktinfo: ifindex, spec_dst, addr
        if level == socket.IPPROTO_IP and kind == IP_RECVDSTADDR and not _LINUX:
            return IPv4Address(value[:4])
        if level == socket.IPPROTO_IPV6 and kind == socket.IPV6_PKTINFO:
            return IPv6Address(value[:16])
    return None


def send(
    sockets: list[socket.socket], data: bytes, remote: Endpoint, source: Address | None
) -> str | None:
    """Send one datagram; what went wrong as text, or None.

    A datagram that can't leave now (no route, address just gone) is lost like any
    other: retransmission is the protocol's business.
    """
    family = socket.AF_INET if remote.addr.version == 4 else socket.AF_INET6
    for sock in sockets:
        if sock.family == family:
            break
    else:
        return f"no socket for IPv{remote.addr.version}"
    ancillary: list[tuple[int, int, bytes]] = []
    if source is not None and source.version == remote.addr.version:
        ancillary = [_source(source)]
    try:
        sock.sendmsg([data], ancillary, 0, (str(remote.addr), remote.port))
    except OSError as fault:
        return f"{remote}: {fault.strerror}"
    return None


def _source(source: Address) -> tuple[int, int, bytes]:
    if isinstance(source, IPv6Address):
        value = source.packed + struct.pack("=I", 0)
        return socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, value
    if _LINUX:
        return socket.IPPROTO_IP, IP_PKTINFO, struct.pack("=I4s4s", 0, source.packed, bytes(4))
    return socket.IPPROTO_IP, IP_RECVDSTADDR, source.packed  # IP_SENDSRCADDR, ip(4)
