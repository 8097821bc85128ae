"""The way of the state table from the parent to the engine."""

from __future__ import annotations

import ctypes
import socket
import struct
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.backend.api import BackendError
from appliance.backend.openbsd import statetable
from appliance.backend.openbsd.pfctl import Pfctl
from appliance.backend.openbsd.pfstates import (
    RECORD,
    PfState,
    StateError,
    parse_records,
    parse_text,
)
from appliance.backend.openbsd.statetable import (
    CHUNK,
    Assembler,
    StateSource,
    messages,
    open_channel,
    read_records,
    same_states,
)

from ..pfconf.evaluator import Pf
from . import fixtures
from .fakepf import FakePfctl

RECORDS = fixtures.records()
STATES = list(parse_records(RECORDS))


def kernel(data: Callable[[], bytes]) -> Callable[[int, bytearray], object]:
    """DIOCGETSTATES as pf answers it: the length alone for an empty buffer, else as many
    records as there is room for."""

    def ask(fd: int, argument: bytearray) -> None:
        room, address = struct.unpack("=QQ", argument)
        table = data()
        if room:
            table = table[: room // RECORD * RECORD]
            ctypes.memmove(address, table, len(table))
        argument[:8] = struct.pack("=Q", len(table))

    return ask


def test_records_are_read_whole() -> None:
    assert read_records(3, kernel(lambda: RECORDS)) == RECORDS
    assert read_records(3, kernel(lambda: b"")) == b""


def test_a_table_that_grows_meanwhile_is_read_again() -> None:
    sizes = iter([3, 300, 300, 300, 300])
    got = read_records(3, kernel(lambda: RECORDS[:RECORD] * next(sizes)))
    assert len(got) == 300 * RECORD


def test_a_table_that_grows_without_end_is_given_up() -> None:
    asked: list[int] = []

    def ask(fd: int, argument: bytearray) -> None:
        room, _ = struct.unpack("=QQ", argument)
        asked.append(room)
        argument[:8] = struct.pack("=Q", max(room, RECORD))  # always full to the brim

    with pytest.raises(BackendError, match="faster"):
        read_records(3, ask)
    assert asked == sorted(set(asked))


def test_both_recorded_forms_are_the_same_states() -> None:
    text = list(parse_text(fixtures.states_text()))
    assert same_states(STATES, text) is None
    assert same_states([], []) is None
    assert same_states(STATES, []) is None


@pytest.mark.parametrize("field", ["ifname", "direction", "creatorid", "sloppy"])
def test_what_differs_is_named(field: str) -> None:
    other = {"ifname": "em0", "direction": "out", "creatorid": 1, "sloppy": True}[field]
    changed = [replace(STATES[0], **{field: other})]  # type: ignore[arg-type]
    why = same_states(changed, STATES)
    assert why is not None
    assert why.startswith(field)


def test_two_tables_without_a_common_state_are_not_the_same() -> None:
    assert same_states([replace(STATES[0], state_id="1" * 16)], STATES) is not None


def source(fd_answer: Callable[[], bytes], text: str) -> tuple[StateSource, socket.socket]:
    ours, theirs = open_channel()
    fake = FakePfctl(Pf.of("pass", {}), states=text)
    made = StateSource(3, Pfctl(fake), ours)
    return made, theirs


def received(channel: socket.socket) -> list[PfState]:
    assembler = Assembler()
    while True:
        states = assembler.take(channel.recv(65536))
        if states is not None:
            return states


@pytest.fixture
def records(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statetable, "read_records", lambda fd: RECORDS)


@pytest.mark.usefixtures("records")
def test_records_are_used_when_the_check_finds_them_right() -> None:
    made, channel = source(lambda: RECORDS, fixtures.states_text())
    assert made.check() is None
    made.send()
    assert received(channel) == STATES
    assert made.states() == STATES


@pytest.mark.usefixtures("records")
def test_text_is_used_when_they_are_wrong() -> None:
    text = fixtures.states_text().replace("192.168.1.5", "192.168.1.6")
    made, channel = source(lambda: RECORDS, text)
    assert "of state" in (made.check() or "")
    made.send()
    assert {str(s.stack.near.addr) for s in received(channel)} >= {"192.168.1.6"}
    assert len(made.states()) == 3


def test_text_is_used_when_the_kernel_refuses() -> None:
    made, _ = source(lambda: b"", fixtures.states_text())
    assert made.check() is not None  # descriptor 3 is no /dev/pf here
    assert made.form == "text"


@pytest.mark.usefixtures("records")
def test_an_engine_that_is_gone_is_an_error_and_no_crash() -> None:
    made, channel = source(lambda: RECORDS, "")
    channel.close()
    with pytest.raises(BackendError, match="does not take"):
        made.send()


@given(st.integers(0, 4), st.integers(0, RECORD))
def test_dumps_of_any_size_arrive(chunks: int, rest: int) -> None:
    data = RECORDS[:RECORD] * (chunks * 31) + RECORDS[: rest // RECORD * RECORD]
    assembler = Assembler()
    results = [assembler.take(m) for m in messages(1, "records", data)]
    assert results[:-1] == [None] * (len(results) - 1)
    assert results[-1] is not None
    assert len(results[-1]) == len(data) // RECORD


def test_the_rest_of_an_earlier_dump_is_thrown_away() -> None:
    first = list(messages(1, "records", RECORDS[:RECORD] * 40))
    assert len(first) == 2
    assembler = Assembler()
    assert assembler.take(first[0]) is None
    (whole,) = messages(2, "records", RECORDS)
    assert assembler.take(whole) == STATES


@pytest.mark.parametrize("message", [b"", b"\0" * 5, struct.pack("=IBB", 1, 9, 1)])
def test_messages_of_unknown_form_are_refused(message: bytes) -> None:
    with pytest.raises(StateError):
        Assembler().take(message)


def test_a_dump_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statetable, "DUMP_MOST", CHUNK)
    assembler = Assembler()
    endless = struct.pack("=IBB", 1, 0, 0) + bytes(CHUNK // 2)
    assembler.take(endless)
    with pytest.raises(StateError, match="without end"):
        assembler.take(endless)


@given(st.lists(st.binary(max_size=300), max_size=5))
def test_any_messages_are_taken_or_refused(parts: list[bytes]) -> None:
    assembler = Assembler()
    for part in parts:
        try:
            assembler.take(part)
        except StateError:
            continue


def test_pf_that_can_not_be_opened_says_what_to_do() -> None:
    with pytest.raises(BackendError, match="as root"):
        statetable.open_pf()
