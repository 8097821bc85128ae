"""Real nftables against a plain model (model.py): random entries, random packets.

    bob --- core --- alice        bob's packets are seen where alice's stack gets them,
                                  alice's where they leave: behind all translation

Each packet carries a number; a last one, of a flow that nobody translates, says that
whatever has not come by then was dropped.
"""

from __future__ import annotations

import itertools
import random
import socket
from collections.abc import Iterable
from ipaddress import ip_address

import pytest

from appliance.backend import segment
from appliance.backend.linux import netlink as nl
from appliance.backend.linux import nfnl
from appliance.rewrite.checksum import transport
from appliance.rewrite.flow import Endpoint, Flow
from appliance.rewrite.headers import locate
from appliance.rewrite.redirect import Entry
from pfconf.nfttable import CollisionError, ElementTable
from tests.lab import topologies
from tests.lab.host import Host
from tests.lab.net import Lab

from . import model
from .node import PATIENCE, Node, entry, node

ROUNDS, ENTRIES, PACKETS = 12, 30, 150
OURS = {4: ("198.51.100.7", "198.51.100.8"), 6: ("2001:db8:a::7", "2001:db8:a::8")}
THEIRS = {4: ("192.0.2.9", "192.0.2.10"), 6: ("2001:db8:c::9", "2001:db8:c::10")}
PREFIX = {4: 24, 6: 64}
FENCE = 9
GROUP = 99

WATCH = f"""
table inet watch {{
 chain input {{ type filter hook input priority 400
  tcp dport != 0 log group {GROUP}
 }}
 chain leave {{ type filter hook postrouting priority 400
  oifname != "lo" tcp dport != 0 log group {GROUP}
 }}
}}
"""


def universe(version: int) -> list[Flow]:
    """Small, so that tuples of different connections come close to each other."""
    ports = (1000, 1001, 1002)
    return [
        Flow(Endpoint(ip_address(a), p), Endpoint(ip_address(b), q))
        for a, p, b, q in itertools.product(OURS[version], ports, THEIRS[version], ports)
    ]


def random_entries(rng: random.Random, version: int, most: int) -> list[Entry]:
    """Entries that can live together; those that can't are refused by the table itself."""
    pool = universe(version)
    table = ElementTable()
    made: list[Entry] = []
    for number in range(most):
        birth, *others = rng.sample(pool, 4)
        wires = dict.fromkeys(rng.choice(([birth], others[:1], [others[0], birth], others[:2])))
        out = rng.choice([*wires, birth, None])
        stale = others[3:] if rng.random() < 0.4 else []
        candidate = entry(number, birth, list(wires), out, stale=stale)
        taken = {wire for known in made for wire in (*known.wires, known.birth)}
        if taken & {*wires, birth}:
            continue  # the port reservation forbids it
        try:
            table.commit(table.plan([candidate]))
        except CollisionError:
            continue
        made.append(candidate)
    return made


class Watch:
    """Sees packets with a number on ``where``, behind all rules."""

    def __init__(self, where: Host) -> None:
        where.nft(WATCH)
        with where.entered():
            self._copies = nl.NetlinkSocket(nl.NETLINK_NETFILTER, receive=1 << 22)
        kind, flags, payload = nfnl.log_bind(GROUP, 0xFFFF)
        self._copies.request("watch", kind, flags, payload)

    def close(self) -> None:
        self._copies.close()

    def until_fence(self) -> dict[int, Flow]:
        """Packet number -> its tuple; checksums must be right."""
        found: dict[int, Flow] = {}
        self._copies.sock.settimeout(PATIENCE)
        while True:
            for part in nl.parse(self._copies.sock.recv(1 << 18)):
                raw = nl.attributes(part.payload, 4).get(9)
                seen = None if raw is None else segment.parse_tcp(bytes(raw))
                if seen is None or seen.length != 4:
                    continue
                if seen.packet.remote.port == FENCE:
                    return found
                number = int.from_bytes(seen.raw[seen.data :], "big")
                assert number not in found
                assert checksum_is_right(seen.raw), seen.packet
                found[number] = seen.packet


def checksum_is_right(raw: bytes) -> bool:
    at = locate(raw, 0, len(raw))
    assert at is not None
    return transport(raw, 0, at) == int.from_bytes(raw[at.l4 + 16 : at.l4 + 18], "big")


def send(where: Host, packets: Iterable[Flow], version: int) -> None:
    """As a program of ``where`` with a raw socket would: no mark, no special way."""
    family = socket.AF_INET6 if version == 6 else socket.AF_INET
    with where.entered(), socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_RAW) as sock:
        for number, packet in enumerate(packets):
            raw = segment.build_tcp(packet, 1, 1, segment.ACK, payload=number.to_bytes(4, "big"))
            try:
                sock.sendto(raw, (str(packet.remote.addr), 0))
            except PermissionError:
                continue  # the output hook dropped it


def choose(rng: random.Random, entries: list[Entry], version: int) -> list[Flow]:
    """Flows that matter, and some that are next to them."""
    near = [f for e in entries for f in (e.birth, *e.wires, *e.stale)]
    packets = [rng.choice(near if rng.random() < 0.7 else universe(version))
               for _ in range(PACKETS)]  # fmt: skip
    return [*dict.fromkeys(packets)]


def fenced(packets: list[Flow], version: int, outward: bool) -> list[Flow]:
    ours, theirs = ip_address(OURS[version][0]), ip_address(THEIRS[version][0])
    last = Flow(Endpoint(theirs, 9999), Endpoint(ours, FENCE))
    return [*packets, Flow(Endpoint(ours, 9999), Endpoint(theirs, FENCE)) if outward else last]


@pytest.mark.parametrize("version", [4, 6])
def test_nftables_and_the_model_agree(lab: Lab, version: int) -> None:
    net = topologies.two_hosts(lab)
    index = 0 if version == 4 else 1
    net.alice.add_address(f"{OURS[version][1]}/{PREFIX[version]}")
    net.bob.add_address(f"{THEIRS[version][1]}/{PREFIX[version]}")
    assert topologies.A[index].startswith(OURS[version][0])
    seed = random.SystemRandom().randrange(2**32)
    rng = random.Random(seed)
    translated = dropped = 0
    with node(net.alice) as alice:
        alice.await_address(f"{OURS[version][1]}/{PREFIX[version]}")
        watch = Watch(net.alice)
        entries: list[Entry] = []
        for number in range(ROUNDS):
            entries = change(alice, rng, entries, version, number)
            net.alice.run(["conntrack", "-F"])
            out = choose(rng, entries, version)
            send(net.alice, fenced(out, version, True), version)
            got = watch.until_fence()
            for place, packet in enumerate(out):
                wanted = model.outbound(entries, packet)
                assert got.get(place) == wanted, f"out {packet}, seed {seed}, {entries}"
                translated += wanted not in (None, packet)
                dropped += wanted is None
            arriving = [flow.reversed() for flow in choose(rng, entries, version)]
            send(net.bob, fenced(arriving, version, False), version)
            got = watch.until_fence()
            for place, packet in enumerate(arriving):
                wanted = model.inbound(entries, packet)
                assert got.get(place) == wanted, f"in {packet}, seed {seed}, {entries}"
                translated += wanted not in (None, packet)
                dropped += wanted is None
        watch.close()
    assert translated > 100
    assert dropped > 20


def change(
    alice: Node, rng: random.Random, entries: list[Entry], version: int, number: int
) -> list[Entry]:
    """Another set of entries, by each way that leads there."""
    wanted = random_entries(rng, version, ENTRIES)
    with alice.machine.entered():
        if number % 3 == 0:
            alice.table.replace_all(wanted)
        else:
            gone = {e.conn_id for e in entries} - {e.conn_id for e in wanted}
            alice.table.remove(gone)
            alice.table.apply(wanted)
    return wanted


@pytest.mark.parametrize("version", [4, 6])
def test_inbound_after_outbound_is_the_identity(version: int) -> None:
    rng = random.Random(version)
    tried = 0
    while tried < 300:
        for each in (entries := random_entries(rng, version, ENTRIES)):
            if each.wire_out not in each.wires:
                continue
            tried += 1
            sent = model.outbound(entries, each.birth)
            assert sent is not None
            assert model.inbound(entries, sent.reversed()) == each.birth.reversed()
