"""Sessions with known peers: lost and doubled messages, restarts, backups, load."""

from __future__ import annotations

import copy
import hashlib
from dataclasses import replace
from ipaddress import ip_address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.protocol.handshake import answer_k1, make_k1, take_k2
from appliance.protocol.keys import SessionKeys, mac, resync_chain
from appliance.protocol.message import K1, NO_COOKIE, Chain, Type, Unknown, encode, parse
from appliance.rewrite.flow import Endpoint, Flow

from .sim import PORT, Host, Net, Udp, bound, introduce, talk


def pair(net: Net) -> tuple[Host, Host, Flow]:
    a, b = Host(net, "alice", "198.51.100.2"), Host(net, "bob", "203.0.113.2")
    introduce(a, b)
    birth = b.connect("203.0.113.2", 40000, a, "198.51.100.2", 22)
    net.run(3)
    assert bound(a, birth.reversed())
    return a, b, birth


def only(host: Host):  # type: ignore[no-untyped-def]
    assert host.core
    (peer,) = host.core.world.peers.values()
    return peer


def in_step(a: Host, b: Host) -> bool:
    x, y = only(a).record, only(b).record
    return bool({x.chain, x.previous} & {y.chain, y.previous})


def rekey(host: Host) -> None:
    assert host.core
    host.core._at(host.net.now)
    host.core.links.renew(only(host))
    host.drain()


def test_three_messages_make_a_session_and_ratchet_the_chain() -> None:
    net = Net()
    a, b, _ = pair(net)
    before = only(a).record.chain
    mark = len(net.udp)
    rekey(b)
    net.run(0.05)
    assert [p.data[3] for p in net.udp[mark : mark + 3]] == [Type.K1, Type.K2, Type.K3]
    assert only(a).record.chain == only(b).record.chain != before
    assert only(a).record.previous == only(b).record.previous == before
    assert only(a).session.send_key == only(b).session.recv_key
    assert only(a).session.recv_key == only(b).session.send_key
    assert only(a).keys.binding == only(b).keys.binding


def test_the_new_chain_is_on_disk_before_the_keys_are_used() -> None:
    net = Net()
    a, b, _ = pair(net)
    for host in (a, b):
        kinds = [type(c).__name__ for c in host.done]
        saved = kinds.index("SavePeer", 1)
        first_data = next(
            n for n, c in enumerate(host.done)
            if type(c).__name__ == "Send" and c.data[3] in (Type.DATA, Type.K3)  # type: ignore[union-attr]
        )  # fmt: skip
        assert saved < first_data


def test_both_start_at_once() -> None:
    for seed in range(20):
        net = Net(seed)
        a, b, birth = pair(net)
        for host in (a, b):
            host.stop()
        net.run(1)
        for host in (a, b):
            host.start()
        net.run(2)
        assert only(a).session is not None
        assert only(a).session.send_key == only(b).session.recv_key
        assert in_step(a, b)
        talk(a, birth.reversed(), b)


@given(st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_bad_network(seed: int) -> None:
    """A quarter of all datagrams lost, a quarter doubled, order at random."""
    net = Net(seed)
    net.loss = net.duplicate = 0.25
    net.jitter = 0.05
    a, b = Host(net, "alice", "198.51.100.2"), Host(net, "bob", "203.0.113.2")
    introduce(a, b)
    births = [b.connect("203.0.113.2", 40000 + n, a, "198.51.100.2", 22) for n in range(3)]
    net.run_until(lambda: len(a.kernel) == len(b.kernel) == 3, limit=900, step=0.5)
    for mover, addr in ((b, "192.0.2.7"), (a, "192.0.2.8"), (b, "192.0.2.9")):
        mover.readdress(addr)
        net.run_until(
            lambda mover=mover, addr=addr: (
                mover.sees("move-done")[-1:] != []
                and mover.sees("move-done")[-1].data["new"] == addr
            ),
            limit=120,
        )
        rekey(a)
        rekey(b)
    net.loss = 0.0
    net.run(31)
    for birth in births:
        talk(a, birth.reversed(), b)
    assert net.violations == []
    assert in_step(a, b)
    assert not a.sees("alert")


@pytest.mark.parametrize("side", ["initiator", "responder"])
def test_a_crash_at_every_command_of_the_exchange(side: str) -> None:
    for step in range(14):
        net = Net()
        a, b, birth = pair(net)
        host = b if side == "initiator" else a
        host.crash_in = step
        rekey(b)
        net.run(4)
        host.crash_in = None
        assert in_step(a, b), step
        assert a.sees("resync") == b.sees("resync") == []
        b.readdress("192.0.2.7")
        net.run(4)
        talk(a, birth.reversed(), b)
        assert net.violations == []


@pytest.mark.parametrize("restored", ["alice", "bob"])
def test_a_restored_backup_begins_anew_from_the_root_with_a_notice(restored: str) -> None:
    net = Net()
    a, b, birth = pair(net)
    host = a if restored == "alice" else b
    backup = copy.deepcopy(host.disk_peers)
    for _ in range(3):
        rekey(b)
        net.run(2)
    host.stop()
    host.disk_peers = backup
    host.start()
    net.run(3)
    assert len(a.sees("resync")) == len(b.sees("resync")) == 1
    assert a.sees("resync")[0].level == "notice"
    b.readdress("192.0.2.7")
    net.run(2)
    talk(a, birth.reversed(), b)
    rekey(a)
    net.run(2)
    assert len(a.sees("resync")) == 1


def test_who_has_the_root_alone_can_not_force_a_resynchronisation_on_one_in_step() -> None:
    """K2 that says "no chain in common" although there is one is refused."""
    net = Net()
    a, b, _ = pair(net)
    honest = only(a).record
    thief = replace(only(b).record, chain=b"x" * 32, previous=b"y" * 32)
    k1 = make_k1(honest, only(a).keys, b"n" * 16, 7)
    k2, _ = answer_k1(thief, k1, b"m" * 16, 9)
    assert take_k2(honest, k1, k2) is not None  # nothing in common: that is a resync
    lying = replace(only(b).record)
    k2, _ = answer_k1(lying, k1, b"m" * 16, 9)
    assert k2.chain == 0
    # the thief answers as if nothing matched, but with checks that it copied
    bare = replace(k2, chain=Chain.NONE, mac=bytes(16))
    chain = resync_chain(honest.root, k1.nonce, bare.nonce)
    zeros = encode(replace(k1, cookie=bytes(16), mac=bytes(16))) + encode(bare)
    transcript = hashlib.sha256(zeros).digest()
    keys = SessionKeys.of(honest.root, chain, k1.nonce, bare.nonce, transcript)
    forged = replace(bare, mac=mac(keys.k2, encode(bare)))
    assert take_k2(honest, k1, forged) is None
    others = replace(bare, check=bytes(16), check_previous=bytes(16))
    zeros = encode(replace(k1, cookie=bytes(16), mac=bytes(16))) + encode(others)
    transcript = hashlib.sha256(zeros).digest()
    keys = SessionKeys.of(honest.root, chain, k1.nonce, bare.nonce, transcript)
    assert take_k2(honest, k1, replace(others, mac=mac(keys.k2, encode(others)))) is not None


def test_unknown_notice_ends_nothing_and_only_the_right_one_starts_an_exchange() -> None:
    net = Net()
    a, b, _ = pair(net)
    session = only(b).session
    remote = Endpoint(next(iter(a.addresses)), PORT)
    local = Endpoint(next(iter(b.addresses)), PORT)
    mark = len(net.udp)
    wrong = encode(Unknown(session.remote_index, b"0" * 16))
    for _ in range(50):
        net.carry(Udp(remote, local, wrong))
    net.run(1)
    assert len(net.udp) - mark == 50
    right = encode(Unknown(session.remote_index, session.last_mac))
    for _ in range(50):
        net.carry(Udp(remote, local, right))
    net.run(0.5)
    assert [p.data[3] for p in net.udp[mark:]].count(Type.K1) == 1
    assert bound(b, Flow.of("203.0.113.2", 40000, "198.51.100.2", 22))


def test_a_restarted_peer_is_found_again_by_its_notice() -> None:
    net = Net()
    a, b, birth = pair(net)
    a.stop()
    a.start()  # its own exchange is lost
    net.udp_filter = lambda p: p.source.addr not in a.addresses
    net.run(0.5)
    net.udp_filter = lambda p: True
    b.readdress("192.0.2.7")
    net.run(2)
    talk(a, birth.reversed(), b)


def test_sessions_are_renewed_by_time_without_loss() -> None:
    net = Net()
    a, b, birth = pair(net)
    keys = set()
    for _ in range(5):
        keys.add(only(a).session.send_key)
        net.run(3600)
    assert len(keys) >= 4
    mark = len(net.udp)
    net.run(3600)
    assert len(net.udp) - mark < 20  # an idle pair is quiet
    b.readdress("192.0.2.7")
    net.run(0.06)
    talk(a, birth.reversed(), b)


def test_packets_of_the_session_before_are_still_taken_for_a_moment() -> None:
    net = Net()
    a, b, _ = pair(net)
    assert b.core
    old = only(b).session
    rekey(b)
    net.run(0.2)
    assert only(b).session is not old
    from appliance.protocol.frames import Ping, encode_frame

    packet = old.seal(encode_frame(1, Ping()))
    mark = len(net.udp)
    net.carry(
        Udp(
            Endpoint(next(iter(b.addresses)), PORT), Endpoint(next(iter(a.addresses)), PORT), packet
        )
    )
    net.run(0.1)
    assert len(net.udp) == mark + 2
    net.run(20)
    net.carry(
        Udp(
            Endpoint(next(iter(b.addresses)), PORT),
            Endpoint(next(iter(a.addresses)), PORT),
            old.seal(encode_frame(1, Ping())),
        )
    )
    mark = len(net.udp)
    net.run(0.1)
    assert [p.data[3] for p in net.udp[mark:]][:1] == [Type.UNKNOWN]


def test_a_session_without_connections_ends() -> None:
    net = Net()
    a, b, birth = pair(net)
    b.close(birth)
    a.close(birth.reversed())
    net.run(1500)
    assert only(a).session is None
    assert only(b).session is None
    mark = len(net.udp)
    net.run(100_000)
    assert len(net.udp) == mark
    assert a.next_timer() is None


def test_under_load_an_exchange_needs_a_cookie_and_still_succeeds() -> None:
    net = Net()
    a, b, _ = pair(net)
    k1s: list[Udp] = []
    net.udp_filter = lambda p: (
        p.data[3] != Type.K3
        and not (
            p.data[3] == Type.K1 and k1s.append(p)  # type: ignore[func-returns-value]
        )
    )
    for _ in range(4):
        b.stop()
        b.start()
        net.run(0.05)
    assert len(k1s) >= 4
    net.udp_filter = lambda p: True
    # an attacker says recorded K1s again and again, from elsewhere
    spoofed = [Udp(Endpoint(k.source.addr, 9), k.target, k.data) for k in k1s]
    mark = len(net.udp)
    for _ in range(200):
        for packet in spoofed:
            net.carry(packet)
    net.run(0.2)
    answers = [p for p in net.udp[mark:] if p.source.addr in a.addresses]
    assert all(len(p.data) <= len(k1s[0].data) for p in answers)
    assert a.core
    assert len(only(a).incoming) <= 4
    b.stop()
    b.start()
    net.run(2)
    assert only(b).session is not None
    assert any(p.data[3] == Type.COOKIE for p in net.udp[mark:])
    assert only(a).session.send_key == only(b).session.recv_key


def test_a_revoked_peer_is_not_answered_and_its_connections_are_plain() -> None:
    net = Net()
    a, b, birth = pair(net)
    assert a.core
    a.core.revoke(only(a).peer_id, net.now)
    a.drain()
    assert a.kernel == {}
    assert birth.reversed() in a.ends
    mark = len(net.udp)
    b.readdress("192.0.2.7")
    net.run(60)
    assert [p for p in net.udp[mark:] if p.source.addr in a.addresses
            and p.data[3] != Type.UNKNOWN] == []  # fmt: skip


def test_a_forgotten_peer_leaves_nothing_behind() -> None:
    net = Net()
    a, b, _ = pair(net)
    assert a.core
    assert a.core.forget(only(a).peer_id, net.now) == 1
    a.drain()
    assert a.disk_peers == {}
    assert a.kernel == {}
    assert a.core.peers() == []
    rekey(b)
    net.run(10)
    assert a.core.peers() == []


def test_host_ids_are_told_masked() -> None:
    net = Net()
    a, b, _ = pair(net)
    assert only(a).record.host_id == b.host_id
    assert only(b).record.host_id == a.host_id
    for host in (a, b):
        assert not any(bytes.fromhex(host.host_id) in p.data for p in net.udp)


def test_a_cookie_of_an_address_that_is_gone_is_replaced() -> None:
    """The responder is crowded by replays; the mover starts anew and loses its address
    between the cookie and its use."""
    net = Net()
    a, b, birth = pair(net)
    for _ in range(2):
        b.stop()
        b.start()
        net.run(5)
    old = {p.data: p for p in net.udp if p.data[3] == Type.K1 and p.source.addr in b.addresses}
    for packet in list(old.values())[-2:]:
        net.carry(Udp(Endpoint(ip_address("192.0.2.66"), PORT), packet.target, packet.data))
    net.run(0.1)
    mark = len(net.udp)

    def lose_the_first(packet: Udp) -> bool:
        message = parse(packet.data)
        with_cookie = isinstance(message, K1) and message.cookie != NO_COOKIE
        return not (with_cookie and packet.source.addr == ip_address("203.0.113.2"))

    net.udp_filter = lose_the_first
    b.stop()
    b.start()
    net.run_until(lambda: any(p.data[3] == Type.COOKIE for p in net.udp[mark:]))
    net.run(0.015)
    b.readdress("192.0.2.7")
    net.run(3)
    talk(a, birth.reversed(), b)
