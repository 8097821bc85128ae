"""Answers to repetitions: when the first unacknowledged number is certain, and what is said."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.backend import segment
from appliance.backend.linux import persist
from appliance.rewrite.flow import Flow

FLOW = Flow.of("192.0.2.1", 1000, "192.0.2.2", 22)
FLOW6 = Flow.of("2001:db8::1", 1000, "2001:db8::2", 22)
numbers = st.integers(0, 2**32 - 1)


def stamps(value: int, echo: int) -> bytes:
    return b"\1\1" + struct.pack(">BBII", 8, 10, value, echo)


def made(
    seq: int,
    ack: int = 7,
    payload: bytes = b"x",
    flags: int = segment.ACK,
    options: bytes = b"",
    flow: Flow = FLOW,
) -> segment.TcpSegment:
    found = segment.parse_tcp(
        segment.build_tcp(flow, seq % 2**32, ack, flags, 500, payload, options)
    )
    assert found is not None
    return found


def after(*segments: tuple[float, segment.TcpSegment]) -> int | None:
    """What is certain after the last of these, each sent at its time."""
    seen = persist.Repetitions()
    for now, each in segments:
        seen.note("c", each, now)
    return seen.unacknowledged("c", segments[-1][1])


def test_the_third_sending_in_a_row_is_of_the_first_unacknowledged_segment() -> None:
    first = made(100)
    assert after((0, first)) is None
    assert after((0, first), (0.2, first)) is None
    assert after((0, first), (0.2, first), (0.6, first)) == 100
    assert after((0, first), (0.2, first), (0.6, first), (1.4, first)) == 100


def test_a_loss_probe_of_the_last_segment_proves_nothing() -> None:
    """It went out, was probed, and then the time-out repeats what is really the first."""
    first, last = made(100), made(200)
    assert after((0, last), (0.1, last), (0.3, first)) is None
    assert after((0, last), (0.1, last), (0.3, first), (0.7, first)) is None
    assert after((0, last), (0.1, last), (0.3, first), (0.7, first), (1.5, first)) == 100


def test_whatever_comes_from_the_far_end_begins_the_count_anew() -> None:
    before, later = made(100, ack=7), made(100, ack=8)
    assert after((0, before), (0.2, before), (0.6, later)) is None


def test_a_keepalive_is_answered_from_the_second_time_on() -> None:
    probe = made(99, payload=b"")
    assert after((0, probe)) is None
    assert after((0, probe), (1, probe)) == 100


def test_what_our_end_says_to_an_answer_is_no_repetition() -> None:
    said = made(99, payload=b"")
    assert after((0, said), (0.001, said), (0.002, said)) is None


def test_a_syn_or_a_reset_is_never_answered() -> None:
    for flags in (segment.SYN, segment.SYN | segment.ACK, segment.RST, segment.RST | segment.ACK):
        each = made(100, payload=b"", flags=flags)
        assert after(*((n, each) for n in range(5))) is None


def test_a_fin_is_repeated_like_data() -> None:
    fin = made(100, payload=b"", flags=segment.ACK | segment.FIN)
    assert after((0, fin), (0.2, fin), (0.6, fin)) == 100


def test_how_long_a_segment_has_been_repeated() -> None:
    seen = persist.Repetitions()
    assert seen.stuck_for("c", made(100)) == 0
    for now, each in ((1.0, made(100)), (1.2, made(100)), (2.5, made(100))):
        seen.note("c", each, now)
    assert seen.stuck_for("c", made(100)) == 1.5
    assert seen.stuck_for("other", made(100)) == 0
    seen.note("c", made(101), 9.0)
    assert seen.stuck_for("c", made(100)) == seen.stuck_for("c", made(101)) == 0
    seen.note("c", made(101), 9.5)
    seen.forget(["c", "unknown"])
    assert seen.stuck_for("c", made(101)) == 0


def test_acknowledgments_between_two_repetitions_change_nothing() -> None:
    """A far end that can still be heard repeats itself as well."""
    first, said = made(100), made(900, payload=b"")
    assert after((0, first), (0.1, said), (0.2, first), (0.3, said), (0.6, first)) == 100


def test_a_pure_acknowledgment_of_long_ago_is_no_probe() -> None:
    said, first = made(100, payload=b""), made(100)
    assert after((0, said), (1, first), (9, said)) is None


@pytest.mark.parametrize("flow", [FLOW, FLOW6])
def test_the_answer_acknowledges_nothing_new_and_shuts_the_window(flow: Flow) -> None:
    sent = made(100, ack=7, options=stamps(11, 22), flow=flow)
    told = segment.parse_tcp(persist.answer(sent, 100, flow))
    assert told is not None
    assert told.packet == flow.reversed()
    assert (told.seq, told.ack, told.flags, told.span) == (7, 100, segment.ACK, 0)
    assert told.raw[told.start + 14 : told.start + 16] == b"\0\0"
    assert segment.timestamps(told) == (22, 11)


def test_the_answer_to_a_probe_leaves_an_open_window_open() -> None:
    told = segment.parse_tcp(persist.answer(made(99, payload=b""), 100, FLOW))
    assert told is not None
    assert told.raw[told.start + 14 : told.start + 16] == b"\0\1"
    assert segment.timestamps(told) is None


@given(numbers, numbers, numbers, numbers, st.booleans(), st.binary(max_size=40))
def test_any_segment_is_answered_in_its_own_numbers(
    seq: int, ack: int, value: int, echo: int, stamped: bool, payload: bytes
) -> None:
    sent = made(seq, ack, payload, options=stamps(value, echo) if stamped else b"")
    certain = after((0, sent), (1, sent), (3, sent))
    assert certain == (seq if payload else seq + 1) % 2**32
    told = segment.parse_tcp(persist.answer(sent, seq, FLOW))
    assert told is not None
    assert (told.seq, told.ack) == (ack, seq)
    assert segment.timestamps(told) == ((echo, value) if stamped else None)


@given(st.binary(max_size=10).map(lambda b: (b * 4)[: len(b) * 4]))
def test_any_options_are_read_within_their_bounds(options: bytes) -> None:
    found = segment.timestamps(made(1, options=options))
    assert found is None or all(0 <= number < 2**32 for number in found)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 1), st.floats(0, 2)), max_size=40))
def test_nothing_is_certain_that_was_not_sent_three_times_in_a_row(
    rows: list[tuple[int, int, float]],
) -> None:
    seen = persist.Repetitions()
    now, history = 0.0, []
    for seq, ack, gap in rows:
        now += gap
        each = made(seq, ack)
        seen.note("c", each, now)
        history.append((seq, ack))
        certain = seen.unacknowledged("c", each)
        in_a_row = len(history) >= 3 and len(set(history[-3:])) == 1
        assert certain == (seq if in_a_row else None)
