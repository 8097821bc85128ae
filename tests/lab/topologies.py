"""Standing topologies, IPv4 and IPv6 alike.

two_hosts                      mover and correspondent, directly on the internet

    alice ---- net-a --+                                    alice may go to net-b
                       +-- core -- net-c --[delay]-- bob
    (stranger) net-b --+

home                           LAN hosts behind a NAT gateway

    laptop --+                 +-- net-a --+
             lan -- home ------+           +-- core -- net-c --[delay]-- server
    desktop -+                 +- (net-b) -+

two_uplinks                    two_hosts, and alice has eth0 on net-a and wlan0 on net-b

shared_nat                     home, but laptop and desktop each are a peer of the server;
                               the gateway runs no redirectd
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .firewall import Forward
from .host import Host
from .net import Lab, Network

# Documentation prefixes (RFC 5737, RFC 3849), so that no packet could be anybody's.
NET_A = ("198.51.100.1/24", "2001:db8:a::1/64")
NET_B = ("203.0.113.1/24", "2001:db8:b::1/64")
NET_C = ("192.0.2.1/24", "2001:db8:c::1/64")

A = ("198.51.100.7/24", "2001:db8:a::7/64")
A2 = ("198.51.100.8/24", "2001:db8:a::8/64")
B = ("203.0.113.7/24", "2001:db8:b::7/64")
C = ("192.0.2.9/24", "2001:db8:c::9/64")
C2 = ("192.0.2.10/24", "2001:db8:c::10/64")


@dataclass(slots=True)
class Internet:
    """``a`` and ``b`` for the mover, ``c`` for the far side."""

    a: Network
    b: Network
    c: Network


def internet(lab: Lab) -> Internet:
    return Internet(
        lab.network("net-a", *NET_A), lab.network("net-b", *NET_B), lab.network("net-c", *NET_C)
    )


@dataclass(slots=True)
class TwoHosts:
    net: Internet
    alice: Host
    bob: Host


def two_hosts(
    lab: Lab, rtt_ms: float | None = None, services: Sequence[int] | None = None
) -> TwoHosts:
    """``services``: both behind a default-deny firewall that lets these ports in."""
    net = internet(lab)
    alice = lab.host("alice", net.a, *A, services=services)
    bob = lab.host("bob", net.c, *C, rtt_ms=rtt_ms, services=services)
    return TwoHosts(net, alice, bob)


def two_uplinks(lab: Lab, rtt_ms: float | None = None) -> TwoHosts:
    """The second uplink has the worse metric, as Wi-Fi has."""
    topology = two_hosts(lab, rtt_ms)
    topology.alice.add_interface("wlan0", topology.net.b, *B, metric=600)
    return topology


@dataclass(slots=True)
class Home:
    net: Internet
    lan: Network
    home: Host
    laptop: Host
    desktop: Host
    server: Host


def home(
    lab: Lab,
    rtt_ms: float | None = None,
    forwards: Sequence[Forward] = (),
    masquerade6: bool = False,
) -> Home:
    """IPv6 is routed to the LAN (a delegated prefix) unless ``masquerade6``."""
    net = internet(lab)
    lan = lab.network("home-lan")
    gateway = lab.gateway(
        "home",
        net.a,
        A,
        lan,
        ["192.168.7.1/24", "2001:db8:a7::1/64"],
        forwards=forwards,
        masquerade6=masquerade6,
    )
    lab.route("2001:db8:a7::/64", "2001:db8:a::7")
    laptop = lab.host("laptop", lan, "192.168.7.20/24", "2001:db8:a7::20/64")
    desktop = lab.host("desktop", lan, "192.168.7.21/24", "2001:db8:a7::21/64")
    server = lab.host("server", net.c, *C, rtt_ms=rtt_ms)
    return Home(net, lan, gateway, laptop, desktop, server)
