"""Routing messages: every recorded one, and bytes that are none."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.backend.openbsd.routemsg import (
    CHGADDRATTR,
    DELADDR,
    NEWADDR,
    AddressMessage,
    AnnounceMessage,
    LinkMessage,
    OverflowMessage,
    RouteMessage,
    RouteMessageError,
    parse,
    unembed,
)

from . import fixtures

ACTIONS = dict(fixtures.route_actions())
ALL = [message for messages in ACTIONS.values() for message in messages]


def addresses(action: str) -> list[tuple[int, str, int]]:
    parsed = [parse(message) for message in ACTIONS[action]]
    return [(m.kind, str(m.addr), m.prefix_len) for m in parsed if isinstance(m, AddressMessage)]


def test_every_recorded_message_is_understood() -> None:
    assert len(ALL) > 50
    assert all(parse(message) is not None for message in ALL)


def test_an_address_that_replaces_another_is_gone_then_new() -> None:
    assert addresses("ifconfig vether0 inet 10.77.0.9/24") == [
        (DELADDR, "10.77.0.2", 24),
        (NEWADDR, "10.77.0.9", 24),
    ]


def test_an_alias_comes_and_goes_alone() -> None:
    assert addresses("ifconfig vether0 inet 10.77.0.50/32 alias") == [(NEWADDR, "10.77.0.50", 32)]
    assert addresses("ifconfig vether0 inet 10.77.0.50 delete") == [(DELADDR, "10.77.0.50", 32)]


def test_ipv6_addresses_are_confirmed_by_a_later_message() -> None:
    assert addresses("ifconfig vether0 inet6 2001:db8:77::2/64") == [
        (NEWADDR, "fe80::fce1:baff:fed6:d0ed", 64),
        (NEWADDR, "2001:db8:77::2", 64),
        (CHGADDRATTR, "fe80::fce1:baff:fed6:d0ed", 64),
        (CHGADDRATTR, "2001:db8:77::2", 64),
    ]


@pytest.mark.parametrize(("action", "up"), [("down", False), ("up", True)])
def test_link_messages_tell_whether_packets_can_pass(action: str, up: bool) -> None:
    parsed = [parse(message) for message in ACTIONS[f"ifconfig vether0 {action}"]]
    assert parsed
    for message in parsed:
        assert isinstance(message, LinkMessage)
        assert (message.ifname, message.index, message.up) == ("vether0", 12, up)


def test_a_default_route_is_told_with_its_gateway() -> None:
    message = parse(ACTIONS["route -n delete default 10.77.0.1"][0])
    assert isinstance(message, RouteMessage)
    assert (str(message.dest), str(message.gateway)) == ("0.0.0.0", "10.77.0.1")
    assert not message.cloned


def test_a_neighbour_entry_is_marked_as_such() -> None:
    parsed = [parse(m) for m in ALL]
    cloned = [m for m in parsed if isinstance(m, RouteMessage) and m.cloned]
    assert {str(m.dest) for m in cloned} == {"10.77.0.1"}


def test_a_departed_interface_is_announced() -> None:
    assert parse(ACTIONS["ifconfig vether0 destroy"][-1]) == AnnounceMessage(12, "vether0", True)


def test_overflow_asks_for_a_fresh_look() -> None:
    assert parse(b"\x08\x00\x05\x10\x08\x00\x00\x00") == OverflowMessage()


def test_other_types_and_families_are_none_of_our_business() -> None:
    assert parse(b"\x08\x00\x05\x13\x08\x00\x00\x00") is None
    link_layer = bytearray(ACTIONS["ifconfig vether0 inet 10.77.0.50 delete"][-1])
    at = bytes(link_layer).index(b"\x10\x02\x00\x00\x0a\x4d\x00\x32")
    link_layer[at + 1] = 18
    assert parse(bytes(link_layer)) is None


def test_embedded_interface_index_is_taken_out_of_link_local_addresses_only() -> None:
    assert unembed(bytes.fromhex("fe80000c" + "00" * 11 + "01")) == ip_address("fe80::1")
    assert unembed(ip_address("2001:db8::1").packed) == ip_address("2001:db8::1")


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "no message"),
        (b"\x04\x00\x04\x0c", "version"),
        (b"\x05\x00\x05\x0c", "length"),
        (b"\x04\x00\x05\x0c", "too short"),
        (b"\x04\x00\x05\x0f", "announcement"),
        (b"\x18\x00\x05\x0c" + b"\xff" * 20, "header length"),
        (b"\x18\x00\x05\x0c\x18\x00" + b"\0" * 6 + b"\x04" + b"\0" * 11, "missing"),
        (b"\x19\x00\x05\x0c\x18\x00" + b"\0" * 6 + b"\x04" + b"\0" * 11 + b"\x09", "past the end"),
        (b"\x18\x00\x05\x0e\x18\x00" + b"\0" * 18, "interface header"),
    ],
)
def test_what_is_no_whole_message_is_refused_with_the_reason(data: bytes, why: str) -> None:
    with pytest.raises(RouteMessageError, match=why):
        parse(data)


@given(st.binary(max_size=300))
def test_any_bytes_parse_or_are_refused(data: bytes) -> None:
    try:
        parse(data)
    except RouteMessageError:
        return


@given(st.sampled_from(ALL), st.data())
def test_a_damaged_message_parses_or_is_refused(message: bytes, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(message) - 1))
    damaged = message[:at] + bytes([data.draw(st.integers(0, 255))]) + message[at + 1 :]
    cut = damaged[: data.draw(st.integers(0, len(damaged)))]
    for candidate in (damaged, cut, len(cut).to_bytes(2, "little") + cut[2:]):
        try:
            parse(candidate)
        except RouteMessageError:
            continue
