"""Elements of entries: changes add up, and connections do not take each other's packets."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.rewrite.flow import Flow
from appliance.rewrite.redirect import DataPath, Entry
from pfconf import nft
from pfconf.nftmap import Elements, entry_elements, fields_between, pack, unpack
from pfconf.nfttable import CollisionError, Delta, ElementTable

from .node import at, entry, there
from .test_differential import random_entries, universe

BIRTH = Flow.of("198.51.100.7", 1000, "192.0.2.9", 22)
WIRE = at(BIRTH, "203.0.113.7")
INSIDE = at(BIRTH, "192.168.7.20", 5000)
PATHS: tuple[DataPath, ...] = ("kernel", "divert")


def change(table: ElementTable, put: Iterable[Entry] = (), remove: Iterable[str] = ()) -> Delta:
    plan = table.plan(put, remove)
    table.commit(plan)
    return plan.delta


def observe(table: ElementTable, flows: Iterable[Flow]) -> Delta:
    plan = table.plan_observe(flows)
    table.commit(plan)
    return plan.delta


def carry_out(kernel: Elements, delta: Delta) -> None:
    """As the kernel does it: what is deleted is there, what is added is not."""
    for key, value in delta.delete:
        assert kernel.pop(key) == value
    for key, value in delta.add:
        assert key not in kernel
        kernel[key] = value


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([4, 6]))
def test_changes_lead_where_a_fresh_start_leads(seed: int, version: int) -> None:
    rng = random.Random(seed)
    table, kernel = ElementTable(), dict[tuple[str, bytes], str | bytes]()
    for _ in range(4):
        wanted = [
            replace(entry, path=rng.choice(PATHS)) for entry in random_entries(rng, version, 12)
        ]
        gone = set(table.connections()) - {e.conn_id for e in wanted}
        carry_out(kernel, change(table, wanted, gone))
        carry_out(kernel, observe(table, rng.sample(universe(version), 3)))
        fresh = ElementTable()
        observe(fresh, table.observed)
        change(fresh, wanted)
        assert kernel == table.elements() == fresh.elements()
    carry_out(kernel, change(table, (), table.connections()))
    carry_out(kernel, observe(table, []))
    assert kernel == {}


def test_applying_an_entry_twice_changes_nothing() -> None:
    table = ElementTable()
    each = entry(1, BIRTH, [WIRE, BIRTH], WIRE)
    assert change(table, [each]).add
    assert change(table, [each]) == Delta((), ())


def test_a_refused_change_leaves_the_table_as_it_was() -> None:
    table = ElementTable()
    change(table, [entry(1, BIRTH, [WIRE], WIRE)])
    before = table.elements()
    other = there(BIRTH, "192.0.2.10")
    with pytest.raises(CollisionError, match=r"203\.0\.113\.7:1000"):
        change(table, [entry(2, other, [WIRE], WIRE)])
    assert table.elements() == before
    assert table.connections() == [f"{1:032x}"]


def test_a_past_wire_flow_of_one_connection_may_be_the_present_one_of_another() -> None:
    table = ElementTable()
    other = there(BIRTH, "192.0.2.10")
    change(table, [entry(1, BIRTH, [BIRTH], BIRTH, stale=[WIRE])])
    assert table.elements()["in_go", pack(*WIRE.reversed())] == "drop"
    change(table, [entry(2, other, [WIRE], WIRE)])
    assert table.elements()["in_go", pack(*WIRE.reversed())] == "in_s_d"
    change(table, (), [f"{2:032x}"])
    assert table.elements()["in_go", pack(*WIRE.reversed())] == "drop"


def test_a_shut_connection_of_our_own_is_held_where_it_leaves() -> None:
    elements = entry_elements(entry(1, BIRTH, [WIRE], None))
    assert elements["out_go", pack(*BIRTH)] == "held_own"
    assert ("out_go", pack(*WIRE)) not in elements


def test_a_shut_forwarded_connection_is_held_before_routing() -> None:
    elements = entry_elements(entry(1, BIRTH, [WIRE], None, inside=INSIDE))
    assert elements["via_go", pack(*INSIDE)] == "held"


def test_a_forwarded_packet_never_leaves_or_returns_untranslated() -> None:
    moved = there(WIRE, "192.0.2.10")
    elements = entry_elements(entry(1, BIRTH, [moved], moved, inside=INSIDE))
    half = Flow(INSIDE.local, moved.remote)
    assert elements["via_go", pack(*INSIDE)] == "via_d"
    assert elements["post_go", pack(*half)] == "drop"
    assert elements["post_go", pack(*INSIDE)] == "drop"
    assert elements["post_go", pack(*BIRTH.reversed())] == "drop"
    assert elements["guard", pack(*BIRTH.reversed())] == b""
    assert elements["post_go", pack(BIRTH.local, moved.remote)] == "post_s"


def test_without_nat_nothing_of_a_forwarded_connection_is_dropped() -> None:
    elements = entry_elements(entry(1, BIRTH, [BIRTH], BIRTH, inside=BIRTH))
    assert "drop" not in elements.values()
    assert elements["post_go", pack(*BIRTH)] == "post_same"


@given(st.integers(0, 2**32 - 1), st.sampled_from([4, 6]))
def test_fields_are_those_that_differ(seed: int, version: int) -> None:
    one, two = random.Random(seed).choices(universe(version), k=2)
    wanted = [
        name
        for name, old, new in (
            ("s", one.local.addr, two.local.addr),
            ("d", one.remote.addr, two.remote.addr),
            ("sp", one.local.port, two.local.port),
            ("dp", one.remote.port, two.remote.port),
        )
        if old != new
    ]
    assert list(fields_between(pack(*one), pack(*two))) == wanted


def test_on_the_divert_path_a_worker_translates_and_nothing_else_differs() -> None:
    for each in (
        entry(1, BIRTH, [WIRE, BIRTH], WIRE),
        entry(1, BIRTH, [WIRE], WIRE, inside=INSIDE),
        entry(1, BIRTH, [WIRE], None, inside=INSIDE, stale=[BIRTH]),
    ):
        kernel = entry_elements(each)
        divert = entry_elements(replace(each, path="divert"))
        hooks = ("in_", "out_", "post_")
        same = {k: v for k, v in kernel.items() if not (k[0].startswith(hooks) and v != "drop")}
        assert same.items() <= divert.items()
        for (table, packet), value in kernel.items():
            if table.endswith("_go") and str(value).startswith(hooks):
                assert divert[table, packet] == f"{table.removesuffix('_go')}_queue"
        assert {k for k in divert if k[0] == "sent"} == {
            ("sent", pack(*out)) for out in [each.wire_out] if out is not None
        }


def test_a_diverted_packet_that_keeps_its_addresses_is_not_routed_anew() -> None:
    """So the one that has no route but the last must not pass (see the chain)."""
    go = "out_go", pack(*BIRTH)
    moved = replace(entry(1, BIRTH, [WIRE], WIRE), path="divert")
    home = replace(entry(1, BIRTH, [BIRTH], BIRTH), path="divert")
    assert entry_elements(moved)[go] == "out_queue"
    assert entry_elements(home)[go] == "out_queue_same"
    assert entry_elements(home, observed=True)[go] == "out_queue_same_seen"


@pytest.mark.parametrize("queueing", ["nft", "xt"])
def test_every_verdict_names_a_chain_of_the_rules(queueing: nft.Queueing) -> None:
    text = nft.ruleset(nft.Settings(), queueing=queueing)
    rng = random.Random(1)
    inside = [entry(1, BIRTH, [WIRE], WIRE, inside=INSIDE), entry(2, BIRTH, [WIRE], None)]
    entries: list[Entry] = [*inside, *random_entries(rng, 4, 30)]
    verdicts = {
        value
        for each in entries
        for observed in (False, True)
        for path in PATHS
        for value in entry_elements(replace(each, path=path), observed).values()
        if isinstance(value, str) and value != "drop"
    }
    assert verdicts
    for verdict in verdicts:
        assert f" chain {verdict} {{" in text


def test_elements_are_rendered_as_text() -> None:
    table = ElementTable()
    change(table, [entry(1, BIRTH, [at(WIRE, "203.0.113.7", 40_000)], WIRE)])
    lines = [nft.element_text(key, value) for key, value in table.elements().items()]
    assert "192.0.2.9 . 22 . 203.0.113.7 . 40000 : goto in_d_dp" in lines
    assert "192.0.2.9 . 22 . 198.51.100.7 . 40000 : 1000" in lines
    assert "198.51.100.7 . 1000 . 192.0.2.9 . 22 : 203.0.113.7" in lines
    assert "198.51.100.7 . 1000 . 192.0.2.9 . 22 : 198.51.100.7 . 1000" in lines
    assert unpack(pack(*WIRE)) == WIRE


@pytest.mark.parametrize("name", ["", "1st", "a b", "a;b", "ta{ble", "x" * 33, "tab\nle", "täble"])
def test_a_name_that_would_change_the_rules_is_refused(name: str) -> None:
    assert not nft.table_name_is_valid(name)
    with pytest.raises(ValueError, match="table"):
        nft.ruleset(nft.Settings(table=name))
