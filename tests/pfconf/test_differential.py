"""Random redirects and packets: pf as the evaluator knows it, the user-space rewriter and
a plain model of the table must agree."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import assume, given
from hypothesis import strategies as st

from appliance.backend.segment import ACK, build_tcp, parse_tcp
from appliance.rewrite.flow import Endpoint, Flow
from appliance.rewrite.redirect import Entry
from appliance.rewrite.rewriter import Rewriter
from appliance.rewrite.table import Verdict
from pfconf.anchor import Layout, entry_rules
from pfconf.kill import birth_kills
from pfconf.rule import render

from .evaluator import Packet, Pf

MAIN = """
anchor "redirect/*"
match out on ext0 inet from 192.168.0.0/16 to any nat-to (ext0:0)
anchor "redirect-reserved"
block drop all
pass out on ext0
pass in on lan0
pass out on lan0
"""
INTERFACES = {"ext0": ["10.9.0.2/24", "fd07::2/64"], "lan0": ["192.168.1.1/24"]}
LAYOUT = Layout("ext0", lan="lan0", hold_port=701)

ports = st.integers(1, 65535)


def ends(version: int) -> st.SearchStrategy[Endpoint]:
    pool = (
        st.integers(1, 40).map(lambda n: f"10.9.0.{n}")
        if version == 4
        else st.integers(1, 40).map(lambda n: f"[fd07::{n:x}]")
    )
    return st.builds(lambda a, p: Endpoint.parse(f"{a}:{p}"), pool, ports)


@st.composite
def entries(draw: st.DrawFn) -> Entry:
    version = draw(st.sampled_from([4, 4, 6]))
    local = draw(st.booleans())
    one = ends(version)
    birth = Flow(draw(one), draw(one))
    inside = birth
    if not local and version == 4:
        host = Endpoint.parse(f"192.168.1.{draw(st.integers(2, 9))}:{draw(ports)}")
        inside = Flow(host, birth.remote)
    wires = draw(st.lists(st.builds(Flow, one, one), min_size=1, max_size=3, unique=True))
    out = draw(st.sampled_from([None, wires[0], wires[-1]]))
    stale = draw(st.lists(st.builds(Flow, one, one), max_size=2, unique=True))
    stale = [s for s in stale if s not in wires]
    made = Entry(
        "ab" * 16, birth, inside, local, draw(st.booleans()), tuple(wires), out, tuple(stale),
        "kernel",
    )  # fmt: skip
    flows = [inside, *wires, *stale]
    # one tuple can't be two things at once (the core refuses such a move)
    assume(len({f.canonical() for f in flows}) == len(flows))
    assume(all(f.local != f.remote for f in flows))
    return made


def loaded(entry: Entry) -> Pf:
    pf = Pf.of(MAIN, INTERFACES)
    pf.load("redirect/connections", render(entry_rules(entry, LAYOUT)))
    return pf


def model(entry: Entry, packet: Flow, inbound: bool) -> Flow | str | None:
    """The tuple that goes on, "drop", "hold", or None when it is no business of ours;
    ``packet.local`` is the source."""
    if inbound:
        wire = packet.reversed()
        if wire in entry.wires:
            return entry.inside.reversed()
        return "drop" if wire in entry.stale else None
    if packet == entry.inside:
        return "hold" if entry.wire_out is None else entry.wire_out
    return None


def by_pf(entry: Entry, packet: Flow, inbound: bool) -> Flow | str | None:
    pf = loaded(entry)
    verdict = pf.test("in" if inbound else "out", "ext0", Packet(packet.local, packet.remote))
    if verdict.rule is None or verdict.rule.label is None:
        return None
    if not verdict.passed:
        return "drop"
    if verdict.divert == 701:
        return "hold"
    return Flow(verdict.packet.source, verdict.packet.dest)


def by_rewriter(entry: Entry, packet: Flow, inbound: bool) -> Flow | str | None:
    rewriter = Rewriter(near="inside")
    rewriter.load([entry])
    raw = bytearray(build_tcp(packet, 1, 2, ACK, payload=b"x"))
    verdict = rewriter.rewrite(raw, 0, len(raw), inbound)
    if verdict in (Verdict.DROP, Verdict.HOLD):
        return verdict.name.lower()
    segment = parse_tcp(bytes(raw))
    assert segment is not None
    return segment.packet


@given(entries(), st.data())
def test_pf_rewriter_and_model_agree(entry: Entry, data: st.DataObject) -> None:
    inbound = data.draw(st.booleans())
    flows = [w.reversed() for w in (*entry.wires, *entry.stale)] if inbound else [entry.inside]
    packet = data.draw(st.sampled_from(flows))
    wanted = model(entry, packet, inbound)
    assert by_pf(entry, packet, inbound) == wanted
    assert by_rewriter(entry, packet, inbound) == wanted


@given(entries(), st.data())
def test_other_packets_are_left_to_the_ruleset(entry: Entry, data: st.DataObject) -> None:
    one = ends(entry.birth.version)
    packet = Flow(data.draw(one), data.draw(one))
    inbound = data.draw(st.booleans())
    assume(model(entry, packet, inbound) is None)
    assert by_pf(entry, packet, inbound) is None


@given(entries())
def test_inbound_after_outbound_is_the_identity(entry: Entry) -> None:
    assume(entry.wire_out is not None)
    pf = loaded(entry)
    out = pf.test("out", "ext0", Packet(entry.inside.local, entry.inside.remote))
    assert Flow(out.packet.source, out.packet.dest) == entry.wire_out
    back = pf.test("in", "ext0", out.packet.answer())
    assert Flow(back.packet.source, back.packet.dest) == entry.inside.reversed()


@given(entries(), st.booleans())
def test_the_state_that_either_side_makes_translates_both_ways(
    entry: Entry, far_end_first: bool
) -> None:
    """openbsd.md: both directions, either side speaking first."""
    wire = entry.wires[0]
    entry = replace(entry, wires=(wire,), wire_out=wire)
    pf = loaded(entry)
    outbound = Packet(entry.inside.local, entry.inside.remote)
    inbound = Packet(wire.remote, wire.local)
    order = [("in", inbound), ("out", outbound)]
    for direction, packet in order if far_end_first else order[::-1]:
        verdict = pf.test(direction, "ext0", packet)
        assert verdict.passed
        got = Flow(verdict.packet.source, verdict.packet.dest)
        assert got == (entry.inside.reversed() if direction == "in" else wire)
    assert len(pf.states) == 1


@given(entries())
def test_nothing_of_a_forwarded_connection_leaks_with_its_inside_source(entry: Entry) -> None:
    assume(entry.inside != entry.birth)
    pf = loaded(entry)
    came = pf.test("in", "lan0", Packet(entry.inside.local, entry.inside.remote))
    assert came.passed
    left = pf.test("out", "ext0", came.packet)
    if left.passed and left.divert is None:
        assert left.packet.source == (entry.wire_out or entry.birth).local


def test_without_the_rules_a_killed_nat_state_leaks_and_with_them_it_does_not() -> None:
    """openbsd.md: "killing a NAT state with no matching redirect rule leaks"."""
    open_ruleset = MAIN.replace("block drop all\n", "").replace("pass out on ext0\n", "")
    inside = Flow.of("192.168.1.5", 37403, "10.8.0.2", 5000)
    pf = Pf.of(open_ruleset.replace("match out", "pass out"), INTERFACES)
    first = pf.test("out", "ext0", Packet(*inside, flags="S"))
    birth = Flow(first.packet.source, first.packet.dest)
    made = Entry("cd" * 16, birth, inside, False, True, (birth,), birth)
    assert pf.test("out", "ext0", Packet(*inside)).packet.source == birth.local
    (kill,) = birth_kills(made)
    assert pf.kill_key(kill.source, kill.dest) == 1
    assert pf.test("out", "ext0", Packet(*inside)).packet.source == inside.local
    wire = birth.with_local(Endpoint.parse("10.9.0.77:1").addr)
    moved = replace(made, wires=(wire,), wire_out=wire)
    pf.states.clear()
    pf.load("redirect/connections", render(entry_rules(moved, LAYOUT)))
    assert pf.test("out", "ext0", Packet(*inside)).packet.source == wire.local


def test_after_the_nat_rule_the_anchor_would_miss_what_the_lan_sends() -> None:
    """openbsd.md: after the NAT rule, L-first traffic leaks."""
    lines = MAIN.strip().splitlines()
    wrong = "\n".join([lines[1], lines[0], *lines[2:]])
    inside = Flow.of("192.168.1.5", 37403, "10.8.0.2", 5000)
    wire = Flow.of("10.9.0.77", 57510, "10.8.0.2", 5000)
    made = Entry("ef" * 16, wire, inside, False, True, (wire,), wire)
    rules = render(entry_rules(made, LAYOUT))
    for text, right in ((MAIN, True), (wrong, False)):
        pf = Pf.of(text, INTERFACES)
        pf.load("redirect/connections", rules)
        verdict = pf.test("out", "ext0", Packet(*inside))
        assert (verdict.packet.source == wire.local and verdict.passed) == right
