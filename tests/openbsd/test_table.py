"""The redirect table: what is loaded and killed, and that no order loses a packet.

L 192.168.1.5 --lan0-- [B] --ext0-- 10.9.0.2, later 10.9.0.77 ... [A] 10.8.0.2:5000
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace

import pytest

from appliance.backend.api import BackendError
from appliance.backend.openbsd.pfctl import AT_ONCE, Pfctl
from appliance.backend.openbsd.pfstates import Key, Peer, PfState
from appliance.backend.openbsd.table import PfTable
from appliance.rewrite.flow import Endpoint, Flow
from appliance.rewrite.redirect import Entry
from pfconf.anchor import Layout
from pfconf.kill import KillLabel
from pfconf.labels import FLUSH_LABEL

from ..pfconf.evaluator import Packet, Pf
from .fakepf import FakePfctl

GATEWAY = """
anchor "redirect/*"
match out on ext0 inet from 192.168.1.0/24 to any nat-to (ext0:0)
anchor "redirect-reserved"
block drop all
pass out on ext0 inet proto tcp
pass out on ext0 inet proto udp label "flush-on-move"
pass in on lan0
pass out on lan0
"""
HOST = """
anchor "redirect/*"
block drop all
pass in on ext0 inet proto tcp from any to (ext0) port 5000
pass out on ext0
"""
L = Endpoint.parse("192.168.1.5:37403")
A = Endpoint.parse("10.8.0.2:5000")
OLD = Endpoint.parse("10.9.0.2:50001")
NEW = Endpoint.parse("10.9.0.77:50001")
ID = "5a" * 16
INSIDE = Flow(L, A)
HERE_OLD, HERE_NEW = Flow(OLD, A), Flow(NEW, A)
THERE_OLD, THERE_NEW = HERE_OLD.reversed(), HERE_NEW.reversed()


def make(text: str, addrs: dict[str, list[str]], **layout: object) -> tuple[PfTable, FakePfctl]:
    fake = FakePfctl(Pf.of(text, addrs))
    table = PfTable(
        Pfctl(fake), Layout("ext0", hold_port=701), lan_of=lambda addr: "lan0"
    )  # fmt: skip
    table.open()
    fake.said.clear()
    return table, fake


@pytest.fixture
def b() -> tuple[PfTable, FakePfctl]:
    return make(GATEWAY, {"ext0": ["10.9.0.2/24"], "lan0": ["192.168.1.1/24"]})


@pytest.fixture
def a() -> tuple[PfTable, FakePfctl]:
    return make(HOST, {"ext0": ["10.8.0.2/24"]})


MOVER = Entry(ID, HERE_OLD, INSIDE, False, True, (HERE_OLD,), HERE_OLD)
FAR = Entry(ID, THERE_OLD, THERE_OLD, True, False, (THERE_OLD,), THERE_OLD)


class Wire:
    """Both machines joined; each way of a packet is checked at the stack that gets it."""

    def __init__(self, b: Pf, a: Pf) -> None:
        self.b, self.a = b, a

    def l_sends(self, flags: str = "A") -> str:
        left = self.b.forward("lan0", "ext0", Packet(L, A, flags=flags))
        if not left.passed:
            return "blocked at B"
        if left.divert is not None:
            return "held"
        assert left.packet.source.addr != L.addr, "the LAN source leaks"
        got = self.a.test("in", "ext0", left.packet)
        if not got.passed:
            return f"blocked at A from {left.packet.source}"
        assert (got.packet.source, got.packet.dest) == (OLD, A), "A's stack would reset"
        return f"arrived from {left.packet.source}"

    def a_sends(self) -> str:
        left = self.a.test("out", "ext0", Packet(A, OLD))
        assert left.passed
        if left.packet.dest.addr not in self.b_addresses():
            return "lost at the old address"
        got = self.b.test("in", "ext0", left.packet)
        if not got.passed:
            return f"blocked at B to {left.packet.dest}"
        assert (got.packet.source, got.packet.dest) == (A, L), "B's stack would reset"
        out = self.b.test("out", "lan0", got.packet)
        assert out.passed
        return f"arrived to {left.packet.dest}"

    def b_addresses(self) -> list[object]:
        return [i.ip for i in self.b.interfaces["ext0"]]


def established(b: FakePfctl, a: FakePfctl) -> Wire:
    wire = Wire(b.pf, a.pf)
    assert wire.l_sends("S") == f"arrived from {OLD}"
    assert wire.a_sends() == f"arrived to {OLD}"
    return wire


def readdress(fake: FakePfctl, addr: str) -> None:
    changed = Pf.of("pass", {"ext0": [addr]}).interfaces["ext0"]
    fake.pf.interfaces["ext0"] = changed


Pair = tuple[PfTable, FakePfctl]


@pytest.mark.parametrize("first", ["L", "A"])
def test_a_move_in_the_safe_order_loses_nothing_and_resets_nobody(
    b: Pair, a: Pair, first: str
) -> None:
    (table_b, fake_b), (table_a, fake_a) = b, a
    wire = established(fake_b, fake_a)
    table_b.apply([MOVER])
    table_a.apply([FAR])
    assert fake_b.said == fake_a.said == []  # a connection that never moved has no rules
    readdress(fake_b, "10.9.0.77/24")
    # 1. the mover lets the new wire flow in and holds what goes out
    table_b.apply([replace(MOVER, wires=(HERE_NEW, HERE_OLD), wire_out=None)])
    assert (wire.l_sends(), wire.a_sends()) == ("held", "lost at the old address")
    # 2. the correspondent lets the new one in; nothing dies, nothing turns
    table_a.apply([replace(FAR, wires=(THERE_NEW, THERE_OLD))])
    assert fake_a.kills() == []
    assert (wire.l_sends(), wire.a_sends()) == ("held", "lost at the old address")
    # 3. the mover opens
    table_b.apply([replace(MOVER, wires=(HERE_NEW, HERE_OLD), wire_out=HERE_NEW)])
    if first == "L":
        assert wire.l_sends() == f"arrived from {NEW}"
    assert wire.a_sends() == "lost at the old address"
    # 4. the correspondent opens, and guards the old wire flow
    table_a.apply([replace(FAR, wires=(THERE_NEW,), wire_out=THERE_NEW, stale=(THERE_OLD,))])
    table_b.apply([replace(MOVER, wires=(HERE_NEW,), wire_out=HERE_NEW, stale=(HERE_OLD,))])
    steps = [wire.l_sends, wire.a_sends]
    results = [step() for step in (steps if first == "L" else steps[::-1])]
    assert sorted(results) == [f"arrived from {NEW}", f"arrived to {NEW}"]
    stranger = fake_a.pf.test("in", "ext0", Packet(OLD, A))
    assert not stranger.passed


def test_make_before_break_keeps_the_old_wire_flow_alive(b: Pair, a: Pair) -> None:
    (table_b, fake_b), (_, fake_a) = b, a
    wire = established(fake_b, fake_a)
    table_b.apply([MOVER])
    table_b.apply([replace(MOVER, wires=(HERE_NEW, HERE_OLD))])
    assert fake_b.kills() == [FLUSH_LABEL]
    assert wire.l_sends() == f"arrived from {OLD}"
    assert wire.a_sends() == f"arrived to {OLD}"


def test_a_packet_on_an_unproved_wire_flow_does_not_turn_the_answers(b: Pair, a: Pair) -> None:
    (_, fake_b), (table_a, fake_a) = b, a
    wire = established(fake_b, fake_a)
    table_a.apply([FAR])
    table_a.apply([replace(FAR, wires=(THERE_NEW, THERE_OLD))])
    assert fake_a.pf.test("in", "ext0", Packet(NEW, A)).passed
    assert wire.a_sends() == f"arrived to {OLD}"


def test_ten_moves_and_back_home(b: Pair, a: Pair) -> None:
    (table_b, fake_b), (table_a, fake_a) = b, a
    wire = established(fake_b, fake_a)
    mine, theirs = MOVER, FAR
    table_b.apply([mine])
    table_a.apply([theirs])
    for n in [*range(70, 80), 2]:
        end = Endpoint.parse(f"10.9.0.{n}:50001")
        here, there = Flow(end, A), Flow(A, end)
        readdress(fake_b, f"10.9.0.{n}/24")
        mine = replace(mine, wires=(here, *mine.wires), wire_out=None)
        table_b.apply([mine])
        theirs = replace(theirs, wires=(there, *theirs.wires))
        table_a.apply([theirs])
        mine = replace(mine, wires=(here,), wire_out=here, stale=mine.wires[1:])
        table_b.apply([mine])
        theirs = replace(theirs, wires=(there,), wire_out=there, stale=theirs.wires[1:])
        table_a.apply([theirs])
        assert wire.a_sends() == f"arrived to {end}"
        assert wire.l_sends() == f"arrived from {end}"


def test_udp_states_are_flushed_when_our_own_address_moves_and_tcp_states_stay(b: Pair) -> None:
    table, fake = b
    dns = Packet(Endpoint.parse("192.168.1.5:53000"), Endpoint.parse("10.8.0.9:53"), "udp")
    other = Packet(Endpoint.parse("192.168.1.5:4000"), Endpoint.parse("10.8.0.9:80"), flags="S")
    fake.pf.forward("lan0", "ext0", dns)
    fake.pf.forward("lan0", "ext0", other)
    table.apply([MOVER])
    before = len(fake.pf.states)
    table.apply([replace(MOVER, wires=(HERE_NEW, HERE_OLD), wire_out=None)])
    assert FLUSH_LABEL in fake.kills()
    assert len(fake.pf.states) == before - 1
    assert {s.proto for s in fake.pf.states if s.direction == "out"} == {"tcp"}


def test_each_apply_is_one_load_however_many_connections_move(b: Pair) -> None:
    table, fake = b
    many = [
        replace(
            MOVER, conn_id=f"{n:032x}", inside=Flow(L._replace(port=1000 + n), A),
            wires=(HERE_NEW.with_local(NEW.addr, 50000 + n),),
            wire_out=HERE_NEW.with_local(NEW.addr, 50000 + n),
        )
        for n in range(50)
    ]  # fmt: skip
    table.apply(many)
    assert fake.loads() == ["redirect/connections"]
    table.apply(many)
    assert fake.loads() == ["redirect/connections"]


def test_after_the_first_move_the_label_alone_tells_the_states_to_kill(b: Pair) -> None:
    """One run of pfctl for a connection and a move, not two."""
    table, fake = b
    table.apply([MOVER])
    table.apply([replace(MOVER, wires=(HERE_NEW, HERE_OLD), wire_out=None)])
    first = fake.kills()
    assert sorted(first) == sorted([ID, "tcp 192.168.1.5:37403 -> 10.8.0.2:5000", FLUSH_LABEL])
    fake.said.clear()
    table.apply([replace(MOVER, wires=(HERE_NEW,), wire_out=HERE_NEW)])
    assert fake.kills() == [ID]
    table.remove([ID])
    fake.said.clear()
    table.apply([replace(MOVER, wires=(HERE_NEW,), wire_out=HERE_NEW)])
    assert "tcp 192.168.1.5:37403 -> 10.8.0.2:5000" in fake.kills()


def test_many_kills_run_at_a_time_and_are_counted_together() -> None:
    together = threading.Barrier(AT_ONCE)

    def runner(argv: Sequence[str], stdin: str) -> str:
        together.wait(60)  # broken unless so many runs are under way
        return "killed 2 states\n"

    labels = [KillLabel(f"{n:032x}") for n in range(3 * AT_ONCE)]
    assert Pfctl(runner).kill([*labels, *labels]) == 6 * AT_ONCE


def test_a_kill_that_was_refused_is_tried_again_with_the_entry(b: Pair) -> None:
    table, fake = b
    moved = replace(MOVER, wires=(HERE_NEW,), wire_out=HERE_NEW)
    fake.fail = "key"
    with pytest.raises(BackendError, match="refused"):
        table.apply([moved])
    fake.fail = None
    fake.said.clear()
    table.apply([moved])
    assert ID in fake.kills()
    fake.said.clear()
    table.apply([moved])
    assert fake.said == []


def test_removed_connections_leave_the_anchor_and_their_states_end_by_themselves(b: Pair) -> None:
    table, fake = b
    table.apply([replace(MOVER, wires=(HERE_NEW,), wire_out=HERE_NEW)])
    fake.said.clear()
    table.remove([ID, "unknown"])
    table.remove([ID])
    assert (fake.loads(), fake.kills()) == (["redirect/connections"], [])
    assert fake.pf.anchors["redirect/connections"].rules == []
    assert table.entry(ID) is None


@pytest.mark.parametrize("keep", [True, False])
def test_closing_leaves_the_rules_to_the_kernel_or_takes_them_out(b: Pair, keep: bool) -> None:
    table, fake = b
    table.apply([replace(MOVER, wires=(HERE_NEW,), wire_out=HERE_NEW)])
    table.close(keep)
    assert bool(fake.pf.anchors["redirect/connections"].rules) == keep


def test_restored_nat_has_rules_though_it_never_moved(b: Pair) -> None:
    table, fake = b
    table.restore([MOVER])
    out = fake.pf.forward("lan0", "ext0", Packet(L, A))
    assert (out.passed, out.packet.source) == (True, OLD)


def test_divert_path_has_rules_from_the_start(b: Pair) -> None:
    table, fake = b
    table.apply([replace(MOVER, path="divert")])
    assert fake.pf.test("out", "ext0", Packet(L, A)).divert == 700


def test_inside_interface_that_is_not_known_is_left_out() -> None:
    fake = FakePfctl(Pf.of(GATEWAY, {"ext0": ["10.9.0.2/24"], "lan0": ["192.168.1.1/24"]}))
    table = PfTable(Pfctl(fake), Layout("ext0"))
    table.apply([replace(MOVER, wires=(HERE_NEW,), wire_out=HERE_NEW)])
    assert fake.pf.forward("lan0", "ext0", Packet(L, A)).passed


def test_observed_flows_go_to_the_tap() -> None:
    seen: list[Flow] = []
    fake = FakePfctl(Pf.of(HOST, {}))
    table = PfTable(Pfctl(fake), Layout("ext0"), observe=seen.extend)
    table.observe([HERE_OLD])
    assert seen == [HERE_OLD]


def test_an_entry_that_can_not_be_rendered_names_its_connection(b: Pair) -> None:
    table, _ = b
    bad = Flow(NEW._replace(port=0), A)
    with pytest.raises(BackendError, match=ID):
        table.apply([replace(MOVER, wires=(bad,), wire_out=bad)])


def test_reserved_ports_are_kept_off_new_connections_behind_nat(b: Pair) -> None:
    table, fake = b
    table.reserve({ID: Flow(OLD._replace(port=50001), A)})
    other = Packet(Endpoint.parse("192.168.1.9:999"), A, flags="S")
    first = fake.pf.forward("lan0", "ext0", other)  # NAT draws 50001
    assert not first.passed
    again = fake.pf.test("out", "ext0", other)  # its next SYN draws 50002
    assert again.passed
    loads = len(fake.loads())
    table.reserve({ID: Flow(OLD._replace(port=50001), A)})
    assert len(fake.loads()) == loads


def state(direction: str, wire: Flow, stack: Flow, rdomain: int = 0) -> PfState:
    peer = Peer(1, 2, 0, 4, None)
    return PfState(
        "6b03915200000014", 1, "all", "tcp", "in" if direction == "in" else "out",
        Key(*wire, rdomain), Key(*stack, rdomain), peer, peer, 9, 9, None, None, True,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("found", "killed"),
    [
        (state("out", HERE_NEW, INSIDE), False),
        (state("out", HERE_OLD, INSIDE), True),
        (state("out", HERE_OLD, INSIDE, 4), False),
        (state("in", HERE_NEW, INSIDE), False),
        (state("in", INSIDE, INSIDE), False),
        (state("out", HERE_OLD, Flow(L._replace(port=9), A)), False),
    ],
)
def test_after_a_restart_only_contradicting_states_die(found: PfState, killed: bool) -> None:
    fake = FakePfctl(Pf.of(GATEWAY, {"ext0": ["10.9.0.77/24"]}))
    table = PfTable(Pfctl(fake), Layout("ext0"), states=lambda: [found])
    table.replace_all([replace(MOVER, wires=(HERE_NEW,), wire_out=HERE_NEW)])
    assert fake.loads() == ["redirect/connections"]
    assert fake.kills() == (["6b03915200000014"] if killed else [])


def test_a_restart_without_redirects_does_not_read_the_state_table() -> None:
    fake = FakePfctl(Pf.of(GATEWAY, {"ext0": ["10.9.0.2/24"]}))

    def never() -> list[PfState]:
        raise AssertionError("read")

    PfTable(Pfctl(fake), Layout("ext0"), states=never).replace_all([MOVER])
    assert fake.kills() == []


def test_both_ends_moved_is_one_rule_a_direction(b: Pair) -> None:
    table, fake = b
    both = Flow(NEW, Endpoint.parse("10.8.0.99:5001"))
    table.apply([replace(MOVER, wires=(both,), wire_out=both)])
    out = fake.pf.forward("lan0", "ext0", Packet(L, A))
    assert Flow(out.packet.source, out.packet.dest) == both
