"""What the rules copy to user space and withhold from the stack, on real connections."""

from __future__ import annotations

import socket
import threading
import time

import pytest

from appliance.backend import segment
from appliance.backend.linux import inject
from appliance.rewrite.flow import Flow
from tests.lab import kernel, topologies
from tests.lab.net import Lab

from .node import PATIENCE, Node, connect, entry, node, receive
from .test_move_gateway import found


def observe(where: Node, *flows: Flow) -> None:
    with where.machine.entered():
        where.table.observe(flows)


@pytest.mark.parametrize("version", [4, 6])
def test_a_prompt_shows_both_ends_the_same_acknowledgment(lab: Lab, version: int) -> None:
    net = topologies.two_hosts(lab, services=[4000])
    with node(net.alice) as alice, node(net.bob) as bob:
        stream = connect(net.alice, net.bob, version, port=4000)
        stream.say(b"x")
        observe(alice, stream.flow)
        observe(bob, stream.far_flow)
        with net.alice.entered():
            alice.tap.prompt(stream.flow, True)
        alice.pump(lambda seen: seen.segments)
        bob.pump(lambda seen: seen.segments)
        sent, got = alice.seen.segments[-1], bob.seen.segments[-1]
        assert (sent.direction, got.direction) == ("out", "in")
        assert (sent.flow, got.flow) == (stream.flow, stream.far_flow)
        assert (sent.seq, sent.ack) == (got.seq, got.ack)
        stream.say(b"goes on")
        stream.close()


def test_a_prompt_reaches_a_host_behind_the_gateway(lab: Lab) -> None:
    net = topologies.home(lab)
    with node(net.home) as home, node(net.server) as server:
        stream = connect(net.laptop, net.server)
        known = found(home, stream.flow.remote.port)
        observe(home, known.birth)
        observe(server, stream.far_flow)
        with net.home.entered():
            home.tap.prompt(known.inside, False)
        server.pump(lambda seen: seen.segments)
        home.pump(lambda seen: seen.segments)
        assert home.seen.segments[-1].flow == known.birth
        assert home.seen.segments[-1].direction == "out"
        assert home.seen.segments[-1].seq == server.seen.segments[-1].seq
        stream.say(b"goes on")
        stream.close()


def test_nothing_is_copied_of_flows_that_nobody_observes(lab: Lab) -> None:
    net = topologies.two_hosts(lab)
    with node(net.alice) as alice:
        stream, other = connect(net.alice, net.bob), connect(net.alice, net.bob)
        observe(alice, stream.flow)
        observe(alice, other.flow)
        with net.alice.entered():
            alice.tap.prompt(stream.flow, True)
            alice.tap.prompt(other.flow, True)
        alice.pump(lambda seen: seen.segments)
        assert {seen.flow for seen in alice.seen.segments} == {other.flow}
        stream.close()
        other.close()


@pytest.mark.parametrize("version", [4, 6])
def test_a_bound_connection_is_observed_under_its_birth_flow(lab: Lab, version: int) -> None:
    net = topologies.two_hosts(lab)
    with node(net.alice) as alice:
        stream = connect(net.alice, net.bob, version)
        alice.apply(entry(1, stream.flow, [stream.flow], stream.flow))
        observe(alice, stream.flow)
        with net.alice.entered():
            alice.tap.prompt(stream.flow, True)
        alice.pump(lambda seen: seen.segments)
        assert alice.seen.segments[-1].flow == stream.flow
        stream.close()


@pytest.mark.parametrize("version", [4, 6])
def test_a_reset_of_a_bound_connection_is_withheld(lab: Lab, version: int) -> None:
    """A stranger who knows the next number could end the connection otherwise."""
    net = topologies.two_hosts(lab)
    with node(net.alice) as alice, node(net.bob) as bob:
        stream = connect(net.alice, net.bob, version)
        stream.say(b"x")
        observe(alice, stream.flow)
        with net.alice.entered():
            alice.tap.prompt(stream.flow, True)
        alice.pump(lambda seen: seen.segments)
        number = alice.seen.segments[-1].ack
        alice.apply(entry(1, stream.flow, [stream.flow], stream.flow))
        reset = segment.build_tcp(stream.far_flow, number, 0, segment.RST)
        with net.bob.entered():
            assert inject.send(bob.sockets.raw, reset, *(end.addr for end in stream.far_flow))
        alice.pump(lambda seen: seen.resets)
        assert alice.seen.resets == [stream.flow]
        stream.answer(b"alive")
        with net.alice.entered():
            alice.table.remove([f"{1:032x}"])
        with net.bob.entered():
            number += len(b"alive")
            reset = segment.build_tcp(stream.far_flow, number, 0, segment.RST)
            assert inject.send(bob.sockets.raw, reset, *(end.addr for end in stream.far_flow))
        with pytest.raises(ConnectionResetError):
            stream.near.recv(1)
        stream.close()


@pytest.mark.parametrize("version", [4, 6])
def test_a_stranger_on_a_past_wire_flow_reaches_nothing(lab: Lab, version: int) -> None:
    net = topologies.two_hosts(lab)
    with node(net.alice) as alice, node(net.bob) as bob:
        stream = connect(net.alice, net.bob, version)
        stream.say(b"x")
        elsewhere = stream.far_flow.with_remote(stream.far_flow.remote.addr, 9)
        stale = [stream.far_flow]
        bob.apply(entry(1, stream.far_flow, [elsewhere], elsewhere, stale=stale))
        for flags in (segment.RST, segment.SYN, segment.ACK):
            with net.alice.entered():
                packet = segment.build_tcp(stream.flow, 1, 1, flags, payload=b"data")
                assert inject.send(alice.sockets.raw, packet, *(end.addr for end in stream.flow))
        bob.apply(entry(1, stream.far_flow, [stream.far_flow], stream.far_flow))
        stream.say(b"unharmed")
        assert bob.seen.resets == []
        stream.close()


@pytest.mark.parametrize("version", [4, 6])
def test_abort_ends_a_connection_of_our_own(lab: Lab, version: int) -> None:
    net = topologies.two_hosts(lab)
    with node(net.alice) as alice:
        stream = connect(net.alice, net.bob, version)
        with net.alice.entered():
            flow = stream.flow
            alice.host.abort(flow, True)
            alice.host.abort(flow, True)
        with pytest.raises(ConnectionAbortedError):
            stream.near.recv(1)
        stream.close()


def test_abort_resets_the_host_behind_the_gateway(lab: Lab) -> None:
    net = topologies.home(lab)
    with node(net.home) as home:
        stream = connect(net.laptop, net.server)
        known = found(home, stream.flow.remote.port)
        stream.say(b"x")
        net.home.del_address(topologies.A[0])
        with net.home.entered():
            home.host.abort(known.inside, False)
        stream.near.settimeout(1)
        with pytest.raises(ConnectionResetError):
            stream.near.recv(1)
        stream.close()


@pytest.mark.parametrize("version", [4, 6])
def test_a_narrow_path_is_told_to_the_stack_in_its_own_terms(lab: Lab, version: int) -> None:
    """A router answers to the wire tuple, of which the stack knows nothing."""
    net = topologies.two_hosts(lab)
    with node(net.alice) as alice, node(net.bob) as bob:
        stream = connect(net.alice, net.bob, version)
        stream.say(b"x")
        wire = stream.flow.with_local(stream.flow.local.addr, 40_000)
        seen = wire.reversed()
        alice.apply(entry(1, stream.flow, [wire], wire))
        bob.apply(entry(1, stream.far_flow, [seen], seen, inside_opened=False))
        kernel.ip_batch(["link set net-c mtu 1400"], lab.core)
        sent = bytes(100_000)
        begin = time.monotonic()
        reader = threading.Thread(target=receive, args=(stream.far, sent, begin + PATIENCE))
        writer = threading.Thread(target=stream.near.sendall, args=(sent,))
        reader.start()
        writer.start()
        while reader.is_alive():
            alice.pump_once(0.02)
        writer.join()
        assert time.monotonic() - begin < 2
        stream.close()


def test_a_path_that_nobody_has_is_not_believed(lab: Lab) -> None:
    """Below the floors an error is a lie: it would make the sender crawl."""
    net = topologies.two_hosts(lab)
    with node(net.alice) as alice, node(net.bob) as bob:
        stream = connect(net.alice, net.bob)
        wire = stream.flow.with_local(stream.flow.local.addr, 40_000)
        alice.apply(entry(1, stream.flow, [wire], wire))
        bob.apply(entry(1, stream.far_flow, [wire.reversed()], wire.reversed()))
        lie = too_big(wire, mtu=296)
        with net.bob.entered():
            assert inject.send(bob.sockets.raw, lie, *(end.addr for end in wire.reversed()))
        observe(alice, stream.flow)
        stream.say(b"x")
        with net.alice.entered():
            alice.tap.prompt(stream.flow, True)
        alice.pump(lambda seen: seen.segments)  # the lie came before that
        stream.say(bytes(50_000))
        assert stream.near.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG) > 1000
        stream.close()


def too_big(wire: Flow, mtu: int) -> bytes:
    """What a router on the path would say of a segment on ``wire``."""
    inner = segment.build_tcp(wire, 1, 1, segment.ACK)
    told = segment.parse_too_big(
        segment.icmp_too_big(wire.remote.addr, wire.local.addr, mtu, inner)
    )
    assert told is not None
    return told.raw
