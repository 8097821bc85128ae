"""States of pf: both recorded forms, and that they agree on states made up at random."""

from __future__ import annotations

import struct
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.backend.openbsd import pfstates
from appliance.backend.openbsd.pfstates import (
    Key,
    Peer,
    PfState,
    StateError,
    parse_record,
    parse_records,
    parse_text,
)
from appliance.rewrite.flow import Endpoint

from . import fixtures


def identity(state: PfState) -> PfState:
    """What does not change while packets go on flowing."""
    still = replace(state, age=0, expire=0, packets=(0, 0), octets=(0, 0))
    for side in ("src", "dst"):
        still = replace(still, **{side: replace(getattr(still, side), seqlo=0, window=0)})
    return still


def test_binary_and_text_form_of_the_recorded_states_agree() -> None:
    binary = [identity(state) for state in parse_records(fixtures.records())]
    text = [identity(state) for state in parse_text(fixtures.states_text())]
    assert len(binary) == 3
    assert binary == text


def test_recorded_counters_went_on_between_the_two_readings() -> None:
    binary = list(parse_records(fixtures.records()))
    text = list(parse_text(fixtures.states_text()))
    for later, earlier in zip(binary, text, strict=True):
        for now, before in ((later.src, earlier.src), (later.dst, earlier.dst)):
            assert now.seqlo - before.seqlo == 32
            assert now.window - before.window in (0, 32)
        assert later.packets == (21, 20)
        assert earlier.packets == (19, 18)
        assert (later.octets, earlier.octets) == ((1424, 1372), (1288, 1236))
        assert (later.age, later.expire) == (earlier.age, earlier.expire) == (2, 86400)


def test_recorded_nat_state_has_both_of_its_names() -> None:
    nat = list(parse_records(fixtures.records()))[1]
    assert nat.direction == "out"
    assert nat.translated
    assert str(nat.wire.near) == "10.9.0.2:50823"
    assert str(nat.stack.near) == "192.168.1.5:21829"
    assert str(nat.wire.far) == str(nat.stack.far) == "10.8.0.2:5000"
    assert (nat.state_id, nat.creatorid) == ("6b03915200000014", 0xB7C646D7)
    assert nat.hands_off is None


@pytest.mark.parametrize("title", ["pfctl -ss (NAT established)", "pfctl -ss -v", "pfctl -ss -vv"])
def test_each_verbosity_names_the_same_states(title: str) -> None:
    states = list(parse_text(fixtures.transcript(title)))
    assert [(s.direction, str(s.wire.near), s.wire.rdomain) for s in states] == [
        ("in", "10.8.0.2:5000", 0),
        ("out", "10.9.0.2:57510", 0),
        ("in", "10.8.0.2:5000", 4),
    ]
    assert [s.state_id != "" for s in states] == [title.endswith("-vv")] * 3


def test_redirected_states_show_far_translation_anchor_and_sloppy() -> None:
    at_a, at_b = parse_text(fixtures.transcript("pfctl -ss -vv after redirect"))
    assert str(at_a.wire.far) == "10.9.0.77:57510"
    assert str(at_a.stack.far) == "10.9.0.2:57510"
    assert (at_a.anchor, at_a.rule, at_a.sloppy) == (3, 1, True)
    assert (at_b.anchor, at_b.rule, at_b.expire) == (3, 0, 30)
    assert (at_b.src.state, at_b.dst.state) == (pfstates.ESTABLISHED, 0)


def test_closed_connections_show_their_last_state() -> None:
    states = list(parse_text(fixtures.transcript("pfctl -ss after close")))
    assert {(s.src.state, s.dst.state) for s in states} == {(pfstates.FIN_WAIT_2,) * 2}


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"seqdiff": 7}, "modulate"),
        ({"state": pfstates.PROXY_DST}, "synproxy"),
        ({"timestamps": True}, "reassemble tcp"),
    ],
)
@pytest.mark.parametrize("side", ["src", "dst"])
def test_states_that_hold_offsets_are_left_alone(
    change: dict[str, int], why: str, side: str
) -> None:
    state = next(parse_records(fixtures.records()))
    changed = replace(state, **{side: replace(getattr(state, side), **change)})
    assert why in (changed.hands_off or "")


def test_modulated_state_is_recognised_in_text_and_synproxy_too() -> None:
    text = fixtures.states_text().replace("+ 16352] wscale 6", "+ 16352](+99) wscale 6", 1)
    assert "modulate" in (next(parse_text(text)).hands_off or "")
    proxied = "all tcp 10.0.0.1:80 <- 10.0.0.2:4000       PROXY:DST\n"
    assert "synproxy" in (next(parse_text(proxied)).hands_off or "")
    early = "all tcp 10.0.0.1:80 <- 10.0.0.2:4000       PROXY:SRC\n"
    assert "synproxy" in (next(parse_text(early)).hands_off or "")


def test_other_protocols_and_ipv6_are_read() -> None:
    text = (
        "all udp fd07::1[53] (fd00::9[5353]) -> fd07::2[53]       MULTIPLE:SINGLE\n"
        "em0 icmp 10.0.0.1:8 <- 10.0.0.2       0:0\n"
        "all tcp fd07::1[80] <- fd07::2[4000]       ESTABLISHED:ESTABLISHED\n"
    )
    udp, icmp, tcp = parse_text(text)
    assert (str(udp.stack.near), udp.proto) == ("[fd00::9]:5353", "udp")
    assert (icmp.ifname, icmp.wire.far.port) == ("em0", 0)
    assert str(tcp.wire.near) == "[fd07::1]:80"


@pytest.mark.parametrize(
    "text",
    [
        "all tcp\n",
        "   age 00:00:01\n",
        "all tcp 999.0.0.1:80 <- 10.0.0.2:4000       A:B\n",
        "all tcp 10.0.0.1:80000 <- 10.0.0.2:4000       A:B\n",
        "all tcp 10.0.0.1:80 <- 10.0.0.2:4000       AB\n",
        "all tcp 10.0.0.1:80 <- 10.0.0.2:4000       A:B\n   what is this\n",
    ],
)
def test_lines_of_unknown_form_are_refused(text: str) -> None:
    with pytest.raises(StateError):
        list(parse_text(text))


def test_states_of_other_protocols_that_are_not_understood_are_left_out() -> None:
    foreign = "all pfsync what is this\n   age nobody knows\n"
    states = list(parse_text(foreign + fixtures.states_text() + foreign))
    assert len(states) == 3
    record = bytearray(fixtures.records()[:264])
    record[251], record[62] = 17, 99
    assert list(parse_records(bytes(record) + fixtures.records())) == list(
        parse_records(fixtures.records())
    )
    record[251] = 6
    with pytest.raises(StateError):
        list(parse_records(bytes(record)))


@pytest.mark.parametrize(("at", "value"), [(252, 0), (62, 99)])
def test_records_of_unknown_form_are_refused(at: int, value: int) -> None:
    record = bytearray(fixtures.records()[:264])
    record[at] = value
    with pytest.raises(StateError):
        parse_record(bytes(record))


def test_records_of_a_wrong_size_are_refused() -> None:
    with pytest.raises(StateError):
        parse_record(bytes(263))
    with pytest.raises(StateError):
        list(parse_records(bytes(265)))


# -- random states, packed and printed by this test, must be read to the same value

ports = st.integers(1, 65535)
u32 = st.integers(0, 0xFFFFFFFF)


def peers(proto: st.SearchStrategy[int]) -> st.SearchStrategy[Peer]:
    return st.builds(
        Peer, u32, st.integers(0, 1 << 30), st.sampled_from([0, 0, 0, 77]), proto,
        st.just(6), st.just(False),
    )  # fmt: skip


@st.composite
def states(draw: st.DrawFn) -> PfState:
    version = draw(st.sampled_from([4, 6]))
    hosts = st.ip_addresses(v=version)  # type: ignore[arg-type]
    ends = st.builds(Endpoint, hosts, ports)
    rdomain = draw(st.sampled_from([0, 0, 3]))
    wire = Key(draw(ends), draw(ends), rdomain)
    near = draw(st.one_of(st.just(wire.near), ends))
    far = draw(st.one_of(st.just(wire.far), ends))
    level = st.integers(0, 10)
    return PfState(
        f"{draw(st.integers(1, (1 << 64) - 1)):016x}", draw(u32),
        draw(st.sampled_from(["all", "em0"])),
        "tcp", draw(st.sampled_from(["in", "out"])), wire, Key(near, far, rdomain),
        draw(peers(level)), draw(peers(level)), draw(st.integers(0, 359999)),
        draw(st.integers(0, 359999)), draw(st.one_of(st.none(), st.integers(0, 99))),
        draw(st.one_of(st.none(), st.integers(0, 99))), draw(st.booleans()),
        (draw(u32), draw(u32)), (draw(u32), draw(u32)),
    )  # fmt: skip


def pack(state: PfState) -> bytes:
    def key(k: Key) -> bytes:
        family = 2 if k.near.addr.version == 4 else 24
        raw = k.far.addr.packed.ljust(16, b"\0") + k.near.addr.packed.ljust(16, b"\0")
        return raw + struct.pack(">HHHBx", k.far.port, k.near.port, k.rdomain, family)

    def peer(p: Peer) -> bytes:
        high = (p.seqlo + p.window) & 0xFFFFFFFF
        return struct.pack(">8xIIIHHBB6x", p.seqlo, high, p.seqdiff, 0, 0, p.state, 0x80 | 6)

    none = 0xFFFFFFFF
    rule = none if state.rule is None else state.rule
    anchor = none if state.anchor is None else state.anchor
    head = bytes.fromhex(state.state_id) + state.ifname.encode().ljust(16, b"\0")
    middle = key(state.wire) + key(state.stack) + peer(state.src) + peer(state.dst) + bytes(16)
    middle += struct.pack(">IIIII", rule, anchor, none, state.age, state.expire)
    middle += struct.pack(">QQQQ", *state.packets, *state.octets)
    tail = struct.pack(">IIIH", state.creatorid, 0, 0, 0)
    tail += bytes([2, 6, 1 if state.direction == "in" else 2, 0, 0, 2, 0, 0, 0, 0])
    return head + middle + tail + struct.pack(">Hxx", 2 if state.sloppy else 0)


def show(state: PfState) -> str:
    def host(e: Endpoint, rdomain: int) -> str:
        port = f":{e.port}" if isinstance(e.addr, IPv4Address) else f"[{e.port}]"
        return (f"({rdomain}) " if rdomain else "") + str(e.addr) + port

    def side(shown: Endpoint, other: Endpoint, rdomain: int) -> str:
        text = host(shown, rdomain)
        return text if shown == other else f"{text} ({host(other, rdomain)})"

    def seq(p: Peer) -> str:
        return f"[{p.seqlo} + {p.window}]" + (f"(+{p.seqdiff})" if p.seqdiff else "") + " wscale 6"

    def clock(t: int) -> str:
        return f"{t // 3600:02}:{t // 60 % 60:02}:{t % 60:02}"

    out = state.direction == "out"
    new, old = (state.wire, state.stack) if out else (state.stack, state.wire)
    left, right = (state.src, state.dst) if out else (state.dst, state.src)
    names = pfstates.TCP_STATES
    near = side(new.near, old.near, new.rdomain)
    far = side(new.far, old.far, new.rdomain)
    lines = [
        f"{state.ifname} tcp {near} {'->' if out else '<-'} {far}"
        f"       {names[left.state]}:{names[right.state]}",
        f"   {seq(left)}  {seq(right)}",
        f"   age {clock(state.age)}, expires in {clock(state.expire)}, "
        f"{state.packets[0]}:{state.packets[1]} pkts, {state.octets[0]}:{state.octets[1]} bytes"
        + ("" if state.anchor is None else f", anchor {state.anchor}")
        + ("" if state.rule is None else f", rule {state.rule}")
        + (", sloppy" if state.sloppy else ""),
        f"   id: {state.state_id} creatorid: {state.creatorid:08x}",
    ]
    return "\n".join(lines) + "\n"


@given(st.lists(states(), max_size=4))
def test_packed_and_printed_states_are_read_to_the_same_value(made: list[PfState]) -> None:
    assert list(parse_records(b"".join(map(pack, made)))) == made
    assert list(parse_text("".join(map(show, made)))) == made


@given(st.binary(min_size=264, max_size=264))
def test_any_record_parses_or_is_refused(record: bytes) -> None:
    try:
        parse_record(record)
    except StateError:
        return


@given(st.text(max_size=200))
def test_any_text_parses_or_is_refused(text: str) -> None:
    try:
        list(parse_text(text))
    except StateError:
        return


def test_ipv6_literal_is_kept_apart_from_its_port() -> None:
    (state,) = parse_text("all tcp ::1[80] <- ::2[81]       ESTABLISHED:ESTABLISHED\n")
    assert state.wire.near == Endpoint(IPv6Address("::1"), 80)
