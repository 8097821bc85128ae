"""Narrow paths behind a gateway, and routes that differ between old and new address."""

from __future__ import annotations

import threading
import time

import pytest

from tests.lab import kernel, topologies
from tests.lab.net import Lab

from .node import PATIENCE, Node, Stream, at, connect, entry, node, receive, there
from .test_move_gateway import found

SIZE = 100_000


def upload(stream: Stream, pump: Node) -> float:
    """Near sends much, far must get it; seconds that took."""
    sent = bytes(SIZE)
    begin = time.monotonic()
    reader = threading.Thread(target=receive, args=(stream.far, sent, begin + PATIENCE))
    writer = threading.Thread(target=stream.near.sendall, args=(sent,))
    reader.start()
    writer.start()
    while reader.is_alive():
        pump.pump_once(0.02)
    writer.join()
    assert time.monotonic() - begin < PATIENCE
    return time.monotonic() - begin


@pytest.mark.parametrize("narrow", ["beyond", "at the gateway"])
@pytest.mark.parametrize("far_moved", [False, True])
def test_a_lan_host_learns_of_a_narrow_path(lab: Lab, narrow: str, far_moved: bool) -> None:
    net = topologies.home(lab)
    net.server.add_address("192.0.2.10/24")
    with node(net.home) as home, node(net.server) as server:
        stream = connect(net.laptop, net.server)
        known = found(home, stream.flow.remote.port)
        birth, far = known.birth, stream.far_flow
        moved = "192.0.2.9" if str(far.local.addr) == "192.0.2.10" else "192.0.2.10"
        wire = at(birth, str(birth.local.addr), 40_000)
        if far_moved:
            wire = there(wire, moved)
        home.apply(entry(1, birth, [wire], wire, inside=known.inside))
        server.apply(entry(1, far, [wire.reversed()], wire.reversed(), inside_opened=False))
        stream.say(b"x")
        if narrow == "beyond":
            kernel.ip_batch(["link set net-c mtu 1400"], lab.core)
        else:
            kernel.ip_batch(["link set wan mtu 1400"], net.home.netns)
        assert upload(stream, home) < 1.5
        stream.close()


@pytest.mark.parametrize("version", [4, 6])
def test_segments_leave_by_the_door_of_the_address_they_carry(lab: Lab, version: int) -> None:
    """Both uplinks live; the provider of each drops the other's addresses."""
    net = topologies.two_uplinks(lab)
    index = 0 if version == 4 else 1
    new = topologies.B[index].split("/")[0]
    router = topologies.NET_B[index].split("/")[0]
    ip = ["ip", f"-{version}"]
    net.alice.run([*ip, "rule", "add", "from", new, "lookup", "77", "priority", "100"])
    net.alice.run([*ip, *f"route add default via {router} dev wlan0 table 77".split()])
    with node(net.alice) as alice, node(net.bob) as bob:
        stream = connect(net.alice, net.bob, version)
        wire = at(stream.flow, new)
        alice.apply(entry(1, stream.flow, [wire], wire))
        bob.apply(entry(1, stream.far_flow, [wire.reversed()], wire.reversed(),
                        inside_opened=False))  # fmt: skip
        assert stream.say(b"x" * SIZE) < 1
        assert stream.answer(b"y" * SIZE) < 1
        stream.close()


@pytest.mark.parametrize("version", [4, 6])
def test_a_peer_that_moved_is_reached_by_the_route_to_its_new_address(
    lab: Lab, version: int
) -> None:
    """The old address was on our own network; the new one is behind the router."""
    net = topologies.internet(lab)
    index = 0 if version == 4 else 1
    alice = lab.host("alice", net.a, *topologies.A)
    bob = lab.host("bob", net.a, *topologies.A2)
    with node(alice) as near, node(bob) as far:
        stream = connect(alice, bob, version)
        stream.say(b"x")
        bob.del_address(topologies.A2[index])
        with bob.entered():
            far.host.park(stream.far_flow.local.addr)
        bob.plug(network=net.c)
        bob.add_address(topologies.C[index])
        far.await_address(topologies.C[index])
        wire = at(stream.far_flow, topologies.C[index].split("/")[0])
        far.apply(entry(1, stream.far_flow, [wire], wire, inside_opened=False))
        near.apply(entry(1, stream.flow, [wire.reversed()], wire.reversed()))
        assert stream.say(b"again", 1) < 0.15
        assert stream.answer(b"answer", 1) < 0.15
        stream.close()
