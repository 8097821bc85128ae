"""Sending packets of our own making: marked, so that the rules let them pass untouched."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Mapping

from ...rewrite.flow import Address, Flow
from ..segment import ACK, build_tcp

_IP_PKTINFO, _IP_MTU, _IPV6_MTU = 8, 14, 24
_LEAST_MTU, _USUAL_MTU = 576, 1500


def send(raw: Mapping[int, socket.socket], packet: bytes, src: Address, dst: Address) -> bool:
    """Send one whole IP packet; False when it can't leave now (TCP repeats itself)."""
    sock = raw.get(dst.version)
    if sock is None:
        return False
    if dst.version == 4:
        # So that routes by source choose the same door as for the connection's own.
        info = struct.pack("=I4s4s", 0, src.packed, bytes(4))
        control = [(socket.IPPROTO_IP, _IP_PKTINFO, info)]
    else:
        control = []
    for ancillary in (control, []):
        try:
            sock.sendmsg([packet], ancillary, 0, (str(dst), 0))
        except OSError:
            if not ancillary:
                return False
        else:
            return True
    return False


def prompt(raw: Mapping[int, socket.socket], inside: Flow) -> bool:
    """Send our own end an empty segment that it can't accept.

    RFC 9293 3.10.7.4: it answers with an acknowledgment that tells both numbers.  A number
    chosen at random lies outside any window all but surely; inside it, an empty segment
    says nothing.
    """
    seq, ack = struct.unpack("=II", os.urandom(8))
    packet = build_tcp(inside.reversed(), seq, ack, ACK)
    return send(raw, packet, inside.remote.addr, inside.local.addr)


def path_mtu(src: Address, dst: Address) -> int:
    """What the kernel believes of the path now, in bytes."""
    six = dst.version == 6
    family = socket.AF_INET6 if six else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        with contextlib.suppress(OSError):  # not ours yet: the route without it will do
            sock.bind((str(src), 0))
        try:
            sock.connect((str(dst), 9))
            if six:
                value = sock.getsockopt(socket.IPPROTO_IPV6, _IPV6_MTU)
            else:
                value = sock.getsockopt(socket.IPPROTO_IP, _IP_MTU)
        except OSError:
            return _USUAL_MTU
    return max(_LEAST_MTU, value)
