"""A daemon stops at any command of a move, on either side: the connections go on."""

from __future__ import annotations

from dataclasses import replace

import pytest

from .sim import Host, Net, introduce, talk


def scene(count: int = 3) -> tuple[Net, Host, Host, list]:  # type: ignore[type-arg]
    net = Net()
    a, b = Host(net, "alice", "198.51.100.2"), Host(net, "bob", "203.0.113.2")
    introduce(a, b)
    births = [b.connect("203.0.113.2", 40000 + n, a, "198.51.100.2", 22) for n in range(count)]
    net.run(4)
    assert len(a.kernel) == len(b.kernel) == count
    return net, a, b, births


def commands_of_a_move(side: str) -> int:
    net, a, b, _ = scene()
    host = a if side == "correspondent" else b
    before = len(host.done)
    b.readdress("192.0.2.7")
    net.run(3)
    return len(host.done) - before


@pytest.mark.parametrize("side", ["mover", "correspondent"])
def test_a_crash_before_every_single_command_of_a_move(side: str) -> None:
    steps = commands_of_a_move(side)
    assert steps > 4
    for step in range(steps):
        net, a, b, births = scene()
        host = a if side == "correspondent" else b
        host.crash_in = step
        b.readdress("192.0.2.7")
        net.run(0.3)
        if host.core is None:
            for birth in births:  # both ends go on talking meanwhile
                b.say(birth)
                a.say(birth.reversed())
        net.run(5)
        assert host.core is not None
        for birth in births:
            talk(a, birth.reversed(), b, 2)
        assert net.violations == [], f"step {step}"
        b.readdress("192.0.2.9")
        net.run(3)
        for birth in births:
            talk(a, birth.reversed(), b)
        net.run(0.1)
        for birth in births:
            b.close(birth)
            a.close(birth.reversed())
        net.run(8)
        for end in (a, b):
            assert end.kernel == {}, f"step {step}"
            assert end.disk_bindings == {}
            assert end.parked == set()
            assert end.reserved == {}
        assert net.violations == [], f"step {step}"


@pytest.mark.parametrize("side", ["mover", "correspondent"])
def test_a_daemon_that_was_away_for_a_whole_move(side: str) -> None:
    net, a, b, births = scene()
    host = a if side == "correspondent" else b
    host.stop()
    b.readdress("192.0.2.7")
    net.run(20)
    host.start()
    net.run(31)  # the other side may have backed off
    for birth in births:
        talk(a, birth.reversed(), b)
    assert net.violations == []


def test_a_peer_whose_new_address_was_not_yet_recorded_is_found_where_its_connections_are() -> None:
    """The record is written last; the bindings tell the address as well."""
    net, a, b, births = scene(1)
    ((peer_id, before),) = a.disk_peers.items()
    b.readdress("192.0.2.7")
    net.run(1)
    a.stop()
    record = a.disk_peers[peer_id]
    assert record.addresses[0] == "192.0.2.7"
    a.disk_peers[peer_id] = replace(record, addresses=before.addresses)
    net.run(1)
    a.start()
    a.readdress("203.0.113.9")
    net.run(10)
    talk(a, births[0].reversed(), b)
    assert net.violations == []


@pytest.mark.parametrize("step", range(16))
def test_a_crash_in_a_move_leads_to_no_other_port(step: int) -> None:
    net, _, b, births = scene(1)
    b.crash_in = step
    b.readdress("192.0.2.7")
    net.run(8)
    wire = next(iter(b.kernel.values())).wire_out
    assert wire is not None
    assert wire.local.port == births[0].local.port
