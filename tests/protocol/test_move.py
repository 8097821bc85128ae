"""A host changes its address; its connections go on."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from appliance.protocol.commands import Abort
from appliance.rewrite.flow import Endpoint, Flow

from .sim import PORT, Host, Net, bound, introduce, talk


@pytest.fixture
def net() -> Net:
    return Net()


def pair(net: Net, count: int = 1) -> tuple[Host, Host, list[Flow]]:
    """alice listens, bob has opened ``count`` connections to her; all are bound."""
    a, b = Host(net, "alice", "198.51.100.2"), Host(net, "bob", "203.0.113.2")
    introduce(a, b)
    births = [b.connect("203.0.113.2", 40000 + n, a, "198.51.100.2", 22) for n in range(count)]
    net.run_until(lambda: len(a.kernel) == len(b.kernel) == count, limit=30)
    net.run(1)
    return a, b, births


def everybody_talks(a: Host, b: Host, births: list[Flow]) -> None:
    for birth in births:
        talk(a, birth.reversed(), b)
    assert a.net.violations == []


def test_a_long_lived_connection_is_bound_at_both_ends(net: Net) -> None:
    a, b, births = pair(net)
    assert bound(a, births[0].reversed())
    assert bound(b, births[0])
    assert a.kernel.keys() == b.kernel.keys()
    assert a.observed == b.observed == ()


@pytest.mark.parametrize("who", ["opener", "listener"])
def test_a_connection_outlives_a_change_of_address(net: Net, who: str) -> None:
    a, b, births = pair(net)
    mover = b if who == "opener" else a
    mover.readdress("192.0.2.7")
    took = net.run_until(lambda: mover.sees("move-done") != [])
    assert took < 0.05  # two trips of 10 ms each way, and the reservation
    everybody_talks(a, b, births)


def test_ten_moves_and_back_to_the_first_address(net: Net) -> None:
    a, b, births = pair(net)
    for n in [*range(10, 20), 2]:
        b.readdress(f"203.0.113.{n}" if n == 2 else f"192.0.2.{n}")
        net.run(1)
        everybody_talks(a, b, births)
    assert b.parked == set()
    entry = b.entry_of(births[0])
    assert entry
    assert entry.wire_out == births[0]
    assert len(entry.stale) <= 16


def test_first_one_end_moves_and_then_the_other(net: Net) -> None:
    a, b, births = pair(net, 2)
    for n in range(3):
        b.readdress(f"192.0.2.{10 + n}")
        net.run(1)
        everybody_talks(a, b, births)
        a.readdress(f"192.0.2.{110 + n}")
        net.run(1)
        everybody_talks(a, b, births)
    entry = a.entry_of(births[0].reversed())
    assert entry
    assert entry.wire_out == Flow.of("192.0.2.112", 22, "192.0.2.12", 40000)


def test_the_address_goes_long_before_a_new_one_comes(net: Net) -> None:
    a, b, births = pair(net)
    b.readdress()
    assert b.entry_of(births[0]).wire_out is None  # type: ignore[union-attr]
    assert b.parked == {ip_address("203.0.113.2")}
    b.say(births[0])
    a.say(births[0].reversed())
    net.run(60)
    b.readdress("192.0.2.7")
    net.run(0.2)
    everybody_talks(a, b, births)


def test_the_same_address_comes_back_and_nobody_need_be_told(net: Net) -> None:
    a, b, births = pair(net)
    b.readdress()
    b.say(births[0])
    before = len(net.udp)
    net.run(1)
    b.readdress("203.0.113.2")
    everybody_talks(a, b, births)
    assert len(net.udp) == before
    assert b.parked == set()


def test_a_newer_change_replaces_one_that_nobody_heard(net: Net) -> None:
    a, b, births = pair(net, 3)
    net.udp_filter = lambda packet: False
    for n in range(4):
        b.readdress(f"192.0.2.{10 + n}")
        net.run(2)
    net.udp_filter = lambda packet: True
    net.run(20)
    everybody_talks(a, b, births)
    assert len(b.sees("move-done")) == 1
    assert b.core
    assert all(not p.ours for p in b.core.world.peers.values())


def test_a_move_while_an_earlier_one_is_half_made(net: Net) -> None:
    for milliseconds in range(0, 60, 3):
        net = Net()
        a, b, births = pair(net, 2)
        b.readdress("192.0.2.10")
        net.run(milliseconds / 1000)
        b.readdress("192.0.2.11")
        net.run(5)
        everybody_talks(a, b, births)
        assert b.entry_of(births[0]).wire_out.local.addr == ip_address("192.0.2.11")  # type: ignore[union-attr]
        b.readdress("203.0.113.2")
        net.run(milliseconds / 1000)
        b.readdress("192.0.2.10")
        net.run(5)
        everybody_talks(a, b, births)


def test_the_old_address_comes_back_in_the_middle_of_a_move() -> None:
    for milliseconds in range(0, 60, 3):
        net = Net()
        a, b, births = pair(net, 2)
        b.readdress("192.0.2.10")
        net.run(milliseconds / 1000)
        b.readdress("203.0.113.2")
        net.run(5)
        everybody_talks(a, b, births)
        for birth in births:
            assert b.entry_of(birth).wire_out == birth  # type: ignore[union-attr]


def test_fifty_connections_move_by_one_message(net: Net) -> None:
    a, b, births = pair(net, 50)
    mark = len(net.udp)
    b.readdress("192.0.2.7")
    net.run(1)
    assert len(net.udp) - mark < 12
    everybody_talks(a, b, births)


def test_a_port_that_is_taken_at_the_new_address_is_exchanged(net: Net) -> None:
    a, b, births = pair(net, 4)
    b.taken_ports.add(Endpoint(ip_address("192.0.2.7"), 40001))
    b.readdress("192.0.2.7")
    net.run(1)
    everybody_talks(a, b, births)
    ports = [b.entry_of(birth).wire_out.local.port for birth in births]  # type: ignore[union-attr]
    assert [p == birth.local.port for p, birth in zip(ports, births, strict=True)] == [
        True,
        False,
        True,
        True,
    ]


def test_no_port_is_free_and_it_is_tried_again(net: Net) -> None:
    a, b, births = pair(net)
    reserve, b._reserve = b._reserve, lambda conn_id, flow: None  # type: ignore[method-assign]
    b.readdress("192.0.2.7")
    net.run(5)
    assert b.core
    assert "no port" in b.core.connections()[0].why
    b._reserve = reserve  # type: ignore[method-assign]
    net.run(11)
    everybody_talks(a, b, births)


def test_a_wire_flow_in_use_at_the_far_end_gets_another_port(net: Net) -> None:
    a, b, births = pair(net, 3)
    other = Host(net, "carol", "192.0.2.7")
    plain = other.connect("192.0.2.7", 40001, a, "198.51.100.2", 22)
    net.run(1)
    other.readdress()  # carol leaves, her connection still exists at alice
    b.readdress("192.0.2.7")
    net.run(1)
    everybody_talks(a, b, births)
    assert b.entry_of(births[1]).wire_out.local.port != 40001  # type: ignore[union-attr]
    assert not bound(a, plain.reversed())


def test_more_refused_than_fit_into_an_answer(net: Net) -> None:
    a, b, births = pair(net, 60)
    other = Host(net, "carol", "192.0.2.7")
    for n in range(60):
        other.connect("192.0.2.7", 40000 + n, a, "198.51.100.2", 22)
    other.readdress()
    mark = len(net.udp)
    b.readdress("192.0.2.7")
    net.run(3)
    everybody_talks(a, b, births)
    for before, after in zip(net.udp[mark:], net.udp[mark + 1 :], strict=False):
        if after.target.addr == before.source.addr:
            assert len(after.data) <= 1200


def test_two_hundred_connections_of_which_only_some_move(net: Net) -> None:
    a, b, births = pair(net, 200)
    b.readdress("203.0.113.2", "192.0.2.7")
    net.run(2)
    assert b.core
    # a digest over a set that the far end can't guess: half of them went before
    for birth in births[::2]:
        conn_id = b.entry_of(birth).conn_id  # type: ignore[union-attr]
        binding = b.core.world.table.bindings[conn_id]
        b.core.mover._move({binding.conn_id: ip_address("192.0.2.7")})
    b.core.handle_timer(net.now)
    b.drain()
    net.run(3)
    everybody_talks(a, b, births)
    b.readdress("192.0.2.7")
    net.run(3)
    everybody_talks(a, b, births)
    b.readdress("192.0.2.8")
    net.run(3)
    everybody_talks(a, b, births)


def test_both_ends_move_at_once_and_one_has_a_dns_name(net: Net) -> None:
    a, b, births = pair(net, 2)
    assert b.core
    b.core.set_dns_name(next(iter(b.disk_peers)), "alice.example", net.now)
    b.drain()
    b.resolver["alice.example"] = [Endpoint(ip_address("192.0.2.1"), PORT)]
    a.readdress("192.0.2.1")
    b.readdress("192.0.2.2")
    net.run(10)
    everybody_talks(a, b, births)
    entry = a.entry_of(births[0].reversed())
    assert entry
    assert entry.wire_out == Flow.of("192.0.2.1", 22, "192.0.2.2", 40000)


def test_both_ends_move_at_once_without_a_name_and_one_comes_back(net: Net) -> None:
    a, b, births = pair(net)
    a.readdress("192.0.2.1")
    b.readdress("192.0.2.2")
    net.run(300)
    a.readdress("198.51.100.2")
    net.run(31)
    everybody_talks(a, b, births)


@pytest.mark.parametrize("milliseconds", range(0, 40, 4))
def test_both_ends_move_while_the_other_is_moving(milliseconds: int) -> None:
    net = Net()
    a, b, births = pair(net, 2)
    for host, other, name in ((a, b, "bob"), (b, a, "alice")):
        assert host.core
        host.core.set_dns_name(next(iter(host.disk_peers)), name, net.now)
        host.drain()
        host.resolver[name] = [
            Endpoint(ip_address("192.0.2.2" if other is b else "192.0.2.1"), PORT)
        ]
    b.readdress("192.0.2.2")
    net.run(milliseconds / 1000)
    a.readdress("192.0.2.1")
    net.run(10)
    everybody_talks(a, b, births)


def test_ipv6_and_no_change_of_family(net: Net) -> None:
    a, b = Host(net, "alice", "2001:db8:1::2"), Host(net, "bob", "2001:db8:2::2")
    introduce(a, b)
    birth = b.connect("2001:db8:2::2", 40000, a, "2001:db8:1::2", 22)
    net.run(3)
    b.readdress("192.0.2.7")
    net.run(2)
    assert b.core
    assert b.core.connections()[0].state == "held"
    assert b.core.connections()[0].why == "no usable address"
    b.readdress("192.0.2.7", "2001:db8:3::2")
    net.run(2)
    everybody_talks(a, b, [birth])


def test_a_connection_too_young_is_ended_at_once_and_others_are_left_alone(net: Net) -> None:
    a, b, births = pair(net)
    young = b.connect("203.0.113.2", 40001, a, "198.51.100.2", 22, age=3)
    mark = len(b.done)
    b.readdress("192.0.2.7")
    aborts = [c for c in b.done[mark:] if isinstance(c, Abort)]
    assert [c.inside for c in aborts] == [young]
    net.run(1)
    everybody_talks(a, b, births)


def test_only_the_peer_at_that_address_is_told(net: Net) -> None:
    a, b, births = pair(net)
    c = Host(net, "carol", "203.0.113.99")
    introduce(b, c)
    other = c.connect("203.0.113.99", 40000, b, "203.0.113.2", 22)
    net.run(3)
    b.readdress("192.0.2.7")
    net.run(1)
    everybody_talks(a, b, births)
    talk(b, other.reversed(), c)
    assert len(b.sees("move-done")) == 2


def test_the_command_order_of_a_move(net: Net) -> None:
    """docs/protocol.md, "The way of a change"."""
    a, b, _ = pair(net)
    mark_a, mark_b = len(a.done), len(b.done)
    b.readdress("192.0.2.7")
    net.run(1)

    def story(host: Host, mark: int) -> list[str]:
        return [type(c).__name__ for c in host.done[mark:] if type(c).__name__ != "Log"]

    assert story(b, mark_b)[:10] == [
        "Apply",  # hold
        "Park",
        "ReservePorts",
        "SaveBindings",
        "Apply",  # step 1
        "Send",  # ACM
        "SaveBindings",
        "Apply",  # step 3
        "Send",  # reply
        "Reinject",
    ]
    assert story(a, mark_a)[:7] == [
        "SaveBindings",
        "Apply",  # step 2
        "Send",  # challenge
        "SaveBindings",
        "Apply",  # step 4
        "Reinject",
        "Send",  # done
    ]


@pytest.mark.parametrize("milliseconds", range(0, 60, 3))
def test_the_new_address_goes_in_the_middle_of_a_move_and_comes_back(milliseconds: int) -> None:
    net = Net()
    a, b, births = pair(net, 2)
    b.readdress("192.0.2.10")
    net.run(milliseconds / 1000)
    b.readdress()
    net.run(milliseconds / 3000)
    b.readdress("192.0.2.10")
    net.run(5)
    everybody_talks(a, b, births)


def test_nothing_leaves_from_a_new_address_before_the_far_end_lets_it_in(net: Net) -> None:
    """Also when the new address goes and comes back meanwhile."""
    a, b, births = pair(net)
    net.udp_filter = lambda packet: False
    b.readdress("192.0.2.10")
    net.run(1)
    b.readdress()
    net.run(1)
    b.readdress("192.0.2.10")
    net.run(1)
    b.say(births[0])
    assert b.entry_of(births[0]).wire_out is None  # type: ignore[union-attr]
    net.udp_filter = lambda packet: True
    net.run(10)
    everybody_talks(a, b, births)
