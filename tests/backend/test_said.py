"""What is sent again says what our end said last, else the far end drops it."""

from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st

from appliance.backend import segment
from appliance.backend.heldstore import before
from appliance.backend.said import Said
from appliance.backend.segment import ACK, PSH, RST, SYN, TcpSegment, build_tcp, parse_tcp
from appliance.rewrite.flow import Flow

FLOW = Flow.of("2001:db8::1", 1000, "2001:db8::2", 22)


def made(
    ack: int, window: int, stamp: int | None, flags: int = ACK, data: bytes = b""
) -> TcpSegment:
    options = b"" if stamp is None else segment.timestamps_option(stamp, 9)
    found = parse_tcp(build_tcp(FLOW, 77, ack % 2**32, flags, window, data, options))
    assert found is not None
    return found


def says(found: TcpSegment) -> tuple[int, int, tuple[int, int] | None]:
    _, _, _, ack, _, _, window = struct.unpack_from(">HHIIBBH", found.raw, found.start)
    assert ack == found.ack
    return ack, window, segment.timestamps(found)


@given(
    first=st.integers(0, 2**32 - 1),
    steps=st.lists(st.tuples(st.integers(-900, 900), st.integers(0, 65535), st.booleans())),
    stamped=st.booleans(),
)
def test_what_is_sent_again_says_the_newest(
    first: int, steps: list[tuple[int, int, bool]], stamped: bool
) -> None:
    """PAWS (RFC 7323 5.3) and acknowledgments of long ago (RFC 5961 5.2)."""
    known = Said()
    kept = made(first, 500, 1000 if stamped else None, ACK | PSH, b"held")
    known.note("c", kept)
    newest, window, stamp = 0, 500, 1000
    for step, (ack, win, other) in enumerate(steps, 1):
        sent = made(first + ack, win, 1000 + step if stamped else None)
        known.note("other" if other else "c", sent)
        if not other and ack >= newest:
            newest, window, stamp = ack, win, 1000 + step
    fresh = known.freshen("c", kept)
    assert says(fresh) == (
        (first + newest) % 2**32, window, (stamp, 9) if stamped else None
    )  # fmt: skip
    assert (fresh.seq, fresh.flags, fresh.raw[fresh.data :]) == (77, ACK | PSH, b"held")


def test_a_timestamp_never_goes_back() -> None:
    known = Said()
    known.note("c", made(5, 1, 2**32 - 1))
    known.note("c", made(5, 1, 3))  # past the end of the circle
    known.note("c", made(6, 1, 2))
    known.note("c", made(7, 1, None))
    assert segment.timestamps(known.freshen("c", made(5, 1, 1))) == (3, 9)


def test_syn_and_reset_say_nothing_that_could_be_repeated() -> None:
    known = Said()
    for flags in (SYN | ACK, RST | ACK, PSH):
        known.note("c", made(5, 60000, 4, flags))
    assert known.newest("c") is None
    kept = made(1, 2, 3)
    assert known.freshen("c", kept) is kept
    known.note("c", kept)
    known.forget(["c", "unknown"])
    assert known.newest("c") is None


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_an_acknowledgment_never_goes_back(said: int, kept: int) -> None:
    known = Said()
    known.note("c", made(said, 1, None))
    fresh = known.freshen("c", made(kept, 1, None))
    assert fresh.ack == (kept if before(said, kept) else said)
