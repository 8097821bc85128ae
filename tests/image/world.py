"""A gateway guest in the lab: its cards hang in the lab's networks.

    laptop --+                                +-- net-a --+
             lan -- wire -- [eth1 QEMU eth0] -- wire      +-- core -- net-c -- server
                                  |           |           |
                               console      provider   stranger on net-a
                                            (DHCP)

Only the gateway is a guest; its neighbours are the lab's namespaces, the provider is a
peer on the wire.  ``server`` runs redirectd as well.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ethernet import Wire
from leases import LeaseServer
from qemu import Card, Guest, Machine

from tests.lab import kernel
from tests.lab.daemon import Daemon
from tests.lab.host import Host
from tests.lab.net import Lab, Network
from tests.lab.services import Sshd
from tests.lab.streams import Traffic

from .conftest import PASSWORD
from .systems import System

WAN_MAC = "52:54:00:77:00:01"
LAN_MAC = "52:54:00:77:00:02"
INSIDE = "192.168.77.1"
FIRST = "198.51.100.20"
BOOT = 120.0  # seconds; an emulated boot on a busy machine may take five times as long


@dataclass
class World:
    """See the module; ``address`` is the gateway's lease."""

    system: System
    lab: Lab
    guest: Guest
    wan: Wire
    lan: Wire
    provider: LeaseServer
    laptop: Host
    server: Host
    stranger: Host
    daemon: Daemon
    near: Traffic
    far: Traffic
    sshd: Sshd
    directory: Path
    address: str = FIRST
    _next: int = 21
    boot_seconds: float = 0.0

    def boot(self) -> None:
        """Switch on, log in, wait for the daemon and its address."""
        start = time.monotonic()
        self.guest.start()
        self.guest.login("root", PASSWORD, BOOT)
        self.boot_seconds = time.monotonic() - start
        self.wait_for("redirectctl show status", lambda text: self.address in text, 600)

    def wait_for(self, command: str, good: Callable[[str], bool], timeout: float = 300) -> str:
        return wait_for(self.guest, command, good, timeout)

    def new_address(self) -> str:
        """The provider has another address for us; not told to anybody yet."""
        self.address = f"198.51.100.{self._next}"
        self._next += 1
        self.provider.assign(WAN_MAC, self.address)
        return self.address

    def renumber(self, timeout: float = 180) -> None:
        """A new lease, and wait until the guest has taken it."""
        address = self.new_address()
        assert self.provider.wait_for_ack(WAN_MAC, address, timeout), self.provider.heard[-10:]


def wait_for(guest: Guest, command: str, good: Callable[[str], bool], timeout: float = 300) -> str:
    """Run ``command`` in the guest until its output is ``good``; that output."""
    deadline = time.monotonic() + timeout
    while True:
        result = guest.run(command, timeout=60, check=False)
        if good(result.output):
            return result.output
        assert time.monotonic() < deadline, f"{command}: {result.output}"
        time.sleep(1)


def plug(lab: Lab, wire: Wire, network: Network, device: str) -> None:
    """Put a tap of the wire into a network of the lab."""
    with kernel.entered(lab.core):
        wire.add_tap(device)
    kernel.ip_batch([f"link set {device} up master {network.bridge}"], lab.core)


@contextlib.contextmanager
def made(image: Path, directory: Path, system: System) -> Iterator[World]:
    """Build the world around a copy of ``image``; the guest is not started yet."""
    disk = directory / "disk"
    subprocess.run(["cp", "--sparse=always", image, disk], check=True)
    with contextlib.ExitStack() as stack:
        lab = stack.enter_context(Lab())
        net_a = lab.network("net-a", "198.51.100.1/24")
        net_c = lab.network("net-c", "192.0.2.1/24")
        home = lab.network("home-lan")
        home.add_router(f"{INSIDE}/24")
        laptop = lab.host("laptop", home, "192.168.77.20/24")
        server = lab.host("server", net_c, "192.0.2.9/24")
        stranger = lab.host("stranger", net_a, "198.51.100.66/24")
        wan = stack.enter_context(Wire(directory, "wan"))
        lan = stack.enter_context(Wire(directory, "lan"))
        plug(lab, wan, net_a, "gwan")
        plug(lab, lan, home, "glan")
        provider = LeaseServer("198.51.100.254", router="198.51.100.1", seconds=8)
        provider.assign(WAN_MAC, FIRST)
        wan.add_peer(provider)
        guest = Guest("gateway", Machine(disk, (Card(wan, WAN_MAC), Card(lan, LAN_MAC))), directory)
        stack.enter_context(guest)
        yield World(
            system, lab, guest, wan, lan, provider, laptop, server, stranger,
            daemon=Daemon(server, long_lived_after=0.5),
            near=Traffic(laptop), far=Traffic(server), sshd=Sshd(server), directory=directory,
        )  # fmt: skip
    shutil.rmtree(directory, ignore_errors=True)
