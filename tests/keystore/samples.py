"""Records to keep, made up; and strategies that make all kinds of them."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address

from hypothesis import strategies as st

from appliance.protocol.records import BindingRecord, PeerRecord
from appliance.rewrite.flow import Endpoint, Flow
from appliance.rewrite.redirect import Entry

ID = "0123456789abcdef" * 2
BIRTH = Flow.of("198.51.100.7", 40001, "203.0.113.9", 22)


def peer(peer_id: str = ID, **changes: object) -> PeerRecord:
    made = PeerRecord(
        peer_id=peer_id,
        root=b"R" * 32,
        chain=b"C" * 32,
        previous=b"P" * 32,
        initiator=True,
        host_id="f" * 32,
        name="office",
        fingerprint="12345 67890",
        state="trusted",
        first_contact=1000.0,
        last_contact=2000.0,
        addresses=("203.0.113.9", "2001:db8::9"),
        port=4787,
        dns_name="office.example.net",
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def binding(number: int = 1, peer_id: str = ID, **changes: object) -> BindingRecord:
    wire = BIRTH.with_local(IPv4Address("198.51.100.99"), 40000 + number % 20000)
    entry = Entry(
        conn_id=f"{number:032x}",
        birth=BIRTH,
        inside=Flow.of("192.168.1.5", 50000, "203.0.113.9", 22),
        local=False,
        inside_opened=True,
        wires=(wire, BIRTH),
        wire_out=wire,
        stale=(BIRTH.with_local(IPv4Address("198.51.100.50")),),
    )
    made = BindingRecord(peer_id, entry, since=10.5, bound_at=20.25, moves=1, last_move=30.0)
    return replace(made, **changes)  # type: ignore[arg-type]


_IDS = st.binary(min_size=16, max_size=16).map(bytes.hex)
_TIMES = st.floats(min_value=0, max_value=1e11)
_SECRETS = st.binary(min_size=32, max_size=32)
# SQLite keeps UTF-8: a lone surrogate is no text
_TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
_PORTS = st.integers(0, 65535)


def _flows(version: int) -> st.SearchStrategy[Flow]:
    if version == 4:
        ends = st.builds(Endpoint, st.integers(0, 2**32 - 1).map(IPv4Address), _PORTS)
    else:
        ends = st.builds(Endpoint, st.integers(0, 2**128 - 1).map(IPv6Address), _PORTS)
    return st.builds(Flow, ends, ends)


def _entries(version: int) -> st.SearchStrategy[Entry]:
    flows = _flows(version)
    return st.builds(
        Entry,
        conn_id=_IDS,
        birth=flows,
        inside=flows,
        local=st.booleans(),
        inside_opened=st.booleans(),
        wires=st.lists(flows, min_size=1, max_size=3).map(tuple),
        wire_out=st.none() | flows,
        stale=st.lists(flows, max_size=3).map(tuple),
        path=st.sampled_from(["kernel", "divert"]),
    )


PEERS = st.builds(
    PeerRecord,
    peer_id=_IDS,
    root=_SECRETS,
    chain=_SECRETS,
    previous=_SECRETS,
    initiator=st.booleans(),
    host_id=_IDS,
    name=_TEXTS,
    fingerprint=_TEXTS,
    state=st.sampled_from(["pending", "trusted", "verified", "revoked"]),
    first_contact=_TIMES,
    last_contact=_TIMES,
    addresses=st.lists(_TEXTS, max_size=4).map(tuple),
    port=_PORTS,
    dns_name=st.none() | _TEXTS,
)
BINDINGS = st.builds(
    BindingRecord,
    peer_id=st.just(ID),
    entry=_entries(4) | _entries(6),
    since=_TIMES,
    bound_at=_TIMES,
    moves=st.integers(0, 2**40),
    last_move=st.none() | _TIMES,
)
