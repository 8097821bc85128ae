"""Where attacks happen: two daemons with connections between them, and wicked neighbours.

    host             alice --- net-a ---+                  +--- net-c --- bob
                     heir  ---/         +-- core (eve) ----+        \\---- mallory

    gateway          laptop, desktop --- alice (NAT) --- net-a ---  as above  --- bob

    facing gateway   alice and heir --- net-c ---  as above  --- net-a --- bob (NAT) --- laptop

alice has connections to bob and changes her address; heir gets the addresses that she
left; eve is the router: she hears everything and sends packets under any source; mallory
is a host in net-c.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, Literal

import pytest

from appliance.rewrite.flow import Endpoint, Flow
from tests.lab.daemon import Daemon
from tests.lab.host import Host
from tests.lab.kernel import LabError
from tests.lab.streams import Stream

from .attacker import PATIENCE, PORT, Datagram, Forger
from .scene import Scene, addresses, ip_of

EVE = {4: "203.0.113.66", 6: "2001:db8:b::66"}  # routes to nobody
_EXPIRES = re.compile(r', "expires": \d+')

Kind = Literal[
    "host 4", "host 6", "gateway 4", "gateway 6", "facing gateway 4", "facing gateway 6"
]  # fmt: skip


def streets(*kinds: Kind) -> pytest.MarkDecorator:
    """Run a test (or all of a module) in each of these."""
    return pytest.mark.parametrize("street", kinds, indirect=True, scope="module")


class Street:
    """A scene with attackers in it, and connections that must survive them.

    who  which end of the scene alice is
    """

    def __init__(self, made: Scene, who: Literal["mover", "far"] = "mover") -> None:
        self.scene, self.who = made, who
        self.lab, self.version = made.lab, made.version
        self.alice, self.bob = (made.mover, made.far)[:: 1 if who == "mover" else -1]
        self.one, self.other = made.daemons[:: 1 if who == "mover" else -1]
        self.fresh = addresses(made.version, "a" if who == "mover" else "c")
        self.evil = EVE[made.version]
        self.eve = Forger(self.lab)

    @property
    def at(self) -> str:
        """alice's address now."""
        return self.scene.at[self.who].partition("/")[0]

    @property
    def bob_at(self) -> str:
        return self.bob.address(self.version)

    @property
    def gateway(self) -> bool:
        """Whether alice's connections are those of LAN hosts."""
        return self.scene.near is not self.scene.mover and self.who == "mover"

    def connect(self, **how: Any) -> Kept:
        """A new connection, bound at both ends."""
        stream = self.scene.open(**how)
        near = stream.report("near")
        ends = sorted((near.local[1], near.remote[1]))

        def bound(daemon: Daemon) -> dict[str, Any] | None:
            for row in daemon.bound():
                ports = sorted(int(e.rpartition(":")[2]) for e in row["birth"])
                if ports == ends:
                    return row
            return None

        _, row = (d.wait_until("the connection is bound", bound) for d in (self.one, self.other))
        return Kept(self, stream, row["conn_id"], Flow.parse(" ".join(row["birth"])))

    def readdress(self, new: str | None = None) -> str:
        """alice gets another address; which one."""
        self.scene.move(new or next(self.fresh), who=self.who)
        return self.at

    def leave(self) -> str:
        """alice loses her address; which one."""
        self.alice.del_address(self.scene.at[self.who])
        return self.at

    def arrive(self) -> str:
        """After :meth:`leave`: she gets another one."""
        self.scene.at[self.who] = next(self.fresh)
        self.alice.add_address(self.scene.at[self.who])
        return self.at

    @contextlib.contextmanager
    def silenced(self) -> Iterator[None]:
        """The router passes no UDP on (what eve sends is her own)."""
        self.lab.block_udp()
        try:
            yield
        finally:
            self.lab.block_udp(False)

    def forge(self, packet: Datagram, source: str, data: bytes | None = None) -> None:
        """A datagram once more, from ``source``, perhaps with other contents."""
        text = packet.data if data is None else data
        self.eve.datagram(Datagram(Endpoint(ip_address(source), PORT), packet.target, text))

    @contextlib.contextmanager
    def heir(self, addr: str) -> Iterator[Host]:
        """Somebody else has this address of alice's now."""
        network = self.lab.networks["net-a" if self.who == "mover" else "net-c"]
        heir = self.lab.hosts.get("heir") or self.lab.host("heir", network)
        cidr = f"{addr}/{24 if self.version == 4 else 64}"
        heir.add_address(cidr)
        try:
            yield heir
        finally:
            heir.del_address(cidr)


@dataclass
class Kept:
    """One protected connection."""

    street: Street
    stream: Stream
    conn_id: str
    birth: Flow  # as bob sees it

    def row(self, daemon: Daemon) -> dict[str, Any]:
        return bound_row(daemon, self.conn_id)

    def wire(self) -> str | None:
        """Where bob sends to (an address), None while it holds."""
        wire = self.row(self.street.other)["wire"]
        return None if wire is None else ip_of(wire[1])

    def wait_at(self, address: str, timeout: float = 20) -> None:
        """Until both ends agree that one of the ends is there."""

        def there(daemon: Daemon) -> bool:
            wire = self.row(daemon)["wire"] or ("", "")
            return address in (ip_of(end) for end in wire)

        for daemon, other in itertools.permutations(self.street.scene.daemons):
            try:
                daemon.wait_until(f"the connection is at {address}", there, timeout)
            except LabError as error:
                raise LabError(f"{error}\n{other.describe()}") from None

    def picture(self) -> list[Any]:
        """Where bob's side of it stands: bound to whom, where to, and the kernel's rules."""
        street = self.street
        digested(street.other)
        row = self.row(street.other)
        shown = [row[k] for k in ("peer_id", "birth", "wire", "state", "moves")]
        return [*shown, rules(street.bob, self.birth.remote.port)]

    def flows(self, records: int = 20) -> None:
        self.stream.wait(records)

    def finish(self) -> None:
        """Still alive, and every byte came through once."""
        if self.stream.mode != "idle":
            self.flows()
        self.stream.finish().check()
        self.street.scene.streams.remove(self.stream)


def bound_row(daemon: Daemon, conn_id: str) -> dict[str, Any]:
    for row in daemon.bound():
        if row["conn_id"] == conn_id:
            return row
    raise LabError(f"{daemon}: {conn_id} is not bound\n{daemon.describe()}")


def bound_as(daemon: Daemon, flow: Flow) -> dict[str, Any] | None:
    """The connection that was born as ``flow``, seen from either end."""
    names = {str(end) for end in flow}
    return next((row for row in daemon.bound() if set(row["birth"]) == names), None)


def family_of(version: int) -> socket.AddressFamily:
    return socket.AF_INET if version == 4 else socket.AF_INET6


# -- looking at a machine


def waiting(host: Host) -> tuple[int, int]:
    """Bytes in the daemon's UDP sockets, and datagrams that they have lost so far."""
    rows = []
    with host.entered():
        for name in ("udp", "udp6"):
            with open(f"/proc/thread-self/net/{name}") as file:
                rows += [line.split() for line in file.readlines()[1:]]
    # the local address is written in hexadecimal; the daemon's is all zeros
    ours = [r for r in rows if re.fullmatch(f"0+:{PORT:04X}", r[1])]
    if not ours:
        raise LookupError(f"no daemon listens on {host.name}")
    return sum(int(r[4].partition(":")[2], 16) for r in ours), sum(int(r[-1]) for r in ours)


def read(daemon: Daemon, timeout: float = PATIENCE) -> None:
    """Wait until the daemon has read every datagram that has reached it."""
    deadline = time.monotonic() + timeout
    while waiting(daemon.host)[0]:
        assert time.monotonic() < deadline, f"{daemon} does not read its datagrams"
        time.sleep(0.005)


def digested(daemon: Daemon) -> None:
    """Wait until the daemon has acted on everything that has reached it."""
    read(daemon)
    # the loop that read the last of them answers this later, and only when all commands
    # before it are carried out
    made = daemon.ctl("peer.introduce", name="nobody")
    daemon.ctl("peer.forget", peer=made["peer"]["peer_id"])


def rules(host: Host, port: int) -> list[str]:
    """The elements of our tables that name this TCP port: what the kernel does with packets
    of one connection."""
    found = []
    for family in ("ip", "ip6"):
        text = host.run(["nft", "-j", "list", "table", family, "redirectd"], check=False).stdout
        for item in json.loads(text)["nftables"] if text else []:
            kept = item.get("map") or item.get("set")
            if kept and kept["name"] not in ("alive", "doomed"):
                elements = (json.dumps(element) for element in kept.get("elem", ()))
                found += [
                    f"{family} {kept['name']} {_EXPIRES.sub('', text).replace('_seen', '')}"
                    for text in elements
                    if re.search(rf" {port}\b", text)
                ]
    return sorted(found)
