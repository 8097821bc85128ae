"""Connections of others are claimed: an address never gives ownership."""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from ipaddress import ip_address

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
    Have,
    HaveAnswer,
    ListWanted,
    MoveDone,
    Offer,
    Proof,
    Purpose,
    Refusal,
    Reject,
    Told,
)
from appliance.protocol.x25519 import X25519Contact
from appliance.rewrite.flow import Endpoint, Flow
from tests.lab.host import Host
from tests.lab.streams import open_stream

from .street import Kept, Street, bound_as, streets
from .wicked import Wicked

hosts = streets("host 4", "host 6")
gateways = streets("gateway 4", "gateway 6")


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


def befriended(host: Host, street: Street) -> contextlib.closing[Wicked]:
    """A peer of bob's on ``host``."""
    wicked = Wicked(host, street.other, version=street.version, victim_addr=street.bob_at)
    wicked.befriend()
    return contextlib.closing(wicked)


def foreign_claim(street: Street, wicked: Wicked) -> None:
    """The operator is told who it was."""
    alerts = street.other.events("foreign-claim")
    assert any(a["peer_id"] == wicked.peer_id and a["level"] == "alert" for a in alerts)
    warnings = street.other.ctl("status")["warnings"]
    assert any(w["kind"] == "foreign-claim" for w in warnings)


@hosts
def test_a_trusted_peer_claims_a_neighbours_connection(street: Street, mallory: Host) -> None:
    kept = street.connect()
    with befriended(mallory, street) as wicked:
        before = kept.picture()
        claim_everything(wicked, kept, street.at, mallory.address(street.version))
        assert kept.picture() == before
        foreign_claim(street, wicked)
    kept.wait_at(street.readdress())
    kept.finish()


@hosts
@pytest.mark.parametrize("when", ["while nobody knows", "after the move"])
def test_the_new_owner_of_the_old_address_claims_what_was_bound_there(
    street: Street, when: str
) -> None:
    kept = street.connect()
    old = street.at
    if when == "after the move":
        kept.wait_at(street.readdress())
    else:
        street.leave()
    with street.heir(old) as heir, befriended(heir, street) as wicked:
        before = kept.picture()
        claim_everything(wicked, kept, old, old)
        assert kept.picture() == before
        foreign_claim(street, wicked)
    if when == "while nobody knows":
        kept.wait_at(street.arrive())
    kept.finish()


@hosts
@pytest.mark.parametrize("opener", ["near", "far"])
def test_a_trusted_peer_can_not_keep_a_neighbours_connection_from_being_bound(
    street: Street, mallory: Host, opener: str
) -> None:
    """It offers the connection as its own, again and again, before the right peer can."""
    near, far = street.scene.traffic if opener == "near" else street.scene.traffic[::-1]
    here, there = near.host.address(street.version), far.host.address(street.version)
    listening, port = far.listen(), 42000 + len(opener)
    flow = Flow(Endpoint(ip_address(here), port), Endpoint(ip_address(there), listening))
    stop = threading.Event()
    with befriended(mallory, street) as wicked:
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


@gateways
def test_a_trusted_peer_behind_the_same_nat_claims_its_neighbours_connection(
    street: Street,
) -> None:
    kept = street.connect()
    desktop = street.lab.hosts["desktop"]
    with befriended(desktop, street) as wicked:
        endpoint = street.other.ctl("peers")
        seen = next(p for p in endpoint if p["peer_id"] == wicked.peer_id)
        assert seen["addresses"][0] == street.at, "it shows the address of the neighbour"
        before = kept.picture()
        claim_everything(wicked, kept, street.at, street.at)
        assert kept.picture() == before
        foreign_claim(street, wicked)
    kept.wait_at(street.readdress())
    kept.finish()


@gateways
def test_a_second_id_at_the_address_of_a_bound_one_is_an_alert(street: Street) -> None:
    """First contact from behind the same NAT address: nothing is trusted, and it is told."""
    kept = street.connect()
    desktop = street.lab.hosts["desktop"]
    wicked = Wicked(desktop, contact=X25519Contact(), version=street.version)
    with contextlib.closing(wicked):
        before = kept.picture()
        wicked.opened(Flow(Endpoint(wicked.addr, 5555), kept.birth.local))
        assert wicked.pump(lambda: wicked.core.world.peers), "no first contact"
        (peer,) = wicked.core.world.peers.values()
        alert = street.other.wait_until("the alert", lambda d: d.events("second-id"))[0]
        assert alert["level"] == "alert"
        assert street.at in alert["text"]
        assert "home" in alert["text"]
        (row,) = [p for p in street.other.ctl("peers") if p["peer_id"] == peer.peer_id]
        assert row["state"] == "pending"
        assert row["fingerprint"] == peer.record.fingerprint
        # it has keys now, but no session
        wicked.core.links.want_session(peer)
        assert not wicked.pump(lambda: peer.session is not None, 1)
        assert kept.picture() == before
    kept.wait_at(street.readdress())
    kept.finish()
