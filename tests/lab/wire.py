"""Frames and switches of the link layer that ``ip`` has no command for."""

from __future__ import annotations

import fcntl
import socket
import struct
import time
from ipaddress import IPv4Address, IPv6Address, ip_interface
from pathlib import Path

from .kernel import entered

_SIOCETHTOOL = 0x8946
# linux/ethtool.h
_ETHTOOL_STXCSUM = 0x17
_ETHTOOL_STSO = 0x1F
_ETHTOOL_SGSO = 0x24
_ETHTOOL_SGRO = 0x2C


def _mac(dev: str) -> bytes:
    # sysfs shows the namespace of whoever mounted it, so ask the socket layer.
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        answer = fcntl.ioctl(sock, 0x8927, struct.pack("16s24x", dev.encode()))
    return answer[18:24]


def announce(netns: str, dev: str, cidr: str) -> None:
    """Tell the neighbours who has an address now, as DHCP clients do: gratuitous ARP
    (RFC 5227) or an unsolicited neighbour advertisement (RFC 4861 7.2.6)."""
    addr = ip_interface(cidr).ip
    with entered(netns):
        if isinstance(addr, IPv4Address):
            _gratuitous_arp(dev, addr)
        else:
            _neighbour_advertisement(dev, addr)


def _gratuitous_arp(dev: str, addr: IPv4Address) -> None:
    mac = _mac(dev)
    frame = (
        b"\xff" * 6
        + mac
        + struct.pack("!HHHBBH", 0x0806, 1, 0x0800, 6, 4, 1)
        + mac
        + addr.packed
        + b"\x00" * 6
        + addr.packed
    )
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
        sock.bind((dev, 0))
        sock.send(frame)


def _neighbour_advertisement(dev: str, addr: IPv6Address) -> None:
    override = 0x20000000
    body = struct.pack("!BBHI", 136, 0, 0, override) + addr.packed + b"\x02\x01" + _mac(dev)
    with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as sock:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
        sock.bind((str(addr), 0))
        for left in reversed(range(40)):
            try:
                sock.sendto(body, ("ff02::1", 0, 0, socket.if_nametoindex(dev)))
            except OSError:  # in a flood the kernel may have no room for a route
                if not left:
                    raise
                time.sleep(0.05)
            else:
                return


def set_offload(netns: str, dev: str, on: bool) -> None:
    """Segmentation, checksum and receive offload; off shows the cost per packet."""
    with entered(netns), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        # Checksumming first on, last off: segmentation needs it.
        order = [_ETHTOOL_STXCSUM, _ETHTOOL_SGSO, _ETHTOOL_STSO, _ETHTOOL_SGRO]
        for number in order if on else reversed(order):
            value = bytearray(struct.pack("II", number, int(on)))
            _ethtool(sock, dev, value)


def _ethtool(sock: socket.socket, dev: str, value: bytearray) -> None:
    import ctypes

    buffer = (ctypes.c_char * len(value)).from_buffer(value)
    request = struct.pack("16sP16x", dev.encode(), ctypes.addressof(buffer))
    fcntl.ioctl(sock, _SIOCETHTOOL, request)


def counters(netns: str, dev: str) -> tuple[int, int]:
    """Packets (received, sent) by an interface."""
    with entered(netns):
        for line in Path("/proc/thread-self/net/dev").read_text().splitlines():
            name, _, rest = line.partition(":")
            if name.strip() == dev:
                fields = rest.split()
                return int(fields[1]), int(fields[9])
    raise KeyError(dev)
