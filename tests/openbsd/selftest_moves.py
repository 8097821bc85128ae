"""Checks of :mod:`tests.openbsd.selftest` in which a live connection is moved."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from ipaddress import ip_address

from appliance.backend.openbsd import statetable
from appliance.backend.openbsd.pfctl import Pfctl
from appliance.backend.openbsd.settings import KEEP_A_DAY
from appliance.backend.openbsd.system import IFCONFIG, run
from appliance.backend.openbsd.table import PfTable
from appliance.rewrite.flow import Address, Endpoint, Flow
from appliance.rewrite.redirect import Entry
from pfconf.anchor import Layout

from .selftest_lab import (
    A6,
    A_IF,
    A_RD,
    B6_NEW,
    B6_OLD,
    B_NEW,
    B_OLD,
    B_RD,
    B_THIRD,
    EXT_IF,
    L_RD,
    LAN_IF,
    PORT,
    A,
    CheckError,
    Connection,
    Lab,
    need,
    runner_of_a,
)

ID = "5e1f" * 8
SERVER, SERVER6 = Endpoint(A, PORT), Endpoint(A6, PORT)
TIMEOUT = 10.0  # seconds for what a kernel brings about by itself


@dataclass
class Ends:
    """The two tables and the present entries of one connection."""

    lab: Lab
    table_b: PfTable
    table_a: PfTable
    b: Entry
    a: Entry

    def move(self, addr: Address, port: int | None = None) -> None:
        """B's whole move, in the order of docs/protocol.md."""
        here = self.b.wires[0].with_local(addr, port)
        there = here.reversed()
        self.lab.readdress(addr)
        self.b = replace(self.b, wires=(here, *self.b.wires), wire_out=None)
        self.table_b.apply([self.b])
        self.a = replace(self.a, wires=(there, *self.a.wires))
        self.table_a.apply([self.a])
        self.b = replace(self.b, wires=(here,), wire_out=here, stale=self.b.wires[1:])
        self.table_b.apply([self.b])
        self.a = replace(self.a, wires=(there,), wire_out=there, stale=self.a.wires[1:])
        self.table_a.apply([self.a])


@contextmanager
def ends(
    lab: Lab, local: bool = False, server: Endpoint = SERVER
) -> Iterator[tuple[Ends, Connection]]:
    """A connection from L (or from B itself) to A, known to both tables."""
    with Connection(B_RD if local else L_RD, A_RD, server) as connection:
        connection.exchange(size=100)
        birth = connection.birth
        b = Entry(ID, birth, connection.inside, local, True, (birth,), birth)
        far = birth.reversed()
        a = Entry(ID, far, far, True, False, (far,), far)
        made = Ends(
            lab,
            PfTable(
                Pfctl(), Layout(EXT_IF, hold_port=701, state_options=KEEP_A_DAY),
                lan_of=lambda addr: LAN_IF,
            ),
            PfTable(
                Pfctl(runner_of_a(run, lambda: far)), Layout(A_IF, state_options=KEEP_A_DAY),
                "redirect-a", "redirect-a/reserved",
            ),
            b, a,
        )  # fmt: skip
        made.table_b.apply([b])
        made.table_a.apply([a])
        try:
            yield made, connection
        finally:
            lab.empty_anchors()
            lab.readdress(B_OLD)


def until(condition: Callable[[], bool], what: str, seconds: float = TIMEOUT) -> None:
    """Wait for an event that a kernel brings about."""
    end = time.monotonic() + seconds
    while not condition():
        need(time.monotonic() < end, f"{what} did not come within {seconds:.0f} s")
        time.sleep(0.05)


def check_gateway(lab: Lab) -> None:
    for first in ("client", "server"):
        with ends(lab) as (both, connection):
            both.move(B_NEW)
            connection.exchange(first)
            both.move(B_THIRD)
            connection.exchange(first, 1_000_000)
            both.move(B_OLD)
            connection.exchange(first)


def check_changed_port(lab: Lab) -> None:
    with ends(lab) as (both, connection):
        both.move(B_NEW, 50077)
        connection.exchange("server")


def check_host(lab: Lab) -> None:
    for first in ("client", "server"):
        with ends(lab, local=True) as (both, connection):
            both.move(B_NEW)
            connection.exchange(first)


def check_ipv6(lab: Lab) -> None:
    time.sleep(2.0)  # duplicate address detection of the lab's own addresses
    try:
        for first in ("client", "server"):
            with ends(lab, local=True, server=SERVER6) as (both, connection):
                both.move(B6_NEW)
                connection.exchange(first)
            lab.readdress(B6_OLD)
    finally:
        lab.readdress(B6_OLD)


def check_both_moved(lab: Lab) -> None:
    """A's side moves as well, to an alias.  A keeps its old address, so its rules need no
    divert-to: they are those of a connection that it forwards."""
    other = Endpoint(ip_address("198.18.8.99"), PORT)
    lab.run(IFCONFIG, A_IF, "inet", f"{other.addr}/32", "alias")
    try:
        with ends(lab) as (both, connection):
            both.move(B_NEW)
            here = Flow(both.b.wires[0].local, other)
            there = here.reversed()
            both.b = replace(both.b, wires=(here,), wire_out=here)
            both.table_b.apply([both.b])
            both.a = replace(both.a, local=False, wires=(there,), wire_out=there, stale=())
            both.table_a.apply([both.a])
            connection.exchange("client")
            connection.exchange("server")
    finally:
        lab.run(IFCONFIG, A_IF, "inet", str(other.addr), "delete")


def check_guard(lab: Lab) -> None:
    """A packet on a tuple of the past meets no stack: a stranger can't reset anything."""
    with ends(lab) as (both, connection):
        both.move(B_NEW)
        connection.exchange()
        lab.run(IFCONFIG, EXT_IF, "inet", f"{B_OLD}/32", "alias")
        stranger = socket.socket()
        stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        stranger.settimeout(3.0)
        try:
            stranger.bind((str(B_OLD), both.b.birth.local.port))
            stranger.connect((str(A), PORT))
        except TimeoutError:
            pass
        except ConnectionRefusedError:
            raise CheckError("A's stack answered the stranger") from None
        finally:
            stranger.close()
            lab.run(IFCONFIG, EXT_IF, "inet", str(B_OLD), "delete")
        connection.exchange("server")


def check_restart(lab: Lab) -> None:
    """A new daemon finds the rules of the old one in the kernel."""
    with ends(lab) as (both, connection):
        both.move(B_NEW)
        connection.exchange()
        both.table_b.close(keep=True)
        connection.exchange("server")
        again = PfTable(
            Pfctl(), Layout(EXT_IF, state_options=KEEP_A_DAY), lan_of=lambda addr: LAN_IF,
            states=statetable.StateSource(statetable.open_pf(), Pfctl(), socket.socket()).states,
        )  # fmt: skip
        again.replace_all([both.b])
        connection.exchange("client")
        both.table_b = again
        both.move(B_THIRD)
        connection.exchange("server")


def check_kill(lab: Lab) -> None:
    with ends(lab) as (both, connection):
        both.move(B_NEW)
        connection.exchange()
        need(Pfctl().flush_label(ID) > 0, "no state carries the connection's label")
        connection.exchange("server")
        need(Pfctl().flush_label("nobody-has-this") == 0, "states of nobody died")
