"""Ports that are reserved on the new address, against everybody who chooses ports."""

from __future__ import annotations

import socket
from ipaddress import ip_address

import pytest

from appliance.backend.linux.ports import Ports
from appliance.rewrite.flow import Flow
from appliance.rewrite.redirect import Entry
from tests.lab import topologies
from tests.lab.net import Lab

from .node import PATIENCE, Node, connect, node

FIRST, LAST = 40_000, 40_003
CONN, OTHER = f"{1:032x}", f"{2:032x}"


def reserve(where: Node, **wanted: Flow) -> dict[str, Flow | None]:
    with where.machine.entered():
        return where.host.reserve(wanted)


def test_new_connections_of_our_own_leave_a_reserved_port_alone(lab: Lab) -> None:
    net = topologies.two_hosts(lab)
    net.alice.sysctl({"net/ipv4/ip_local_port_range": f"{FIRST} {LAST}"})
    with node(net.alice) as alice, net.bob.entered():
        server = socket.create_server(("0.0.0.0", 4000))
        wire = Flow.of(net.alice.address(), FIRST + 2, net.bob.address(), 4000)
        assert reserve(alice, one=wire) == {"one": wire}
        with server, net.alice.entered():
            clients = []
            for _ in range(LAST - FIRST):
                clients.append(socket.create_connection((net.bob.address(), 4000), PATIENCE))
            ports = {client.getsockname()[1] for client in clients}
            assert ports == set(range(FIRST, LAST + 1)) - {wire.local.port}
            for client in clients:
                client.close()


def test_masquerade_leaves_a_reserved_port_alone(lab: Lab) -> None:
    net = topologies.home(lab)
    with node(net.home) as home, net.server.entered():
        server = socket.create_server(("0.0.0.0", 4000))
        wires = {
            name: Flow.of(net.home.address(), port, net.server.address(), 4000)
            for name, port in (("kept", 50_000), ("released", 50_001))
        }
        assert reserve(home, **wires) == wires
        with net.home.entered():
            home.host.release(["released"])
        with server, net.laptop.entered():
            for port, given in ((50_000, False), (50_001, True)):
                client = socket.create_connection(
                    (net.server.address(), 4000), PATIENCE, ("", port)
                )
                accepted, (_, seen) = server.accept()
                assert (seen == port) is given
                accepted.close()
                client.close()


def test_a_port_whose_very_flow_lives_is_taken_and_another_one_is_given(lab: Lab) -> None:
    net = topologies.two_hosts(lab)
    with node(net.alice) as alice:
        stream = connect(net.alice, net.bob)
        got = reserve(alice, one=stream.flow)["one"]
        assert got is not None
        assert got.local.port != stream.flow.local.port
        assert got.with_local(got.local.addr, stream.flow.local.port) == stream.flow
        assert reserve(alice, one=got) == {"one": got}
        stream.close()


def test_a_server_keeps_its_port_for_all_its_connections(lab: Lab) -> None:
    net = topologies.two_hosts(lab)
    with node(net.alice) as alice, net.alice.entered():
        server = socket.create_server(("0.0.0.0", 22))
        with server:
            wires = {
                f"c{port}": Flow.of("203.0.113.7", 22, net.bob.address(), port)
                for port in range(50_000, 50_005)
            }
            assert alice.host.reserve(wires) == wires


def test_two_connections_never_share_a_wire_flow(lab: Lab) -> None:
    net = topologies.two_hosts(lab)
    with node(net.alice) as alice:
        wire = Flow.of(net.alice.address(), 40_000, net.bob.address(), 22)
        assert reserve(alice, one=wire) == {"one": wire}
        second = reserve(alice, two=wire)["two"]
        assert second is not None
        assert second != wire


def test_nothing_of_a_reservation_stays_when_it_is_released(lab: Lab) -> None:
    net = topologies.two_hosts(lab)
    with node(net.alice) as alice:
        wire = Flow.of("203.0.113.7", 40_000, net.bob.address(), 22)
        assert wire.local.addr == ip_address("203.0.113.7")
        reserve(alice, one=wire)
        assert "40000" in net.alice.run(["conntrack", "-L", "-p", "tcp"]).stdout
        with net.alice.entered():
            alice.host.release(["one", "one", "unknown"])
            socket.create_server(("0.0.0.0", 40_000)).close()
        assert "40000" not in net.alice.run(["conntrack", "-L", "-p", "tcp"]).stdout


def test_after_a_crash_only_what_is_still_used_stays_reserved(lab: Lab) -> None:
    net = topologies.two_hosts(lab)
    far = net.bob.address()
    used, unused = (Flow.of("203.0.113.7", port, far, 22) for port in (40_000, 40_001))
    birth = Flow.of(net.alice.address(), 40_000, far, 22)
    entry = Entry(CONN, birth, birth, True, True, (used,), used)

    def tracked() -> set[int]:
        text = net.alice.run(["conntrack", "-L", "-p", "tcp"]).stdout
        return {port for port in (40_000, 40_001) if str(port) in text}

    with node(net.alice) as alice, net.alice.entered():
        # a second engine of the same parent: reservations by turns, in either order
        reserve(alice, **{OTHER: unused, CONN + "+": used})
        alice.host.adopt([entry])
        assert tracked() == {40_000}
        assert reserve(alice, **{CONN: used}) == {CONN: used}
        # a second parent: nothing but the kernel remembers
        reserve(alice, **{OTHER: unused})
        alice.host._ports = Ports(alice.host._conntrack, alice.host._diag, alice.host._mark)
        alice.host.adopt([entry])
        assert tracked() == {40_000}
        assert reserve(alice, **{CONN: used}) == {CONN: used}
        alice.host.release([CONN])
        assert tracked() == set()


def test_a_port_stays_reserved_when_only_the_far_end_is_another(lab: Lab) -> None:
    net = topologies.two_hosts(lab)
    first, then = (Flow.of("203.0.113.7", 40_000, far, 22) for far in ("192.0.2.9", "192.0.2.10"))
    with node(net.alice) as alice, net.alice.entered():
        assert reserve(alice, one=first) == {"one": first}
        assert reserve(alice, one=then) == {"one": then}
        net.alice.add_address("203.0.113.7/32")
        with pytest.raises(OSError, match="in use"):
            socket.create_server(("203.0.113.7", 40_000))
        alice.host.release(["one"])
        socket.create_server(("203.0.113.7", 40_000)).close()
