"""Every attack that the design refuses, with real packets against real daemons.

    alice --- net-a ---+                  +--- net-c --- bob
    heir  ---/         +-- core (eve) ----+        \\---- mallory

alice has connections to bob and changes her address; heir gets the addresses that she
left; eve is the router: she hears everything and sends packets under any source; mallory
is a host near bob.  After each attack the connections must go on, byte for byte, and
the operator must find in the events what happened.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, ip_address
from typing import Any

import dpkt
import pytest

from appliance.protocol.changes import digest
from appliance.protocol.frames import (
    AddressChange,
    Ask,
    Challenge,
    ChallengeReply,
    Closed,
    ClosedAnswer,
    Confirm,
    Fate,
    Frame,
    Have,
    HaveAnswer,
    Kind,
    ListWanted,
    MoveDone,
    MoveRefused,
    Offer,
    Ping,
    Proof,
    Purpose,
    Refusal,
    Reject,
    TargetFault,
    Told,
    parse_frames,
)
from appliance.protocol.keys import ContactKeys
from appliance.protocol.message import (
    K1,
    K3,
    Contact1,
    Contact2,
    Contact3,
    Contact4,
    Hello,
    HelloAck,
    Plain,
    Type,
    Unknown,
    data_head,
    encode,
    parse,
)
from appliance.protocol.x25519 import X25519Contact
from appliance.rewrite.flow import Endpoint, Flow
from tests.lab import topologies as t
from tests.lab.daemon import Daemon
from tests.lab.host import Host
from tests.lab.kernel import LabError
from tests.lab.net import Lab
from tests.lab.streams import Stream, Traffic, open_stream

from .attacker import (
    PORT,
    Datagram,
    Flood,
    Forger,
    Tap,
    TcpPacket,
    Wicked,
    digested,
    read,
    rules,
    waiting,
)
from .scene import SOON, Scene, addresses, scene

RST, SYN, ACK, PSH = dpkt.tcp.TH_RST, dpkt.tcp.TH_SYN, dpkt.tcp.TH_ACK, dpkt.tcp.TH_PUSH
EVE = "203.0.113.66"  # an address that routes to nobody


def port_of(row: dict[str, Any]) -> int:
    """The port of the end that opened the connection."""
    return int(row["birth"][0 if row["local"] else 1].rpartition(":")[2])


class Street:
    """A scene with attackers in it, and connections that must survive them."""

    def __init__(self, made: Scene) -> None:
        self.scene = made
        self.lab = made.lab
        self.alice, self.bob = made.mover, made.far
        self.one, self.other = made.daemons
        self.fresh = addresses(made.version)
        self.eve = Forger(self.lab)

    @property
    def at(self) -> str:
        """alice's address now."""
        return self.scene.at["mover"].partition("/")[0]

    def connect(self, **how: Any) -> Kept:
        """A new connection, bound at both ends."""
        stream = self.scene.open(**how)
        near = stream.report("near")
        ends = sorted((near.local[1], near.remote[1]))

        def bound(daemon: Daemon) -> dict[str, Any] | None:
            for row in daemon.bound():
                ports = sorted(int(e.rpartition(":")[2]) for e in row["birth"])
                if ports == ends:
                    return row
            return None

        rows = [d.wait_until("the connection is bound", bound) for d in self.scene.daemons]
        return Kept(self, stream, rows[0]["conn_id"], Flow.parse(" ".join(rows[1]["birth"])))

    def readdress(self, new: str | None = None) -> str:
        """alice gets another address; which one."""
        cidr = new or next(self.fresh)
        self.scene.move(cidr)
        return cidr.partition("/")[0]

    @contextlib.contextmanager
    def silenced(self) -> Iterator[None]:
        """The router passes no UDP on (what eve sends is her own)."""
        self.lab.block_udp()
        try:
            yield
        finally:
            self.lab.block_udp(False)

    def forge(self, packet: Datagram, source: str, data: bytes | None = None) -> None:
        """A datagram once more, from ``source``, perhaps with other contents."""
        text = packet.data if data is None else data
        self.eve.datagram(Datagram(Endpoint(ip_address(source), PORT), packet.target, text))

    @contextlib.contextmanager
    def heir(self, cidr: str) -> Iterator[Host]:
        """Somebody else has this address now."""
        heir = self.lab.hosts.get("heir") or self.lab.host("heir", self.lab.networks["net-a"])
        heir.add_address(cidr)
        try:
            yield heir
        finally:
            heir.del_address(cidr)


@dataclass
class Kept:
    """One protected connection."""

    street: Street
    stream: Stream
    conn_id: str
    birth: Flow  # as bob sees it

    def row(self, daemon: Daemon) -> dict[str, Any]:
        return next(r for r in daemon.bound() if r["conn_id"] == self.conn_id)

    def wire(self) -> str | None:
        """Where bob sends to (an address), None while it holds."""
        wire = self.row(self.street.other)["wire"]
        return None if wire is None else wire[1].rpartition(":")[0]

    def wait_at(self, address: str, timeout: float = 20) -> None:
        """Until both ends agree that alice's end is there."""

        def there(daemon: Daemon) -> bool:
            wire = self.row(daemon)["wire"] or ("", "")
            return address in (end.rpartition(":")[0] for end in wire)

        for daemon, other in itertools.permutations(self.street.scene.daemons):
            try:
                daemon.wait_until(f"the connection is at {address}", there, timeout)
            except LabError as error:
                raise LabError(f"{error}\n{other.describe()}") from None

    def picture(self) -> list[Any]:
        """Where bob's side of it stands: bound to whom, where to, and the kernel's rules."""
        street = self.street
        digested(street.other)
        row = self.row(street.other)
        shown = [row[k] for k in ("peer_id", "birth", "wire", "state", "moves")]
        return [*shown, rules(street.bob, self.birth.remote.port)]

    def flows(self, records: int = 20) -> None:
        self.stream.wait(records)

    def finish(self) -> None:
        """Still alive, and every byte came through once."""
        if self.stream.mode != "idle":
            self.flows()
        self.stream.finish().check()
        self.street.scene.streams.remove(self.stream)


@pytest.fixture(scope="module")
def street() -> Iterator[Street]:
    with Lab() as lab:
        made = Street(scene(lab))
        yield made
        made.eve.close()


# -- what was said is changed, or said again


def test_a_forged_altered_or_truncated_change_does_nothing(street: Street) -> None:
    kept = street.connect()
    old = street.at
    with Tap(street.alice) as tap, street.silenced():
        new = street.readdress()
        change = tap.wait_change(new)
        before, (_, lost) = kept.picture(), waiting(street.bob)
        data = change.data
        forged = [data[:at] for at in range(len(data))] + [data + b"\0"]
        for at in range(len(data)):
            forged.append(data[:at] + bytes((data[at] ^ (1 << at % 8),)) + data[at + 1 :])
        sources = itertools.cycle((new, new, old, EVE))
        for number, (text, source) in enumerate(zip(forged, sources, strict=False)):
            street.forge(change, source, text)
            if number % 32 == 31:  # no more than its socket holds
                read(street.other)
        digested(street.other)
        assert waiting(street.bob) == (0, lost), "bob has not read all of it"
        assert kept.picture() == before
        # untouched it is good: packets from there are let in, but nothing is sent there yet
        street.eve.datagram(change)
        assert kept.picture() != before
        assert kept.wire() == old
    kept.wait_at(new)
    kept.finish()
    assert street.other.events("forged")


def test_a_replayed_move_does_nothing(street: Street) -> None:
    """All that was said during a move, to both, in either order, from anywhere."""
    kept = street.connect()
    with Tap(street.alice) as tap:
        old, new = street.at, street.readdress()
        kept.wait_at(new)
        kept.flows()
        said = tap.datagrams()
    assert any(d.says(Kind.ADDRESS_CHANGE) for d in said)
    assert any(d.says(Kind.CHALLENGE) for d in said)
    assert any(d.says(Kind.CHALLENGE_REPLY) for d in said)
    port = kept.birth.remote.port
    before, mine = kept.picture(), rules(street.alice, port)
    for packets in (said, said[::-1], said):
        for packet in packets:
            for source in (str(packet.source.addr), old, EVE):
                street.forge(packet, source)
    digested(street.one)
    assert kept.picture() == before
    assert rules(street.alice, port) == mine
    kept.finish()


def test_a_change_that_comes_from_elsewhere_does_not_stop_the_true_one(street: Street) -> None:
    """Somebody is quicker than the mover: says it from his address, and hands the answer on."""
    kept = street.connect()
    with Tap(street.alice) as tap, Tap(street.bob) as far:
        with street.silenced():
            new = street.readdress()
            change = tap.wait_change(new)
            street.forge(change, EVE)
            refused = far.wait(lambda p: isinstance(p, Datagram) and p.says(Kind.MOVE_REFUSED))
            assert isinstance(refused, Datagram)
            assert str(refused.target.addr) == EVE
            street.eve.datagram(Datagram(refused.source, change.source, refused.data))
            digested(street.one)
        kept.wait_at(new, timeout=8)
    kept.finish()
    assert "path translates" in street.other.events("target-refused")[0]["text"]


def test_changes_that_overtake_each_other(street: Street) -> None:
    """The older one comes last, and never came before: so its counter is new."""
    kept = street.connect()
    with Tap(street.alice) as tap:
        with street.silenced():
            first = street.readdress()
            late = tap.wait_change(first)
            second = street.readdress()
            tap.wait_change(second)
        kept.wait_at(second)
        before = kept.picture()
        street.eve.datagram(late)
        street.forge(late, second)
        assert kept.picture() == before
    kept.finish()


def test_what_belongs_to_another_session_does_nothing(street: Street) -> None:
    """A change that bob never got, when the keys it was said under are gone; and the
    exchange that made those keys."""
    kept = street.connect()
    with Tap(street.alice) as tap:
        with street.silenced():
            first = street.readdress()
            late = tap.wait_change(first)
            street.one.stop()
        street.one.start()
        kept.wait_at(first)
        with street.silenced():
            second = street.readdress()
            tap.wait_change(second)
            street.one.stop()
        street.one.start()
        kept.wait_at(second)
        kept.flows()
        said = tap.datagrams()
    before = kept.picture()
    street.eve.datagram(late)
    exchange = [d for d in said if d.type in (Type.K1, Type.K2, Type.K3)]
    assert {d.type for d in exchange} == {Type.K1, Type.K2, Type.K3}
    for packet in [*said, *exchange, *exchange]:
        street.eve.datagram(packet)
        street.forge(packet, EVE)
    digested(street.one)
    assert kept.picture() == before
    third = street.readdress()
    kept.wait_at(third, timeout=8)
    kept.finish()


@pytest.mark.parametrize("heard", ["by both", "by the attacker alone", "never, nor the next one"])
def test_the_papers_replay_by_who_got_the_address_from_dhcp(street: Street, heard: str) -> None:
    """alice gets B', says so, and gets B''; then B' is given to somebody who heard it all."""
    kept = street.connect()
    with contextlib.ExitStack() as stack:
        tap = stack.enter_context(Tap(street.alice))
        silence = stack.enter_context(contextlib.ExitStack())
        if heard != "by both":
            silence.enter_context(street.silenced())
        middle = street.readdress()
        change = tap.wait_change(middle)
        if heard == "by both":
            kept.wait_at(middle)
            kept.flows()
        last = street.readdress()
        tap.wait_change(last)
        if heard != "never, nor the next one":
            silence.close()
            kept.wait_at(last)
            kept.flows()
        said = [d for d in tap.datagrams() if str(d.source.addr) == middle]
        heir = stack.enter_context(street.heir(f"{middle}/24"))
        with Tap(heir) as stolen, heir.entered(), socket.socket(type=socket.SOCK_DGRAM) as sock:
            sock.bind((middle, PORT))
            sock.settimeout(0.2)
            wire = kept.wire()
            for packet in [change, *said, *said]:
                # while the router is silent, eve carries it there and back
                street.eve.datagram(packet)
                if not silence_is_kept(heard):
                    sock.sendto(packet.data, (str(packet.target.addr), PORT))
            digested(street.other)
            assert kept.wire() == wire
            silence.close()
            kept.wait_at(last)
            kept.flows(50)
            digested(street.other)
            assert [p for p in stolen.tcp() if str(p.target.addr) == middle] == []
    kept.finish()


def silence_is_kept(heard: str) -> bool:
    return heard == "never, nor the next one"


# -- a stranger at the old address


def test_who_gets_the_old_address_reaches_nothing_and_breaks_nothing(street: Street) -> None:
    """A real system lives there now; and what it could send is sent, with right numbers."""
    kept, idle = street.connect(), street.connect(mode="idle")
    with Tap(street.bob) as tap:
        old, new = street.at, street.readdress()
        kept.wait_at(new)
        with street.heir(f"{old}/24") as heir:
            for conn in (kept, idle):
                before = conn.picture()
                shoot(street, tap, conn, old, new)
                assert conn.picture() == before
            mark = tap.mark()
            with heir.entered(), socket.socket() as sock:
                # a connection of its own, from the very port, to the very port
                sock.bind((old, kept.birth.remote.port))
                sock.settimeout(0.5)
                with pytest.raises(TimeoutError):
                    sock.connect((str(kept.birth.local.addr), kept.birth.local.port))
            kept.flows()
            answered = [p for p in tap.tcp(mark) if str(p.target.addr) == old]
            assert answered == [], "a packet of the old address was answered"
    idle.stream.say(3)
    idle.stream.say(3, "far")
    idle.stream.wait_for(3)
    kept.finish()
    idle.finish()


def shoot(street: Street, tap: Tap, conn: Kept, source: str, where: str) -> None:
    """RST, SYN and data for a connection, from ``source``; the numbers are right when any
    packet of it was seen at ``where``."""
    near, far = conn.birth.remote, conn.birth.local
    here = Endpoint(ip_address(source), near.port)
    seqs = [(p.seq + p.length, p.ack) for p in tap.tcp() if p.source.port == near.port]
    seq, ack = seqs[-1] if seqs else (1, 1)
    for off in (0, 1, 1000, 1 << 30):
        street.eve.segment(here, far, RST, seq + off)
        street.eve.segment(here, far, RST | ACK, seq + off, ack)
        street.eve.segment(here, far, SYN, seq + off)
        street.eve.segment(here, far, PSH | ACK, seq + off, ack, b"not yours" * 20)
    street.eve.segment(here, far, dpkt.tcp.TH_FIN | ACK, seq, ack)


def test_resets_between_the_loss_of_the_address_and_the_message(street: Street) -> None:
    """The old address is taken at once, and its new owner's system resets what it does not
    know; alice has no address for a while, and can't be asked."""
    kept = street.connect()
    quiet = street.connect(mode="idle")
    with Tap(street.bob) as tap:
        kept.flows()
        old = street.at
        street.alice.del_address(street.scene.at["mover"])
        with street.heir(f"{old}/24"):
            resets = tap.mark()
            # bob goes on sending there, and is answered by a system that knows nothing
            tap.wait(
                lambda p: isinstance(p, TcpPacket) and bool(p.flags & RST)
                and str(p.source.addr) == old,
                resets,
            )  # fmt: skip
            for conn in (kept, quiet):
                shoot_resets(street, tap, conn, old)
            digested(street.other)
            new = next(street.fresh)
            street.alice.add_address(new)
            street.scene.at["mover"] = new
            kept.wait_at(street.at)
            for conn in (kept, quiet):
                shoot_resets(street, tap, conn, old)
            kept.flows()
    quiet.stream.say(3)
    quiet.stream.say(3, "far")
    quiet.stream.wait_for(3)
    alert = street.other.wait_until("the alert", lambda d: d.events("false-reset"))[0]
    assert alert["level"] == "alert"
    assert "alice" in alert["text"]
    kept.finish()
    quiet.finish()


def shoot_resets(street: Street, tap: Tap, conn: Kept, source: str) -> None:
    """RSTs that bob's TCP would believe: the number is the one it waits for (RFC 5961)."""
    near, far = conn.birth.remote, conn.birth.local
    here = Endpoint(ip_address(source), near.port)
    wanted = [p.ack for p in tap.tcp() if p.source.port == far.port and p.target.port == near.port]
    for seq in dict.fromkeys(wanted[-5:]):
        street.eve.segment(here, far, RST, seq)


def claim_everything(wicked: Wicked, kept: Kept, old: str, new: str) -> None:
    """All that a peer can say about connections, about one that is bound to another peer."""
    conn, port = kept.conn_id, kept.birth.remote.port
    here, there = ip_address(new), ip_address(old)
    pairs = ((conn, port),)
    number = itertools.count(int(time.time() * 1000) + 1000)

    def change(purpose: Purpose, whole: bool) -> AddressChange:
        listed = () if whole else pairs
        return AddressChange(
            next(number), purpose, here, there, False, whole, 1, digest(pairs), listed
        )

    for purpose in Purpose:
        wicked.say(change(purpose, whole=True))
        assert isinstance(wicked.hears(ListWanted).frame, ListWanted)
        single = change(purpose, whole=False)
        wicked.say(single)
        challenge = wicked.hears(Challenge).frame
        assert isinstance(challenge, Challenge)
        assert challenge.refused == ((conn, Refusal.UNKNOWN),)
        wicked.say(ChallengeReply(challenge.number, challenge.nonce))
        done = wicked.hears(MoveDone).frame
        assert isinstance(done, MoveDone)
        assert done.refused == ((conn, Refusal.UNKNOWN),)
    flow = kept.birth.reversed()
    for at, offered in enumerate((flow, flow.with_local(here, port))):
        wicked.say(Offer(offered, bytes(16)), number=77 + at)
        assert isinstance(wicked.hears(Reject).frame, Reject)
        wicked.say(Proof(77 + at, (bytes(16),)), number=87 + at)
        wicked.say(Confirm(77 + at, conn), number=97 + at)
    wicked.say(Have(((conn, Endpoint(here, port)),)), number=5)
    assert wicked.hears(HaveAnswer).frame == HaveAnswer((conn,), ())
    wicked.say(Ask(conn), number=6)
    assert wicked.hears(Told).frame == Told(conn, Fate.UNKNOWN)
    wicked.say(Closed((conn,)), number=7)
    wicked.hears(ClosedAnswer)


@pytest.fixture
def mallory(street: Street) -> Host:
    lab = street.lab
    return lab.hosts.get("mallory") or lab.host("mallory", lab.networks["net-c"], "192.0.2.66/24")


def befriended(host: Host, victim: Daemon, **how: Any) -> contextlib.closing[Wicked]:
    wicked = Wicked(host, victim, **how)
    wicked.befriend()
    return contextlib.closing(wicked)


def foreign_claim(street: Street, wicked: Wicked) -> None:
    """The operator is told who it was."""
    alerts = street.other.events("foreign-claim")
    assert any(a["peer_id"] == wicked.peer_id and a["level"] == "alert" for a in alerts)
    warnings = street.other.ctl("status")["warnings"]
    assert any(w["kind"] == "foreign-claim" for w in warnings)


def test_a_trusted_peer_claims_a_neighbours_connection(street: Street, mallory: Host) -> None:
    kept = street.connect()
    with befriended(mallory, street.other) as wicked:
        before = kept.picture()
        claim_everything(wicked, kept, street.at, mallory.address())
        assert kept.picture() == before
        foreign_claim(street, wicked)
    kept.wait_at(street.readdress())
    kept.finish()


@pytest.mark.parametrize("when", ["while nobody knows", "after the move"])
def test_the_new_owner_of_the_old_address_claims_what_was_bound_there(
    street: Street, when: str
) -> None:
    kept = street.connect()
    old = street.at
    if when == "after the move":
        kept.wait_at(street.readdress())
    else:
        street.alice.del_address(street.scene.at["mover"])
    with street.heir(f"{old}/24") as heir, befriended(heir, street.other) as wicked:
        before = kept.picture()
        claim_everything(wicked, kept, old, old)
        assert kept.picture() == before
        foreign_claim(street, wicked)
    if when == "while nobody knows":
        street.scene.at["mover"] = next(street.fresh)
        street.alice.add_address(street.scene.at["mover"])
        kept.wait_at(street.at)
    kept.finish()


@pytest.mark.parametrize("opener", ["near", "far"])
def test_a_trusted_peer_can_not_keep_a_neighbours_connection_from_being_bound(
    street: Street, mallory: Host, opener: str
) -> None:
    """It offers the connection as its own, again and again, before the right peer can."""
    near, far = street.scene.traffic if opener == "near" else street.scene.traffic[::-1]
    here, there = near.host.address(), far.host.address()
    listening, port = far.listen(), 42000 + len(opener)
    flow = Flow(Endpoint(ip_address(here), port), Endpoint(ip_address(there), listening))
    stop = threading.Event()
    with befriended(mallory, street.other) as wicked:
        offered = flow if opener == "near" else flow.reversed()

        def offer() -> None:
            for number in itertools.count(1000):
                wicked.say(Offer(offered, number.to_bytes(16, "big")), number=number)
                if stop.wait(0.02):
                    return

        thread = threading.Thread(target=offer)
        thread.start()
        try:
            stream = open_stream(near, far, there, port=listening, source=(here, port))
            for daemon in street.scene.daemons:
                daemon.wait_until("the connection is bound", lambda d: bound_as(d, flow))
        finally:
            stop.set()
            thread.join()
        row = bound_as(street.other, flow)
        assert row is not None
        assert row["peer_name"] == "alice"
    stream.wait(20)
    stream.finish().check()


def bound_as(daemon: Daemon, flow: Flow) -> dict[str, Any] | None:
    names = {str(end) for end in flow}
    return next((row for row in daemon.bound() if set(row["birth"]) == names), None)


# -- a house: LAN hosts behind a gateway, and who lives there


@pytest.fixture(scope="module")
def house() -> Iterator[Street]:
    """laptop and desktop behind home (alice's part), server far away (bob's part)."""
    with Lab() as lab:
        made = Street(scene(lab, "gateway"))
        yield made
        made.eve.close()


def test_a_trusted_peer_behind_the_same_nat_claims_its_neighbours_connection(
    house: Street,
) -> None:
    kept = house.connect()
    desktop = house.lab.hosts["desktop"]
    with befriended(desktop, house.other) as wicked:
        endpoint = house.other.ctl("peers")
        seen = next(p for p in endpoint if p["peer_id"] == wicked.peer_id)
        assert seen["addresses"][0] == house.at, "it shows the address of the neighbour"
        before = kept.picture()
        claim_everything(wicked, kept, house.at, house.at)
        assert kept.picture() == before
        foreign_claim(house, wicked)
    kept.wait_at(house.readdress())
    kept.finish()


def test_a_second_id_at_the_address_of_a_bound_one_is_an_alert(house: Street) -> None:
    """First contact from behind the same NAT address: nothing is trusted, and it is told."""
    kept = house.connect()
    desktop = house.lab.hosts["desktop"]
    wicked = Wicked(desktop, contact=X25519Contact())
    with contextlib.closing(wicked):
        before = kept.picture()
        wicked.opened(Flow.parse(f"192.168.7.21:5555 {kept.birth.local}"))
        assert wicked.pump(lambda: wicked.core.world.peers), "no first contact"
        (peer,) = wicked.core.world.peers.values()
        alert = house.other.wait_until("the alert", lambda d: d.events("second-id"))[0]
        assert alert["level"] == "alert"
        assert house.at in alert["text"]
        assert "home" in alert["text"]
        (row,) = [p for p in house.other.ctl("peers") if p["peer_id"] == peer.peer_id]
        assert row["state"] == "pending"
        assert row["fingerprint"] == peer.record.fingerprint
        # it has keys now, but no session
        wicked.core.links.want_session(peer)
        assert not wicked.pump(lambda: peer.session is not None, 1)
        assert kept.picture() == before
    kept.wait_at(house.readdress())
    kept.finish()


@pytest.fixture(scope="module")
def lodger(house: Street) -> Iterator[tuple[Wicked, Stream, str]]:
    """A wicked server: a LAN host has a connection with it, bound in all honesty."""
    host = house.lab.host("mallory", house.lab.networks["net-c"], "192.0.2.66/24")
    wicked = Wicked(host, house.one)
    wicked.befriend()
    far = Traffic(host)
    # the same ports as a connection with the honest server
    port = house.scene.traffic[1].listen(6000)
    stream = open_stream(
        house.scene.traffic[0], far, host.address(), port=port, down=False,
        source=("192.168.7.20", 40000),
    )  # fmt: skip
    birth = Flow.parse(f"192.0.2.66:{port} {house.at}:40000")
    conn_id = wicked.bind(birth)
    yield wicked, stream, conn_id
    stream.wait(20)
    stream.finish().check()
    wicked.close()


def demand(wicked: Wicked, conn: str, new: str, port: int, old: str) -> list[AddressChange]:
    """Take my connection to ``new``: by its name, and as all that are mine."""
    pairs = ((conn, port),)
    number = int(time.time() * 1000) + 1000
    here, there = ip_address(new), ip_address(old)
    return [
        AddressChange(
            number + whole, Purpose.MOVE, here, there, False, bool(whole), 1, digest(pairs),
            () if whole else pairs,
        )
        for whole in (0, 1)
    ]  # fmt: skip


LAN = ("192.168.7.21", "192.168.7.1", "192.168.7.255")


@pytest.mark.parametrize(
    "target",
    [*LAN, "own", "127.0.0.1", "198.51.100.255", "255.255.255.255", "224.0.0.5", "0.0.0.0",
     "169.254.7.7", "240.1.2.3"],
)  # fmt: skip
def test_a_move_to_an_address_that_could_do_harm_is_refused(
    house: Street, lodger: tuple[Wicked, Stream, str], target: str
) -> None:
    """Said from the true address, and from the one that is demanded."""
    wicked, stream, conn = lodger
    where = house.at if target == "own" else target
    gateway = Endpoint(ip_address(house.at), PORT)
    before = rules(house.alice, 40000)
    wire = bound_row(house.one, conn)["wire"]
    for frame in demand(wicked, conn, where, 6000, "192.0.2.66"):
        wicked.say(frame, to=house.at)
        refused = wicked.hears(MoveRefused).frame
        assert refused == MoveRefused(frame.number, TargetFault.PATH_TRANSLATES)
    for frame in demand(wicked, conn, where, 6000, "192.0.2.66"):
        source = Endpoint(ip_address(where), PORT)
        house.eve.datagram(Datagram(source, gateway, wicked.seal(frame)))
    digested(house.one)
    assert rules(house.alice, 40000) == before
    assert bound_row(house.one, conn)["wire"] == wire
    stream.wait(5)
    assert house.one.events("target-refused")


def bound_row(daemon: Daemon, conn_id: str) -> dict[str, Any]:
    return next(row for row in daemon.bound() if row["conn_id"] == conn_id)


def test_a_move_onto_a_living_wire_tuple_is_refused(
    house: Street, lodger: tuple[Wicked, Stream, str]
) -> None:
    """The wicked server would like to be taken for the honest one."""
    wicked, stream, conn = lodger
    near, far = Traffic(house.lab.hosts["desktop"]), house.scene.traffic[1]
    server = far.host.address()
    honest = open_stream(near, far, server, port=6000, source=("192.168.7.21", 40000))
    flow = Flow.parse(f"{house.at}:40000 {server}:6000")
    for daemon in house.scene.daemons:
        daemon.wait_until("the honest one is bound", lambda d: bound_as(d, flow))
        digested(daemon)
    before = rules(house.alice, 40000)
    gateway = Endpoint(ip_address(house.at), PORT)
    with Tap(house.alice) as tap:
        named, whole = demand(wicked, conn, server, 6000, "192.0.2.66")
        for frame in (named, whole):
            source = Endpoint(ip_address(server), PORT)
            house.eve.datagram(Datagram(source, gateway, wicked.seal(frame)))
            answer = tap.wait_challenge(frame.number)
            (_, challenge), *_ = parse_frames(answer.data[16:-16])
            assert isinstance(challenge, Challenge)
            assert challenge.refused == ((conn, Refusal.TUPLE_IN_USE),)
            # even if it heard the challenge
            reply = wicked.seal(ChallengeReply(frame.number, challenge.nonce))
            house.eve.datagram(Datagram(source, gateway, reply))
    digested(house.one)
    assert rules(house.alice, 40000) == before
    honest.wait(20)
    stream.wait(20)
    honest.finish().check()


def test_a_victims_address_as_target_is_not_flooded(
    house: Street, lodger: tuple[Wicked, Stream, str]
) -> None:
    """Thousands of packets of a true session under a victim's address."""
    wicked, stream, conn = lodger
    lab = house.lab
    victim = lab.host("victim", lab.networks["net-b"], "203.0.113.99/24")
    source = Endpoint(ip_address(victim.address()), PORT)
    gateway = Endpoint(ip_address(house.at), PORT)
    sent = count = 0
    with Tap(victim) as tap:
        began = time.monotonic()
        while (took := time.monotonic() - began) < 3:
            frames: tuple[Frame, ...] = (
                *demand(wicked, conn, str(source.addr), 6000, "192.0.2.66"),
                *demand(wicked, conn, "203.0.113.98", 6000, "192.0.2.66"),
                Ping(), Ask(conn), Closed((bytes(16).hex(),)), Have(((conn, source),)),
                Offer(Flow(source, gateway), bytes(16)),
            )  # fmt: skip
            for frame in frames:
                data = wicked.seal(frame, number=count % 1000 + 1)
                house.eve.datagram(Datagram(source, gateway, data))
                sent += len(data)
                count += 1
            time.sleep(0.01)  # the rate of the attack
        digested(house.one)
        got = tap.datagrams()
        assert count > 500
        assert sum(len(d.data) for d in got) < sent
        assert len(got) <= 100 * took + 200, f"{len(got)} packets for {count}"
        assert tap.tcp() == []
    assert bound_row(house.one, conn)["wire"][1].startswith("192.0.2.66:")
    stream.wait(20)


def test_a_trusted_peer_that_moves_without_end_keeps_nobody_from_moving(
    house: Street, lodger: tuple[Wicked, Stream, str]
) -> None:
    """Right in form, each another port: every one of them changes rules and disk."""
    wicked, _, conn = lodger
    kept = house.connect()
    engine = house.one
    memory, cpu = engine.memory()["engine"][0], engine.cpu_seconds()
    changes = 0
    began = time.monotonic()
    moved = threading.Event()

    def honest() -> None:
        house.scene.move("192.0.2.50/24", who="far")
        kept.wait_at("192.0.2.50", timeout=15)
        moved.set()

    thread = threading.Thread(target=honest)
    while changes < 2000 or not moved.is_set():
        assert time.monotonic() - began < 30, "the honest server did not move"
        named, _ = demand(wicked, conn, "192.0.2.66", 6000 + changes % 5, "192.0.2.66")
        wicked.say(replace(named, number=named.number + changes), to=house.at)
        changes += 1
        if changes == 200:
            thread.start()
        time.sleep(0.0005)  # the rate of the attack
    thread.join()
    digested(engine)
    grown = engine.memory()["engine"][0] - memory
    spent = engine.cpu_seconds() - cpu
    print(f"{changes} changes, {spent:.2f} s of CPU, {grown:.1f} MB")
    assert grown < 16
    kept.finish()


# -- who is not known


def unacquainted(lab: Lab, one: str, other: str) -> tuple[t.TwoHosts, Daemon, Daemon, Stream]:
    """Two daemons that never heard of each other, by their policies, and a connection."""
    two = t.two_hosts(lab)
    alice = lab.daemon(two.alice, long_lived_after=SOON, first_contact=one)
    bob = lab.daemon(two.bob, long_lived_after=SOON, first_contact=other)
    stream = open_stream(Traffic(two.alice), Traffic(two.bob), two.bob.address())
    return two, alice, bob, stream


def only_peer(daemon: Daemon) -> dict[str, Any]:
    (row,) = daemon.wait_until("a peer is known", lambda d: d.ctl("peers"))
    assert isinstance(row, dict)
    return row


def move_and_end(two: t.TwoHosts, daemons: tuple[Daemon, Daemon], stream: Stream) -> None:
    two.alice.replace_address(t.A[0], t.A2[0], first="del")
    for daemon in daemons:
        daemon.wait_moved(1)
    stream.wait(20)
    stream.finish().check()


def test_tofu_takes_whom_it_meets_first(lab: Lab) -> None:
    two, alice, bob, stream = unacquainted(lab, "tofu", "tofu")
    for daemon in (alice, bob):
        daemon.wait_bound()
    rows = [only_peer(daemon) for daemon in (alice, bob)]
    assert [row["state"] for row in rows] == ["trusted", "trusted"]
    assert rows[0]["fingerprint"] == rows[1]["fingerprint"]
    assert len(rows[0]["fingerprint"].split()) == 8
    for daemon, row in zip((alice, bob), rows, strict=True):
        (event,) = daemon.events("first-contact")
        assert row["fingerprint"] in event["text"]
    move_and_end(two, (alice, bob), stream)


def test_ask_waits_for_both_operators(lab: Lab) -> None:
    two, alice, bob, stream = unacquainted(lab, "ask", "ask")
    rows = [only_peer(daemon) for daemon in (alice, bob)]
    assert [row["state"] for row in rows] == ["pending", "pending"]
    assert rows[0]["fingerprint"] == rows[1]["fingerprint"]
    for daemon, row in zip((alice, bob), rows, strict=True):
        assert [w["kind"] for w in daemon.ctl("status")["warnings"]] == ["pending"]
        shown = json.loads(daemon.redirectctl("--json", "show", "peers").stdout)
        assert shown[0]["fingerprint"] == row["fingerprint"]
    with Tap(two.bob) as tap:
        alice.ctl("peer.accept", peer=rows[0]["peer_id"])
        # alice asks, bob's operator has not said yes: so nobody answers
        tap.wait(lambda p: isinstance(p, Datagram) and p.type == Type.K1)
        digested(bob)
        assert [d for d in tap.datagrams() if d.type in (Type.K2, Type.DATA)] == []
    assert alice.bound() == bob.bound() == []
    bob.ctl("peer.verify", peer=rows[1]["peer_id"])
    for daemon in (alice, bob):
        daemon.wait_bound()
    assert only_peer(bob)["state"] == "verified"
    move_and_end(two, (alice, bob), stream)


def test_strict_answers_no_stranger_with_a_single_byte(lab: Lab) -> None:
    two, _, bob, stream = unacquainted(lab, "tofu", "strict")
    wicked = Wicked(two.alice, contact=X25519Contact(), listen=4788)
    eve = Forger(lab)
    with contextlib.closing(wicked), contextlib.closing(eve), Tap(two.bob) as tap:
        target = Endpoint(ip_address(two.bob.address()), PORT)
        near = stream.report("near")
        wicked.opened(Flow.parse(f"{near.local[0]}:{near.local[1]} {target.addr}:{near.remote[1]}"))
        tap.wait(lambda p: isinstance(p, Datagram) and p.type == Type.HELLO)
        mac, nonce, key = bytes(16), os.urandom(16), os.urandom(32)
        for message in (
            Contact1(nonce, mac, key), Contact3(nonce, key), K3(7, mac),
            K1(bytes(8), nonce, 7, mac, mac, mac, mac),
            Unknown(7, mac), HelloAck(nonce, mac), Contact2(nonce, key, key),
        ):  # fmt: skip
            source = Endpoint(ip_address(two.alice.address()), PORT)
            eve.datagram(Datagram(source, target, encode(message)))
        eve.datagram(Datagram(source, target, data_head(7, 0) + mac))
        digested(bob)
        # of a session that it does not know it may say that it knows none (not answered
        # itself, and never longer)
        answers = [d for d in tap.datagrams() if d.source == target and d.type != Type.UNKNOWN]
        assert answers == []
    assert bob.ctl("peers") == []
    (row,) = bob.wait_until("it is long-lived", lambda d: d.connections("long"))
    assert row["why"] == "unknown host, and the policy is not to ask"
    stream.wait(20)
    stream.finish().check()


# -- floods


def flood_of(street: Street, tap: Tap, kept: Kept) -> list[Datagram]:
    """Datagrams of every kind that a stranger or an eavesdropper can send."""
    target = Endpoint(ip_address(street.bob.address()), PORT)
    chance = random.Random(1)
    seen = tap.datagrams()
    k1 = next(d for d in seen if d.type == Type.K1)
    data = next(d for d in reversed(seen) if d.type == Type.DATA and d.target == target)
    made = []
    for n in range(20_000):
        junk = chance.randbytes(32)
        source = Endpoint(IPv4Address(chance.randrange(1 << 24, 223 << 24)), PORT)
        if n % 4 == 0:  # hosts with which bob has connections, so that it looks twice
            source = Endpoint(ip_address(street.at), PORT)
        text = (
            encode(Hello(junk[:16])),
            encode(Contact1(junk[:16], junk[16:], junk)),
            encode(K1(junk[:8], junk[:16], 7, junk[:16], junk[:16], junk[:16], junk[:16])),
            k1.data,  # a true one, again and again
            data.data[:16] + junk + data.data[48:],  # a true session, a wrong MAC
            data.data,
            junk,
        )[n % 7]
        made.append(Datagram(source, target, text))
    return made


def test_a_flood_costs_little_and_keeps_nobody_from_moving(street: Street, mallory: Host) -> None:
    with Tap(street.alice) as tap:
        kept = street.connect()
        street.one.restart()  # so that an exchange of keys is heard
        kept.wait_at(street.readdress())
        datagrams = flood_of(street, tap, kept)
    engine = street.other
    memory, cpu = engine.memory()["engine"][0], engine.cpu_seconds()
    with Flood(mallory, street.bob, datagrams, 5000) as flood:
        took: list[float] = []
        while flood.sent < len(datagrams) or len(took) < 2:
            began = time.monotonic()
            kept.wait_at(street.readdress(), timeout=15)
            took.append(time.monotonic() - began)
            kept.flows()
            engine.ctl("status")
        sent = flood.sent
    digested(engine)
    spent = engine.cpu_seconds() - cpu
    grown = engine.memory()["engine"][0] - memory
    lost = waiting(street.bob)[1]
    print(f"{sent} datagrams, {lost} lost; {spent:.2f} s of CPU; {grown:.1f} MB; moves: {took}")
    assert spent / sent < 0.0005
    assert grown < 16
    assert len(engine.events()) < 900
    kept.finish()
    idle = engine.cpu_seconds()
    assert len(engine.ctl("peers")) == len(engine.ctl("peers"))
    assert engine.cpu_seconds() - idle < 1


def test_a_flood_of_first_contacts_is_bounded(lab: Lab) -> None:
    """Twenty addresses with true connections and a new ID each time, as fast as it goes."""
    made = Street(scene(lab, settings=({}, {"limits": {"peers": 30}})))
    kept = made.connect()
    own = [f"192.0.2.{n}" for n in range(100, 120)]
    crowd = lab.host("crowd", lab.networks["net-c"], *(f"{addr}/24" for addr in own))
    far = made.scene.traffic[1].listen()
    engine = made.other
    memory = engine.memory()["engine"][0]
    with contextlib.ExitStack() as stack:
        with crowd.entered():
            sockets = []
            for addr in own:
                tcp = stack.enter_context(socket.create_connection(
                    (made.bob.address(), far), source_address=(addr, 0)
                ))  # fmt: skip
                tcp.setblocking(False)
                sock = stack.enter_context(socket.socket(type=socket.SOCK_DGRAM))
                sock.bind((addr, PORT))
                sock.setblocking(False)
                sockets.append(sock)
        engine.wait_until(
            "they count as long-lived", lambda d: d.ctl("status")["connections"]["long"] == 20
        )
        began = time.monotonic()
        guests = [Guest(sock, made.bob.address()) for sock in sockets]
        while time.monotonic() - began < 4:
            for guest in guests:
                guest.turn()
        moved = time.monotonic()
        kept.wait_at(made.readdress(), timeout=10)
        moved = time.monotonic() - moved
        digested(engine)
        peers = engine.ctl("peers")
        contacts = sum(guest.done for guest in guests)
        grown = engine.memory()["engine"][0] - memory
        print(f"{contacts} contacts, {len(peers)} peers, {grown:.1f} MB, move {moved:.2f} s")
        assert contacts >= 10, "it was no flood"
        assert len(peers) <= 30
        assert {p["name"] for p in peers} > {"alice"}
        assert grown < 16
    kept.finish()


class Guest:
    """First contacts from one address, one after the other, each with a new ID."""

    def __init__(self, sock: socket.socket, target: str) -> None:
        self.sock, self.target = sock, (target, PORT)
        self.contact = X25519Contact()
        self.done = 0
        self.begin()

    def begin(self) -> None:
        self.nonce, self.host_id = os.urandom(16), os.urandom(16)
        self.sent = 0.0

    def say(self, message: Plain) -> None:
        with contextlib.suppress(BlockingIOError):
            self.sock.sendto(encode(message), self.target)

    def turn(self) -> None:
        if time.monotonic() - self.sent > 0.05:
            self.sent = time.monotonic()
            self.say(Hello(self.nonce))
        try:
            message = parse(self.sock.recv(2048))
        except BlockingIOError:
            return
        if isinstance(message, HelloAck) and message.nonce == self.nonce:
            self.secret, self.public = self.contact.generate()
            self.say(Contact1(self.nonce, message.cookie, self.public))
        elif isinstance(message, Contact2) and message.nonce == self.nonce:
            shared = self.contact.shared(self.secret, message.public)
            keys = ContactKeys.of(shared, self.nonce, self.public, message.public)
            sealed = self.contact.seal(keys.seal_first, bytes(12), self.host_id, keys.transcript)
            self.say(Contact3(self.nonce, sealed))
        elif isinstance(message, Contact4) and message.nonce == self.nonce:
            self.done += 1
            self.begin()
