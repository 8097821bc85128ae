"""What attackers have on the network: a tap on the wire, packets under any source.

Tap       hears everything on one machine's cable
Forger    sends IP packets that say whatever it likes, from the middle of the network
Flood     datagrams from thousands of sources, frame by frame onto a switch
"""

from __future__ import annotations

import json
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from ipaddress import ip_address
from typing import Any, NamedTuple

import dpkt

from appliance.protocol.frames import Kind
from appliance.protocol.message import Type
from appliance.rewrite.flow import Endpoint
from tests.lab import kernel
from tests.lab.host import Host
from tests.lab.net import Lab

PORT = 4787
ETH_ALL = 3
RST, SYN, ACK, PSH = dpkt.tcp.TH_RST, dpkt.tcp.TH_SYN, dpkt.tcp.TH_ACK, dpkt.tcp.TH_PUSH
FIN = dpkt.tcp.TH_FIN
PATIENCE = 20.0  # seconds after which something awaited counts as never happening


class Datagram(NamedTuple):
    """UDP as it crossed the wire."""

    source: Endpoint
    target: Endpoint
    data: bytes

    @property
    def type(self) -> int:
        return self.data[3] if len(self.data) > 3 else 0

    def says(self, kind: Kind) -> bool:
        """Whether it is a session's packet that begins with such a frame."""
        return self.type == Type.DATA and len(self.data) > 32 and self.data[16] == kind


class TcpPacket(NamedTuple):
    source: Endpoint
    target: Endpoint
    seq: int
    ack: int
    flags: int
    length: int  # of the payload


Packet = Datagram | TcpPacket


def parse_packet(frame: bytes) -> Packet | None:
    """What is in an Ethernet frame; None: neither UDP nor TCP."""
    try:
        ip = dpkt.ethernet.Ethernet(frame).data
        if not isinstance(ip, dpkt.ip.IP | dpkt.ip6.IP6):
            return None
        inner = ip.data
        if not isinstance(inner, dpkt.udp.UDP | dpkt.tcp.TCP):
            return None
        source = Endpoint(ip_address(ip.src), inner.sport)
        target = Endpoint(ip_address(ip.dst), inner.dport)
        if isinstance(inner, dpkt.udp.UDP):
            return Datagram(source, target, bytes(inner.data))
        return TcpPacket(source, target, inner.seq, inner.ack, inner.flags, len(inner.data))
    except dpkt.Error:
        return None


class Tap:
    """Keeps what crosses a machine's cable, until the ``with`` ends."""

    def __init__(self, host: Host, dev: str | None = None) -> None:
        self.seen: list[Packet] = []
        self._news = threading.Condition()
        with kernel.entered(host.lab.core):
            # without a protocol it hears nothing before it is bound to one card (packet(7))
            self._sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
            self._sock.bind((host.interface(dev).port, ETH_ALL))
        self._end, self._stop = os.pipe()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Tap:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        os.write(self._stop, b"x")
        self._thread.join(5)
        self._sock.close()
        os.close(self._end)
        os.close(self._stop)

    def _run(self) -> None:
        while True:
            ready, _, _ = select.select([self._sock.fileno(), self._end], [], [])
            if self._end in ready:
                return
            packet = parse_packet(self._sock.recv(65535))
            if packet is not None:
                with self._news:
                    self.seen.append(packet)
                    self._news.notify_all()

    def datagrams(self, since: int = 0) -> list[Datagram]:
        """UDP between daemons, in order."""
        with self._news:
            found = [p for p in self.seen[since:] if isinstance(p, Datagram)]
        return [d for d in found if PORT in (d.source.port, d.target.port) and d.data[:2] == b"RD"]

    def tcp(self, since: int = 0) -> list[TcpPacket]:
        with self._news:
            return [p for p in self.seen[since:] if isinstance(p, TcpPacket)]

    def mark(self) -> int:
        """For ``since``."""
        with self._news:
            return len(self.seen)

    def wait(
        self, wanted: Callable[[Packet], bool], since: int = 0, timeout: float = PATIENCE
    ) -> Packet:
        """The first packet that is ``wanted``, come or still to come."""
        at = since
        deadline = time.monotonic() + timeout
        with self._news:
            while True:
                for packet in self.seen[at:]:
                    if wanted(packet):
                        return packet
                at = len(self.seen)
                assert self._news.wait(deadline - time.monotonic()), "nothing of it on the wire"

    def wait_change(self, source: str, since: int = 0) -> Datagram:
        """An Address Change Message from ``source``."""
        found = self.wait(
            lambda p: (
                isinstance(p, Datagram)
                and p.says(Kind.ADDRESS_CHANGE)
                and str(p.source.addr) == source
            ),
            since,
        )
        assert isinstance(found, Datagram)
        return found

    def wait_challenge(self, number: int) -> Datagram:
        """The challenge that answers the change of this number."""
        found = self.wait(
            lambda p: (
                isinstance(p, Datagram)
                and p.says(Kind.CHALLENGE)
                and p.data[23:31] == number.to_bytes(8, "big")
            )
        )
        assert isinstance(found, Datagram)
        return found


class Forger:
    """A router gone bad: sends packets under any source from the middle of the network."""

    def __init__(self, lab: Lab) -> None:
        with kernel.entered(lab.core):
            # both take whole packets, headers included: raw(7), ipv6(7)
            self._sockets = {
                4: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW),
                6: socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_RAW),
            }

    def close(self) -> None:
        for sock in self._sockets.values():
            sock.close()

    def datagram(self, packet: Datagram) -> None:
        inner = dpkt.udp.UDP(sport=packet.source.port, dport=packet.target.port, data=packet.data)
        inner.ulen = len(inner)
        self._send(packet.source, packet.target, inner, dpkt.ip.IP_PROTO_UDP)

    def segment(
        self,
        source: Endpoint,
        target: Endpoint,
        flags: int,
        seq: int,
        ack: int = 0,
        data: bytes = b"",
    ) -> None:
        inner = dpkt.tcp.TCP(
            sport=source.port, dport=target.port, seq=seq % 2**32, ack=ack % 2**32,
            flags=flags, win=65535, data=data,
        )  # fmt: skip
        self._send(source, target, inner, dpkt.ip.IP_PROTO_TCP)

    def _send(self, source: Endpoint, target: Endpoint, inner: Any, protocol: int) -> None:
        ends = {"src": source.addr.packed, "dst": target.addr.packed}
        if target.addr.version == 4:
            packet = dpkt.ip.IP(**ends, p=protocol, data=inner)
            packet.len = len(packet)
        else:
            packet = dpkt.ip6.IP6(**ends, nxt=protocol, hlim=64, plen=len(inner), data=inner)
        data = bytes(packet)
        if protocol == dpkt.ip.IP_PROTO_UDP and not inner.sum:
            inner.sum = 0xFFFF  # zero would mean that there is none (RFC 768)
            data = data[: -len(inner)] + bytes(inner)
        self._sockets[target.addr.version].sendto(data, (str(target.addr), 0))


# -- a flood


class Flood:
    """Puts datagrams for one machine on its switch, under any sources, at a steady rate.

    More of them are sent in turn until :meth:`stop`.
    """

    def __init__(self, sender: Host, target: Host, datagrams: Sequence[Datagram], rate: float):
        """rate: datagrams a second"""
        self._frames = list(_frames(sender, target, datagrams))
        self.rate = rate
        self.sent = 0
        self._stop = threading.Event()
        with sender.entered():
            self._sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
            self._sock.bind((sender.interface().name, 0))
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.began = time.monotonic()

    def __enter__(self) -> Flood:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._sock.close()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(10)

    def _run(self) -> None:
        self.began = time.monotonic()
        batch = 50
        while not self._stop.is_set():
            for _ in range(batch):
                self._sock.send(self._frames[self.sent % len(self._frames)])
                self.sent += 1
            late = self.began + self.sent / self.rate - time.monotonic()
            if late > 0:
                self._stop.wait(late)


def _mac(host: Host) -> bytes:
    name = host.interface().name
    found = json.loads(host.run(["ip", "-j", "link", "show", name]).stdout)
    return bytes.fromhex(found[0]["address"].replace(":", ""))


def _frames(sender: Host, target: Host, datagrams: Iterable[Datagram]) -> Iterator[bytes]:
    macs = _mac(target) + _mac(sender)
    for packet in datagrams:
        yield macs + (_ipv4(packet) if packet.target.addr.version == 4 else _ipv6(packet))


def _ipv4(packet: Datagram) -> bytes:
    """Ethernet type, IP header and datagram; made by hand, so that a flood is quickly made."""
    size = 8 + len(packet.data)
    head = struct.pack("!BBHHHBB", 0x45, 0, 20 + size, 0, 0, 64, 17)
    ends = packet.source.addr.packed + packet.target.addr.packed
    ports = (packet.source.port, packet.target.port)
    # no UDP checksum (RFC 768: zero means none)
    udp = struct.pack("!HHHH", *ports, size, 0)
    return b"\x08\x00" + head + _checksum(head + ends) + ends + udp + packet.data


def _ipv6(packet: Datagram) -> bytes:
    """As :func:`_ipv4`; here the checksum is a must (RFC 8200, 8.1)."""
    size = 8 + len(packet.data)
    ends = packet.source.addr.packed + packet.target.addr.packed
    udp = struct.pack("!HHH", packet.source.port, packet.target.port, size)
    pseudo = ends + struct.pack("!II", size, 17)
    checksum = _checksum(pseudo + udp + packet.data)
    if checksum == bytes(2):
        checksum = b"\xff\xff"
    head = struct.pack("!IHBB", 6 << 28, size, 17, 64)
    return b"\x86\xdd" + head + ends + udp + checksum + packet.data


def _checksum(data: bytes) -> bytes:
    """RFC 1071."""
    data += bytes(len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    return struct.pack("!H", ~(total + (total >> 16)) & 0xFFFF)
