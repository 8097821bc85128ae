"""Each attack of which the design says that it is refused, as far as it shows here."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from appliance.protocol.changes import digest
from appliance.protocol.frames import (
    AddressChange,
    ChallengeReply,
    Purpose,
    encode_frame,
)
from appliance.protocol.message import Type
from appliance.rewrite.flow import Address, Endpoint, Flow
from appliance.rewrite.redirect import Entry

from .sim import PORT, Host, Net, Tcp, Udp, introduce, talk

OLD, NEW = "203.0.113.2", "192.0.2.7"


def scene(count: int = 2) -> tuple[Net, Host, Host, list[Flow]]:
    """bob has connections to alice; bob's host is where attackers would like to be."""
    net = Net()
    a, b = Host(net, "alice", "198.51.100.2"), Host(net, "bob", OLD)
    introduce(a, b)
    births = [b.connect(OLD, 40000 + n, a, "198.51.100.2", 22) for n in range(count)]
    net.run_until(lambda: len(a.kernel) == len(b.kernel) == count, limit=30)
    net.run(1)
    return net, a, b, births


def entries(host: Host) -> dict[str, Entry]:
    return dict(host.kernel)


def capture(net: Net, host: Host, addr: str) -> list[Udp]:
    """What a move sends, recorded by somebody on the path and not delivered."""
    seen: list[Udp] = []
    net.udp_filter = lambda p: bool(seen.append(p))  # type: ignore[func-returns-value]
    host.readdress(addr)
    net.run(1)
    net.udp_filter = lambda p: True
    return [p for p in seen if p.data[3] == Type.DATA and p.data[16] == 32]


def deliver(net: Net, packet: Udp, data: bytes | None = None, source: str | None = None) -> None:
    where = packet.source if source is None else Endpoint(ip_address(source), PORT)
    net.carry(Udp(where, packet.target, packet.data if data is None else data))
    net.run(0.005 + net.delay)


def test_an_altered_or_truncated_change_does_nothing() -> None:
    net, a, b, births = scene()
    packet = capture(net, b, NEW)[0]
    before = entries(a)
    b.stop()
    for at in range(len(packet.data)):
        for flip in (1, 128):
            data = bytearray(packet.data)
            data[at] ^= flip
            deliver(net, packet, bytes(data))
        deliver(net, packet, packet.data[:at])
    deliver(net, packet, packet.data + b"\0")
    assert entries(a) == before
    deliver(net, packet)  # untouched it is good, and lets in, but opens nothing
    for entry in a.kernel.values():
        assert entry.wire_out.remote.addr == ip_address(OLD)  # type: ignore[union-attr]
        assert entry.wires[0].remote.addr == ip_address(NEW)
    assert len(births) == len(a.kernel)


def test_a_replayed_change_does_nothing() -> None:
    """The paper's replay: bob had an address, left it, and somebody else has it now."""
    net, a, b, births = scene()
    recorded: list[Udp] = []
    net.udp_filter = lambda p: not recorded.append(p)  # type: ignore[func-returns-value]
    b.readdress(NEW)
    net.run(1)
    b.readdress("192.0.2.8")
    net.run(5)
    net.udp_filter = lambda p: True
    before = entries(a)
    Host(net, "mallory", NEW)  # DHCP gave it away; everything bob said is said again
    for _ in range(3):
        for packet in recorded:
            if packet.target.addr in a.addresses:
                net.carry(packet)
        net.run(2)
    assert entries(a) == before
    for birth in births:
        talk(a, birth.reversed(), b)


def test_a_delayed_older_change_does_not_undo_a_newer_one() -> None:
    net, a, b, births = scene()
    late = capture(net, b, NEW)
    b.readdress("192.0.2.8")
    net.run(5)
    before = entries(a)
    for packet in late:
        deliver(net, packet)
    net.run(3)
    assert entries(a) == before
    for birth in births:
        talk(a, birth.reversed(), b)


def test_a_change_out_of_an_earlier_session_is_refused() -> None:
    net, a, b, births = scene()
    late = capture(net, b, NEW)
    b.stop()
    b.start()  # fresh keys
    net.run(40)
    before = entries(a)
    mark = len(net.udp)
    for packet in late:
        deliver(net, packet)
    assert entries(a) == before
    answers = [p for p in net.udp[mark:] if p.source.addr in a.addresses]
    assert all(p.data[3] == Type.UNKNOWN for p in answers)
    talk(a, births[0].reversed(), b)


def claim(
    net: Net, thief: Host, a: Host, ids: list[str], old: str, *, ports: list[int], whole: bool,
    new: str | None = None, source: str | None = None,
) -> None:  # fmt: skip
    """A trusted peer says that connections are at its address, well-formed and signed."""
    assert thief.core
    peer = next(p for p in thief.core.world.peers.values() if p.session)
    where: Address = ip_address(new) if new else next(iter(thief.addresses))
    pairs = tuple(zip(ids, ports, strict=True))
    frame = AddressChange(
        int(net.now * 1000) + 5, Purpose.MOVE, where, ip_address(old), False, whole, len(ids),
        digest(pairs), () if whole else pairs,
    )  # fmt: skip
    target = Endpoint(next(iter(a.addresses)), PORT)
    sender = Endpoint(ip_address(source) if source else where, PORT)
    net.carry(Udp(sender, target, peer.session.seal(encode_frame(0, frame))))
    net.run(1)


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("at", ["192.0.2.66", OLD])
def test_a_trusted_peer_claims_a_neighbours_connections(whole: bool, at: str) -> None:
    """From an address of its own, and from the very address where the victim was."""
    net, a, b, births = scene()
    mallory = Host(net, "mallory", "192.0.2.66")
    introduce(a, mallory)
    mallory.connect("192.0.2.66", 40000, a, "198.51.100.2", 22)
    net.run(3)
    ids = [e.conn_id for e in b.kernel.values()]
    before = entries(a)
    if at == OLD:  # same NAT address, or the address was given to mallory
        b.readdress()
        mallory.readdress(OLD)
        net.run(5)
        before = entries(a)
    claim(net, mallory, a, ids, OLD, ports=[40000, 40001], whole=whole)
    assert {i: a.kernel[i] for i in ids} == {i: before[i] for i in ids}
    if not whole:
        assert a.sees("foreign-claim")[0].level == "alert"
    b.readdress(NEW)
    net.run(3)
    for birth in births:
        talk(a, birth.reversed(), b)


@pytest.mark.parametrize(
    "target",
    [
        "127.0.0.1", "224.0.0.5", "255.255.255.255", "0.0.0.0",
        "169.254.7.7", "240.1.2.3", "10.0.0.77", "10.0.0.1",
        "198.51.100.2", "198.51.100.255", "198.51.100.0",
        "2001:db8::9",
    ],
)  # fmt: skip
def test_a_move_to_a_bad_target_is_refused(target: str) -> None:
    net, a, b, _ = scene()
    a.address("10.0.0.1", inside=True)
    net.run(1)
    before = entries(a)
    ids = [e.conn_id for e in b.kernel.values()]
    claim(net, b, a, ids, OLD, ports=[40000, 40001], whole=True, new=target)
    assert entries(a) == before
    assert len(a.sees("target-refused")) == 1


def test_a_victims_address_as_target_gets_no_flood_and_no_traffic() -> None:
    """A trusted but wicked peer sends changes under the victim's address."""
    net, a, b, births = scene()
    victim = ip_address("192.0.2.99")
    Host(net, "victim", "192.0.2.99")
    ids = [e.conn_id for e in b.kernel.values()]
    mark = len(net.udp)
    sent = 0
    for _ in range(500):
        before = len(net.udp)
        claim(net, b, a, ids, OLD, ports=[40000, 40001], whole=True, new="192.0.2.99")
        sent += len(net.udp[before].data)
        net.now -= 0.999  # a thousand a second
    got = [p for p in net.udp[mark:] if p.target.addr == victim]
    assert sum(len(p.data) for p in got) <= sent / 2
    assert len(got) <= 100
    for entry in a.kernel.values():
        assert entry.wire_out.remote.addr == ip_address(OLD)  # type: ignore[union-attr]
    for birth in births:
        talk(a, birth.reversed(), b)


def test_the_source_must_be_the_new_address() -> None:
    """Somebody on the path translates: this is shown to the operator."""
    net, a, b, _ = scene()
    nat = ip_address("192.0.2.200")

    def translate(packet: Udp | Tcp) -> Udp | Tcp:
        if isinstance(packet, Udp) and packet.source.addr == ip_address(NEW):
            return Udp(Endpoint(nat, packet.source.port), packet.target, packet.data)
        return packet

    net.translate = translate
    before = entries(a)
    Host(net, "nat", "192.0.2.200").udp_in = lambda packet: b.udp_in(packet)  # type: ignore[method-assign]
    b.readdress(NEW)
    net.run(3)
    assert entries(a) == before
    assert b.core
    assert b.core.connections()[0].why == "path translates"
    assert b.sees("move-refused")


def test_a_stranger_at_the_old_address_reaches_nothing() -> None:
    net, a, b, births = scene()
    b.readdress(NEW)
    net.run(1)
    stranger = Host(net, "stranger", OLD)
    before = {f: list(e.received) for f, e in a.ends.items()}
    for birth in births:
        end = a.ends[birth.reversed()]
        for rst in (True, False):
            net.carry(Tcp(birth, end.ack + 1, end.seq, end.ack + 1, rst))
            net.carry(Tcp(birth, end.ack, end.seq, None, rst))
    net.run(1)
    assert {f: list(e.received) for f, e in a.ends.items()} == before
    assert stranger.ends == {}
    for birth in births:
        talk(a, birth.reversed(), b)


def test_the_new_owner_of_the_old_address_with_a_daemon_of_its_own() -> None:
    net, a, b, births = scene()
    b.readdress()
    other = Host(net, "other", OLD)
    introduce(a, other)
    # the same ports as bob's first connection had
    net.run(1)
    assert other.core
    claim_ids = [e.conn_id for e in b.kernel.values()]
    net.run(5)
    before = entries(a)
    if next(iter(other.core.world.peers.values())).session:
        claim(net, other, a, claim_ids, OLD, ports=[40000, 40001], whole=False)
    assert entries(a) == before
    b.readdress(NEW)
    net.run(3)
    for birth in births:
        talk(a, birth.reversed(), b)


def test_a_guessed_nonce_does_not_prove_an_address() -> None:
    """A trusted peer claims a victim's address and answers a challenge that it never got."""
    net, a, b, births = scene()
    Host(net, "victim", "192.0.2.99")
    before = {e.conn_id: e.wire_out for e in a.kernel.values()}
    ids = list(before)
    claim(net, b, a, ids, OLD, ports=[40000, 40001], whole=True, new="192.0.2.99")
    assert a.core
    assert b.core
    (peer,) = b.core.world.peers.values()
    (change,) = next(iter(a.core.world.peers.values())).theirs.values()
    for nonce in (bytes(16), b"\xff" * 16, change.nonce[:15] + b"\0"):
        reply = encode_frame(0, ChallengeReply(change.number, nonce))
        sender = Endpoint(ip_address("192.0.2.99"), PORT)
        target = Endpoint(next(iter(a.addresses)), PORT)
        net.carry(Udp(sender, target, peer.session.seal(reply)))
        # the right nonce from another address is no better
        right = encode_frame(0, ChallengeReply(change.number, change.nonce))
        net.carry(Udp(Endpoint(ip_address(OLD), PORT), target, peer.session.seal(right)))
        net.run(0.1)
    assert {e.conn_id: e.wire_out for e in a.kernel.values()} == before
    talk(a, births[0].reversed(), b)
