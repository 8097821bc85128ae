"""A stranger at the old address: RST, SYN and data for the same ports reach nothing and
break nothing, whether the connections end here or behind a gateway.
"""

from __future__ import annotations

import socket
from ipaddress import ip_address

import pytest

from appliance.rewrite.flow import Endpoint

from .attacker import ACK, FIN, PSH, RST, SYN, Tap, TcpPacket
from .street import Kept, Street, digested, family_of, streets

pytestmark = streets("host 4", "host 6", "facing gateway 4", "facing gateway 6")


def test_who_gets_the_old_address_reaches_nothing_and_breaks_nothing(street: Street) -> None:
    """A real system lives there now; and what it could send is sent, with right numbers."""
    kept, idle = street.connect(), street.connect(mode="idle")
    with Tap(street.bob) as tap:
        old, new = street.at, street.readdress()
        kept.wait_at(new)
        with street.heir(old) as heir:
            for conn in (kept, idle):
                before = conn.picture()
                shoot(street, tap, conn, old, new)
                assert conn.picture() == before
            mark = tap.mark()
            with heir.entered(), socket.socket(family_of(street.version)) as sock:
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
    street.eve.segment(here, far, FIN | ACK, seq, ack)


def test_resets_between_the_loss_of_the_address_and_the_message(street: Street) -> None:
    """The old address is taken at once, and its new owner's system resets what it does not
    know; alice has no address for a while, and can't be asked."""
    kept = street.connect()
    quiet = street.connect(mode="idle")
    with Tap(street.bob) as tap:
        kept.flows()
        old = street.at
        street.leave()
        with street.heir(old):
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
            kept.wait_at(street.arrive())
            for conn in (kept, quiet):
                shoot_resets(street, tap, conn, old)
            kept.flows()
    quiet.stream.say(3)
    quiet.stream.say(3, "far")
    quiet.stream.wait_for(3)
    alert = street.other.wait_until("the alert", lambda d: d.events("false-reset"))[0]
    assert alert["level"] == "alert"
    assert street.alice.name in alert["text"]
    kept.finish()
    quiet.finish()


def shoot_resets(street: Street, tap: Tap, conn: Kept, source: str) -> None:
    """RSTs that bob's TCP would believe: the number is the one it waits for (RFC 5961)."""
    near, far = conn.birth.remote, conn.birth.local
    here = Endpoint(ip_address(source), near.port)
    wanted = [p.ack for p in tap.tcp() if p.source.port == far.port and p.target.port == near.port]
    for seq in dict.fromkeys(wanted[-5:]):
        street.eve.segment(here, far, RST, seq)
