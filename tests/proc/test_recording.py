"""Captures: what a filter takes, what an order may say, what the engine makes of the files."""

from __future__ import annotations

import asyncio
import base64
import fcntl
from collections.abc import Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.backend.api import BackendError
from appliance.proc import captures
from appliance.proc.captures import Captures, scope_of
from appliance.proc.control_requests import ControlError
from appliance.proc.ipc import Message, ProtocolError
from appliance.proc.recording import MAX_SCOPE, Order, Scope
from appliance.rewrite.flow import Flow
from appliance.rewrite.redirect import Entry

FLOW = Flow.of("192.0.2.1", 40000, "198.51.100.1", 22)
MOVED = Flow.of("203.0.113.7", 40000, "198.51.100.1", 22)
ENTRY = Entry("ab" * 16, FLOW, FLOW, True, True, (FLOW,), FLOW)
ORDER = {"id": "0123456789abcdef", "flows": [str(FLOW)], "hosts": [], "seconds": 9, "bytes": 4096}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
)


def test_a_filter_names_both_directions_of_a_flow_exactly() -> None:
    assert Scope((FLOW,), ()).expression() == (
        "(tcp and src host 192.0.2.1 and src port 40000 and dst host 198.51.100.1 and dst port 22)"
        " or "
        "(tcp and src host 198.51.100.1 and src port 22 and dst host 192.0.2.1 and dst port 40000)"
    )


def test_the_zone_of_an_address_does_not_get_into_a_filter() -> None:
    scope = Scope.from_json({"flows": [], "hosts": ["fe80::1%x or tcp"]})
    assert scope.expression() == "(host fe80::1)"


def test_a_filter_that_would_take_everything_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing in particular"):
        Order.from_json({**ORDER, "flows": []})


def test_a_scope_keeps_the_newest_and_no_doubles() -> None:
    flows = [Flow.of("192.0.2.1", port, "198.51.100.1", 22) for port in range(1, 100)]
    scope = Scope((), ())
    for flow in flows + flows:
        scope = scope.plus(Scope((flow,), ()))
    assert scope.flows == tuple(flows[-MAX_SCOPE:])


def test_an_order_survives_the_way_to_the_parent() -> None:
    order = Order.from_json(ORDER)
    assert Order.from_json(order.to_json()) == order
    assert order.to_json() == ORDER


@pytest.mark.parametrize(
    "change",
    [
        {"id": "../../etc/passwd"},
        {"id": "0123456789abcdeF"},
        {"seconds": 301},
        {"seconds": True},
        {"bytes": (16 << 20) + 1},
        {"bytes": 0},
        {"flows": ["192.0.2.1:1 or tcp 192.0.2.2:2"]},
        {"hosts": ["host.example"]},
        {"hosts": "192.0.2.1"},
    ],
    ids=str,
)
def test_an_order_out_of_bounds_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises((ValueError, ProtocolError)):
        Order.from_json({**ORDER, **change})


@given(st.dictionaries(st.sampled_from([*ORDER, "x"]), JSON))
def test_no_order_surprises_the_parent(body: dict[str, Any]) -> None:
    try:
        order = Order.from_json(body)
    except (ValueError, KeyError, ProtocolError):
        return
    assert order.seconds <= 300


class Parent:
    """Stands for the link to the parent."""

    def __init__(self) -> None:
        self.asked: list[tuple[Message, dict[str, Any]]] = []
        self.fault: Exception | None = None

    async def call(self, kind: Message, body: Mapping[str, Any]) -> None:
        self.asked.append((kind, dict(body)))
        if self.fault is not None:
            raise self.fault


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def parent() -> Parent:
    return Parent()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def engine(tmp_path: Path, parent: Parent, clock: Clock) -> Captures:
    return Captures(tmp_path, parent, clock)  # type: ignore[arg-type]


def begin(engine: Captures, seconds: int = 9) -> dict[str, Any]:
    return asyncio.run(
        engine.start("connection x", scope_of(ENTRY), seconds, 4096, conn_id=ENTRY.conn_id)
    )


def file_of(tmp_path: Path, row: dict[str, Any], kind: str = "pcap") -> Path:
    return tmp_path / "captures" / f"{row['id']}.{kind}"


def test_the_parent_gets_typed_values_and_the_list_knows_the_capture(
    engine: Captures, parent: Parent
) -> None:
    row = begin(engine)
    assert parent.asked == [(Message.RECORD, {**ORDER, "id": row["id"]})]
    assert engine.rows() == [row]
    assert (row["state"], row["size"], row["conn_id"]) == ("running", 0, ENTRY.conn_id)


def test_a_capture_runs_as_long_as_its_file_is_locked(engine: Captures, tmp_path: Path) -> None:
    row = begin(engine)
    with file_of(tmp_path, row).open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(b"abc")
        file.flush()
        assert [(r["state"], r["size"]) for r in engine.rows()] == [("running", 3)]
        assert engine.get(row["id"], 0)["next"] == 3
    assert [r["state"] for r in engine.rows()] == ["done"]
    assert engine.get(row["id"], 0) == {"data": base64.b64encode(b"abc").decode(), "next": None}


def test_a_capture_that_fails_says_why(engine: Captures, tmp_path: Path, clock: Clock) -> None:
    silent, broken = begin(engine), begin(engine)
    file_of(tmp_path, broken, "failed").write_text("can't capture on any")
    clock.now += captures.STARTS_WITHIN
    rows = {row["id"]: (row["state"], row["why"]) for row in engine.rows()}
    assert rows[silent["id"]] == ("failed", "it did not start")
    assert rows[broken["id"]] == ("failed", "can't capture on any")


def test_what_the_parent_refuses_leaves_no_trace(
    engine: Captures, parent: Parent, tmp_path: Path
) -> None:
    parent.fault = BackendError("3 captures run already")
    with pytest.raises(ControlError, match="3 captures run already"):
        begin(engine)
    assert list((tmp_path / "captures").iterdir()) == []


def test_three_run_at_a_time_and_ten_are_kept(
    engine: Captures, tmp_path: Path, clock: Clock
) -> None:
    rows = []
    for _ in range(12):
        clock.now += 1
        rows.append(begin(engine))
        file_of(tmp_path, rows[-1]).write_bytes(b"")
    assert [r["id"] for r in engine.rows()] == [r["id"] for r in rows[:1:-1]]
    assert len(list((tmp_path / "captures").iterdir())) == 20
    for _ in range(3):
        begin(engine)
    with pytest.raises(ControlError, match="run already"):
        begin(engine)


def test_a_large_file_comes_in_pieces(engine: Captures, tmp_path: Path) -> None:
    row = begin(engine)
    whole = bytes(range(256)) * 6000
    file_of(tmp_path, row).write_bytes(whole)
    got, offset = b"", 0
    while offset is not None:
        piece = engine.get(row["id"], offset)
        got += base64.b64decode(piece["data"])
        offset = piece["next"]
    assert got == whole


def test_delete_takes_everything_and_other_names_are_not_found(
    engine: Captures, tmp_path: Path
) -> None:
    row = begin(engine)
    file_of(tmp_path, row).write_bytes(b"abc")
    for strange in ("../keystore", row["id"][:8], ""):
        with pytest.raises(ControlError, match="no capture"):
            engine.delete(strange)
    engine.delete(row["id"])
    assert list((tmp_path / "captures").iterdir()) == []


def test_files_that_are_none_of_ours_are_left_out(engine: Captures, tmp_path: Path) -> None:
    row = begin(engine)
    (tmp_path / "captures" / "x.json").write_text("[")
    (tmp_path / "captures" / "y.json").write_text('{"id": "../x"}')
    copy = file_of(tmp_path, row, "json").read_text()
    (tmp_path / "captures" / "fedcba9876543210.json").write_text(copy)
    assert [r["id"] for r in engine.rows()] == [row["id"]]


def test_a_capture_follows_its_connection(engine: Captures, parent: Parent, clock: Clock) -> None:
    async def life() -> None:
        row = await engine.start("connection x", scope_of(ENTRY), 9, 4096, conn_id=ENTRY.conn_id)
        moved = Entry(ENTRY.conn_id, FLOW, FLOW, True, True, (MOVED, FLOW), None)
        other = Entry("cd" * 16, FLOW, FLOW, True, True, (MOVED,), None)
        engine.follow([moved, other], lambda conn: None)
        await asyncio.sleep(0)
        body = {"id": row["id"], "flows": [str(FLOW), str(MOVED)], "hosts": []}
        assert parent.asked[1:] == [(Message.RECORD_MORE, body)]
        clock.now += 60
        engine.follow([moved], lambda conn: None)
        await asyncio.sleep(0)
        assert len(parent.asked) == 2

    asyncio.run(life())


def test_a_capture_of_a_host_follows_its_addresses(engine: Captures, parent: Parent) -> None:
    async def life() -> None:
        hosts = Scope((), (ip_address("198.51.100.1"),))
        row = await engine.start("host x", hosts, 9, 4096, peer_id="ef" * 16)
        there = Flow.of("192.0.2.1", 40000, "203.0.113.9", 22)
        moved = Entry(ENTRY.conn_id, FLOW, FLOW, True, True, (there, FLOW), None)
        engine.follow([moved], lambda conn: "ef" * 16)
        await asyncio.sleep(0)
        body = {"id": row["id"], "flows": [], "hosts": ["203.0.113.9", "198.51.100.1"]}
        assert parent.asked[1:] == [(Message.RECORD_MORE, body)]

    asyncio.run(life())
