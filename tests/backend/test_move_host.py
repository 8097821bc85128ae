"""Real TCP between two hosts, of which one moves; entries are set by hand.

    alice ---- net-a --+
                       +-- core -- net-c -- bob
    (alice') - net-b --+

Every step is what the protocol core would command, in its order (docs/protocol.md).
"""

from __future__ import annotations

import time

import pytest

from appliance.rewrite.redirect import Entry
from tests.lab import topologies
from tests.lab.net import Lab

from .node import Node, Stream, at, connect, entry, node, receive, there

CONN = f"{1:032x}"
SOON = 0.15  # seconds; TCP's own least time-out is 0.2

ADDRESSES = {version: (topologies.A[i], topologies.B[i]) for i, version in enumerate((4, 6))}


class Move:
    """Both entries of one connection, moved together."""

    def __init__(self, alice: Node, bob: Node, stream: Stream) -> None:
        self.alice, self.bob = alice, bob
        self.near, self.far = stream.flow, stream.far_flow
        self.past: list[str] = []
        alice.apply(entry(1, self.near, [self.near], self.near))
        bob.apply(self.bobs(self.far))

    def bobs(self, wire: object) -> Entry:
        return entry(1, self.far, [wire], wire, inside_opened=False)  # type: ignore[list-item]

    def shut(self) -> None:
        """The old address is gone."""
        with self.alice.machine.entered():
            self.alice.host.park(self.near.local.addr)
        self.alice.apply(entry(1, self.near, [self.near], None))

    def open(self, addr: str) -> None:
        """The four steps of a move."""
        wire, seen = at(self.near, addr), there(self.far, addr)
        with self.alice.machine.entered():
            assert self.alice.host.reserve({CONN: wire}) == {CONN: wire}
        self.alice.apply(entry(1, self.near, [wire], None))
        self.bob.apply(entry(1, self.far, [seen], self.far, inside_opened=False))
        opened = entry(1, self.near, [wire], wire)
        self.alice.apply(opened)
        self.alice.reinject(opened, wake=False)
        there_ = self.bobs(seen)
        self.bob.apply(there_)
        self.bob.reinject(there_)


@pytest.mark.parametrize("version", [4, 6])
def test_what_a_host_sends_while_it_has_no_address_arrives_at_once(lab: Lab, version: int) -> None:
    net = topologies.two_hosts(lab)
    old, new = ADDRESSES[version]
    with node(net.alice) as alice, node(net.bob) as bob:
        stream = connect(net.alice, net.bob, version)
        stream.say(b"before")
        move = Move(alice, bob, stream)
        net.alice.del_address(old)
        move.shut()
        stream.near.sendall(b"held")
        net.alice.plug(network=net.net.b)
        net.alice.add_address(new)
        alice.await_address(new)
        began = time.monotonic()
        move.open(new.split("/")[0])
        assert receive(stream.far, b"held", began + 1) - began < SOON
        assert stream.answer(b"answer", 1) < SOON
        assert stream.say(b"again", 1) < SOON
        assert stream.flow == move.near
        stream.close()


@pytest.mark.parametrize("version", [4, 6])
def test_what_the_far_end_sends_into_the_silence_arrives_at_once(lab: Lab, version: int) -> None:
    net = topologies.two_hosts(lab)
    old, new = ADDRESSES[version]
    with node(net.alice) as alice, node(net.bob) as bob:
        stream = connect(net.alice, net.bob, version)
        stream.say(b"before")
        move = Move(alice, bob, stream)
        net.alice.del_address(old)
        move.shut()
        net.alice.plug(network=net.net.b)
        stream.far.sendall(b"lost")
        bob.pump(lambda seen: bob.tap._store.count(move.far))
        net.alice.add_address(new)
        alice.await_address(new)
        began = time.monotonic()
        move.open(new.split("/")[0])
        assert receive(stream.near, b"lost", began + 1) - began < SOON
        assert stream.say(b"again", 1) < SOON
        stream.close()


@pytest.mark.parametrize("version", [4, 6])
def test_what_could_not_be_sent_before_the_address_was_parked_is_sent_after(
    lab: Lab, version: int
) -> None:
    net = topologies.two_hosts(lab)
    old, new = ADDRESSES[version]
    with node(net.alice) as alice, node(net.bob) as bob:
        stream = connect(net.alice, net.bob, version)
        stream.say(b"before")
        move = Move(alice, bob, stream)
        net.alice.del_address(old)
        stream.near.sendall(b"early")
        move.shut()
        net.alice.plug(network=net.net.b)
        net.alice.add_address(new)
        alice.await_address(new)
        began = time.monotonic()
        move.open(new.split("/")[0])
        assert receive(stream.far, b"early", began + 1) - began < SOON
        stream.close()


@pytest.mark.parametrize("version", [4, 6])
def test_ten_moves_there_and_back(lab: Lab, version: int) -> None:
    net = topologies.two_hosts(lab)
    here, there_ = ADDRESSES[version]
    with node(net.alice) as alice, node(net.bob) as bob:
        stream = connect(net.alice, net.bob, version)
        stream.say(b"before")
        move = Move(alice, bob, stream)
        for number in range(10):
            new = there_ if number % 2 == 0 else here
            net.alice.del_address(here if number % 2 == 0 else there_)
            move.shut()
            net.alice.plug(network=net.net.b if number % 2 == 0 else net.net.a)
            net.alice.add_address(new)
            alice.await_address(new)
            if new == here:
                with net.alice.entered():
                    alice.host.unpark(move.near.local.addr)
            move.open(new.split("/")[0])
            assert stream.say(b"there %d" % number, 1) < SOON
            assert stream.answer(b"back %d" % number, 1) < SOON
        stream.close()
