"""Floods: CPU and memory are bounded, and known peers go on being served."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import time
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest

from appliance.protocol.keys import ContactKeys
from appliance.protocol.message import (
    K1,
    Contact1,
    Contact2,
    Contact3,
    Contact4,
    Hello,
    HelloAck,
    Plain,
    Type,
    encode,
    parse,
)
from appliance.protocol.x25519 import X25519Contact
from appliance.rewrite.flow import Address, Endpoint
from tests.lab.host import Host
from tests.lab.net import Lab

from .attacker import PORT, Datagram, Flood, Tap
from .scene import scene
from .street import Kept, Street, digested, family_of, streets, waiting


def flood_of(street: Street, tap: Tap, kept: Kept) -> list[Datagram]:
    """Datagrams of every kind that a stranger or an eavesdropper can send."""
    target = Endpoint(ip_address(street.bob_at), PORT)
    chance = random.Random(1)
    seen = tap.datagrams()
    k1 = next(d for d in seen if d.type == Type.K1)
    data = next(d for d in reversed(seen) if d.type == Type.DATA and d.target == target)
    made = []
    for n in range(20_000):
        junk = chance.randbytes(32)
        source = Endpoint(stranger(street.version, chance), PORT)
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


def stranger(version: int, chance: random.Random) -> Address:
    """Any address: each its own, and for IPv6 all from one small network.

    Nobody routes it: answers to a network at hand would fill the neighbour table, which
    all namespaces of a machine share.
    """
    if version == 4:
        return IPv4Address(chance.randrange(1 << 24, 223 << 24))
    return IPv6Address((0x20010DB8_00FF0000 << 64) + chance.randrange(1 << 64))


@streets("host 4", "host 6")
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


@pytest.mark.parametrize("version", [4, 6])
def test_a_flood_of_first_contacts_is_bounded(lab: Lab, version: int) -> None:
    """Twenty addresses with true connections and a new ID each time, as fast as it goes."""
    made = Street(scene(lab, version=version, settings=({}, {"limits": {"peers": 30}})))
    kept = made.connect()
    prefix, length = ("192.0.2.", 24) if version == 4 else ("2001:db8:c::", 64)
    own = [f"{prefix}{n}" for n in range(100, 120)]
    crowd = lab.host("crowd", lab.networks["net-c"], *(f"{addr}/{length}" for addr in own))
    far = made.scene.traffic[1].listen()
    engine = made.other
    memory = engine.memory()["engine"][0]
    with contextlib.ExitStack() as stack:
        with crowd.entered():
            sockets = []
            for addr in own:
                tcp = stack.enter_context(socket.create_connection(
                    (made.bob_at, far), source_address=(addr, 0)
                ))  # fmt: skip
                tcp.setblocking(False)
                sock = stack.enter_context(socket.socket(family_of(version), socket.SOCK_DGRAM))
                sock.bind((addr, PORT))
                sock.setblocking(False)
                sockets.append(sock)
        engine.wait_until(
            "they count as long-lived", lambda d: d.ctl("status")["connections"]["long"] == 20
        )
        began = time.monotonic()
        guests = [Guest(sock, made.bob_at) for sock in sockets]
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
