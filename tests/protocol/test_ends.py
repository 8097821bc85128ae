"""Connections that end, at one end or both, and those of which one side knows nothing."""

from __future__ import annotations

from appliance.protocol.commands import Abort, Prompt, RestoreNat
from appliance.protocol.frames import Kind
from appliance.protocol.inputs import Connection
from appliance.protocol.message import Type
from appliance.rewrite.flow import Flow

from .sim import End, Host, Net, Tcp, Udp, bound, introduce, talk


def pair(net: Net, count: int = 1) -> tuple[Host, Host, list[Flow]]:
    a, b = Host(net, "alice", "198.51.100.2"), Host(net, "bob", "203.0.113.2")
    introduce(a, b)
    births = [b.connect("203.0.113.2", 40000 + n, a, "198.51.100.2", 22) for n in range(count)]
    net.run_until(lambda: len(a.kernel) == len(b.kernel) == count, limit=30)
    net.run(1)
    return a, b, births


def nothing_left(host: Host) -> bool:
    return not (host.kernel or host.disk_bindings or host.parked or host.reserved)


def test_a_connection_that_ends_at_both_ends_leaves_nothing() -> None:
    net = Net()
    a, b, births = pair(net, 70)
    b.readdress("192.0.2.7")
    net.run(2)
    for birth in births:
        b.close(birth)
        a.close(birth.reversed())
    net.run(6)
    assert nothing_left(a)
    assert nothing_left(b)
    assert a.core
    assert b.core
    assert a.core.connections() == b.core.connections() == []


def test_the_redirect_stays_for_the_last_acknowledgments() -> None:
    net = Net()
    a, b, births = pair(net)
    b.readdress("192.0.2.7")
    net.run(1)
    b.close(births[0])
    a.close(births[0].reversed())
    net.run(1)
    assert not nothing_left(b)


def test_a_connection_that_ends_between_two_moves_leaves_the_others_alone() -> None:
    """The first move is confirmed when its address is gone already."""
    net = Net()
    a, b, births = pair(net, 2)
    late: list[Udp] = []

    def not_done(packet: Udp) -> bool:
        done = packet.data[3] == Type.DATA and packet.data[16] == Kind.MOVE_DONE
        late.extend([packet] if done else [])
        return not done

    net.udp_filter = not_done
    b.readdress("192.0.2.7")
    net.run(0.06)
    assert late
    net.udp_filter = lambda packet: True
    b.close(births[0])
    b.readdress("192.0.2.8")
    for packet in late:  # it was in the socket's queue
        b.udp_in(packet)
    assert b.core
    assert len(b.core.connections()) == 2
    assert all(entry.wires for entry in b.kernel.values())
    net.run(1)
    talk(a, births[1].reversed(), b)
    a.close(births[0].reversed())
    net.run(5)
    assert len(a.kernel) == len(b.kernel) == 1


def test_an_end_that_vanished_is_told_to_the_other_end() -> None:
    net = Net()
    a, b, births = pair(net)
    b.readdress("192.0.2.7")
    net.run(1)
    b.close(births[0])  # killed; its RST is lost
    net.run(6)
    assert births[0].reversed() not in a.ends
    assert [c.inside for c in a.done if isinstance(c, Abort)] == [births[0].reversed()]
    assert nothing_left(a)
    assert nothing_left(b)


def test_on_a_path_that_translates_nothing_the_real_rst_is_let_in() -> None:
    net = Net()
    a, b, births = pair(net)
    b.close(births[0])
    net.run(6)
    assert births[0].reversed() not in a.ends
    assert not any(isinstance(c, Abort) for c in a.done)
    assert isinstance([c for c in a.done if isinstance(c, Prompt)][-1], Prompt)
    assert nothing_left(a)


def test_a_genuine_rst_takes_effect_within_a_round_trip_or_two() -> None:
    net = Net()
    a, b, births = pair(net)
    b.readdress("192.0.2.7")
    net.run(1)
    b.close(births[0])
    net.carry(Tcp(Flow.of("192.0.2.7", 40000, "198.51.100.2", 22), 0, 0, None, rst=True))
    net.run(0.1)
    assert births[0].reversed() not in a.ends


def test_a_genuine_rst_of_which_the_peer_has_not_told_is_asked_about() -> None:
    net = Net()
    a, b, births = pair(net)
    b.readdress("192.0.2.7")
    net.run(1)
    # whatever b says by itself about the end is lost; what it is asked it answers
    net.udp_filter = lambda p: not (p.data[3] == 11 and p.data[16] == 7)
    b.close(births[0])
    net.run(0.5)
    assert births[0].reversed() in a.ends
    net.carry(Tcp(Flow.of("192.0.2.7", 40000, "198.51.100.2", 22), 0, 0, None, rst=True))
    net.run(0.1)
    assert births[0].reversed() not in a.ends


def test_a_forged_rst_ends_nothing_and_is_shown() -> None:
    net = Net()
    a, b, births = pair(net)
    b.readdress("192.0.2.7")
    net.run(1)
    wire = Flow.of("192.0.2.7", 40000, "198.51.100.2", 22)
    for _ in range(300):
        net.carry(Tcp(wire, 0, 0, None, rst=True))
    mark = len(net.udp)
    net.run(2)
    assert 1 <= len(a.sees("false-reset")) <= 6
    assert len(net.udp) - mark <= 700
    talk(a, births[0].reversed(), b)


def test_a_rst_while_the_peer_is_away_waits() -> None:
    net = Net()
    a, b, births = pair(net)
    b.stop()
    net.carry(Tcp(births[0], 0, 0, None, rst=True))
    net.run(60)
    b.start()
    net.run(31)
    talk(a, births[0].reversed(), b)


def test_a_binding_that_one_side_lost_is_closed_at_the_other() -> None:
    net = Net()
    a, b, births = pair(net, 3)
    b.readdress("192.0.2.7")
    net.run(1)
    a.stop()
    lost = a.entry_of(births[1].reversed())
    assert lost
    del a.disk_bindings[lost.conn_id]
    a.kernel.clear()
    a.start()
    net.run(5)
    assert births[1] not in b.ends
    assert sorted(a.kernel) == sorted(b.kernel)
    assert len(a.kernel) == 2
    talk(a, births[0].reversed(), b)


def test_a_binding_lost_before_any_move_is_made_anew() -> None:
    net = Net()
    a, b, births = pair(net, 3)
    a.stop()
    a.disk_bindings.clear()
    a.kernel.clear()
    a.start()
    net.run(30)
    assert sorted(a.kernel) == sorted(b.kernel)
    assert len(a.kernel) == 3
    b.readdress("192.0.2.7")
    net.run(1)
    for birth in births:
        talk(a, birth.reversed(), b)


def test_a_connection_that_ended_while_the_daemon_was_away() -> None:
    net = Net()
    a, b, births = pair(net, 2)
    b.readdress("192.0.2.7")
    net.run(1)
    b.stop()
    b.close(births[0])
    net.run(5)
    b.start()
    net.run(10)
    assert births[0].reversed() not in a.ends
    assert len(a.kernel) == len(b.kernel) == 1
    talk(a, births[1].reversed(), b)


def test_ports_used_again_at_once_belong_to_the_new_connection() -> None:
    net = Net()
    a, b, births = pair(net)
    for host, birth in ((b, births[0]), (a, births[0].reversed())):
        host.close(birth)
    again = b.connect("203.0.113.2", 40000, a, "198.51.100.2", 22, age=0)
    talk(a, again.reversed(), b)
    net.run(20)
    talk(a, again.reversed(), b)
    assert bound(a, again.reversed())
    assert len(a.kernel) == 1
    assert net.violations == []


def test_ports_used_again_after_a_move_belong_to_the_new_connection() -> None:
    net = Net()
    a, b, births = pair(net)
    b.readdress("192.0.2.7")
    net.run(1)
    b.close(births[0])
    a.close(births[0].reversed())
    b.readdress("203.0.113.2")
    again = b.connect("203.0.113.2", 40000, a, "198.51.100.2", 22, age=0)
    assert a.kernel == b.kernel == {}
    talk(a, again.reversed(), b)
    assert net.violations == []


def gateway(net: Net) -> tuple[Host, Host, Flow, Flow]:
    """bob is a NAT gateway: the end of the connection is a host in his LAN."""
    a, b = Host(net, "alice", "198.51.100.2"), Host(net, "bob", "203.0.113.2")
    b.address("10.0.0.1", inside=True)
    introduce(a, b)
    b.paths()
    birth = Flow.of("203.0.113.2", 40000, "198.51.100.2", 22)
    inside = Flow.of("10.0.0.5", 5555, "198.51.100.2", 22)
    for host, flow, c in (
        (a, birth.reversed(), Connection(birth.reversed(), birth.reversed(), True, False, 0)),
        (b, birth, Connection(birth, inside, False, True, 0)),
    ):
        host.ends[flow] = End(c, *((100, 200) if host is a else (200, 100)))
        assert host.core
        host.core.connection_opened(c, net.now)
        host.drain()
    net.run(3)
    return a, b, birth, inside


def test_a_gateway_moves_and_restores_what_the_kernel_flushed() -> None:
    net = Net()
    a, b, birth, inside = gateway(net)
    entry = b.entry_of(birth)
    assert entry
    assert entry.inside == inside
    assert not entry.local
    b.addresses.pop(birth.local.addr)
    assert b.core
    b.core.nat_lost(birth, net.now)  # the kernel is faster than the watcher
    b.drain()
    assert RestoreNat((entry.conn_id,)) in b.done
    b.readdress("10.0.0.1", "192.0.2.7")
    net.run(1)
    talk(a, birth.reversed(), b)
    assert b.parked == set()  # no socket of ours needs the address
    # the gateway reboots: only its disk is kept
    b.stop()
    b.kernel.clear()
    mark = len(b.done)
    b.start()
    kinds = [type(c).__name__ for c in b.done[mark:]]
    assert kinds[:3] == ["Apply", "RestoreNat", "ReservePorts"]
    net.run(2)
    talk(a, birth.reversed(), b)


def test_a_connection_that_is_only_routed_is_left_where_it_is() -> None:
    net = Net()
    a, b = Host(net, "alice", "2001:db8:1::2"), Host(net, "bob", "2001:db8:2::1")
    introduce(a, b)
    birth = Flow.of("2001:db8:5::7", 5555, "2001:db8:1::2", 22)  # a host behind bob
    b.behind.add(birth.local.addr)
    for host, flow, c in (
        (a, birth.reversed(), Connection(birth.reversed(), birth.reversed(), True, False, 0)),
        (b, birth, Connection(birth, birth, False, True, 0)),
    ):
        host.ends[flow] = End(c, *((100, 200) if host is a else (200, 100)))
        assert host.core
        host.core.connection_opened(c, net.now)
    for host in (a, b):
        host.drain()
    net.run(8)
    assert bound(a, birth.reversed())
    b.readdress("2001:db8:3::1")
    net.run(3)
    assert b.sees("move") == []
    assert all(e.wire_out == e.birth for e in b.kernel.values())
    a.readdress("2001:db8:9::2")
    net.run(1)
    talk(a, birth.reversed(), b)


def test_nat_state_that_is_lost_ends_what_is_not_kept() -> None:
    net = Net()
    _, b, _, _ = gateway(net)
    young = Flow.of("203.0.113.2", 40001, "198.51.100.2", 22)
    inside = Flow.of("10.0.0.5", 5556, "198.51.100.2", 22)
    assert b.core
    b.core.connection_opened(Connection(young, inside, False, True, net.now), net.now)
    b.core.nat_lost(young, net.now)
    b.drain()
    assert Abort(inside, False) in b.done
    assert len(b.core.connections()) == 1


def test_a_dump_tells_what_is_gone() -> None:
    net = Net()
    a, b, births = pair(net, 2)
    b.ends.pop(births[0])
    assert b.core
    b.core.connections_known([e.connection for e in b.ends.values()], net.now)
    b.drain()
    net.run(8)
    assert births[0].reversed() not in a.ends
    assert len(b.kernel) == 1


def test_the_operator_drops_a_connection() -> None:
    net = Net()
    a, b, births = pair(net, 2)
    ids = [b.entry_of(birth).conn_id for birth in births]  # type: ignore[union-attr]
    assert b.core
    b.core.drop(ids[0], net.now)
    b.drain()
    assert len(b.kernel) == 1
    assert births[0] in b.ends  # plain now
    net.run(1)
    b.readdress("192.0.2.7")
    net.run(1)
    b.core.drop(ids[1], net.now)
    b.drain()
    net.run(1)
    assert births[1] not in b.ends
    assert a.core
