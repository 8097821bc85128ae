"""Strangers on a wire: a port scanner, and somebody who asks for an address."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from ipaddress import IPv4Address

import dpkt
from ethernet import Wire
from leases import mac_bytes, udp_frame

_ACK = dpkt.tcp.TH_SYN | dpkt.tcp.TH_ACK
_BURST = 256  # a guest's receive ring holds as many


class Scanner:
    """A machine on the wire with an address of its own.

    tcp, udp  ports that answered, with how
    """

    def __init__(self, wire: Wire, address: str) -> None:
        self.address = IPv4Address(address)
        self.mac = b"\x52\x54\x00\x5c\x5c\x5c"
        self.tcp: dict[int, str] = {}
        self.udp: dict[int, str] = {}
        self._wire = wire
        self._target_mac: bytes | None = None
        self._answers = 0
        self._news = threading.Condition()
        wire.add_peer(self)

    # -- the wire's side ---------------------------------------------------------------

    def frame(self, data: bytes) -> Iterable[bytes]:
        try:
            ethernet = dpkt.ethernet.Ethernet(data)
        except dpkt.UnpackError:
            return ()
        inner = ethernet.data
        if isinstance(inner, dpkt.arp.ARP):
            return self._arp(inner)
        if isinstance(inner, dpkt.ip.IP) and inner.dst == self.address.packed:
            self._note(inner)
        return ()

    def _arp(self, arp: dpkt.arp.ARP) -> Iterable[bytes]:
        if arp.tpa != self.address.packed:
            return ()
        if arp.op == dpkt.arp.ARP_OP_REPLY:
            with self._news:
                self._target_mac = arp.sha
                self._answers += 1
                self._news.notify_all()
            return ()
        return (self._arp_frame(dpkt.arp.ARP_OP_REPLY, arp.sha, arp.sha, arp.spa),)

    def _note(self, packet: dpkt.ip.IP) -> None:
        inner = packet.data
        if isinstance(inner, dpkt.tcp.TCP):
            open_ = inner.flags & _ACK == _ACK
            self.tcp[inner.sport] = "open" if open_ else "reset"
        elif isinstance(inner, dpkt.udp.UDP):
            self.udp[inner.sport] = "answered"
        elif isinstance(inner, dpkt.icmp.ICMP) and inner.type == dpkt.icmp.ICMP_UNREACH:
            quoted = inner.data.data
            if isinstance(quoted, dpkt.ip.IP) and isinstance(quoted.data, dpkt.udp.UDP):
                self.udp[quoted.data.dport] = "unreachable"

    # -- the test's side ---------------------------------------------------------------

    def _arp_frame(self, op: int, to: bytes, tha: bytes, tpa: bytes) -> bytes:
        arp = dpkt.arp.ARP(op=op, sha=self.mac, spa=self.address.packed, tha=tha, tpa=tpa)
        return bytes(
            dpkt.ethernet.Ethernet(dst=to, src=self.mac, type=dpkt.ethernet.ETH_TYPE_ARP, data=arp)
        )

    def _barrier(self, target: IPv4Address, timeout: float = 20) -> bytes:
        """Wait until the target has seen all that was sent: it answers an ARP request."""
        with self._news:
            before = self._answers
        for _ in range(5):
            self._wire.send(
                self._arp_frame(dpkt.arp.ARP_OP_REQUEST, b"\xff" * 6, b"\0" * 6, target.packed)
            )
            with self._news:
                if self._news.wait_for(lambda: self._answers > before, timeout / 5):
                    assert self._target_mac is not None
                    return self._target_mac
        raise AssertionError(f"{target} does not answer ARP")

    def scan(self, address: str, ports: Iterable[int] = range(1, 65536)) -> None:
        """One SYN and one datagram to each port."""
        target = IPv4Address(address)
        mac = self._barrier(target)
        for count, port in enumerate(ports):
            tcp = dpkt.tcp.TCP(sport=40000, dport=port, seq=port, flags=dpkt.tcp.TH_SYN)
            packet = dpkt.ip.IP(
                src=self.address.packed, dst=target.packed, p=dpkt.ip.IP_PROTO_TCP, data=tcp
            )
            packet.len = len(packet)
            self._wire.send(bytes(dpkt.ethernet.Ethernet(dst=mac, src=self.mac, data=packet)))
            self._wire.send(udp_frame(self.mac, mac, self.address, target, 40000, port, b"hello"))
            if count % (_BURST // 4) == 0:
                self._barrier(target)
        self._barrier(target)


class Asker:
    """A new laptop: asks for an address by DHCP, and looks at the offer only."""

    def __init__(self, wire: Wire, mac: str = "52:54:00:a5:4e:01") -> None:
        self.mac = mac_bytes(mac)
        self.offer: IPv4Address | None = None
        self.router: IPv4Address | None = None
        self._wire = wire
        self._news = threading.Condition()
        wire.add_peer(self)

    def frame(self, data: bytes) -> Iterable[bytes]:
        try:
            inner = dpkt.ethernet.Ethernet(data).data
            if not isinstance(inner, dpkt.ip.IP) or not isinstance(inner.data, dpkt.udp.UDP):
                return ()
            if inner.data.dport != 68:
                return ()
            message = dpkt.dhcp.DHCP(inner.data.data)
        except (dpkt.UnpackError, IndexError):
            return ()
        options = dict(message.opts)
        kind = options.get(dpkt.dhcp.DHCP_OPT_MSGTYPE)
        if message.chaddr[:6] == self.mac and kind == bytes([dpkt.dhcp.DHCPOFFER]):
            with self._news:
                self.router = IPv4Address(options[dpkt.dhcp.DHCP_OPT_ROUTER][:4])
                self.offer = IPv4Address(message.yiaddr)
                self._news.notify_all()
        return ()

    def discover(self) -> None:
        options = [(dpkt.dhcp.DHCP_OPT_MSGTYPE, bytes([dpkt.dhcp.DHCPDISCOVER]))]
        message = dpkt.dhcp.DHCP(op=1, xid=0xA5, chaddr=self.mac + b"\0" * 10, opts=options)
        self._wire.send(
            udp_frame(
                self.mac, b"\xff" * 6, IPv4Address("0.0.0.0"), IPv4Address("255.255.255.255"),
                68, 67, bytes(message),
            )
        )  # fmt: skip

    def wait(self, timeout: float) -> bool:
        with self._news:
            return self._news.wait_for(lambda: self.offer is not None, timeout)
