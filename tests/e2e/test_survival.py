"""Connections go on, byte for byte, whatever happens to the addresses."""

from __future__ import annotations

from typing import Literal

import pytest

from tests.lab import topologies as t
from tests.lab.daemon import introduce
from tests.lab.kernel import LabError
from tests.lab.net import Lab
from tests.lab.streams import Traffic, open_stream

from .scene import SOON, Role, addresses, scene

roles = pytest.mark.parametrize("role", ["host", "gateway"])
versions = pytest.mark.parametrize("version", [4, 6])


@roles
@versions
def test_the_far_end_gets_another_address(lab: Lab, role: Role, version: int) -> None:
    s = scene(lab, role, version)
    s.open()
    s.bind()
    s.move(next(addresses(version, "c")), who="far")
    s.settle(1)
    s.flows()
    s.finish()


@roles
def test_first_one_end_and_then_the_other(lab: Lab, role: Role) -> None:
    s = scene(lab, role)
    s.open()
    s.bind()
    near, far = addresses(4), addresses(4, "c")
    for moves in (1, 3):
        s.move(next(near))
        s.settle(moves)
        s.flows()
        s.move(next(far), who="far")
        s.settle(moves + 1)
        s.flows()
    s.finish()


@roles
def test_ten_moves_in_a_row_and_back_to_the_first_address(lab: Lab, role: Role) -> None:
    s = scene(lab, role)
    s.open()
    s.bind()
    new = addresses(4)
    for move in range(1, 11):
        s.move(next(new))
        s.settle(move)
        s.flows(5)
    s.move(t.A[0])
    s.settle(11)
    s.flows()
    s.finish()


@roles
@pytest.mark.parametrize("up", [True, False], ids=["upload", "download"])
def test_moves_in_the_middle_of_a_bulk_transfer(lab: Lab, role: Role, up: bool) -> None:
    s = scene(lab, role)
    s.open(mode="bulk", up=up, down=not up)
    s.bind()
    new = addresses(4)
    for move in range(1, 4):
        s.flows(100)
        s.move(next(new), "del" if move % 2 else "add")
        s.settle(move)
    s.flows(100)
    s.finish()


@roles
@pytest.mark.parametrize("side", ["near", "far"])
def test_either_end_may_speak_first_after_a_move(
    lab: Lab, role: Role, side: Literal["near", "far"]
) -> None:
    s = scene(lab, role)
    stream = s.open(mode="idle")
    s.bind()
    s.move(next(addresses(4)))
    s.settle(1)
    stream.say(3, side)
    listener = stream.far if side == "near" else stream.near
    listener.do("wait", name=stream.name, received=3, timeout=5)
    s.finish()


@roles
def test_fifty_connections_at_once(lab: Lab, role: Role) -> None:
    s = scene(lab, role)
    for _ in range(50):
        s.open(interval=0.2)
    s.bind()
    new = addresses(4)
    for move in (1, 2):
        s.move(next(new))
        s.settle(move)
        s.flows(2)
    s.finish()


@roles
def test_a_connection_older_than_the_daemons(lab: Lab, role: Role) -> None:
    s = scene(lab, role)
    for daemon in s.daemons:
        daemon.stop()
    s.open()
    s.open(mode="idle")
    for daemon in s.daemons:
        daemon.start()
    s.bind()
    s.move(next(addresses(4)))
    s.settle(1)
    s.streams[0].wait_for(s.streams[0].report().received + 30)
    s.finish()


def test_a_port_that_is_taken_on_the_new_address_is_replaced(lab: Lab) -> None:
    s = scene(lab)
    new = next(addresses(4))
    address = new.partition("/")[0]
    s.mover.add_address(new)
    taken = s.open(source=(address, 0))
    port, far = taken.report("near").local[1], taken.report("near").remote[1]
    s.open(source=(s.at["mover"].partition("/")[0], port), port=far)
    s.bind()
    s.mover.del_address(s.at["mover"])
    s.mover_daemon.wait_until(
        "one of two moved", lambda d: any(r["moves"] and r["state"] != "held" for r in d.bound())
    )
    wires = [row["wire"][0] for row in s.mover_daemon.bound()]
    assert sorted(w.rpartition(":")[0] for w in wires) == [address, address]
    assert len(set(wires)) == 2
    assert f"{address}:{port}" in wires
    s.flows()
    s.finish()


def test_a_new_connection_cannot_take_a_reserved_port(lab: Lab) -> None:
    s = scene(lab)
    stream = s.open()
    s.bind()
    near, far = stream.report("near").local[1], stream.report("near").remote[1]
    s.move(next(addresses(4)))
    s.settle(1)
    address = s.at["mover"].partition("/")[0]
    with pytest.raises(LabError, match="in use"):
        s.open(source=(address, near), port=far)
    s.flows()
    s.finish()


def test_a_gateway_maps_a_lan_host_away_from_a_reserved_port(lab: Lab) -> None:
    home = t.home(lab)
    a = lab.daemon(home.home, long_lived_after=SOON)
    b = lab.daemon(home.server, long_lived_after=SOON)
    introduce(a, b)
    laptop, desktop, server = Traffic(home.laptop), Traffic(home.desktop), Traffic(home.server)
    first = open_stream(laptop, server, home.server.address())
    a.wait_bound()
    home.home.replace_address(t.A[0], t.A2[0], first="del")
    a.wait_moved(1)
    port, far = first.report("near").local[1], first.report("near").remote[1]
    second = open_stream(
        desktop, server, home.server.address(), port=far, source=("192.168.7.21", port)
    )
    assert second.report("far").remote != first.report("far").remote
    wires = {row["wire"][0] for row in a.wait_bound(2)}
    assert len(wires) == 2
    for stream in (first, second):
        stream.wait_for(stream.report().received + 30)
        stream.finish().check()


def test_of_two_peers_behind_one_address_the_one_that_moves_takes_only_its_own(lab: Lab) -> None:
    """The gateway is a peer, and so is a host behind it: one address, two peers."""
    home = t.home(lab)
    gateway, desktop, server = (
        lab.daemon(host, long_lived_after=SOON) for host in (home.home, home.desktop, home.server)
    )
    introduce(gateway, server)
    introduce(desktop, server)
    far = Traffic(home.server)
    streams = [
        open_stream(Traffic(host), far, home.server.address())
        for host in (home.laptop, home.desktop)
    ]
    gateway.wait_bound(2)
    server.wait_bound(2)
    assert {row["peer_name"] for row in server.bound()} == {"home"}
    home.home.replace_address(t.A[0], t.A2[0], first="del")
    gateway.wait_moved(1)
    server.wait_moved(1)
    assert {row["wire"][1].partition(":")[0] for row in server.bound()} == {"198.51.100.8"}
    for stream in streams:
        stream.wait_for(stream.report().received + 30)
        stream.finish().check()


def test_two_uplinks_take_over_from_each_other(lab: Lab) -> None:
    two = t.two_uplinks(lab)
    # as every network manager has it: a route without carrier is none
    two.alice.sysctl({"net/ipv4/conf/all/ignore_routes_with_linkdown": 1})
    a, b = lab.daemon(two.alice, long_lived_after=SOON), lab.daemon(two.bob, long_lived_after=SOON)
    introduce(a, b)
    stream = open_stream(Traffic(two.alice), Traffic(two.bob), two.bob.address())
    a.wait_bound()
    b.wait_bound()
    two.alice.unplug("eth0")
    a.wait_moved(1)
    b.wait_moved(1)
    stream.wait_for(stream.report().received + 30)
    stream.finish().check()


def test_rules_that_somebody_flushed_come_back(lab: Lab) -> None:
    s = scene(lab)
    s.open()
    s.bind()
    s.move(next(addresses(4)))
    s.settle(1)
    s.flows()
    s.far.run(["nft", "flush", "ruleset"])
    s.far_daemon.wait_until("rules are back", lambda d: "our rules were gone" in d.log)
    s.flows()
    s.finish()
