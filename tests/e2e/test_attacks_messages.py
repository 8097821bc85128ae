"""What was said about a move is changed, or said again: it does nothing.

After each attack the connections must go on, byte for byte, and the next move must work.
"""

from __future__ import annotations

import contextlib
import itertools
import socket
from ipaddress import ip_address

import pytest

from appliance.protocol.frames import Kind
from appliance.protocol.message import Type
from appliance.rewrite.flow import Endpoint
from tests.lab.host import Host

from .attacker import PORT, RST, Datagram, Tap, TcpPacket
from .street import Street, digested, family_of, read, rules, streets, waiting

# A gateway's message names its own address, whatever stands behind it.
pytestmark = streets("host 4", "host 6", "gateway 4")


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
        sources = itertools.cycle((new, new, old, street.evil))
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
            for source in (str(packet.source.addr), old, street.evil):
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
            street.forge(change, street.evil)
            refused = far.wait(lambda p: isinstance(p, Datagram) and p.says(Kind.MOVE_REFUSED))
            assert isinstance(refused, Datagram)
            assert str(refused.target.addr) == street.evil
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
        street.forge(packet, street.evil)
    digested(street.one)
    assert kept.picture() == before
    third = street.readdress()
    kept.wait_at(third, timeout=8)
    kept.finish()


@pytest.mark.parametrize("heard", ["by both", "by the attacker alone"])
def test_the_papers_replay_by_who_got_the_address_from_dhcp(street: Street, heard: str) -> None:
    """alice gets B', says so, and gets B''; then B' is given to somebody who heard it all."""
    kept = street.connect()
    with Tap(street.alice) as tap:
        with contextlib.nullcontext() if heard == "by both" else street.silenced():
            middle = street.readdress()
            change = tap.wait_change(middle)
            if heard == "by both":
                kept.wait_at(middle)
                kept.flows()
            last = street.readdress()
            tap.wait_change(last)
        kept.wait_at(last)
        kept.flows()
        said = [d for d in tap.datagrams() if str(d.source.addr) == middle]
    with street.heir(middle) as heir, Tap(heir) as stolen, Tap(street.bob) as far:
        with own_socket(street, heir) as sock:
            for data in [packet.data for packet in (change, *said, *said)] + [b"all said"]:
                sock.sendto(data, (street.bob_at, PORT))
        far.wait(lambda p: isinstance(p, Datagram) and p.data == b"all said")
        for packet in [change, *said, *said]:
            street.eve.datagram(packet)
        digested(street.other)
        assert kept.wire() == last
        kept.flows(50)
        assert [p for p in stolen.tcp() if str(p.target.addr) == middle] == []
    kept.finish()


def test_the_papers_replay_while_nothing_else_gets_through(street: Street) -> None:
    """bob hears of B' from the attacker alone, after alice has left it; what he asks there is
    carried to alice, and whatever she answers is carried back."""
    kept = street.connect()
    old = street.at
    with Tap(street.alice) as tap, Tap(street.bob) as far:
        with street.silenced():
            middle = street.readdress()
            change = tap.wait_change(middle)
            last = street.readdress()
            tap.wait_change(last)
            street.eve.datagram(change)
            asked = far.wait(lambda p: isinstance(p, Datagram) and p.says(Kind.CHALLENGE))
            assert isinstance(asked, Datagram)
            assert str(asked.target.addr) == middle
            mark = tap.mark()
            alice = Endpoint(ip_address(last), PORT)
            street.eve.datagram(Datagram(asked.source, alice, asked.data))
            digested(street.one)
            said = [d for d in tap.datagrams(mark) if d.source == alice]
            assert not [d for d in said if d.says(Kind.CHALLENGE_REPLY)]
            for packet in [*said, *said]:
                street.forge(packet, middle)
            digested(street.other)
            assert kept.wire() == old
            with street.heir(middle) as heir, Tap(heir) as stolen:
                digested(street.other)
                assert [p for p in stolen.tcp() if str(p.target.addr) == middle] == []
        kept.wait_at(last)
        kept.flows()
    kept.finish()


def test_a_true_answer_that_comes_when_the_address_is_somebody_elses(street: Street) -> None:
    """The router holds alice's answer to the challenge back until she has gone on: nobody can
    tell, but the new owner gets nothing that he could use, and her next word ends it."""
    kept = street.connect()
    with Tap(street.alice) as tap, Tap(street.bob) as far:
        with street.silenced():
            middle = street.readdress()
            change = tap.wait_change(middle)
            street.eve.datagram(change)
            asked = far.wait(lambda p: isinstance(p, Datagram) and p.says(Kind.CHALLENGE))
            assert isinstance(asked, Datagram)
            street.eve.datagram(asked)
            answer = tap.wait(lambda p: isinstance(p, Datagram) and p.says(Kind.CHALLENGE_REPLY))
            assert isinstance(answer, Datagram)
            last = street.readdress()
            tap.wait_change(last)
            with street.heir(middle), Tap(street.bob) as reset:
                street.eve.datagram(answer)
                # the heir's system resets what it does not know
                reset.wait(
                    lambda p: isinstance(p, TcpPacket) and bool(p.flags & RST)
                    and str(p.source.addr) == middle
                )  # fmt: skip
                digested(street.other)
        kept.wait_at(last)
        kept.flows()
    kept.finish()


def own_socket(street: Street, heir: Host) -> socket.socket:
    """Of the new owner of an address, who has no daemon."""
    with heir.entered():
        sock = socket.socket(family_of(street.version), socket.SOCK_DGRAM)
        sock.bind((heir.address(street.version), PORT))
    return sock
