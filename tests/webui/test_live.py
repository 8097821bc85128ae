"""The table of connections: keys, filters, and what a browser is sent."""

from __future__ import annotations

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from webui.daemon import Connection
from webui.live import MAX_VERSIONS, LiveTable, Query, Row, Snapshots, row_key, select

from .conftest import Clock


def made(number: int, state: str = "long", **changes: object) -> Connection:
    pair = (f"192.168.1.10:{number}", "198.51.100.1:22")
    plain = Connection(None, None, None, state, inside=pair, birth=pair, since=float(number))
    return attrs.evolve(plain, **changes)


def test_a_row_keeps_its_key_when_the_connection_is_bound_and_moves() -> None:
    before = made(1)
    after = attrs.evolve(
        before, conn_id="aa", state="redirected", wire=("203.0.113.1:1", "198.51.100.1:22")
    )
    assert row_key(before) == row_key(after)
    assert row_key(before) != row_key(made(2))


def test_what_is_changing_right_now_comes_first() -> None:
    states = ["short", "long", "bound", "redirected", "held", "unheard-of"]
    rows = Snapshots(Clock()).rows(lambda: [made(n, state) for n, state in enumerate(states)])
    assert [row.connection.state for row in rows] == [
        "held",
        "redirected",
        "bound",
        "long",
        "short",
        "unheard-of",
    ]


def test_a_snapshot_is_taken_at_most_once_a_second() -> None:
    clock, taken = Clock(), []

    def fetch() -> list[Connection]:
        taken.append(clock.now)
        return [made(len(taken))]

    snapshots = Snapshots(clock)
    snapshots.rows(fetch)
    clock.now += 0.9
    snapshots.rows(fetch)
    assert len(taken) == 1
    clock.now += 0.2
    snapshots.rows(fetch)
    assert len(taken) == 2
    snapshots.forget()
    snapshots.rows(fetch)
    assert len(taken) == 3


def test_a_slow_daemon_is_asked_less_often() -> None:
    clock, taken = Clock(), []

    def slow() -> list[Connection]:
        clock.now += 0.25
        taken.append(clock.now)
        return [made(1)]

    snapshots = Snapshots(clock)
    snapshots.rows(slow)
    clock.now += 4.9
    snapshots.rows(slow)
    assert len(taken) == 1
    clock.now += 0.2
    snapshots.rows(slow)
    assert len(taken) == 2


def test_a_failed_fetch_shows_no_old_rows() -> None:
    clock = Clock()
    snapshots = Snapshots(clock)
    snapshots.rows(lambda: [made(1)])
    clock.now += 2

    def broken() -> list[Connection]:
        raise OSError("gone")

    for _ in range(2):
        with pytest.raises(OSError, match="gone"):
            snapshots.rows(broken)


@pytest.mark.parametrize(
    ("query", "ports"),
    [
        (Query(text="10:3"), [3]),
        (Query(text="OFFICE"), [2]),
        (Query(state="bound"), [2]),
        (Query(peer="p"), [2]),
        (Query(text="203.0.113.9"), [3]),
        (Query(size=2), [3, 2]),
        (Query(size=2, page=2), [1]),
        (Query(size=2, page=99), [1]),
        (Query(text="nobody"), []),
    ],
)
def test_filters_and_parts(query: Query, ports: list[int]) -> None:
    connections = [
        made(1),
        made(2, "bound", peer_id="p", peer_name="Office", conn_id="c"),
        made(3, "redirected", wire=("203.0.113.9:3", "198.51.100.1:22")),
    ]
    rows = Snapshots(Clock()).rows(lambda: connections)
    selection = select(rows, query)
    assert [int(row.connection.inside[0].split(":")[1]) for row in selection.rows] == ports
    assert selection.total == 3


def rows_of(state: dict[int, int]) -> list[Row]:
    connections = [made(number, moves=moves) for number, moves in state.items()]
    return [Row(row_key(connection), connection) for connection in connections]


_tables = st.dictionaries(st.integers(0, 12), st.integers(0, 3), max_size=8)


@given(st.lists(st.tuples(_tables, st.integers(0, 30)), min_size=1, max_size=40))
def test_a_browser_that_applies_updates_shows_what_the_daemon_has(
    steps: list[tuple[dict[int, int], int]],
) -> None:
    """Also when it comes back with a version that is long forgotten."""
    table = LiveTable()
    shown: list[tuple[str, dict[str, Connection], tuple[str, ...]]] = [("", {}, ())]
    for state, back in steps:
        version, have, order = shown[max(0, len(shown) - 1 - back)]
        rows = rows_of(state)
        update = table.update(rows, version)
        if update.order is not None:
            have = have | {row.key: row.connection for row in update.changed}
            order = update.order
        assert [have[key] for key in order] == [row.connection for row in rows]
        shown.append((update.version, {key: have[key] for key in order}, order))


def test_versions_are_forgotten_but_never_mistaken() -> None:
    table = LiveTable()
    first = table.version(rows_of({1: 0}))
    for number in range(MAX_VERSIONS + 1):
        table.version(rows_of({1: 1, 2: number}))
    update = table.update(rows_of({1: 0, 2: 0}), first)
    assert len(update.changed) == 2
