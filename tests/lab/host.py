"""Machines of the lab: a host is a network namespace with cables, addresses, a disk.

What a test changes here (addresses, firewall) is remembered, so that
:meth:`Host.reboot` brings the machine up again as its owner configured it.
"""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_interface
from pathlib import Path
from typing import IO, TYPE_CHECKING, Literal

from . import kernel, wire

if TYPE_CHECKING:
    from .net import Lab, Network
    from .relay_control import Relay

_SYSCTLS: dict[str, str | int] = {
    # Addresses are usable at once (a test that wants duplicate detection sets it).
    "net/ipv6/conf/all/accept_dad": 0,
    "net/ipv6/conf/default/accept_dad": 0,
    # As systemd sets it; otherwise deleting the first address of a subnet takes the
    # second with it.
    "net/ipv4/conf/all/promote_secondaries": 1,
    "net/ipv4/conf/default/promote_secondaries": 1,
}


@dataclass(slots=True)
class Interface:
    """A network card and the cable in it.

    port         the cable's other end, in the core namespace
    bridge_port  what hangs in the network's bridge (differs when a relay is between)
    addresses    CIDR, oldest first
    """

    name: str
    network: Network
    port: str
    bridge_port: str
    metric: int
    addresses: list[str] = field(default_factory=list)
    default: dict[int, str] = field(default_factory=dict)
    relay: Relay | None = None
    plugged: bool = True


class Host:
    """A machine; made by :meth:`Lab.host`."""

    def __init__(self, lab: Lab, name: str) -> None:
        self.lab = lab
        self.name = name
        self.netns = f"{lab.name}-{name}"
        self.dir = lab.dir / name
        self.interfaces: dict[str, Interface] = {}
        self._sysctls = dict(_SYSCTLS)
        self._nft: list[str] = []
        self._processes: list[subprocess.Popen[bytes]] = []
        for sub in ("state", "run", "etc"):
            (self.dir / sub).mkdir(parents=True)
        self._boot()

    def __repr__(self) -> str:
        return f"<{self.name}>"

    def _boot(self) -> None:
        kernel.command(["ip", "netns", "add", self.netns])
        kernel.write_sysctls(self.netns, self._sysctls)
        kernel.ip_batch(["link set lo up"], self.netns)

    # -- processes ---------------------------------------------------------------

    def entered(self) -> contextlib.AbstractContextManager[None]:
        """``with host.entered(): socket.create_connection(...)``"""
        return kernel.entered(self.netns)

    def argv(self, argv: Sequence[str], user: str | None = None) -> list[str]:
        """The command line that runs ``argv`` on this machine."""
        if user is not None:
            argv = ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups", *argv]
        return kernel.inside(self.netns, argv)

    def run(
        self,
        argv: Sequence[str],
        *,
        text: str | None = None,
        check: bool = True,
        timeout: float = 30,
        user: str | None = None,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run to the end; LabError with its stderr when it fails (unless ``check=False``)."""
        done = subprocess.run(
            self.argv(argv, user),
            input=text,
            capture_output=True,
            text=True,
            timeout=timeout,
            env=env,
        )
        if check and done.returncode != 0:
            raise kernel.LabError(
                f"{self.name}: {' '.join(argv)} exited with {done.returncode}: "
                f"{(done.stderr or done.stdout).strip()}"
            )
        return done

    def popen(
        self,
        argv: Sequence[str],
        *,
        user: str | None = None,
        stdin: int | IO[bytes] | None = subprocess.DEVNULL,
        stdout: int | IO[bytes] | None = None,
        stderr: int | IO[bytes] | None = None,
        env: Mapping[str, str] | None = None,
        pass_fds: Sequence[int] = (),
    ) -> subprocess.Popen[bytes]:
        """Start a process; it ends with the lab at the latest."""
        process = subprocess.Popen(
            self.argv(argv, user),
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            env=env,
            pass_fds=pass_fds,
            start_new_session=True,  # Ctrl-C is for the lab, which then cleans up
        )
        self._processes.append(process)
        return process

    def kill_started(self) -> None:
        """One that was started just now may not have entered the namespace yet."""
        for process in self._processes:
            process.kill()

    def collect(self) -> None:
        """Wait for processes that were killed with the namespace."""
        for process in self._processes:
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    with contextlib.suppress(OSError):
                        stream.close()
            process.wait(timeout=10)
        self._processes.clear()

    # -- interfaces and addresses ------------------------------------------------

    def add_interface(
        self,
        name: str,
        network: Network,
        *addresses: str,
        metric: int = 100,
        rtt_ms: float | None = None,
        default_route: bool = True,
    ) -> Interface:
        """Put a card in, plug it into ``network``, configure ``addresses`` (CIDR).

        rtt_ms  a delay relay in the cable, half of it in each direction
        """
        from .relay_control import Relay

        number = self.lab.next_port()
        port = f"p{number}"
        interface = Interface(name, network, port, port, metric)
        if rtt_ms is not None:
            interface.bridge_port = f"q{number}b"
            kernel.ip_batch(
                [
                    f"link add q{number} type veth peer name q{number}b",
                    f"link set q{number} up",
                    f"link set q{number}b up master {network.bridge}",
                ],
                self.lab.core,
            )
        self.interfaces[name] = interface
        self._plug_cable(interface)
        if rtt_ms is not None:
            interface.relay = Relay(self.lab.core, port, f"q{number}", rtt_ms)
        if not default_route:
            interface.metric = 0
        if addresses:
            self._apply(interface, add=addresses)
        return interface

    def _plug_cable(self, interface: Interface) -> None:
        lab = self.lab
        kernel.ip_batch(
            [
                f"link add {interface.name} netns {self.netns}"
                f" type veth peer name {interface.port} netns {lab.core}"
            ]
        )
        plain = interface.port == interface.bridge_port
        master = f" master {interface.network.bridge}" if plain else ""
        kernel.ip_batch([f"link set {interface.port} up{master}"], lab.core)
        kernel.ip_batch([f"link set {interface.name} up"], self.netns)

    def interface(self, name: str | None = None) -> Interface:
        """By name; without one, the only or first."""
        return self.interfaces[name] if name else next(iter(self.interfaces.values()))

    def _having(self, cidr: str) -> Interface:
        for interface in self.interfaces.values():
            if cidr in interface.addresses:
                return interface
        raise KeyError(f"{self.name} has no address {cidr}")

    def address(self, version: int = 4, dev: str | None = None) -> str:
        """The newest address of a family, without its prefix length."""
        for cidr in reversed(self.interface(dev).addresses):
            if ip_interface(cidr).version == version:
                return str(ip_interface(cidr).ip)
        raise KeyError(f"{self.name} has no IPv{version} address")

    def add_address(self, *cidrs: str, dev: str | None = None) -> None:
        """Configure addresses; new connections then leave from the newest."""
        self._apply(self.interface(dev), add=cidrs)

    def del_address(self, *cidrs: str) -> None:
        for cidr in cidrs:
            self._apply(self._having(cidr), delete=[cidr])

    def replace_address(self, old: str, new: str, first: Literal["add", "del"] = "add") -> None:
        """``add``: make before break, as with a lease that was renewed in time;
        ``del``: the old one goes first.  Both happen within a millisecond."""
        self._apply(self._having(old), add=[new], delete=[old], first=first)

    def _apply(
        self,
        interface: Interface,
        add: Sequence[str] = (),
        delete: Sequence[str] = (),
        first: Literal["add", "del"] = "add",
    ) -> None:
        dev = interface.name
        adding = []
        for cidr in add:
            # IPv4 broadcasts are of no use here; nodad for IPv6 (see accept_dad).
            option = " nodad" if ":" in cidr else " brd +"
            adding.append(f"addr add {cidr}{option} dev {dev}")
        deleting = [f"addr del {cidr} dev {dev}" for cidr in delete]
        left = [a for a in interface.addresses if a not in delete]
        if first == "add" or not delete:
            interface.addresses += add
            lines = adding + (self._routes(interface, interface.addresses) if add else [])
            interface.addresses = [a for a in interface.addresses if a not in delete]
            lines += self._routes(interface, interface.addresses) + deleting
        else:
            lines = self._routes(interface, left) + deleting + adding
            interface.addresses = [*left, *add]
            lines += self._routes(interface, interface.addresses)
        kernel.ip_batch(lines, self.netns)
        if interface.plugged:
            for cidr in add:
                wire.announce(self.netns, dev, cidr)

    def _routes(self, interface: Interface, addresses: Sequence[str]) -> list[str]:
        """Commands that make the default routes fit ``addresses``, the newest leading."""
        if not interface.metric:
            return []
        lines = []
        for version in (4, 6):
            router = None
            for cidr in reversed(addresses):
                if ip_interface(cidr).version == version:
                    router = interface.network.router_for(cidr)
                    if router is not None:
                        break
            have = interface.default.get(version)
            rest = f"dev {interface.name} metric {interface.metric}"
            if router == have:
                continue
            if router is not None:
                # "replace" adds a second route for IPv6, where it compares next hops.
                if have is not None and version == 6:
                    lines.append(f"route del default via {have} {rest}")
                lines.append(f"route replace default via {router} {rest}")
                interface.default[version] = router
            else:
                lines.append(f"route del default via {have} {rest}")
                del interface.default[version]
        return lines

    # -- links ---------------------------------------------------------------------

    def unplug(self, dev: str | None = None) -> None:
        """Pull the cable: the card loses its carrier and keeps its addresses."""
        interface = self.interface(dev)
        interface.plugged = False
        kernel.ip_batch([f"link set {interface.port} down"], self.lab.core)

    def plug(self, dev: str | None = None, network: Network | None = None) -> None:
        """Put the cable in again, into another network if one is named."""
        interface = self.interface(dev)
        lines = []
        if network is not None:
            interface.network = network
            lines.append(f"link set {interface.bridge_port} master {network.bridge}")
        lines.append(f"link set {interface.port} up")
        kernel.ip_batch(lines, self.lab.core)
        interface.plugged = True

    def link_down(self, dev: str | None = None) -> None:
        """Switch the card off: its routes and IPv6 addresses go as well."""
        interface = self.interface(dev)
        interface.default.clear()
        kernel.ip_batch([f"link set {interface.name} down"], self.netns)

    def link_up(self, dev: str | None = None) -> None:
        interface = self.interface(dev)
        lines = [f"link set {interface.name} up"]
        lines += [
            f"addr replace {cidr} nodad dev {interface.name}"
            for cidr in interface.addresses
            if ":" in cidr
        ]
        lines += self._routes(interface, interface.addresses)
        kernel.ip_batch(lines, self.netns)
        for cidr in interface.addresses:
            wire.announce(self.netns, interface.name, cidr)

    def cut(self, dev: str | None = None) -> None:
        """Silence on the wire: nothing passes, the carrier stays, nobody is told."""
        kernel.ip_batch([f"link set {self.interface(dev).bridge_port} nomaster"], self.lab.core)

    def mend(self, dev: str | None = None) -> None:
        interface = self.interface(dev)
        line = f"link set {interface.bridge_port} master {interface.network.bridge}"
        kernel.ip_batch([line], self.lab.core)

    def offload(self, on: bool, dev: str | None = None) -> None:
        interface = self.interface(dev)
        wire.set_offload(self.netns, interface.name, on)
        wire.set_offload(self.lab.core, interface.port, on)

    # -- configuration ---------------------------------------------------------------

    def sysctl(self, values: Mapping[str, str | int]) -> None:
        """Set by path below /proc/sys, now and after a reboot."""
        self._sysctls.update(values)
        kernel.write_sysctls(self.netns, dict(values))

    def nft(self, text: str) -> None:
        """Load a rule set, now and after a reboot."""
        self._nft.append(text)
        self.run(["nft", "-f", "-"], text=text)

    def ruleset(self, *table: str) -> str:
        """``nft list`` of a table (``"inet", "home"``) or of everything."""
        what = ["table", *table] if table else ["ruleset"]
        return self.run(["nft", "list", *what]).stdout

    def reboot(self) -> None:
        """Power off and on: processes, kernel state and interfaces are gone, the disk
        (:attr:`dir`) and the configuration stay."""
        with self.powered_off():
            pass

    @contextlib.contextmanager
    def powered_off(self) -> Iterator[None]:
        for interface in self.interfaces.values():
            if interface.relay is not None:
                interface.relay.stop()
        # The cables first: who lost its power says no goodbye.  (They would also go with
        # the namespace, but some time later.)
        kernel.ip_batch([f"link del {i.port}" for i in self.interfaces.values()], self.lab.core)
        self.kill_started()
        kernel.delete_namespaces(self.netns)
        self.collect()
        for leftover in (self.dir / "run").iterdir():
            leftover.unlink()
        yield
        self._boot()
        for text in self._nft:
            self.run(["nft", "-f", "-"], text=text)
        for interface in self.interfaces.values():
            self._plug_cable(interface)
            if interface.relay is not None:
                interface.relay.restart()
            addresses, interface.addresses = interface.addresses, []
            interface.default.clear()
            self._apply(interface, add=addresses)

    def file(self, name: str, text: str, mode: int = 0o644) -> Path:
        """A file in this machine's private ``etc``."""
        path = self.dir / "etc" / name
        path.write_text(text)
        path.chmod(mode)
        return path
