"""The provider's DHCP server (RFC 2131) as a peer on a wire.

    provider = LeaseServer("198.51.100.254", router="198.51.100.1", prefix=24, seconds=20)
    provider.assign("52:54:00:00:00:01", "198.51.100.10")
    wan.add_peer(provider)
    ...
    provider.assign("52:54:00:00:00:01", "198.51.100.77")   # a new address from now on

A client that asks for an address that is no longer its own hears DHCPNAK, drops it and
asks anew (RFC 2131 section 3.2): that is how a provider renumbers a home at night.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

import dpkt

_BROADCAST = b"\xff" * 6
_SERVER, _CLIENT = 67, 68


@dataclass(frozen=True, slots=True)
class Heard:
    """A client's message: its hardware address, DHCP message type, requested address."""

    mac: str
    kind: int
    requested: str | None


def mac_bytes(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def mac_text(data: bytes) -> str:
    return data.hex(":")


class LeaseServer:
    """See the module.  ``heard`` holds what clients said, oldest first.

    address  the server's own, which it answers ARP for
    router   default router that it names (None: itself)
    seconds  length of a lease; a client renews after half of it
    """

    def __init__(
        self, address: str, *, router: str | None = None, prefix: int = 24, seconds: int = 20
    ) -> None:
        self.address = IPv4Address(address)
        self.router = IPv4Address(router or address)
        self.network = IPv4Network((address, prefix), strict=False)
        self.seconds = seconds
        self.heard: list[Heard] = []
        self.mac = b"\x52\x54\x00" + self.address.packed[1:]
        self._leases: dict[str, IPv4Address] = {}
        self._changed = threading.Condition()

    def assign(self, mac: str, address: str) -> None:
        """From now on ``mac`` gets ``address`` (and only that)."""
        with self._changed:
            self._leases[mac.lower()] = IPv4Address(address)

    def wait_for_ack(self, mac: str, address: str, timeout: float) -> bool:
        """Wait until a client has taken ``address``."""
        wanted = Heard(mac.lower(), dpkt.dhcp.DHCPACK, address)
        with self._changed:
            return self._changed.wait_for(lambda: wanted in self.heard, timeout)

    # -- frames ----------------------------------------------------------------------

    def frame(self, data: bytes) -> Iterable[bytes]:
        try:
            ethernet = dpkt.ethernet.Ethernet(data)
            if isinstance(ethernet.data, dpkt.arp.ARP):
                return self._arp(ethernet.data)
            packet = ethernet.data
            if not isinstance(packet, dpkt.ip.IP) or not isinstance(packet.data, dpkt.udp.UDP):
                return ()
            if packet.data.dport != _SERVER:
                return ()
            return self._dhcp(dpkt.dhcp.DHCP(packet.data.data))
        except (dpkt.UnpackError, ValueError, IndexError):
            return ()  # not for us, or nonsense: silence, as on any wire

    def _arp(self, request: dpkt.arp.ARP) -> Iterable[bytes]:
        if request.op != dpkt.arp.ARP_OP_REQUEST or request.tpa != self.address.packed:
            return ()
        answer = dpkt.arp.ARP(
            op=dpkt.arp.ARP_OP_REPLY,
            sha=self.mac, spa=self.address.packed,
            tha=request.sha, tpa=request.spa,
        )  # fmt: skip
        return (
            bytes(
                dpkt.ethernet.Ethernet(
                    dst=request.sha, src=self.mac, type=dpkt.ethernet.ETH_TYPE_ARP, data=answer
                )
            ),
        )

    def _dhcp(self, message: dpkt.dhcp.DHCP) -> Iterable[bytes]:
        options = dict(message.opts)
        mac = mac_text(message.chaddr[:6])
        kind = options.get(dpkt.dhcp.DHCP_OPT_MSGTYPE, b"\0")[0]
        asked = options.get(dpkt.dhcp.DHCP_OPT_REQ_IP)
        if asked is None and message.ciaddr:
            asked = message.ciaddr.to_bytes(4, "big")
        wanted = None if asked is None else str(IPv4Address(asked))
        with self._changed:
            self._note(Heard(mac, kind, wanted))
            lease = self._leases.get(mac)
            if lease is None:
                return ()
            if kind == dpkt.dhcp.DHCPDISCOVER:
                return (self._answer(message, dpkt.dhcp.DHCPOFFER, lease),)
            if kind != dpkt.dhcp.DHCPREQUEST:
                return ()
            chosen = options.get(dpkt.dhcp.DHCP_OPT_SERVER_ID)
            if chosen is not None and chosen != self.address.packed:
                return ()  # it took another server's offer
            if wanted != str(lease):
                return (self._answer(message, dpkt.dhcp.DHCPNAK, None),)
            self._note(Heard(mac, dpkt.dhcp.DHCPACK, wanted))
            return (self._answer(message, dpkt.dhcp.DHCPACK, lease),)

    def _note(self, heard: Heard) -> None:
        self.heard.append(heard)
        del self.heard[:-1000]
        self._changed.notify_all()

    def _answer(self, to: dpkt.dhcp.DHCP, kind: int, lease: IPv4Address | None) -> bytes:
        options = [
            (dpkt.dhcp.DHCP_OPT_MSGTYPE, bytes([kind])),
            (dpkt.dhcp.DHCP_OPT_SERVER_ID, self.address.packed),
        ]
        if lease is not None:
            options += [
                (dpkt.dhcp.DHCP_OPT_LEASE_SEC, self.seconds.to_bytes(4, "big")),
                (dpkt.dhcp.DHCP_OPT_NETMASK, self.network.netmask.packed),
                (dpkt.dhcp.DHCP_OPT_ROUTER, self.router.packed),
                (dpkt.dhcp.DHCP_OPT_DNS_SVRS, self.router.packed),
            ]
        message = dpkt.dhcp.DHCP(
            op=dpkt.dhcp.DHCP_OP_REPLY,
            xid=to.xid,
            ciaddr=0 if lease is None else to.ciaddr,
            yiaddr=0 if lease is None else int(lease),
            siaddr=int(self.address),
            chaddr=to.chaddr,
            opts=options,
        )
        # Broadcast reaches clients that have no address yet (RFC 2131 section 4.1) as
        # well as those that have one.
        return udp_frame(
            self.mac, _BROADCAST, self.address, IPv4Address("255.255.255.255"),
            _SERVER, _CLIENT, bytes(message),
        )  # fmt: skip


def udp_frame(
    src_mac: bytes, dst_mac: bytes, src: IPv4Address, dst: IPv4Address,
    sport: int, dport: int, data: bytes,
) -> bytes:  # fmt: skip
    udp = dpkt.udp.UDP(sport=sport, dport=dport, data=data)
    udp.ulen = len(udp)
    packet = dpkt.ip.IP(src=src.packed, dst=dst.packed, p=socket.IPPROTO_UDP, ttl=64, data=udp)
    packet.len = len(packet)
    return bytes(
        dpkt.ethernet.Ethernet(
            dst=dst_mac, src=src_mac, type=dpkt.ethernet.ETH_TYPE_IP, data=packet
        )
    )
