"""A lab: hosts, NAT gateways and an internet, made of network namespaces.

      +-- alice --+        +-- bob ----+        +-- home (gateway) --+
      |   eth0    |        |   eth0    |        |  wan          lan  |--+
      +-----+-----+        +-----+-----+        +---+----------------+  |
            |                    | relay (delay)    |                   |
    ========p1==== net-a ========q2b=====    =======p3==== net-b ===    |
            |                                       |                   |
            +------------- core (routes) -----------+                   |
                                                                        |
       +-- laptop --+                                                   |
       |    eth0    |                      ============ home-lan =======p4
       +-----+------+                            |
             +-----------------------------------p5

One namespace, *core*, holds a bridge for each network (the switches) and routes between
those that belong to the internet; a LAN is a bridge that core has no address on.  Each
machine is a namespace of its own; a cable is a veth pair between machine and bridge, with
a relay process in it where a delay is wanted.  Core filters spoofed sources as a careful
provider does (strict reverse path), so nothing works by luck.

    with Lab() as lab:
        a = lab.network("net-a", "198.51.100.1/24", "2001:db8:a::1/64")
        alice = lab.host("alice", a, "198.51.100.2/24", "2001:db8:a::2/64")
        alice.run(["ping", "-c1", "198.51.100.1"])

Names carry the owner's process ID, so labs run side by side; everything goes away when
the ``with`` ends, also by an exception, Ctrl-C or SIGTERM, and :func:`kernel.reap`
clears up after runs that were killed.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Sequence
from ipaddress import ip_interface
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from . import firewall, kernel
from .daemon import Daemon
from .host import Host

_numbers = itertools.count(1)


class Network:
    """A switch.  ``routers`` maps each subnet to whoever routes for it."""

    def __init__(self, name: str, bridge: str) -> None:
        self.name = name
        self.bridge = bridge
        self.routers: dict[str, str] = {}

    def add_router(self, cidr: str) -> None:
        interface = ip_interface(cidr)
        self.routers[str(interface.network)] = str(interface.ip)

    def router_for(self, cidr: str) -> str | None:
        """Default router of the subnet that an address lies in; None on the router."""
        interface = ip_interface(cidr)
        router = self.routers.get(str(interface.network))
        return None if router == str(interface.ip) else router


class Lab:
    """See the module; one lab is one internet."""

    def __init__(self) -> None:
        self.name = f"{kernel.PREFIX}-{os.getpid()}-{next(_numbers)}"
        self.dir = Path(tempfile.gettempdir()) / self.name
        self.core = f"{self.name}-core"
        self.hosts: dict[str, Host] = {}
        self.networks: dict[str, Network] = {}
        self.daemons: list[Daemon] = []
        self._ports = itertools.count(1)
        self._cleanups = contextlib.ExitStack()
        self._old_handler: Any = None

    # -- life ------------------------------------------------------------------------

    def __enter__(self) -> Lab:
        if os.geteuid() != 0:
            raise kernel.LabError(
                "the lab makes network namespaces and must run as root (try sudo)"
            )
        kernel.reap()
        self._catch_sigterm()
        try:
            self.dir.mkdir(mode=0o755)
            kernel.write_owner(self.dir)
            kernel.command(["ip", "netns", "add", self.core])
            kernel.write_sysctls(
                self.core,
                {
                    "net/ipv4/ip_forward": 1,
                    "net/ipv6/conf/all/forwarding": 1,
                    "net/ipv4/conf/all/rp_filter": 1,
                    "net/ipv6/conf/default/accept_dad": 0,
                    "net/ipv4/icmp_ratelimit": 0,
                    "net/ipv6/icmp/ratelimit": 0,
                },
            )
            # Where br_netfilter is there, frames between bridge ports would be routed
            # packets to nftables.
            kernel.write_sysctls(
                self.core,
                {
                    f"net/bridge/bridge-nf-call-{what}": 0
                    for what in ("iptables", "ip6tables", "arptables")
                    if Path(f"/proc/sys/net/bridge/bridge-nf-call-{what}").exists()
                },
            )
            kernel.ip_batch(["link set lo up"], self.core)
            # IPv6 has no rp_filter sysctl; its fib expression says the same.
            kernel.command(
                kernel.inside(self.core, ["nft", "-f", "-"]),
                "table ip6 spoof {\n chain prerouting {\n"
                "  type filter hook prerouting priority -200;\n"
                "  fib saddr . iif oif missing ip6 saddr != fe80::/10 ip6 saddr != :: drop\n"
                " }\n}\n",
            )
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _catch_sigterm(self) -> None:
        """SIGTERM unwinds like Ctrl-C does, so that ``with`` blocks clean up."""
        main = threading.current_thread() is threading.main_thread()
        if main and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:

            def leave(number: int, frame: FrameType | None) -> None:
                raise SystemExit(128 + number)

            self._old_handler = signal.signal(signal.SIGTERM, leave)

    def on_close(self, action: Any, *args: Any) -> None:
        """Call ``action(*args)`` before the machines go (last in, first out)."""
        self._cleanups.callback(action, *args)

    def close(self) -> None:
        """Remove everything; a second Ctrl-C does not interrupt it."""
        main = threading.current_thread() is threading.main_thread()
        interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN) if main else None
        try:
            self._cleanups.close()
        finally:
            for host in self.hosts.values():
                for interface in host.interfaces.values():
                    if interface.relay is not None:
                        interface.relay.stop()
                host.kill_started()
            names = [host.netns for host in self.hosts.values()]
            kernel.delete_namespaces(*names, self.core)
            for host in self.hosts.values():
                host.collect()
            shutil.rmtree(self.dir, ignore_errors=True)
            if self._old_handler is not None:
                signal.signal(signal.SIGTERM, self._old_handler)
                self._old_handler = None
            if interrupt is not None:
                signal.signal(signal.SIGINT, interrupt)

    # -- building ----------------------------------------------------------------------

    def next_port(self) -> int:
        return next(self._ports)

    def network(self, name: str, *routers: str) -> Network:
        """A switch; ``routers`` are core's addresses on it (CIDR).  Without any it is a
        LAN that the internet does not know.  Several subnets may share one switch."""
        network = Network(name, name[:15])
        self.networks[name] = network
        number = len(self.networks)
        lines = [
            # An address of its own: a bridge would else change it with its ports.
            f"link add {network.bridge} address 02:00:00:00:00:{number:02x}"
            " type bridge forward_delay 0 mcast_snooping 0",
            # A port that never goes, so that the router keeps its carrier without us.
            f"link add k{number} type veth peer name k{number}b",
            f"link set k{number} addrgenmode none",
            f"link set k{number}b addrgenmode none",
            f"link set k{number} up master {network.bridge}",
            f"link set k{number}b up arp off",
        ]
        if not routers:
            # Core must not answer on a LAN, not even to a router solicitation.
            kernel.ip_batch(lines, self.core)
            kernel.write_sysctls(self.core, {f"net/ipv6/conf/{network.bridge}/disable_ipv6": 1})
            lines = []
        for cidr in routers:
            network.add_router(cidr)
            option = " nodad" if ":" in cidr else ""
            lines.append(f"addr add {cidr}{option} dev {network.bridge}")
        lines.append(f"link set {network.bridge} up")
        kernel.ip_batch(lines, self.core)
        return network

    def add_subnet(self, network: Network, cidr: str) -> None:
        """The provider gets another block of addresses on the same wire."""
        network.add_router(cidr)
        option = " nodad" if ":" in cidr else ""
        kernel.ip_batch([f"addr add {cidr}{option} dev {network.bridge}"], self.core)

    def machine(self, name: str) -> Host:
        """A machine without any card yet."""
        if name in self.hosts:
            raise kernel.LabError(f"there is a {name} already")
        host = Host(self, name)
        self.hosts[name] = host
        return host

    def host(
        self,
        name: str,
        network: Network,
        *addresses: str,
        dev: str = "eth0",
        rtt_ms: float | None = None,
        services: Sequence[int] | None = None,
    ) -> Host:
        """A machine with one card.

        services  TCP ports behind a default-deny firewall; None: no firewall
        """
        host = self.machine(name)
        host.add_interface(dev, network, *addresses, rtt_ms=rtt_ms)
        if services is not None:
            host.sysctl({"net/netfilter/nf_conntrack_tcp_loose": 0})
            host.nft(firewall.host(services))
        return host

    def gateway(
        self,
        name: str,
        network: Network,
        outside: Sequence[str],
        lan: Network,
        inside: Sequence[str],
        *,
        forwards: Sequence[firewall.Forward] = (),
        masquerade6: bool = False,
        rtt_ms: float | None = None,
        wans: Sequence[str] = ("wan",),
    ) -> Host:
        """A NAT gateway behind a default-deny firewall: ``ct state invalid drop``, no
        connection picked up in the middle, masquerade, ``forwards``.

        outside, inside  its addresses on ``network`` and on ``lan`` (CIDR)
        wans             names of its outside cards; the first is plugged in here, more
                         come with :meth:`Host.add_interface`
        """
        host = self.machine(name)
        host.sysctl(
            {
                "net/ipv4/ip_forward": 1,
                "net/ipv6/conf/all/forwarding": 1,
                "net/netfilter/nf_conntrack_tcp_loose": 0,
            }
        )
        host.nft(firewall.gateway(wans, ["lan"], forwards, masquerade6=masquerade6))
        host.add_interface(wans[0], network, *outside, rtt_ms=rtt_ms)
        for cidr in inside:
            lan.add_router(cidr)
        host.add_interface("lan", lan, *inside, default_route=False)
        return host

    def daemon(self, host: Host, *, start: bool = True, **settings: Any) -> Daemon:
        """redirectd on ``host``; ``settings`` as in redirectd.toml, ``_`` for ``-``."""
        made = Daemon(host, start=False, **settings)
        self.daemons.append(made)
        if start:
            made.start()
        return made

    def route(self, prefix: str, via: str) -> None:
        """Core sends ``prefix`` to ``via`` (a delegated IPv6 prefix, for example)."""
        kernel.ip_batch([f"route replace {prefix} via {via}"], self.core)

    def block_udp(self, on: bool = True) -> None:
        """Core drops UDP between its networks, and nothing else."""
        text = "table inet block\ndelete table inet block\n"
        if on:
            text += (
                "table inet block {\n chain forward {\n"
                "  type filter hook forward priority 0;\n  meta l4proto udp drop\n }\n}\n"
            )
        kernel.command(kernel.inside(self.core, ["nft", "-f", "-"]), text)
