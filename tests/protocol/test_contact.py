"""Hosts that do not know each other meet: discovery, first contact, policies, alerts."""

from __future__ import annotations

from ipaddress import ip_network

import pytest

from appliance.protocol.message import HelloAck, Type, encode
from appliance.protocol.settings import CoreSettings, Limits
from appliance.protocol.x25519 import X25519Contact
from appliance.rewrite.flow import Endpoint, Flow

from .sim import PORT, Host, Net, Udp, bound, introduce, talk


def stranger_pair(net: Net, **settings: object) -> tuple[Host, Host]:
    chosen = CoreSettings(**settings)  # type: ignore[arg-type]
    contact = X25519Contact()
    a = Host(net, "alice", "198.51.100.2", settings=chosen, first_contact=contact)
    b = Host(net, "bob", "203.0.113.2", settings=chosen, first_contact=contact)
    return a, b


def connect(a: Host, b: Host, port: int = 40000) -> Flow:
    return b.connect("203.0.113.2", port, a, "198.51.100.2", 22)


def test_strangers_meet_trust_and_keep_their_connection() -> None:
    net = Net()
    a, b = stranger_pair(net)
    birth = connect(a, b)
    net.run(10)
    assert bound(a, birth.reversed())
    (record_a,), (record_b,) = a.disk_peers.values(), b.disk_peers.values()
    assert record_a.peer_id == record_b.peer_id
    assert record_a.fingerprint == record_b.fingerprint
    assert record_a.host_id == b.host_id
    assert record_b.host_id == a.host_id
    assert {record_a.state, record_b.state} == {"trusted"}
    assert [record_a.initiator, record_b.initiator].count(True) == 1
    b.readdress("192.0.2.7")
    net.run(1)
    talk(a, birth.reversed(), b)
    assert net.violations == []


def test_both_begin_at_once_and_one_pair_comes_of_it() -> None:
    net = Net()
    a, b = stranger_pair(net)
    connect(a, b)
    a.connect("198.51.100.2", 50000, b, "203.0.113.2", 22)
    net.run(20)
    assert len(a.disk_peers) == len(b.disk_peers) == 1
    assert len(a.kernel) == len(b.kernel) == 2


@pytest.mark.parametrize("loss", [0.0, 0.2])
def test_both_begin_at_once_whatever_overtakes_what(loss: float) -> None:
    for seed in range(25):
        net = Net(seed, delay=0.0005)
        net.jitter, net.loss = 0.002 * (seed % 5), loss
        a, b = stranger_pair(net)
        connect(a, b)
        net.run_until(lambda a=a, b=b: len(a.kernel) == len(b.kernel) == 1)  # type: ignore[misc]
        assert len(a.disk_peers) == len(b.disk_peers) == 1
        assert a.disk_peers.keys() == b.disk_peers.keys()


def test_ask_policy_waits_for_the_operator_at_both_ends() -> None:
    net = Net()
    a, b = stranger_pair(net, first_contact="ask")
    birth = connect(a, b)
    net.run(30)
    assert a.kernel == {}
    (peer_id,) = a.disk_peers
    assert a.disk_peers[peer_id].state == b.disk_peers[peer_id].state == "pending"
    assert a.core
    assert b.core
    assert "not accepted" in b.core.connections()[0].why
    a.core.accept(peer_id, net.now)
    a.drain()
    net.run(5)
    assert a.kernel == {}
    b.core.verify(peer_id, net.now)
    b.drain()
    net.run(40)
    assert bound(a, birth.reversed())
    assert b.disk_peers[peer_id].state == "verified"


@pytest.mark.parametrize(
    "policy",
    [
        {"first_contact": "strict"},
        {"discover": "known"},
        {"discover": (ip_network("10.0.0.0/8"),)},
    ],
)
def test_policy_keeps_strangers_out(policy: dict[str, object]) -> None:
    net = Net()
    a, b = stranger_pair(net, **policy)
    connect(a, b)
    net.run(30)
    assert net.udp == []
    assert a.disk_peers == b.disk_peers == {}


def test_strict_does_not_answer_one_who_asks() -> None:
    net = Net()
    a, b = stranger_pair(net)
    a.settings = CoreSettings(first_contact="strict")
    a.start()
    connect(a, b)
    net.run(30)
    assert {p.source.addr for p in net.udp} == set(b.addresses)
    assert a.disk_peers == {}


def test_who_does_not_answer_is_left_alone() -> None:
    net = Net()
    a, b = stranger_pair(net)
    a.stop()
    connect(a, b)
    net.run(60)
    assert len(net.udp) == 3
    for n in range(5):
        connect(a, b, 41000 + n)
        net.run(60)
    assert len(net.udp) == 3
    assert b.core
    assert b.core.connections()[0].why == "far end does not run redirectd"
    a.start()
    net.run(3600)
    connect(a, b, 42000)
    net.run(10)
    assert len(b.disk_peers) == 1


def test_nothing_is_asked_about_a_short_lived_connection() -> None:
    net = Net()
    a, b = stranger_pair(net)
    birth = b.connect("203.0.113.2", 40000, a, "198.51.100.2", 22, age=0)
    net.run(9.9)
    b.close(birth)
    a.close(birth.reversed())
    net.run(60)
    assert net.udp == []


def test_hello_names_nobody_and_no_answer_is_longer_than_its_question() -> None:
    net = Net()
    a, b = stranger_pair(net)
    connect(a, b)
    net.run(10)
    secret_ids = {bytes.fromhex(a.host_id), bytes.fromhex(b.host_id)}
    secret_ids |= {bytes.fromhex(p) for p in a.disk_peers}
    first = next(p for p in net.udp if p.data[3] == Type.HELLO)
    assert first.data[4 + 16 :].strip(b"\0") == b""
    for packet in net.udp:
        if packet.data[3] <= Type.CONTACT_4:
            assert not any(ident in packet.data for ident in secret_ids)
    sizes = {Type(p.data[3]): len(p.data) for p in net.udp}
    assert sizes[Type.HELLO_ACK] <= sizes[Type.HELLO]
    assert sizes[Type.CONTACT_2] <= sizes[Type.CONTACT_1]
    assert sizes[Type.CONTACT_4] <= sizes[Type.CONTACT_3]


def test_no_answer_without_a_long_lived_connection() -> None:
    net = Net()
    a, b = stranger_pair(net)
    hello = next(iter(_hellos(net, a, b)))
    a2 = Host(net, "carol", "198.51.100.77", first_contact=X25519Contact())
    net.carry(Udp(hello.source, Endpoint(next(iter(a2.addresses)), PORT), hello.data))
    before = len(net.udp)
    net.run(1)
    assert len(net.udp) == before


def _hellos(net: Net, a: Host, b: Host) -> list[Udp]:
    connect(a, b)
    net.run(5)
    return [p for p in net.udp if p.data[3] == Type.HELLO]


def test_a_second_id_at_a_bound_address_is_an_alert_and_is_not_trusted() -> None:
    net = Net()
    a, b = stranger_pair(net)
    birth = connect(a, b)
    net.run(10)
    assert bound(a, birth.reversed())
    # bob's machine is replaced by another one at the same address
    b.stop()
    b.addresses.clear()
    mallory = Host(net, "mallory", "203.0.113.2", first_contact=X25519Contact())
    mallory.connect("203.0.113.2", 45000, a, "198.51.100.2", 22)
    net.run(60)
    (new,) = [p for p in a.disk_peers.values() if p.host_id == mallory.host_id]
    assert new.state == "pending"
    assert len(a.sees("second-id")) == 1
    assert a.sees("second-id")[0].level == "alert"
    assert set(a.kernel) == {a.entry_of(birth.reversed()).conn_id}  # type: ignore[union-attr]


def test_a_peer_that_lost_its_keys_is_pending_with_an_alert() -> None:
    net = Net()
    a, b = stranger_pair(net)
    connect(a, b)
    net.run(10)
    b.stop()
    b.disk_peers.clear()
    b.disk_bindings.clear()
    b.kernel.clear()
    b.start()
    net.run(90)
    states = sorted(p.state for p in a.disk_peers.values())
    assert states == ["pending", "trusted"]
    assert a.sees("changed-keys")


def test_a_known_peer_met_at_an_unknown_address_is_recognised() -> None:
    net = Net()
    a, b = stranger_pair(net)
    first = connect(a, b)
    net.run(10)
    b.close(first)
    a.close(first.reversed())
    net.run(2000)  # the session without connections ends
    b.readdress("192.0.2.44")
    net.run(5)
    birth = b.connect("192.0.2.44", 40001, a, "198.51.100.2", 22)
    net.run(60)
    assert len(a.disk_peers) == len(b.disk_peers) == 1
    assert bound(a, birth.reversed())
    # and the other way round: the one that is found opens nothing
    net2 = Net()
    a, b = stranger_pair(net2)
    first = connect(a, b)
    net2.run(10)
    b.close(first)
    a.close(first.reversed())
    net2.run(2000)
    b.readdress("192.0.2.44")
    birth = a.connect("198.51.100.2", 40001, b, "192.0.2.44", 22)
    net2.run(60)
    assert len(a.disk_peers) == len(b.disk_peers) == 1
    assert bound(a, birth)


def test_a_flood_of_first_contacts_costs_bounded_work_and_known_peers_are_served() -> None:
    net = Net()

    class Counting(X25519Contact):
        work = 0

        def generate(self) -> tuple[bytes, bytes]:
            Counting.work += 1
            return super().generate()

    limits = Limits(half_open=16)
    a = Host(net, "alice", "198.51.100.2", settings=CoreSettings(limits=limits),
             first_contact=Counting())  # fmt: skip
    friend = Host(net, "friend", "192.0.2.99")
    introduce(a, friend)
    crowd = []
    for n in range(1, 101):
        addr = f"203.0.113.{n}"
        host = Host(net, f"bot{n}", addr, first_contact=X25519Contact())
        host.connect(addr, 40000, a, "198.51.100.2", 22)
        crowd.append(host)
    # they never finish: their last message is lost
    net.udp_filter = lambda p: p.data[3] != Type.CONTACT_3
    birth = friend.connect("192.0.2.99", 40000, a, "198.51.100.2", 22)
    net.run(5)
    assert bound(a, birth.reversed())
    assert a.core
    assert len(a.core.discovery._half_open) <= 16
    assert Counting.work <= 50 * 5 + 100
    assert len(a.disk_peers) == 1


def test_a_wrong_or_old_cookie_gets_no_public_key_work() -> None:
    net = Net()
    a, b = stranger_pair(net)
    connect(a, b)
    seen: list[Udp] = []
    net.udp_filter = lambda p: seen.append(p) or p.data[3] != Type.CONTACT_1  # type: ignore[func-returns-value]
    net.run(3)
    contact1 = next(p for p in seen if p.data[3] == Type.CONTACT_1)
    net.udp_filter = lambda p: True
    bad = bytearray(contact1.data)
    bad[4 + 16] ^= 1
    before = len(net.udp)
    net.carry(Udp(contact1.source, contact1.target, bytes(bad)))
    net.carry(Udp(Endpoint(contact1.source.addr, 9), contact1.target, contact1.data))
    net.run(0.1)
    assert not any(p.data[3] == Type.CONTACT_2 for p in net.udp[before:])
    net.run(130)
    before = len(net.udp)
    net.carry(contact1)
    net.run(0.1)
    assert not any(p.data[3] == Type.CONTACT_2 for p in net.udp[before:])


def test_an_unasked_answer_is_ignored() -> None:
    net = Net()
    a, b = stranger_pair(net)
    ack = encode(HelloAck(bytes(16), bytes(16)))
    source, target = (Endpoint(next(iter(h.addresses)), PORT) for h in (b, a))
    net.carry(Udp(source, target, ack))
    net.run(1)
    assert len(net.udp) == 1
