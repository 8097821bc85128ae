"""Who is not known: what each policy for first contacts lets a stranger do."""

from __future__ import annotations

import contextlib
import json
import os
from ipaddress import ip_address
from typing import Any

import pytest

from appliance.protocol.message import (
    K1,
    K3,
    Contact1,
    Contact2,
    Contact3,
    HelloAck,
    Type,
    Unknown,
    data_head,
    encode,
)
from appliance.protocol.x25519 import X25519Contact
from appliance.rewrite.flow import Endpoint, Flow
from tests.lab import topologies as t
from tests.lab.daemon import Daemon
from tests.lab.net import Lab
from tests.lab.streams import Stream, Traffic, open_stream

from .attacker import PORT, Datagram, Forger, Tap
from .scene import SOON
from .street import digested
from .wicked import Wicked


def unacquainted(
    lab: Lab, one: str, other: str, version: int = 4
) -> tuple[t.TwoHosts, Daemon, Daemon, Stream]:
    """Two daemons that never heard of each other, by their policies, and a connection."""
    two = t.two_hosts(lab)
    alice = lab.daemon(two.alice, long_lived_after=SOON, first_contact=one)
    bob = lab.daemon(two.bob, long_lived_after=SOON, first_contact=other)
    stream = open_stream(Traffic(two.alice), Traffic(two.bob), two.bob.address(version))
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


@pytest.mark.parametrize("version", [4, 6])
def test_strict_answers_no_stranger_with_a_single_byte(lab: Lab, version: int) -> None:
    two, _, bob, stream = unacquainted(lab, "tofu", "strict", version)
    wicked = Wicked(two.alice, contact=X25519Contact(), listen=4788, version=version)
    eve = Forger(lab)
    with contextlib.closing(wicked), contextlib.closing(eve), Tap(two.bob) as tap:
        target = Endpoint(ip_address(two.bob.address(version)), PORT)
        near = stream.report("near")
        wicked.opened(Flow.of(near.local[0], near.local[1], str(target.addr), near.remote[1]))
        tap.wait(lambda p: isinstance(p, Datagram) and p.type == Type.HELLO)
        mac, nonce, key = bytes(16), os.urandom(16), os.urandom(32)
        for message in (
            Contact1(nonce, mac, key), Contact3(nonce, key), K3(7, mac),
            K1(bytes(8), nonce, 7, mac, mac, mac, mac),
            Unknown(7, mac), HelloAck(nonce, mac), Contact2(nonce, key, key),
        ):  # fmt: skip
            source = Endpoint(ip_address(two.alice.address(version)), PORT)
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
