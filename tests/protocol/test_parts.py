"""The small parts: window, timers, buckets, cookies, targets, tables, samples, entries."""

from __future__ import annotations

import random
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.protocol import replay, transitions
from appliance.protocol.binding import KEPT, Sample, Seen
from appliance.protocol.connections import MAX_STALE, Binding, Table
from appliance.protocol.cookies import CookieJar
from appliance.protocol.frames import TargetFault
from appliance.protocol.inputs import Connection, LocalAddress
from appliance.protocol.limits import BucketTable, TokenBucket
from appliance.protocol.records import BindingRecord
from appliance.protocol.replay import ReplayWindow
from appliance.protocol.settings import CoreSettings, Rule, Rules
from appliance.protocol.targets import target_fault
from appliance.protocol.timers import Timers
from appliance.protocol.transitions import (
    CONNECTION,
    FAR,
    HANDSHAKE,
    MOVER,
    Conn,
    ConnInput,
    TransitionError,
    step,
)
from appliance.rewrite.flow import Endpoint, Flow

# replay window


@given(st.lists(st.integers(0, 3 * replay.WIDTH), max_size=300))
def test_each_counter_is_taken_once_and_only_if_young_enough(counters: list[int]) -> None:
    window, seen, top = ReplayWindow(), set(), -1
    for counter in counters:
        want = counter not in seen and top - counter < replay.WIDTH
        assert window.fresh(counter) == want
        assert window.accept(counter) == want
        if want:
            seen.add(counter)
        top = max(top, counter)


def test_a_huge_jump_costs_no_memory() -> None:
    window = ReplayWindow()
    assert window.accept(0)
    assert window.accept(2**63)
    assert not window.accept(0)
    assert window._seen.bit_length() <= replay.WIDTH


# timers


@given(st.lists(st.tuples(st.sampled_from(["set", "cancel", "pop"]), st.integers(0, 9),
                          st.integers(0, 50))))  # fmt: skip
def test_timers_are_like_a_plain_dictionary(actions: list[tuple[str, int, int]]) -> None:
    timers, model = Timers(), dict[tuple[int], float]()
    for what, number, at in actions:
        key = (number,)
        if what == "set":
            timers.set(key, at)
            model[key] = at
        elif what == "cancel":
            timers.cancel(key)
            model.pop(key, None)
        else:
            first = min(model.values(), default=at + 1)
            got = timers.pop(at)
            assert (got is None) == (first > at)
            if got is not None:
                assert model.pop(got) == first  # type: ignore[arg-type]
        assert timers.next() == min(model.values(), default=None)
        assert len(timers) == len(model)
        for each in model:
            assert each in timers


def test_timers_set_again_and_again_do_not_grow() -> None:
    timers = Timers()
    for n in range(100_000):
        timers.set(("x",), n)
    assert len(timers._heap) < 100


# buckets and cookies


def test_a_bucket_gives_a_burst_and_then_its_rate() -> None:
    bucket = TokenBucket(rate=2, burst=5, now=0.0)
    assert sum(bucket.take(0.0) for _ in range(20)) == 5
    assert sum(bucket.take(1.0) for _ in range(20)) == 2
    assert sum(bucket.take(100.0) for _ in range(20)) == 5
    assert not bucket.take(50.0)  # a clock that steps back gives nothing


def test_a_table_of_buckets_is_bounded() -> None:
    table = BucketTable(rate=1, burst=1, size=10)
    for n in range(1000):
        table.take(n, 0.0)
    assert len(table) == 10


def test_a_cookie_is_good_for_its_sender_and_nonce_and_a_while() -> None:
    rng = random.Random(1)
    jar = CookieJar(rng.randbytes, 0.0)
    sender, other = (Endpoint(ip_address("192.0.2.1"), p) for p in (1, 2))
    cookie = jar.make(sender, b"n", 0.0)
    assert jar.good(cookie, sender, b"n", 59.0)
    assert jar.good(cookie, sender, b"n", 61.0)
    assert not jar.good(cookie, other, b"n", 61.0)
    assert not jar.good(cookie, sender, b"m", 61.0)
    assert not jar.good(cookie, sender, b"n", 125.0)
    jar = CookieJar(rng.randbytes, 0.0)
    assert not jar.good(jar.make(sender, b"n", 0.0), sender, b"n", 1000.0)


# targets

LOCAL = (
    LocalAddress(ip_address("198.51.100.2"), "ext0", 24, True),
    LocalAddress(ip_address("10.0.0.1"), "lan0", 8, True, inside=True),
    LocalAddress(ip_address("192.0.2.0"), "p2p0", 31, True),
    LocalAddress(ip_address("2001:db8:5::1"), "lan0", 64, True, inside=True),
)


@pytest.mark.parametrize(
    ("addr", "fault"),
    [
        ("203.0.113.9", None), ("198.51.100.77", None), ("100.64.0.1", None),
        ("192.168.7.7", None), ("2001:db8:6::9", None), ("fd00::1", None), ("192.0.2.1", None),
        ("198.51.100.2", TargetFault.OWN_ADDRESS), ("10.0.0.1", TargetFault.OWN_ADDRESS),
        ("10.200.0.1", TargetFault.INSIDE), ("2001:db8:5::99", TargetFault.INSIDE),
        ("127.0.0.1", TargetFault.NOT_UNICAST), ("0.0.0.0", TargetFault.NOT_UNICAST),
        ("0.1.2.3", TargetFault.NOT_UNICAST), ("255.255.255.255", TargetFault.NOT_UNICAST),
        ("240.0.0.1", TargetFault.NOT_UNICAST), ("224.0.0.1", TargetFault.NOT_UNICAST),
        ("169.254.1.1", TargetFault.NOT_UNICAST), ("198.51.100.255", TargetFault.NOT_UNICAST),
        ("198.51.100.0", TargetFault.NOT_UNICAST), ("::", TargetFault.NOT_UNICAST),
        ("::1", TargetFault.NOT_UNICAST), ("ff02::1", TargetFault.NOT_UNICAST),
        ("fe80::1", TargetFault.NOT_UNICAST), ("::ffff:203.0.113.9", TargetFault.NOT_UNICAST),
        ("2002:cb00:7109::1", TargetFault.NOT_UNICAST), ("2001::1", TargetFault.NOT_UNICAST),
        ("64:ff9b::10.0.0.7", TargetFault.NOT_UNICAST), ("::10.0.0.7", TargetFault.NOT_UNICAST),
    ],
)  # fmt: skip
def test_targets(addr: str, fault: TargetFault | None) -> None:
    assert target_fault(ip_address(addr), LOCAL) is fault


# tables


def test_a_missing_transition_is_an_error_that_names_it() -> None:
    with pytest.raises(TransitionError, match="AGED in state BOUND"):
        step(CONNECTION, Conn.BOUND, ConnInput.AGED)


@pytest.mark.parametrize("table", [CONNECTION, HANDSHAKE, MOVER, FAR])
def test_every_state_of_a_table_can_be_reached_and_answers_something(table) -> None:  # type: ignore[no-untyped-def]
    states = {state for state, _ in table}
    after = {state for _, state in table.values()}
    kind = type(next(iter(states)))
    assert states | after == set(kind)
    first = {transitions.Conn.SHORT, transitions.Shake.NONE, transitions.Mover.ANNOUNCED,
             transitions.Far.CHALLENGED}  # fmt: skip
    assert set(kind) - after <= first
    inputs = {what for _, what in table}
    assert inputs == set(type(next(iter(inputs))))


# samples of acknowledgments


def test_samples_of_a_fast_connection_overlap_though_looked_at_at_different_times() -> None:
    rng = random.Random(7)
    near, far = Sample(0.0), Sample(0.0)
    stream = [Seen(True, rng.randrange(2**32), rng.randrange(2**32)) for _ in range(40_000)]
    for n, seen in enumerate(stream):
        now = n / 20_000
        near.add(seen, now)
        if n < len(stream) - 400:  # 20 ms behind
            far.add(Seen(False, seen.seq, seen.ack), now + 0.02)
    ours = {(s.seq, s.ack) for s in near.segments()[:16]}
    theirs = {(s.seq, s.ack) for s in far.segments()}
    assert len(ours & theirs) >= 8
    assert len(near.segments()) == KEPT
    assert sum(len(heap) for heap in near._heaps) <= 4 * KEPT


def test_old_acknowledgments_are_forgotten() -> None:
    sample = Sample(0.0)
    sample.add(Seen(True, 1, 1), 0.0)
    sample.add(Seen(True, 2, 2), 2.5)
    sample.add(Seen(True, 3, 3), 5.0)
    assert {s.seq for s in sample.segments()} == {2, 3}


# entries

ENDS = st.builds(Endpoint, st.integers(1, 6).map(lambda n: ip_address(f"192.0.2.{n}")),
                 st.integers(1, 3))  # fmt: skip


@given(st.lists(st.tuples(st.lists(ENDS, min_size=1, max_size=3),
                          st.lists(ENDS, min_size=1, max_size=3), st.booleans())))  # fmt: skip
def test_entries_follow_from_endpoints(
    changes: list[tuple[list[Endpoint], list[Endpoint], bool]],
) -> None:
    birth = Flow.of("203.0.113.2", 40000, "198.51.100.2", 22)
    c = Connection(birth, birth, True, True, None)
    binding = Binding.new("0" * 32, "p", c, "kernel", 0.0)
    table = Table()
    table.bind(binding)
    assert not binding.rebuild()
    for ours, theirs, held in changes:
        binding.locals_, binding.remotes = ours, theirs
        binding.out_local = None if held else ours[-1]
        binding.out_remote = theirs[-1]
        before = binding.entry
        assert binding.rebuild() == (binding.entry != before)
        table.reindex(binding)
        entry = binding.entry
        assert not set(entry.wires) & set(entry.stale)
        assert set(entry.wires) == {Flow(a, b) for a in ours for b in theirs}
        assert entry.wires[0] == Flow(ours[0], theirs[0])
        assert len(entry.stale) <= MAX_STALE
        assert birth in entry.wires or birth in entry.stale
        assert entry.wire_out is None or entry.wire_out in entry.wires
        assert all(table.on_wire(w) is binding for w in entry.wires)
        assert not any(table.on_wire(s) for s in entry.stale)
        again = Binding.of(BindingRecord("p", entry, 0.0, 0.0))
        again.rebuild()
        assert set(again.entry.wires) == set(entry.wires)
        assert again.entry.wire_out == entry.wire_out
    table.unbind(binding.conn_id)
    assert not table._by_wire
    assert not table._by_peer


# rules


def test_the_first_rule_that_fits_decides() -> None:
    birth = Flow.of("203.0.113.2", 40000, "198.51.100.2", 22)
    c = Connection(birth, birth, True, True, None)
    rules = Rules(
        (
            Rule(after=None, ports=(80, 443)),
            Rule(after=3.0, prefix=ip_network("2001:db8::/32")),
            Rule(after=5.0, path="divert", ports=(22,), prefix=ip_network("198.51.100.0/24")),
            Rule(after=1.0, peer_id="p"),
        )
    )
    assert rules.after(c, "p") == 5.0
    assert rules.path(c, "p") == "divert"
    web = Flow.of("203.0.113.2", 443, "198.51.100.2", 9999)
    assert rules.after(Connection(web, web, True, False, None), None) is None
    other = Flow.of("203.0.113.2", 1, "192.0.2.1", 2)
    assert rules.after(Connection(other, other, True, True, None), "p") == 1.0
    assert rules.after(Connection(other, other, True, True, None), "q") == 10.0


@pytest.mark.parametrize(
    ("policy", "allowed"),
    [
        ({}, True),
        ({"first_contact": "strict"}, False),
        ({"discover": "known"}, False),
        ({"discover": (ip_network("192.0.2.0/24"),)}, True),
        ({"discover": (ip_network("10.0.0.0/8"), ip_network("2001:db8::/32"))}, False),
    ],
)
def test_discovery_policy(policy: dict[str, object], allowed: bool) -> None:
    settings = CoreSettings(**policy)  # type: ignore[arg-type]
    assert settings.may_discover(ip_address("192.0.2.7")) is allowed
