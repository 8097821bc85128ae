"""What is encoded is parsed back; whatever else comes in, only MessageError comes out."""

from __future__ import annotations

from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.protocol import frames, wire
from appliance.protocol.frames import FRAMES, MAX_PAYLOAD, encode_frame, parse_frames
from appliance.protocol.message import (
    DATA_OVERHEAD,
    MAX_DATAGRAM,
    PLAIN,
    Data,
    data_head,
    encode,
    parse,
)
from appliance.protocol.wire import MessageError
from appliance.rewrite.flow import Endpoint, Flow

ADDRESSES = {4: st.integers(0, 2**32 - 1).map(IPv4Address),
             6: st.integers(0, 2**128 - 1).map(IPv6Address)}  # fmt: skip
PORTS = st.integers(0, 65535)


def endpoints(version: int) -> st.SearchStrategy[Endpoint]:
    return st.builds(Endpoint, ADDRESSES[version], PORTS)


def values(codec: Any) -> st.SearchStrategy[Any]:
    """Whatever a field can hold."""
    match codec:
        case wire.Number():
            return st.integers(0, 2 ** (8 * codec.size) - 1)
        case wire.Fixed():
            return st.binary(min_size=codec.size, max_size=codec.size)
        case wire.Hex():
            return st.binary(min_size=codec.size, max_size=codec.size).map(bytes.hex)
        case wire.Word():
            kind: type[IntEnum] = codec.kind
            return st.sampled_from(list(kind))
        case wire.Flag():
            return st.booleans()
        case wire.AddressField():
            return st.one_of(*ADDRESSES.values())
        case wire.EndpointField():
            return st.one_of(endpoints(4), endpoints(6))
        case wire.FlowField():
            flows = [st.builds(Flow, endpoints(v), endpoints(v)) for v in (4, 6)]
            return st.one_of(*flows)
        case wire.Pair():
            return st.tuples(values(codec.first), values(codec.second))
        case wire.Many():
            return st.lists(values(codec.item), max_size=codec.limit).map(tuple)
    raise AssertionError(codec)


def built(kind: Any) -> st.SearchStrategy[Any]:
    return st.builds(kind, **{name: values(codec) for name, codec in kind.LAYOUT})


MESSAGES = st.one_of(*(built(kind) for kind in PLAIN))
ALL_FRAMES = st.one_of(*(built(kind) for kind in FRAMES))


@given(MESSAGES)
def test_messages_come_back_as_they_went(message: Any) -> None:
    data = encode(message)
    assert len(data) <= 128
    assert parse(data) == message


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**63), st.binary(max_size=MAX_PAYLOAD))
def test_session_packets_come_back_as_they_went(to: int, counter: int, payload: bytes) -> None:
    data = data_head(to, counter) + payload + b"m" * 16
    assert len(data) == DATA_OVERHEAD + len(payload) <= MAX_DATAGRAM
    assert parse(data) == Data(to, counter, payload, b"m" * 16)


@given(st.lists(st.tuples(st.integers(0, 2**32 - 1), ALL_FRAMES), max_size=8))
def test_frames_come_back_as_they_went(row: list[tuple[int, Any]]) -> None:
    payload = b"".join(encode_frame(number, frame) for number, frame in row)
    assert list(parse_frames(payload)) == row


@given(ALL_FRAMES)
def test_no_frame_is_too_long_for_a_packet(frame: Any) -> None:
    assert len(encode_frame(1, frame)) <= MAX_PAYLOAD


@pytest.mark.parametrize("kind", FRAMES)
def test_the_longest_frame_of_a_kind_fits(kind: Any) -> None:
    longest: dict[str, Any] = {}
    addr = IPv6Address("2001:db8::1")
    end = Endpoint(addr, 1)

    def most(codec: Any) -> Any:
        match codec:
            case wire.Many():
                return (most(codec.item),) * codec.limit
            case wire.Pair():
                return most(codec.first), most(codec.second)
            case wire.Hex():
                return "00" * codec.size
            case wire.Fixed():
                return bytes(codec.size)
            case wire.Word():
                return next(iter(codec.kind))
            case wire.FlowField():
                return Flow(end, end)
            case wire.EndpointField():
                return end
            case wire.AddressField():
                return addr
        return 1 if isinstance(codec, wire.Number) else True

    for name, codec in kind.LAYOUT:
        longest[name] = most(codec)
    if kind is frames.HaveAnswer:  # the two lists share the connections of one HAVE
        longest["elsewhere"] = ()
    assert len(encode_frame(1, kind(**longest))) <= MAX_PAYLOAD


def outcome(data: bytes) -> Any:
    try:
        return parse(data)
    except MessageError:
        return None


def frames_of(data: bytes) -> list[Any]:
    try:
        return list(parse_frames(data))
    except MessageError:
        return []


@given(st.binary(max_size=1400))
@settings(max_examples=300)
def test_random_bytes_never_raise_anything_else(data: bytes) -> None:
    outcome(data)
    outcome(b"RD\x01" + data)
    for number, frame in frames_of(data):
        assert encode_frame(number, frame)


@given(MESSAGES, st.data())
@settings(max_examples=300)
def test_damaged_messages_are_refused_or_are_other_messages(message: Any, data: Any) -> None:
    good = encode(message)
    at = data.draw(st.integers(0, len(good) - 1))
    cut = good[: data.draw(st.integers(0, len(good) - 1))]
    assert outcome(cut) is None
    assert outcome(good + b"\1") is None
    flipped = bytearray(good)
    flipped[at] ^= data.draw(st.integers(1, 255))
    other = outcome(bytes(flipped))
    assert other != message


@given(ALL_FRAMES, st.data())
@settings(max_examples=300)
def test_damaged_frames_never_raise_anything_else(frame: Any, data: Any) -> None:
    good = bytearray(encode_frame(1, frame))
    at = data.draw(st.integers(0, len(good) - 1))
    good[at] ^= data.draw(st.integers(1, 255))
    assert frames_of(bytes(good)) != [(1, frame)]


def test_a_datagram_that_is_too_long_is_not_looked_at() -> None:
    with pytest.raises(MessageError, match="too many"):
        parse(b"RD\x01\x0b" + bytes(MAX_DATAGRAM))


def test_no_answer_is_longer_than_what_it_answers() -> None:
    size = {kind.TYPE.name: len(encode(_zero(kind))) for kind in PLAIN}
    for question, answer in (
        ("HELLO", "HELLO_ACK"), ("CONTACT_1", "CONTACT_2"), ("CONTACT_3", "CONTACT_4"),
        ("K1", "K2"), ("K1", "COOKIE"), ("K1", "K1"), ("K2", "K3"),
    ):  # fmt: skip
        assert size[answer] <= size[question], (question, answer)
    assert size["UNKNOWN"] <= DATA_OVERHEAD


def _zero(kind: Any) -> Any:
    reader = wire.Reader(bytes(200))
    return kind(**{name: codec.get(reader) for name, codec in kind.LAYOUT})


def test_every_field_can_be_described() -> None:
    for kind in (*PLAIN, *FRAMES):
        for _, codec in kind.LAYOUT:
            assert codec.describe()
