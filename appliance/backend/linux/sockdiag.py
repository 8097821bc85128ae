"""sock_diag(7): which TCP sockets this machine has, and how to end one.

The bytes are pure; :func:`destroy` and :func:`exists` take a socket.
"""

from __future__ import annotations

import errno
import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from ...rewrite.flow import Address, Endpoint, Flow
from . import netlink as nl

SOCK_DIAG_BY_FAMILY = 20
SOCK_DESTROY = 21

TCP_ESTABLISHED = 1
TCP_FIN_WAIT1, TCP_FIN_WAIT2, TCP_CLOSE_WAIT, TCP_LAST_ACK, TCP_CLOSING = 4, 5, 8, 9, 11
TCP_LISTEN = 10

# Connections that still carry data in some direction.
LIVING = sum(
    1 << state
    for state in (
        TCP_ESTABLISHED, TCP_FIN_WAIT1, TCP_FIN_WAIT2, TCP_CLOSE_WAIT, TCP_LAST_ACK, TCP_CLOSING,
    )
)  # fmt: skip

_AF = {4: 2, 6: 10}
_REQUEST = struct.Struct("=BBBxI")
_ID = struct.Struct("!HH16s16s")
_NO_INTERFACE = bytes(4)
_NO_COOKIE = b"\xff" * 8
_COOKIE = slice(44, 52)  # in struct inet_diag_msg: names one socket for good
_MESSAGE_SIZE = 72  # struct inet_diag_msg


@dataclass(frozen=True, slots=True)
class TcpSocket:
    """A connected TCP socket; IPv4-mapped IPv6 addresses are given as IPv4."""

    flow: Flow
    state: int


def request(
    version: int, states: int = LIVING, flow: Flow | None = None, cookie: bytes = _NO_COOKIE
) -> bytes:
    """A dump of one family, or (with ``flow``) one socket."""
    head = _REQUEST.pack(_AF[version], 6, 0, states)
    if flow is None:
        return head + bytes(48)
    local, remote = flow
    ident = _ID.pack(
        local.port, remote.port, local.addr.packed.ljust(16, b"\0"),
        remote.addr.packed.ljust(16, b"\0"),
    )  # fmt: skip
    return head + ident + _NO_INTERFACE + cookie


def parse(payload: memoryview) -> TcpSocket | None:
    """One struct inet_diag_msg; None when it is cut short or no connection."""
    if len(payload) < _MESSAGE_SIZE:
        return None
    family, state = payload[0], payload[1]
    sport, dport, src, dst = _ID.unpack_from(payload, 4)
    if not dport:
        return None  # it listens
    if family == _AF[4]:
        ends: tuple[Address, Address] = IPv4Address(src[:4]), IPv4Address(dst[:4])
    elif family == _AF[6]:
        six = IPv6Address(src), IPv6Address(dst)
        mapped = six[0].ipv4_mapped, six[1].ipv4_mapped
        ends = mapped if mapped[0] is not None and mapped[1] is not None else six  # type: ignore
    else:
        return None
    return TcpSocket(Flow(Endpoint(ends[0], sport), Endpoint(ends[1], dport)), state)


def sockets(sock: nl.NetlinkSocket, version: int) -> list[TcpSocket]:
    """All living TCP connections of this machine in one family."""
    answer = sock.request(
        "list of TCP sockets", SOCK_DIAG_BY_FAMILY, nl.NLM_F_DUMP, request(version)
    )
    found = (parse(part.payload) for part in answer)
    return [each for each in found if each is not None]


def listening(sock: nl.NetlinkSocket, version: int) -> set[int]:
    """Ports on which servers of this machine accept connections."""
    payload = request(version, 1 << TCP_LISTEN)
    answer = sock.request("list of servers", SOCK_DIAG_BY_FAMILY, nl.NLM_F_DUMP, payload)
    return {int.from_bytes(part.payload[4:6], "big") for part in answer if len(part.payload) >= 6}


def exists(sock: nl.NetlinkSocket, flow: Flow) -> bool:
    """Whether exactly this connection exists, in any state."""
    return _cookie(sock, flow) is not None


def _cookie(sock: nl.NetlinkSocket, flow: Flow) -> bytes | None:
    payload = request(flow.version, 0xFFFFFFFF, flow)
    try:
        answer = sock.request(str(flow), SOCK_DIAG_BY_FAMILY, 0, payload)
    except nl.NetlinkError as fault:
        if fault.errno == errno.ENOENT:
            return None
        raise
    # Without a connection the kernel names the server that would get one.
    found = (bytes(p.payload[_COOKIE]) for p in answer if parse(p.payload) is not None)
    return next(found, None)


def destroy(sock: nl.NetlinkSocket, flow: Flow) -> bool:
    """End it at once, as RST does; False when it does not exist.  CAP_NET_ADMIN.

    By its cookie: when the connection is gone, its addresses and ports find the server's
    listening socket instead, and the kernel would end that.
    """
    cookie = _cookie(sock, flow)
    if cookie is None:
        return False
    payload = request(flow.version, 0xFFFFFFFF, flow, cookie)
    try:
        sock.request(f"end of connection {flow}", SOCK_DESTROY, 0, payload)
    except nl.NetlinkError as fault:
        if fault.errno in (errno.ENOENT, errno.ESTALE):
            return False
        raise
    return True
