"""What root opens and the unprivileged engine goes on using.

Checked without a capability (tests/backend/test_unprivileged.py): receiving copies,
events and dumps, and sending on raw sockets, need none; *asking* for a connection
tracking dump does, which is why the parent asks and the engine reads.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass

from . import ctfilter, nfnl
from . import netlink as nl
from .settings import Settings

NFNLGRP_CONNTRACK_NEW = 1
NFNLGRP_CONNTRACK_UPDATE = 2
NFNLGRP_CONNTRACK_DESTROY = 3
SKNLGRP_INET_TCP_DESTROY = 1
SKNLGRP_INET6_TCP_DESTROY = 3

# A small buffer lost 97 % of 10,000 events; 64 MiB lost none of 50,000.
EVENT_BUFFER = 64 * 1024 * 1024
COPY_BUFFER = 8 * 1024 * 1024

# Whole segments, also those that the network card would cut (up to 64 KiB).
COPY_RANGE = 0xFFFF

IPV6_HDRINCL = 36
IPV6_PKTINFO = 50


@dataclass(frozen=True, slots=True)
class Sockets:
    """Open sockets; each survives fork and the change of user.

    conntrack    connection tracking events, and the dumps that the parent asks for
    destroyed    ends of TCP sockets of this machine (sock_diag)
    copies       NFLOG: copies of packets that the rules log
    raw          IP version -> raw socket whose packets carry our mark
    """

    conntrack: nl.NetlinkSocket
    destroyed: nl.NetlinkSocket
    copies: nl.NetlinkSocket
    raw: dict[int, socket.socket]

    def close(self) -> None:
        for channel in (self.conntrack, self.destroyed, self.copies):
            channel.close()
        for raw in self.raw.values():
            raw.close()


def open_privileged(settings: Settings) -> Sockets:
    """Needs CAP_NET_ADMIN and CAP_NET_RAW; OSError or BackendError otherwise."""
    conntrack = nl.NetlinkSocket(
        nl.NETLINK_NETFILTER,
        (NFNLGRP_CONNTRACK_NEW, NFNLGRP_CONNTRACK_UPDATE, NFNLGRP_CONNTRACK_DESTROY),
        receive=EVENT_BUFFER,
    )
    ctfilter.attach(conntrack.sock)
    destroyed = nl.NetlinkSocket(
        nl.NETLINK_SOCK_DIAG,
        (SKNLGRP_INET_TCP_DESTROY, SKNLGRP_INET6_TCP_DESTROY),
        receive=EVENT_BUFFER,
    )
    copies = nl.NetlinkSocket(nl.NETLINK_NETFILTER, receive=COPY_BUFFER)
    group = settings.rules.group
    kind, flags, payload = nfnl.log_bind(group, COPY_RANGE)
    copies.request(f"NFLOG group {group} (is it taken by another program?)", kind, flags, payload)
    raw = {4: _raw(socket.AF_INET, settings.rules.mark)}
    if socket.has_ipv6:
        raw[6] = _raw(socket.AF_INET6, settings.rules.mark)
    return Sockets(conntrack, destroyed, copies, raw)


def _raw(family: int, mark: int) -> socket.socket:
    """Sends whole IP packets (raw(7): IPPROTO_RAW implies IP_HDRINCL); receives nothing."""
    sock = socket.socket(family, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.IPPROTO_RAW)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, IPV6_HDRINCL, 1)
    sock.setblocking(False)
    return sock
