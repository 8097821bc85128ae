"""Attacks on bindings, sessions and the key exchange."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

import pytest

from appliance.protocol.binding import Sample, Seen
from appliance.protocol.frames import (
    Accept,
    Confirm,
    Offer,
    Ping,
    Proof,
    encode_frame,
)
from appliance.protocol.inputs import Connection
from appliance.protocol.message import Type
from appliance.protocol.peer import Peer
from appliance.rewrite.flow import Endpoint, Flow

from .sim import PORT, Host, Net, Tcp, Udp, bound, introduce, talk
from .test_attacks import NEW, OLD, entries, scene


def test_the_first_binding_wins() -> None:
    net, a, b, births = scene(1)
    mallory = Host(net, "mallory", "192.0.2.66")
    introduce(a, mallory)
    mallory.connect("192.0.2.66", 40000, a, "198.51.100.2", 22)
    net.run(3)
    assert mallory.core
    # mallory offers bob's connection as its own
    peer = next(iter(mallory.core.world.peers.values()))
    mallory.core.links.request(peer, Offer(births[0], bytes(16)), births[0])
    mallory.core.links.flush()
    mallory.drain()
    net.run(3)
    assert a.sees("foreign-claim")[0].level == "alert"
    entry = a.entry_of(births[0].reversed())
    assert entry
    assert a.disk_bindings[entry.conn_id].peer_id in b.disk_peers


@pytest.mark.parametrize("opener", ["bob", "alice"])
def test_who_offers_what_is_not_its_own_keeps_nobody_from_binding_it(opener: str) -> None:
    net, a, b, _ = scene(1)
    mallory = Host(net, "mallory", "192.0.2.66")
    introduce(a, mallory)
    mallory.connect("192.0.2.66", 40000, a, "198.51.100.2", 22)
    net.run(3)
    assert mallory.core
    peer = next(iter(mallory.core.world.peers.values()))
    if opener == "bob":
        seen = b.connect(OLD, 41000, a, "198.51.100.2", 22)
    else:
        seen = a.connect("198.51.100.2", 22, b, OLD, 41000).reversed()
    for n in range(100):
        mallory.core.links.request(peer, Offer(seen, n.to_bytes(16, "big")), seen)
        mallory.core.links.flush()
        mallory.drain()
        net.run(0.1)
    entry = a.entry_of(seen.reversed())
    assert entry
    assert a.disk_bindings[entry.conn_id].peer_id in b.disk_peers
    assert bound(b, seen)


def test_a_peer_that_does_not_see_a_connection_can_not_bind_it() -> None:
    """It knows the ports and has a session, but not the sequence numbers."""
    net = Net()
    a, b = Host(net, "alice", "198.51.100.2"), Host(net, "bob", OLD)
    mallory = Host(net, "mallory", "192.0.2.66")
    introduce(a, mallory)
    mallory.connect("192.0.2.66", 40000, a, "198.51.100.2", 22)
    victim = b.connect(OLD, 40000, a, "198.51.100.2", 22)  # bob's daemon is not known to a
    net.run(3)
    assert mallory.core
    # mallory pretends to have the connection and invents acknowledgments
    c = Connection(victim, victim, True, True, 0)
    mallory.core.connection_opened(c, net.now)
    known = mallory.core.world.table.known[victim]
    peer = next(iter(mallory.core.world.peers.values()))
    mallory.core.binder.candidate = lambda known: peer  # type: ignore[method-assign]
    mallory.core.binder.find(known)
    mallory.core.links.flush()
    mallory.drain()
    for n in range(2000):
        net.run(0.01)
        for sample in mallory.core.binder.watching._samples.get(victim, []):
            assert isinstance(sample, Sample)
            sample.add(Seen(True, n, n * 7), net.now)
            proposal = mallory.core.binder.proposer._ours.get(victim)
            if proposal is not None and not proposal.proving:
                proposal.proving = True
                mallory.core.binder.proposer.prove_timer(victim)
                mallory.core.links.flush()
                mallory.drain()
    assert not bound(a, victim.reversed())
    assert any(p.data[16] == 19 for p in net.udp if p.data[3] == Type.DATA and len(p.data) > 33)


def test_a_path_that_translates_is_seen_at_binding() -> None:
    net = Net()
    a, b = Host(net, "alice", "198.51.100.2"), Host(net, "bob", "10.1.1.2")
    nat, private = ip_address("192.0.2.200"), ip_address("10.1.1.2")
    introduce(a, b)

    def translate(packet: Udp | Tcp) -> Udp | Tcp:
        if isinstance(packet, Udp):
            source, target = packet.source, packet.target
            if source.addr == private:
                source = Endpoint(nat, source.port)
            if target.addr == nat:
                target = Endpoint(private, target.port)
            return Udp(source, target, packet.data)
        flow = packet.flow
        if flow.local.addr == private:
            flow = flow.with_local(nat, flow.local.port + 1000)
        if flow.remote.addr == nat:
            flow = flow.with_remote(private, flow.remote.port - 1000)
        return Tcp(flow, packet.seq, packet.ack, packet.data)

    net.translate = translate
    flow = b.connect("10.1.1.2", 40000, a, "198.51.100.2", 22)
    # alice sees another tuple
    end = a.ends.pop(flow.reversed())
    seen = Flow.of("198.51.100.2", 22, "192.0.2.200", 41000)
    end.connection = Connection(seen, seen, True, False, 0)
    a.ends[seen] = end
    assert a.core
    a.core.connection_closed(flow.reversed(), net.now)
    a.core.connection_opened(end.connection, net.now)
    a.drain()
    net.run(20)
    assert a.kernel == b.kernel == {}
    assert b.core
    for core in (a.core, b.core):
        assert core.connections()[0].why == "path translates"


def test_garbage_on_the_port_costs_nothing_and_breaks_nothing() -> None:
    net, a, b, births = scene()
    target = Endpoint(next(iter(a.addresses)), PORT)
    mark = len(net.udp)
    for n in range(3000):
        kind = n % 14
        junk = b"RD\x01" + bytes((kind,)) + net.random.randbytes(net.random.randrange(1197))
        net.carry(Udp(Endpoint(ip_address("192.0.2.50"), n), target, junk))
    net.run(1)
    assert len([p for p in net.udp[mark:] if p.source.addr in a.addresses]) <= 5
    b.readdress(NEW)
    net.run(1)
    for birth in births:
        talk(a, birth.reversed(), b)


def test_a_session_packet_acts_once() -> None:
    net, a, b, _ = scene()
    assert b.core
    (peer,) = b.core.world.peers.values()
    packet = peer.session.seal(encode_frame(5, Ping()))
    sender, target = (Endpoint(next(iter(h.addresses)), PORT) for h in (b, a))
    mark = len(net.udp)
    for _ in range(20):
        net.carry(Udp(sender, target, packet))
    net.run(0.1)
    answers = [p for p in net.udp[mark:] if p.source.addr in a.addresses]
    assert len(answers) == 1


def test_a_forged_key_exchange_gets_no_answer_and_changes_nothing() -> None:
    net, a, b, births = scene()
    assert a.core
    assert b.core
    b.core._at(net.now)
    (peer,) = b.core.world.peers.values()
    seen: list[Udp] = []
    net.udp_filter = lambda p: bool(seen.append(p))  # type: ignore[func-returns-value]
    b.core.links.renew(peer)
    b.drain()
    net.run(0.1)
    k1 = next(p for p in seen if p.data[3] == Type.K1)
    net.udp_filter = lambda p: True
    b.stop()
    mark = len(net.udp)
    for at in range(4, len(k1.data)):
        data = bytearray(k1.data)
        data[at] ^= 1
        net.carry(Udp(k1.source, k1.target, bytes(data)))
    net.run(0.1)
    assert not any(p.source.addr in a.addresses for p in net.udp[mark:])
    (at_a,) = a.core.world.peers.values()
    assert at_a.incoming == {}
    assert len(births) == len(a.kernel)


def test_a_forged_second_message_of_the_exchange_is_refused() -> None:
    net, a, b, _ = scene()
    assert b.core
    (peer,) = b.core.world.peers.values()
    before = peer.session
    seen: list[Udp] = []
    net.udp_filter = lambda p: p.data[3] != Type.K2 or bool(seen.append(p))  # type: ignore[func-returns-value]
    b.core._at(net.now)
    b.core.links.renew(peer)
    b.drain()
    net.run(0.1)
    k2 = seen[0]
    net.udp_filter = lambda p: True
    for at in range(8, len(k2.data)):
        data = bytearray(k2.data)
        data[at] ^= 1
        net.carry(Udp(k2.source, k2.target, bytes(data)))
    net.run(0.05)
    assert peer.session is before
    net.carry(k2)
    net.run(0.1)
    assert peer.session is not before
    assert a.core


def test_a_peer_that_claims_to_have_seen_a_connection_is_not_believed_by_the_proposer() -> None:
    """bob proposes; alice's daemon says ACCEPT although it saw nothing."""
    net = Net()
    a, b = Host(net, "alice", "198.51.100.2"), Host(net, "bob", OLD)
    introduce(a, b)

    def lie(peer: Peer, number: int, frame: object, origin: object) -> None:
        assert a.core
        tags = tuple(bytes((n,)) * 16 for n in range(16))
        a.core.links.queue(peer, number, Accept("ab" * 16, tags))

    assert a.core
    a.core.links.handlers[Proof] = lie
    birth = b.connect(OLD, 40000, a, "198.51.100.2", 22)
    net.run(60)
    assert not bound(b, birth)
    assert b.sees("false-proof")


def test_a_confirmation_without_a_proof_binds_nothing() -> None:
    """mallory does not wait to be convinced, and does not mind that it is not."""
    net = Net()
    a, b = Host(net, "alice", "198.51.100.2"), Host(net, "bob", OLD)
    mallory = Host(net, "mallory", "192.0.2.66")
    introduce(a, mallory)
    mallory.connect("192.0.2.66", 40000, a, "198.51.100.2", 22)
    victim = b.connect(OLD, 40000, a, "198.51.100.2", 22)
    net.run(3)
    assert mallory.core
    links = mallory.core.links
    (peer,) = mallory.core.world.peers.values()
    accepted: list[Accept] = []
    links.handlers[Accept] = lambda peer, number, frame, origin: accepted.append(frame)  # type: ignore[arg-type]
    offer = links.request(peer, Offer(victim, bytes(16)), victim)
    for round_ in range(30):
        invented = tuple(bytes((round_, n)) * 8 for n in range(16))
        links.request(peer, Proof(offer, invented), victim, tries=1)
        links.request(peer, Confirm(offer, f"{round_:032x}"), victim, tries=1)
        links.flush()
        mallory.drain()
        net.run(0.2)
    assert accepted == []
    assert not bound(a, victim.reversed())


def test_a_pending_peer_is_not_listened_to() -> None:
    """It had a session when the operator took the trust away (by another way than revoke)."""
    net, a, b, _ = scene()
    assert a.core
    (peer,) = a.core.world.peers.values()
    peer.record = replace(peer.record, state="pending")
    before = entries(a)
    mark = len(net.udp)
    b.readdress(NEW)
    net.run(5)
    assert entries(a) == before
    assert not any(p.source.addr in a.addresses for p in net.udp[mark:])
