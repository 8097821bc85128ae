"""Which connections the backend finds, as what, and when it says that they ended."""

from __future__ import annotations

import contextlib
import socket

import pytest

from appliance.backend.api import BackendError
from appliance.protocol.inputs import Connection
from appliance.rewrite.flow import Flow
from tests.lab import topologies
from tests.lab.firewall import Forward
from tests.lab.net import Lab

from .node import Node, Stream, connect, node
from .test_move_gateway import connect_forwarded


def dump(where: Node) -> list[Connection]:
    where.seen.known = None
    with where.machine.entered():
        where.host.request_connections()
    where.pump(lambda seen: seen.known is not None)
    assert where.seen.known is not None
    return where.seen.known


@pytest.mark.parametrize("version", [4, 6])
def test_a_new_connection_is_reported_once_with_its_age_at_either_end(
    lab: Lab, version: int
) -> None:
    net = topologies.two_hosts(lab)
    with node(net.alice) as alice, node(net.bob) as bob:
        stream = connect(net.alice, net.bob, version)
        stream.say(b"x")
        for where, flow, ours in ((alice, stream.flow, True), (bob, stream.far_flow, False)):
            where.pump(lambda seen: seen.opened_)
            dump(where)
            (opened,) = where.seen.opened_
            assert (opened.birth, opened.inside) == (flow, flow)
            assert (opened.local, opened.inside_opened) == (True, ours)
            assert opened.since is not None
        stream.close()


@pytest.mark.parametrize("version", [4, 6])
def test_a_connection_older_than_the_daemon_is_found(lab: Lab, version: int) -> None:
    net = topologies.two_hosts(lab)
    stream = connect(net.alice, net.bob, version)
    with net.bob.entered():
        family = socket.AF_INET6 if version == 6 else socket.AF_INET
        host = "::" if version == 6 else "0.0.0.0"
        listener = socket.create_server(
            (host, stream.far_flow.local.port), family=family, reuse_port=False
        )
    with node(net.alice) as alice, node(net.bob) as bob, listener:
        for where, flow, ours in ((alice, stream.flow, True), (bob, stream.far_flow, False)):
            (known,) = dump(where)
            assert known == Connection(flow, flow, True, ours, None)
        stream.close()


def test_a_forwarded_connection_older_than_the_daemon_is_found_with_its_mapping(
    lab: Lab,
) -> None:
    net = topologies.home(lab, forwards=[Forward(2222, "192.168.7.20", 22)])
    out = connect(net.laptop, net.server)
    back = connect_forwarded(net, 2222, 22)
    with node(net.home) as home:
        known = {c.inside_opened: c for c in dump(home)}
        assert known[True].birth == out.far_flow.reversed()
        assert known[True].inside == out.flow
        assert known[False].birth == back.flow.reversed()
        assert known[False].inside == back.far_flow
        assert all(not c.local and c.since is None for c in known.values())
        out.close()
        back.close()


def test_a_routed_connection_without_nat_is_found_from_inside(lab: Lab) -> None:
    net = topologies.home(lab)
    with node(net.home) as home:
        stream = connect(net.laptop, net.server, 6)
        home.pump(lambda seen: seen.opened_)
        (opened,) = home.seen.opened_
        assert opened.birth == opened.inside == stream.flow
        assert (opened.local, opened.inside_opened) == (False, True)
        stream.close()


def test_what_never_leaves_the_machine_or_the_lan_is_left_out(lab: Lab) -> None:
    net = topologies.home(lab)
    with node(net.home) as home, net.home.entered(), socket.create_server(("0.0.0.0", 80)):
        own = socket.create_connection(("127.0.0.1", 80))
        with net.laptop.entered():
            lan = socket.create_connection(("192.168.7.1", 80))
        abroad = connect(net.laptop, net.server)
        home.pump(lambda seen: seen.opened_)
        assert [c.inside for c in dump(home)] == [abroad.flow]
        assert [c.inside for c in home.seen.opened_] == [abroad.flow]
        own.close()
        lan.close()
        abroad.close()


def test_reset_closes_at_once(lab: Lab) -> None:
    net = topologies.two_hosts(lab)
    with node(net.alice) as alice:
        stream = connect(net.alice, net.bob)
        alice.pump(lambda seen: seen.opened_)
        flow = stream.flow
        linger_off(stream)
        stream.near.close()
        alice.pump(lambda seen: seen.closed_)
        assert alice.seen.closed_ == [flow]
        assert dump(alice) == []
        stream.close()


def test_an_orderly_end_is_reported_after_the_repetitions(lab: Lab) -> None:
    net = topologies.two_hosts(lab)
    now = [1000.0]
    with node(net.alice, clock=lambda: now[0]) as alice:
        stream = connect(net.alice, net.bob)
        alice.pump(lambda seen: seen.opened_)
        flow = stream.flow
        stream.near.close()
        assert stream.far.recv(1) == b""
        stream.far.close()
        alice.pump(lambda _: alice.connections.next_timer())
        assert alice.seen.closed_ == []
        due = alice.connections.next_timer()
        assert due is not None
        assert 1000 < due < 1060
        now[0] = due
        with net.alice.entered():
            alice.connections.read()
        assert alice.seen.closed_ == [flow]
        assert alice.connections.next_timer() is None


def test_nat_state_that_is_flushed_is_reported_as_lost_not_as_closed(lab: Lab) -> None:
    net = topologies.home(lab)
    with node(net.home) as home:
        stream = connect(net.laptop, net.server)
        home.pump(lambda seen: seen.opened_)
        net.home.run(["conntrack", "-F"])
        home.pump(lambda seen: seen.lost)
        assert home.seen.lost == [home.seen.opened_[0].birth]
        assert home.seen.closed_ == []
        stream.close()


def test_a_socket_that_outlives_its_tracking_entry_is_not_closed(lab: Lab) -> None:
    net = topologies.two_hosts(lab)
    with node(net.alice) as alice:
        stream = connect(net.alice, net.bob)
        alice.pump(lambda seen: seen.opened_)
        net.alice.run(["conntrack", "-F"])
        alice.pump(lambda seen: seen.lost)
        assert [c.birth for c in dump(alice)] == [stream.flow]
        assert alice.seen.closed_ == []
        stream.close()


def linger_off(stream: Stream) -> None:
    """close(2) then sends RST."""
    import struct

    stream.near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@pytest.mark.parametrize("served", ["::", "192.0.2.9"])
def test_ending_a_connection_that_has_ended_leaves_its_server_alone(lab: Lab, served: str) -> None:
    """The kernel would take the listening socket for it."""
    net = topologies.two_hosts(lab)
    both = served == "::"
    with node(net.bob) as bob, net.bob.entered():
        family = socket.AF_INET6 if both else socket.AF_INET
        with socket.create_server((served, 2200), family=family, dualstack_ipv6=both) as server:
            server.settimeout(2)

            def call() -> Flow:
                with net.alice.entered():
                    caller = socket.create_connection(("192.0.2.9", 2200))
                server.accept()[0].close()
                here = caller.getsockname()
                caller.close()
                return Flow.of("192.0.2.9", 2200, here[0], here[1])

            gone = [call(), Flow.of("192.0.2.9", 2200, "198.51.100.7", 9)]
            for flow in gone * 2:
                with contextlib.suppress(BackendError):  # it may still linger, and stay
                    bob.host.abort(flow, local=True)
            call()
