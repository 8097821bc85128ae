"""What the operator does and sees."""

from __future__ import annotations

import random
import time
from dataclasses import fields, replace
from ipaddress import ip_address

import pytest

from appliance.protocol.commands import Log, ReservePorts, Send
from appliance.protocol.connections import Binding
from appliance.protocol.core import Core
from appliance.protocol.inputs import Connection, LocalAddress, Paths
from appliance.protocol.operator import Refused
from appliance.protocol.records import BindingRecord, PeerRecord
from appliance.protocol.settings import CoreSettings, Rule, Rules
from appliance.protocol.views import ConnectionView, PeerView
from appliance.rewrite.flow import Address, Endpoint, Flow
from appliance.rewrite.redirect import Entry

from .sim import PORT, Host, Net, bound, introduce, talk


def pair(net: Net, **settings: object) -> tuple[Host, Host, Flow]:
    chosen = CoreSettings(**settings)  # type: ignore[arg-type]
    a = Host(net, "alice", "198.51.100.2", settings=chosen)
    b = Host(net, "bob", "203.0.113.2", settings=chosen)
    introduce(a, b)
    birth = b.connect("203.0.113.2", 40000, a, "198.51.100.2", 22)
    net.run(3)
    return a, b, birth


def test_views_have_the_fields_of_the_control_document() -> None:
    net = Net()
    a, _, _ = pair(net)
    assert a.core
    (peer,) = a.core.peers()
    (connection,) = a.core.connections()
    assert isinstance(peer, PeerView)
    assert isinstance(connection, ConnectionView)
    assert {f.name for f in fields(peer)} >= {
        "peer_id", "name", "state", "fingerprint", "host_id", "first_contact", "last_contact",
        "addresses", "dns_name", "session", "connections",
    }  # fmt: skip
    assert (peer.session, peer.connections, peer.state) == ("up", 1, "verified")
    assert peer.addresses == ("203.0.113.2",)
    assert (connection.state, connection.peer_name, connection.path) == ("bound", "bob", "kernel")
    assert connection.wire == connection.birth


def test_views_follow_a_connection_through_its_life() -> None:
    net = Net()
    a, b = Host(net, "alice", "198.51.100.2"), Host(net, "bob", "203.0.113.2")
    introduce(a, b)
    birth = b.connect("203.0.113.2", 40000, a, "198.51.100.2", 22, age=0)
    assert b.core

    def state() -> str:
        assert b.core
        (view,) = b.core.connections()
        return view.state

    assert state() == "short"
    assert b.core.connections()[0].why == "too young"
    net.run(10.001)
    assert state() == "long"
    net.run(3)
    assert state() == "bound"
    b.readdress()
    assert state() == "held"
    assert b.core.connections()[0].held_since == net.now
    b.readdress("192.0.2.7")
    net.run(1)
    assert state() == "redirected"
    view = b.core.connections()[0]
    assert view.wire == birth.with_local(ip_address("192.0.2.7"))
    assert (view.moves, view.held_since) == (1, None)


def test_rename_and_dns_name_are_kept() -> None:
    net = Net()
    a, _, _ = pair(net)
    assert a.core
    (peer_id,) = a.disk_peers
    a.core.rename(peer_id, "den", net.now)
    a.core.set_dns_name(peer_id, "den.example", net.now)
    a.drain()
    assert a.disk_peers[peer_id].name == "den"
    assert a.disk_peers[peer_id].dns_name == "den.example"


def test_what_is_not_there_is_refused_by_name() -> None:
    net = Net()
    a, _, _ = pair(net)
    core = a.core
    assert core
    for act in (core.accept, core.verify, core.revoke, core.forget):
        with pytest.raises(Refused, match="no peer nobody"):
            act("nobody", net.now)
    for act in (core.resend, core.drop):
        with pytest.raises(Refused, match="no connection"):
            act("00" * 16, net.now)
    with pytest.raises(Refused, match="not a usable address"):
        core.move(ip_address("192.0.2.9"), None, net.now)


def test_a_path_is_chosen_by_the_operator_until_the_rules_choose_again() -> None:
    net = Net()
    a, b, birth = pair(net)
    core = b.core
    assert core
    conn_id = b.entry_of(birth).conn_id  # type: ignore[union-attr]
    core.choose_path(conn_id, "divert", net.now)
    b.drain()
    assert core.connections()[0].path == "divert"
    assert b.entry_of(birth).path == "divert"  # type: ignore[union-attr]
    (kept,) = b.disk_bindings.values()
    assert kept.entry.path == "divert"
    b.readdress("192.0.2.7")
    net.run(1)
    assert b.entry_of(birth).path == "divert"  # type: ignore[union-attr]
    core.choose_path(conn_id, "divert", net.now)
    assert core.poll() == [], "nothing to do"
    core.choose_paths(net.now)
    b.drain()
    assert core.connections()[0].path == "kernel"
    with pytest.raises(Refused, match="no connection"):
        core.choose_path("00" * 16, "kernel", net.now)
    talk(a, birth.reversed(), b)


def test_a_change_is_sent_again_on_request() -> None:
    net = Net()
    a, b, birth = pair(net)
    b.readdress("192.0.2.7")
    net.run(1)
    assert b.core
    mark = len(net.udp)
    b.core.resend(b.entry_of(birth).conn_id, net.now)  # type: ignore[union-attr]
    b.drain()
    assert len(net.udp) == mark + 1
    net.run(1)
    talk(a, birth.reversed(), b)


def test_an_introduction_gives_two_records_of_one_pair() -> None:
    net = Net()
    host = Host(net, "alice", "198.51.100.2")
    assert host.core
    ours, theirs = host.core.introduce("bob", Endpoint(ip_address("203.0.113.2"), 9), net.now)
    assert (ours.initiator, theirs.initiator) == (True, False)
    assert theirs.host_id == host.host_id
    assert (ours.port, ours.addresses) == (9, ("203.0.113.2",))
    assert replace(
        theirs, initiator=True, host_id="", name="bob", addresses=ours.addresses, port=9
    ) == ours  # fmt: skip
    for record in (ours, theirs):
        assert record.root.hex() not in repr(record)


def test_no_secret_is_in_any_representation_or_log() -> None:
    net = Net()
    a, b, _ = pair(net)
    b.readdress("192.0.2.7")
    net.run(1)
    assert a.core
    peer = next(iter(a.core.world.peers.values()))
    assert peer.session
    secrets = [peer.record.root, peer.record.chain, peer.session.send_key, peer.keys.binding]
    shown = [repr(x) for x in (peer.record, peer.session, peer.keys)]
    shown += [repr(c) for host in (a, b) for c in host.done if isinstance(c, Log)]
    for secret in secrets:
        for text in shown:
            assert secret.hex() not in text
            assert repr(secret)[2:-1] not in text


def test_rules_exempt_and_choose_the_path() -> None:
    rules = Rules((Rule(after=None, ports=(22,)), Rule(after=1.0, path="divert", ports=(23,))))
    net = Net()
    a, b, birth = pair(net, long_lived_after=rules.after, path_for=rules.path)
    other = b.connect("203.0.113.2", 40001, a, "198.51.100.2", 23, age=0)
    net.run(5)
    assert not bound(a, birth.reversed())
    assert a.entry_of(other.reversed()).path == "divert"  # type: ignore[union-attr]
    assert b.core
    assert {v.why for v in b.core.connections() if v.birth == birth} == {"off by a rule"}


def test_the_far_end_may_be_exempt_by_its_own_rule() -> None:
    net = Net()
    a = Host(net, "alice", "198.51.100.2", settings=CoreSettings(
        long_lived_after=Rules((Rule(after=None, ports=(22,)),)).after))  # fmt: skip
    b = Host(net, "bob", "203.0.113.2")
    introduce(a, b)
    birth = b.connect("203.0.113.2", 40000, a, "198.51.100.2", 22)
    net.run(30)
    assert not bound(b, birth)
    assert b.core
    assert b.core.connections()[0].why == "the far daemon does not keep this connection"


def test_a_failed_command_is_shown_and_a_reservation_is_tried_again() -> None:
    net = Net()
    a, b, birth = pair(net)
    assert b.core
    failed: list[ReservePorts] = []

    def fail(command: object) -> None:
        if isinstance(command, ReservePorts) and not failed:
            failed.append(command)
            b.reserved.clear()
            assert b.core
            b.core.command_failed(command, "no such device", net.now)

    execute = b.execute
    b.execute = lambda c: fail(c) if isinstance(c, ReservePorts) and not failed else execute(c)  # type: ignore[method-assign,func-returns-value]
    b.readdress("192.0.2.7")
    assert b.sees("command-failed")
    net.run(12)
    talk(a, birth.reversed(), b)


def test_a_record_without_a_name_gets_one_and_an_imported_peer_replaces_the_old_one() -> None:
    net = Net()
    a, b, birth = pair(net)
    assert a.core
    (record,) = a.disk_peers.values()
    a.core.add_peer(replace(record, name=""), net.now)
    a.drain()
    assert a.disk_peers[record.peer_id].name == record.peer_id[:8]
    net.run(5)
    b.readdress("192.0.2.7")
    net.run(10)
    talk(a, birth.reversed(), b)


# size


def big(count: int) -> tuple[Core, Core, list[float]]:
    """Two hosts with ``count`` connections bound, out of their records."""
    rng = random.Random(1)
    near, far = ip_address("203.0.113.2"), ip_address("198.51.100.2")
    now = 1_700_000_000.0

    def core(peers: list[PeerRecord], bindings: list[BindingRecord]) -> Core:
        return Core(CoreSettings(), peers, bindings, rng.randbytes(16).hex(),
                    rng=rng.randbytes, now=now, first_contact=None)  # fmt: skip

    ours, theirs = core([], []).introduce("far", Endpoint(far, PORT), now)
    theirs = replace(theirs, name="near", addresses=(str(near),), port=PORT)
    rows: tuple[list[BindingRecord], list[BindingRecord]] = ([], [])
    for n in range(count):
        conn_id = rng.randbytes(16).hex()
        birth = Flow.of(str(near), 10000 + n, str(far), 22)
        for flow, row in ((birth, rows[0]), (birth.reversed(), rows[1])):
            entry = Entry(conn_id, flow, flow, True, flow is birth, (flow,), flow)
            row.append(BindingRecord(ours.peer_id, entry, now - 100, now - 50))
    a, b = core([ours], rows[0]), core([theirs], rows[1])
    return a, b, [0.0, 0.0]


def carry(cores: tuple[Core, Core], at: list[Address], spent: list[float], now: float) -> None:
    """Deliver everything at once; CPU seconds of each side are added to ``spent``."""
    busy = True
    while busy:
        busy = False
        for n, core in enumerate(cores):
            for command in core.poll():
                other = 1 - n
                start = time.process_time()
                if isinstance(command, Send):
                    source = Endpoint(command.source or at[n], PORT)
                    target = command.remote.addr
                    cores[other].receive_datagram(command.data, source, target, now)
                    spent[other] += time.process_time() - start
                    busy = True
                elif isinstance(command, ReservePorts):
                    core.ports_reserved(dict(command.wanted), now)
                    spent[n] += time.process_time() - start
                    busy = True


def paths(mine: Address, other: Address) -> Paths:
    return Paths((LocalAddress(mine, "eth0", 24, True),), {other: mine})


def test_a_thousand_connections_move_by_one_message_in_little_time() -> None:
    a, b, spent = big(1000)
    at = [ip_address("203.0.113.2"), ip_address("198.51.100.2")]
    now = 1_700_000_001.0
    for n, core in enumerate((a, b)):
        core.paths_changed(paths(at[n], at[1 - n]), now)
    carry((a, b), at, spent, now)
    best = [9.0, 9.0]
    for number in range(7, 12):
        now += 5
        spent = [0.0, 0.0]
        at[0] = ip_address(f"192.0.2.{number}")
        start = time.process_time()
        a.paths_changed(paths(at[0], at[1]), now)
        spent[0] += time.process_time() - start
        carry((a, b), at, spent, now)
        best = [min(pair) for pair in zip(best, spent, strict=True)]
        views = b.connections()
        assert len(views) == 1000
        assert all(v.wire is not None and v.wire.remote.addr == at[0] for v in views)
    # goal: 50 ms; the bound leaves room for a slow and busy machine
    assert max(best) < 0.2


def test_five_thousand_idle_connections_have_no_timers_of_their_own() -> None:
    a, b, spent = big(5000)
    at = [ip_address("203.0.113.2"), ip_address("198.51.100.2")]
    now = 1_700_000_001.0
    for n, core in enumerate((a, b)):
        core.paths_changed(paths(at[n], at[1 - n]), now)
    carry((a, b), at, spent, now)
    assert len(a.world.timers) < 10
    due = a.next_timer()
    assert due is not None
    assert due - now > 5


def test_a_binding_remembers_through_its_record() -> None:
    birth = Flow.of("203.0.113.2", 40000, "198.51.100.2", 22)
    c = Connection(birth, birth, True, True, 5.0)
    binding = Binding.new("0" * 32, "p", c, "kernel", 9.0)
    binding.locals_.insert(0, Endpoint(ip_address("192.0.2.7"), 40000))
    binding.out_local = None
    binding.rebuild()
    again = Binding.of(binding.record())
    assert again.locals_ == binding.locals_
    assert again.remotes == binding.remotes
    assert (again.out_local, again.settled, again.let_in) == (None, False, False)
    assert (again.since, again.bound_at) == (5.0, 9.0)
