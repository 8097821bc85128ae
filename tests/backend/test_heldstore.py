"""What is kept of segments that did not get through, and within which bounds."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from appliance.backend import heldstore, segment
from appliance.backend.heldstore import HeldStore
from appliance.rewrite.flow import Flow

FLOW = Flow.of("192.0.2.1", 1000, "192.0.2.2", 22)
OTHER = Flow.of("192.0.2.1", 1001, "192.0.2.2", 22)


def data(seq: int, payload: bytes = b"x" * 100, flow: Flow = FLOW) -> segment.TcpSegment:
    made = segment.parse_tcp(segment.build_tcp(flow, seq % 2**32, 1, segment.ACK, 0, payload))
    assert made is not None
    return made


def seqs(kept: list[segment.TcpSegment]) -> list[int]:
    return [each.seq for each in kept]


def test_held_segments_come_back_in_sequence_and_once() -> None:
    store = HeldStore()
    for seq in (300, 100, 200, 100):
        store.hold(data(seq), 1.0)
    assert store.count(FLOW) == 3
    assert seqs(store.take([FLOW, OTHER], 2.0)) == [100, 200, 300]
    assert store.take([FLOW], 2.0) == []
    assert store.count(FLOW) == 0


def test_sequence_goes_on_past_the_end_of_the_numbers() -> None:
    store = HeldStore()
    for seq in (50, 2**32 - 50, 150):
        store.hold(data(seq), 1.0)
    assert seqs(store.take([FLOW], 1.0)) == [2**32 - 50, 50, 150]


def test_acknowledgments_are_not_kept() -> None:
    store = HeldStore()
    store.hold(data(1, b""), 1.0)
    assert store.take([FLOW], 1.0) == []


def test_the_longer_of_two_copies_counts() -> None:
    store = HeldStore()
    store.hold(data(1, b"abc"), 1.0)
    store.hold(data(1, b"abcdef"), 1.0)
    store.hold(data(1, b"ab"), 1.0)
    (kept,) = store.take([FLOW], 1.0)
    assert kept.length == 6


def test_a_full_store_keeps_the_oldest_and_the_newest() -> None:
    store = HeldStore()
    for number in range(heldstore.SEGMENTS * 2):
        store.hold(data(number * 100), 1.0)
    kept = seqs(store.take([FLOW], 1.0))
    assert len(kept) == heldstore.SEGMENTS
    assert kept[:-1] == [n * 100 for n in range(heldstore.SEGMENTS - 1)]
    assert kept[-1] == (heldstore.SEGMENTS * 2 - 1) * 100


def test_the_first_unacknowledged_segment_finds_its_place_in_a_full_store() -> None:
    """It was sent before the connection was shut; its repetition comes after the others."""
    store = HeldStore()
    for number in range(heldstore.SEGMENTS):
        store.hold(data(1000 + number * 100), 1.0)
    store.hold(data(0, bytes(900)), 2.0)
    kept = seqs(store.take([FLOW], 2.0))
    assert len(kept) == heldstore.SEGMENTS
    assert kept[:2] == [0, 1000]
    assert kept[-1] == 1000 + (heldstore.SEGMENTS - 1) * 100


def test_a_large_first_segment_takes_the_place_of_several() -> None:
    store = HeldStore()
    for number in range(3):
        store.hold(data(100_000 + number * 32_000, bytes(32_000)), 1.0)
    store.hold(data(0, bytes(60_000)), 2.0)
    assert seqs(store.take([FLOW], 2.0)) == [0, 164_000]


def test_a_retransmission_into_silence_shows_what_has_arrived_before() -> None:
    store = HeldStore()
    for seq in (100, 200, 300):
        store.quiet(data(seq), 1.0)
    store.quiet(data(200), 1.3)
    assert seqs(store.take([FLOW], 1.4)) == [200, 300]


def test_what_was_sent_into_silence_long_ago_was_acknowledged() -> None:
    store = HeldStore()
    store.quiet(data(100), 1.0)
    store.quiet(data(200), 1.0 + heldstore.KEEP_QUIET + 0.1)
    assert seqs(store.take([FLOW], 4.0)) == [200]


def test_an_acknowledgment_after_a_long_silence_throws_nothing_away() -> None:
    """The far end's first segment after an outage is acknowledged before ours are sent."""
    store = HeldStore()
    store.quiet(data(100), 1.0)
    store.quiet(data(100), 7.0)
    store.quiet(data(900, b""), 12.0)
    assert seqs(store.take([FLOW], 12.1)) == [100]


def test_a_held_segment_is_kept_as_long_as_tcp_itself_would_repeat_it() -> None:
    store = HeldStore()
    store.hold(data(100), 0.0)
    assert seqs(store.take([FLOW], heldstore.KEEP_HELD)) == [100]
    store.hold(data(100), 0.0)
    store.expire(heldstore.KEEP_HELD + 1)
    assert store.count(FLOW) == 0


def test_the_whole_store_is_bounded() -> None:
    store = HeldStore(total=1000)
    for number in range(100):
        flow = Flow.of("192.0.2.1", number, "192.0.2.2", 22)
        store.hold(data(1, flow=flow), 1.0)
    held = sum(store.count(Flow.of("192.0.2.1", n, "192.0.2.2", 22)) for n in range(100))
    assert held == 1000 // len(data(1).raw)


@given(st.lists(st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 2000), st.booleans()),
                max_size=200))  # fmt: skip
def test_bounds_hold_whatever_comes(rows: list[tuple[int, int, bool]]) -> None:
    store = HeldStore(total=50_000)
    for at, (seq, length, quiet) in enumerate(rows):
        (store.quiet if quiet else store.hold)(data(seq, bytes(length)), at * 0.5)
        assert store.count(FLOW) <= heldstore.SEGMENTS
        assert 0 <= store._size <= 50_000
    kept = store.take([FLOW], len(rows) * 0.5)
    assert sum(len(each.raw) for each in kept) <= heldstore.BYTES
    assert len({each.seq for each in kept}) == len(kept)
    assert store._size == 0
