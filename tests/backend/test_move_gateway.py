"""Real TCP through a NAT gateway with a default-deny firewall; the gateway moves.

    laptop -- lan -- home ---- net-a --+
                                       +-- core -- net-c -- server
                     (home') - net-b --+

The firewall drops what connection tracking does not know, and picks no connection up
in the middle: without its NAT state re-created nothing would pass in either direction.
"""

from __future__ import annotations

import time

import pytest

from appliance.protocol.inputs import Connection
from tests.lab import topologies
from tests.lab.firewall import Forward
from tests.lab.net import Lab

from .node import Node, at, connect, entry, node, receive, there

CONN = f"{1:032x}"
SOON = 0.15
OLD, NEW = topologies.A[0], topologies.B[0]
NEW_ADDR = NEW.split("/")[0]


def found(home: Node, port: int) -> Connection:
    """What the gateway learns of the connection to ``port`` from connection tracking."""
    home.pump(lambda seen: any(port in (c.birth.remote.port, c.birth.local.port)
                               for c in seen.opened_))  # fmt: skip
    return home.seen.opened_[-1]


@pytest.mark.parametrize("first", ["laptop", "server"])
def test_a_gateway_moves_and_either_end_may_speak_first(lab: Lab, first: str) -> None:
    net = topologies.home(lab)
    with node(net.home) as home, node(net.server) as server:
        stream = connect(net.laptop, net.server)
        known = found(home, stream.flow.remote.port)
        assert (known.inside, known.local, known.inside_opened) == (stream.flow, False, True)
        birth, far = known.birth, stream.far_flow
        assert birth == far.reversed()
        bound = entry(1, birth, [birth], birth, inside=known.inside)
        home.apply(bound)
        server.apply(entry(1, far, [far], far, inside_opened=False))
        stream.say(b"before")

        net.home.del_address(OLD)
        home.pump(lambda seen: seen.lost == [birth])
        home.apply(entry(1, birth, [birth], None, inside=known.inside))
        net.home.plug("wan", net.net.b)
        net.home.add_address(NEW, dev="wan")
        wire, seen = at(birth, NEW_ADDR), there(far, NEW_ADDR)
        with net.home.entered():
            assert home.host.reserve({CONN: wire}) == {CONN: wire}
            home.host.restore_nat([bound])
        if first == "laptop":
            stream.near.sendall(b"held")
            home.pump(lambda _: home.tap.held())
        home.apply(entry(1, birth, [wire], None, inside=known.inside))
        server.apply(entry(1, far, [seen], far, inside_opened=False))
        began = time.monotonic()
        opened = entry(1, birth, [wire], wire, inside=known.inside)
        home.apply(opened)
        home.reinject(opened, wake=False)
        server.apply(entry(1, far, [seen], seen, inside_opened=False))
        if first == "laptop":
            assert receive(stream.far, b"held", began + 1) - began < SOON
            assert stream.answer(b"answer", 1) < SOON
        else:
            assert stream.answer(b"answer", 1) < SOON
            assert stream.say(b"again", 1) < SOON
        assert stream.say(b"x" * 100_000) < 1
        assert stream.answer(b"y" * 100_000) < 1
        stream.close()


def test_a_port_forward_lives_through_a_move(lab: Lab) -> None:
    net = topologies.home(lab, forwards=[Forward(2222, "192.168.7.20", 22)])
    with node(net.home) as home, node(net.server) as server:
        stream = connect_forwarded(net, 2222, 22)
        known = found(home, 2222)
        assert not known.inside_opened
        assert known.inside == stream.far_flow
        birth, far = known.birth, stream.flow
        bound = entry(1, birth, [birth], birth, inside=known.inside, inside_opened=False)
        home.apply(bound)
        server.apply(entry(1, far, [far], far))
        stream.say(b"before")
        net.home.del_address(OLD)
        net.home.plug("wan", net.net.b)
        net.home.add_address(NEW, dev="wan")
        with net.home.entered():
            assert net.home.run(["conntrack", "-F"]).returncode == 0
            home.host.restore_nat([bound])
        wire, seen = at(birth, NEW_ADDR), there(far, NEW_ADDR)
        home.apply(entry(1, birth, [wire], wire, inside=known.inside, inside_opened=False))
        server.apply(entry(1, far, [seen], seen))
        assert stream.say(b"from outside", 1) < SOON
        assert stream.answer(b"from inside", 1) < SOON
        stream.close()


def connect_forwarded(net: topologies.Home, port: int, inside_port: int):  # type: ignore[no-untyped-def]
    """From the server to the laptop through the gateway's port forward."""
    import socket

    from .node import PATIENCE, Stream

    with net.laptop.entered():
        listener = socket.create_server(("0.0.0.0", inside_port))
    with net.server.entered():
        client = socket.create_connection((net.home.address(), port), PATIENCE)
    listener.settimeout(PATIENCE)
    accepted, _ = listener.accept()
    listener.close()
    return Stream(client, accepted)
