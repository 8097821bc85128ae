"""A peer moves its own connection to where it must not: every target is checked."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from ipaddress import ip_address

import pytest

from appliance.protocol.changes import digest
from appliance.protocol.frames import (
    AddressChange,
    Ask,
    Challenge,
    ChallengeReply,
    Closed,
    Frame,
    Have,
    MoveRefused,
    Offer,
    Ping,
    Purpose,
    Refusal,
    TargetFault,
    parse_frames,
)
from appliance.rewrite.flow import Endpoint, Flow
from tests.lab.host import Host
from tests.lab.streams import Stream, Traffic, open_stream

from .attacker import PORT, Datagram, Tap
from .scene import addresses, ip_of
from .street import Street, bound_as, bound_row, digested, rules, streets
from .wicked import Wicked


@dataclass
class Lodger:
    """A wicked host: it has one connection with alice's side, bound in all honesty."""

    wicked: Wicked
    stream: Stream
    conn_id: str

    def demand(self, new: str, port: int = 6000) -> list[AddressChange]:
        """Take my connection to ``new``: by its name, and as all that are mine."""
        pairs = ((self.conn_id, port),)
        number = int(time.time() * 1000) + 1000
        here = ip_address(new)
        return [
            AddressChange(
                number + whole, Purpose.MOVE, here, self.wicked.addr, False, bool(whole), 1,
                digest(pairs), () if whole else pairs,
            )
            for whole in (0, 1)
        ]  # fmt: skip


@pytest.fixture(scope="module")
def lodger(street: Street, mallory: Host) -> Iterator[Lodger]:
    wicked = Wicked(mallory, street.one, version=street.version, victim_addr=street.at)
    wicked.befriend()
    far = Traffic(mallory)
    here = mallory.address(street.version)
    # the same ports as a connection with bob: 40000 at alice's end, 6000 at the other
    if street.gateway:
        near = street.scene.traffic[0]
        source = (near.host.address(street.version), 40000)
        stream = open_stream(near, far, here, port=6000, down=False, source=source)
    else:
        near = street.scene.traffic[0]
        stream = open_stream(far, near, street.at, port=40000, up=False, source=(here, 6000))
    conn_id = wicked.bind(Flow.of(here, 6000, street.at, 40000))
    yield Lodger(wicked, stream, conn_id)
    stream.wait(20)
    stream.finish().check()
    wicked.close()


def endpoint(addr: str) -> Endpoint:
    return Endpoint(ip_address(addr), PORT)


LAN4 = ("192.168.7.21", "192.168.7.1", "192.168.7.255")
HARM4 = ("own", "127.0.0.1", "198.51.100.255", "255.255.255.255", "224.0.0.5", "0.0.0.0",
         "169.254.7.7", "240.1.2.3")  # fmt: skip
LAN6 = ("2001:db8:a7::21", "2001:db8:a7::1")
# with IPv4 addresses in some of them, which would be reached by a detour
HARM6 = ("own", "::1", "::", "ff02::1", "ff0e::5", "fe80::7", "::ffff:192.168.7.21",
         "2002:c0a8:715::1", "64:ff9b::192.168.7.21", "::192.168.7.21")  # fmt: skip


@pytest.mark.parametrize(
    ("street", "target"),
    [
        *(("gateway 4", target) for target in (*LAN4, *HARM4)),
        *(("gateway 6", target) for target in (*LAN6, *HARM6)),
        *(("host 4", target) for target in HARM4),
        *(("host 6", target) for target in HARM6),
    ],
    indirect=["street"],
    scope="module",
)
def test_a_move_to_an_address_that_could_do_harm_is_refused(
    street: Street, lodger: Lodger, target: str
) -> None:
    """Said from the true address, and from the one that is demanded."""
    wicked = lodger.wicked
    where = street.at if target == "own" else target
    before = rules(street.alice, 40000)
    wire = bound_row(street.one, lodger.conn_id)["wire"]
    for frame in lodger.demand(where):
        wicked.say(frame, to=street.at)
        refused = wicked.hears(MoveRefused).frame
        assert refused == MoveRefused(frame.number, TargetFault.PATH_TRANSLATES)
    for frame in lodger.demand(where):
        packet = Datagram(endpoint(where), endpoint(street.at), wicked.seal(frame))
        # some of these the kernel itself does not let out
        with contextlib.suppress(OSError):
            street.eve.datagram(packet)
    digested(street.one)
    assert rules(street.alice, 40000) == before
    assert bound_row(street.one, lodger.conn_id)["wire"] == wire
    lodger.stream.wait(5)
    assert street.one.events("target-refused")


every = streets("gateway 4", "gateway 6", "host 4", "host 6")


@every
def test_a_move_to_the_other_family_is_refused(street: Street, lodger: Lodger) -> None:
    wicked = lodger.wicked
    other = ip_address("2001:db8:c::66" if street.version == 4 else "192.0.2.66")
    before = rules(street.alice, 40000)
    for frame in lodger.demand(str(other)):
        packet = Datagram(endpoint(str(wicked.addr)), endpoint(street.at), wicked.seal(frame))
        street.eve.datagram(packet)
    digested(street.one)
    assert rules(street.alice, 40000) == before
    lodger.stream.wait(5)


@every
def test_a_move_onto_a_living_wire_tuple_is_refused(street: Street, lodger: Lodger) -> None:
    """The wicked server would like to be taken for the honest one."""
    wicked, conn = lodger.wicked, lodger.conn_id
    one, far = street.scene.traffic
    server = street.bob_at
    if street.gateway:
        near = Traffic(street.lab.hosts["desktop"])
        source = (near.host.address(street.version), 40000)
        honest = open_stream(near, far, server, port=6000, source=source)
    else:
        honest = open_stream(far, one, street.at, port=40000, source=(server, 6000))
    flow = Flow.of(street.at, 40000, server, 6000)
    for daemon in street.scene.daemons:
        daemon.wait_until("the honest one is bound", lambda d: bound_as(d, flow))
        digested(daemon)
    before = rules(street.alice, 40000)
    with Tap(street.alice) as tap:
        for frame in lodger.demand(server):
            ends = (endpoint(server), endpoint(street.at))
            street.eve.datagram(Datagram(*ends, wicked.seal(frame)))
            answer = tap.wait_challenge(frame.number)
            (_, challenge), *_ = parse_frames(answer.data[16:-16])
            assert isinstance(challenge, Challenge)
            assert challenge.refused == ((conn, Refusal.TUPLE_IN_USE),)
            # even if it heard the challenge
            reply = wicked.seal(ChallengeReply(frame.number, challenge.nonce))
            street.eve.datagram(Datagram(*ends, reply))
    digested(street.one)
    assert rules(street.alice, 40000) == before
    honest.wait(20)
    lodger.stream.wait(20)
    honest.finish().check()


@pytest.fixture(scope="module")
def victim(street: Street) -> Host:
    lab = street.lab
    return lab.host("victim", lab.networks["net-b"], "203.0.113.99/24", "2001:db8:b::99/64")


@every
def test_a_victims_address_as_target_is_not_flooded(
    street: Street, lodger: Lodger, victim: Host
) -> None:
    """Thousands of packets of a true session under a victim's address."""
    wicked, conn = lodger.wicked, lodger.conn_id
    source, target = endpoint(victim.address(street.version)), endpoint(street.at)
    flow = Flow(source, target)
    sent = count = 0
    with Tap(victim) as tap:
        began = time.monotonic()
        while (took := time.monotonic() - began) < 3:
            frames: tuple[Frame, ...] = (
                *lodger.demand(str(source.addr)),
                *lodger.demand(street.evil),
                Ping(), Ask(conn), Closed((bytes(16).hex(),)), Have(((conn, source),)),
                Offer(flow, bytes(16)),
            )  # fmt: skip
            for frame in frames:
                data = wicked.seal(frame, number=count % 1000 + 1)
                street.eve.datagram(Datagram(source, target, data))
                sent += len(data)
                count += 1
            time.sleep(0.01)  # the rate of the attack
        digested(street.one)
        got = tap.datagrams()
        assert count > 500
        assert sum(len(d.data) for d in got) < sent
        assert len(got) <= 100 * took + 200, f"{len(got)} packets for {count}"
        assert tap.tcp() == []
    assert ip_of(bound_row(street.one, conn)["wire"][1]) == str(wicked.addr)
    lodger.stream.wait(20)


@streets("gateway 4", "host 6")
def test_a_trusted_peer_that_moves_without_end_keeps_nobody_from_moving(
    street: Street, lodger: Lodger
) -> None:
    """Right in form, each another port: every one of them changes rules and disk."""
    wicked = lodger.wicked
    kept = street.connect()
    engine = street.one
    memory, cpu = engine.memory()["engine"][0], engine.cpu_seconds()
    changes = 0
    began = time.monotonic()
    moved = threading.Event()

    def honest() -> None:
        new = next(fresh)
        street.scene.move(new, who="far")
        kept.wait_at(new.partition("/")[0], timeout=25)
        moved.set()

    fresh = addresses(street.version, "c")
    thread = threading.Thread(target=honest)
    while changes < 2000 or not moved.is_set():
        assert time.monotonic() - began < 60, "the honest server did not move"
        named, _ = lodger.demand(str(wicked.addr), 6000 + changes % 5)
        wicked.say(replace(named, number=named.number + changes), to=street.at)
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
