"""The test vectors of docs/protocol.md, computed by this implementation.

``python -m tests.protocol.vectors`` prints what vectors.json holds.  The file is data:
a change of it is a change of the protocol.
"""

from __future__ import annotations

import json
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from appliance.protocol import frames as f
from appliance.protocol import message as m
from appliance.protocol.binding import PROPOSER, RESPONDER, Terms, tag
from appliance.protocol.changes import digest
from appliance.protocol.handshake import answer_k1, make_k1, make_k3, take_k2
from appliance.protocol.keys import (
    ContactKeys,
    PairKeys,
    before_first_chain,
    fingerprint,
    first_chain,
    mac,
    peer_id,
)
from appliance.protocol.records import PeerRecord
from appliance.protocol.session import Session, masked
from appliance.protocol.status import bound_digest
from appliance.protocol.wire import ENDPOINT
from appliance.protocol.x25519 import X25519Contact
from appliance.rewrite.flow import Endpoint, Flow

FILE = Path(__file__).with_name("vectors.json")

ROOT = bytes(range(32))
NONCE_I, NONCE_R = b"\x11" * 16, b"\x22" * 16
HOST_I, HOST_R = "a0" * 16, "b1" * 16
ID_1, ID_2 = "01" * 16, "02" * 16
V4 = Flow.of("203.0.113.2", 40000, "198.51.100.2", 22)
V6 = Flow.of("2001:db8:2::2", 40000, "2001:db8:1::2", 22)
SECRET_I, SECRET_R = bytes(range(64, 96)), bytes(range(96, 128))


def record(initiator: bool) -> PeerRecord:
    return PeerRecord(
        peer_id(ROOT), ROOT, first_chain(ROOT), before_first_chain(ROOT), initiator, "", "", "",
        "trusted", 0, 0,
    )  # fmt: skip


def pair() -> dict[str, Any]:
    a, b = PairKeys.of(ROOT, True), PairKeys.of(ROOT, False)
    return {
        "root": ROOT.hex(),
        "peer_id": peer_id(ROOT),
        "chain": first_chain(ROOT).hex(),
        "chain_before": before_first_chain(ROOT).hex(),
        "handle_A": a.out_handle.hex(),
        "handle_B": b.out_handle.hex(),
        "k1_A": a.out_k1.hex(),
        "k1_B": b.out_k1.hex(),
        "binding": a.binding.hex(),
    }


def contact() -> dict[str, Any]:
    x = X25519Contact()
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    public_i, public_r = (
        X25519PrivateKey.from_private_bytes(s).public_key().public_bytes_raw()
        for s in (SECRET_I, SECRET_R)
    )
    shared = x.shared(SECRET_I, public_r)
    keys = ContactKeys.of(shared, NONCE_I, public_i, public_r)
    sealed_r = x.seal(keys.seal_second, bytes(12), bytes.fromhex(HOST_R), keys.transcript)
    sealed_i = x.seal(keys.seal_first, bytes(12), bytes.fromhex(HOST_I), keys.transcript)
    final = mac(keys.root, b"contact 4\0", keys.transcript)
    ids = bytes.fromhex(HOST_I + HOST_R)
    return {
        "secret_i": SECRET_I.hex(),
        "secret_r": SECRET_R.hex(),
        "host_id_i": HOST_I,
        "host_id_r": HOST_R,
        "shared": shared.hex(),
        "transcript": keys.transcript.hex(),
        "root": keys.root.hex(),
        "fingerprint": fingerprint(keys.transcript + ids),
        "hello": m.encode(m.Hello(NONCE_I)).hex(),
        "hello_ack": m.encode(m.HelloAck(NONCE_I, b"\x33" * 16)).hex(),
        "contact_1": m.encode(m.Contact1(NONCE_I, b"\x33" * 16, public_i)).hex(),
        "contact_2": m.encode(m.Contact2(NONCE_I, public_r, sealed_r)).hex(),
        "contact_3": m.encode(m.Contact3(NONCE_I, sealed_i)).hex(),
        "contact_4": m.encode(m.Contact4(NONCE_I, final)).hex(),
    }


def exchange(in_step: bool) -> dict[str, Any]:
    """A known-peer exchange from the pair's first chain, and the first packets after it."""
    from dataclasses import replace

    i, r = record(True), record(False)
    if not in_step:
        i = replace(i, chain=b"\x44" * 32, previous=b"\x55" * 32)
    k1 = make_k1(i, PairKeys.of(ROOT, True), NONCE_I, 0x01020304)
    k2, agreed_r = answer_k1(r, k1, NONCE_R, 0x05060708)
    agreed = take_k2(i, k1, k2)
    assert agreed == agreed_r
    session_i = Session.of(agreed.keys, True, k1.index, k2.index, 0.0, 1)
    session_r = Session.of(agreed.keys, False, k2.index, k1.index, 0.0, 1)
    ping = f.encode_frame(7, f.Ping())
    return {
        "chain_i": i.chain.hex(),
        "previous_i": i.previous.hex(),
        "k1": m.encode(k1).hex(),
        "k2": m.encode(k2).hex(),
        "k3": m.encode(make_k3(agreed, k2.index)).hex(),
        "next_chain": agreed.keys.next_chain.hex(),
        "masked_host_i": masked(agreed.keys.mask_i, HOST_I).hex(),
        "ping_from_i": session_i.seal(ping).hex(),
        "second_ping_from_i": session_i.seal(ping).hex(),
        "pong_from_r": session_r.seal(f.encode_frame(7, f.Pong())).hex(),
    }


def all_frames() -> dict[str, str]:
    where = ip_address("192.0.2.7")
    old = ip_address("203.0.113.2")
    ports = ((ID_1, 40000), (ID_2, 50000))
    samples: list[f.Frame] = [
        f.Ping(), f.Pong(),
        f.Status(2, b"\x66" * 32, b"\x77" * 16), f.StatusAnswer(True),
        f.Have(((ID_1, V4.local), (ID_2, V6.local))), f.HaveAnswer((ID_1,), (ID_2,)),
        f.Closed((ID_1, ID_2)), f.ClosedAnswer(), f.Ask(ID_1), f.Told(ID_1, f.Fate.CLOSED),
        f.Offer(V4, NONCE_I), f.Ready(False, NONCE_R), f.Reject(f.Reason.OTHER_PEER),
        f.Proof(9, (b"\x88" * 16,)), f.Accept(ID_1, (b"\x99" * 16,)), f.NotYet(),
        f.Confirm(9, ID_1), f.Confirmed(),
        f.AddressChange(5, f.Purpose.MOVE, where, old, False, True, 2, digest(ports), (ports[1],)),
        f.Challenge(5, NONCE_R, ((ID_2, f.Refusal.TUPLE_IN_USE),)), f.ChallengeReply(5, NONCE_R),
        f.MoveDone(5, ((ID_2, f.Refusal.TUPLE_IN_USE),)),
        f.MoveRefused(5, f.TargetFault.NOT_UNICAST), f.ListWanted(5),
    ]  # fmt: skip
    return {type(s).__name__: f.encode_frame(0x0A0B0C0D, s).hex() for s in samples}


def digests() -> dict[str, Any]:
    entries = [(ID_2, Endpoint(ip_address("192.0.2.7"), 40000)), (ID_1, V6.local)]
    terms = [Terms(PairKeys.of(ROOT, True).binding, v, NONCE_I + NONCE_R) for v in (V4, V6)]
    return {
        "change": digest([(ID_2, 50000), (ID_1, 40000)]).hex(),
        "status": bound_digest((i, ENDPOINT.put(e)) for i, e in entries).hex(),
        "tags": [
            tag(t, role, by_proposer, 0xFFFFFFFF, 17).hex()
            for t in terms for role in (PROPOSER, RESPONDER) for by_proposer in (True, False)
        ],
        "fingerprint_introduced": introduced_fingerprint(),
    }  # fmt: skip


def introduced_fingerprint() -> str:
    from appliance.protocol.keys import derive

    return fingerprint(derive(ROOT, "fingerprint"))


def build() -> dict[str, Any]:
    return {
        "pair": pair(),
        "contact": contact(),
        "exchange": exchange(True),
        "resync": exchange(False),
        "frames": all_frames(),
        "digests": digests(),
    }


if __name__ == "__main__":
    print(json.dumps(build(), indent=1))
