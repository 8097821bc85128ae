"""From states to connections: recorded ones, and each kind of state there is."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from appliance.backend.openbsd.connections import Found, compare, find
from appliance.backend.openbsd.pfstates import (
    FIN_WAIT_2,
    TIME_WAIT,
    PfState,
    parse_records,
    parse_text,
)
from appliance.protocol.inputs import Connection
from appliance.rewrite.flow import Address, Flow
from appliance.rewrite.redirect import Entry

from . import fixtures

LP, NP = 21829, 50823
INSIDE = Flow.of("192.168.1.5", LP, "10.8.0.2", 5000)
BIRTH = Flow.of("10.9.0.2", NP, "10.8.0.2", 5000)


class Roles:
    def __init__(self, local: str, inside: str = "192.168.1.0/24") -> None:
        self._local = {ip_address(a) for a in local.split()}
        self._inside = ip_network(inside)

    def is_local(self, addr: Address) -> bool:
        return addr in self._local

    def is_inside(self, addr: Address) -> bool:
        return addr.version == self._inside.version and addr in self._inside


GATEWAY = Roles("10.9.0.2 192.168.1.1 10.9.0.77")
RECORDED = list(parse_records(fixtures.records()))


def line(text: str) -> PfState:
    (state,) = parse_text(f"all tcp {text}       ESTABLISHED:ESTABLISHED\n")
    return state


def only(states: list[PfState], roles: Roles = GATEWAY) -> Found:
    ((_, found),) = find(states, roles, 1000.0).items()
    return found


def test_recorded_gateway_has_one_forwarded_connection_with_both_names() -> None:
    found = only(RECORDED)
    assert found.connection == Connection(BIRTH, INSIDE, False, True, 998.0)
    assert not found.closing
    assert found.left_alone is None


def test_recorded_numbers_are_what_each_end_expects_next() -> None:
    theirs, ours = RECORDED[1].dst.seqlo, RECORDED[1].src.seqlo
    assert only(RECORDED).numbers == (theirs, ours)


def test_states_of_other_rdomains_are_other_machines() -> None:
    assert find([RECORDED[2]], Roles("10.8.0.2"), 0.0) == {}


@pytest.mark.parametrize(
    ("text", "birth", "inside", "local", "opened"),
    [
        ("10.9.0.2:4000 -> 10.8.0.2:22", "10.9.0.2:4000 10.8.0.2:22", None, True, True),
        ("10.9.0.2:22 <- 10.8.0.2:4000", "10.9.0.2:22 10.8.0.2:4000", None, True, False),
        (
            "192.168.1.9:8443 (10.9.0.2:443) <- 10.8.0.2:4000",
            "10.9.0.2:443 10.8.0.2:4000",
            "192.168.1.9:8443 10.8.0.2:4000",
            False,
            False,
        ),
    ],
)
def test_each_kind_of_connection_is_recognised(
    text: str, birth: str, inside: str | None, local: bool, opened: bool
) -> None:
    connection = only([line(text)]).connection
    assert str(connection.birth) == birth
    assert str(connection.inside) == (inside or birth)
    assert (connection.local, connection.inside_opened) == (local, opened)


def test_forwarded_ipv6_needs_no_translation() -> None:
    roles = Roles("2001:db8::1", "2001:db8:1::/64")
    out = line("2001:db8:1::5[4000] -> 2001:db8:9::1[22]")
    lan = line("2001:db8:9::1[22] <- 2001:db8:1::5[4000]")
    connection = only([out, lan], roles).connection
    assert (connection.local, connection.inside_opened) == (False, True)
    assert connection.birth == connection.inside
    into = line("2001:db8:1::5[22] <- 2001:db8:9::1[4000]")
    twin = line("2001:db8:9::1[4000] -> 2001:db8:1::5[22]")
    assert not only([into, twin], roles).connection.inside_opened


@pytest.mark.parametrize(
    "text",
    [
        "10.8.0.2:5000 <- 192.168.1.5:4000",  # the LAN side of a forwarded connection
        "10.8.0.2:4000 -> 192.168.1.9:8443",  # the LAN side of a port forward
        "192.168.1.1:22 <- 192.168.1.5:4000",  # from the LAN to the gateway
        "127.0.0.1:80 <- 127.0.0.1:4000",
        "fe80::1[80] <- fe80::2[4000]",
        "10.1.1.1:80 <- 10.2.2.2:4000",  # neither end is ours
    ],
)
def test_what_does_not_cross_the_network_side_is_left_out(text: str) -> None:
    assert find([line(text)], GATEWAY, 0.0) == {}


def test_connections_between_the_families_are_left_out() -> None:
    (state,) = parse_text(
        "all tcp 10.9.0.2:4000 (2001:db8:1::5[4000]) -> 10.8.0.2:22 (64:ff9b::a08:2[22])"
        "       ESTABLISHED:ESTABLISHED\n"
    )
    assert find([state], Roles("10.9.0.2", "2001:db8:1::/64"), 0.0) == {}


def test_other_protocols_and_half_open_states_are_left_out() -> None:
    udp = replace(line("10.9.0.2:4000 -> 10.8.0.2:22"), proto="udp")
    (opening,) = parse_text("all tcp 10.9.0.2:4000 -> 10.8.0.2:22       SYN_SENT:CLOSED\n")
    assert find([udp, opening], GATEWAY, 0.0) == {}


def test_modulated_connections_are_found_with_the_reason() -> None:
    state = line("10.9.0.2:4000 -> 10.8.0.2:22")
    found = only([replace(state, src=replace(state.src, seqdiff=5))])
    assert "modulate" in (found.left_alone or "")
    assert found.numbers is None


def redirected(local: bool = False) -> Entry:
    new = Flow.of("10.9.0.77", NP, "10.8.0.2", 5000)
    return Entry("ab" * 16, BIRTH, INSIDE, local, True, (new,), new)


def test_states_after_a_redirect_lead_back_to_the_birth_tuple() -> None:
    text = fixtures.transcript("pfctl -ss -vv after redirect")
    states = list(parse_text(text))
    inside = Flow.of("192.168.1.5", 37403, "10.8.0.2", 5000)
    birth = Flow.of("10.9.0.2", 57510, "10.8.0.2", 5000)
    entry = replace(redirected(), birth=birth, inside=inside)
    found = find(states, GATEWAY, 5.0, {inside: entry})
    assert found[birth].connection == Connection(birth, inside, False, True, None)
    assert not found[birth].closing


def test_recorded_end_is_the_end_of_the_connection() -> None:
    states = list(parse_text(fixtures.transcript("pfctl -ss after close")))
    inside = Flow.of("192.168.1.5", 37403, "10.8.0.2", 5000)
    birth = Flow.of("10.9.0.2", 57510, "10.8.0.2", 5000)
    entry = replace(redirected(), birth=birth, inside=inside)
    assert find(states, GATEWAY, 5.0, {inside: entry})[birth].closing


def test_a_connection_lives_while_one_of_its_states_does() -> None:
    old = replace(RECORDED[1], src=replace(RECORDED[1].src, state=TIME_WAIT))
    old = replace(old, dst=replace(old.dst, state=FIN_WAIT_2), sloppy=True, age=5)
    assert find([old], GATEWAY, 9.0)[BIRTH].closing
    merged = find([old, RECORDED[1]], GATEWAY, 9.0)[BIRTH]
    assert not merged.closing
    assert merged.connection.since == 4.0
    assert merged.numbers is not None


def test_changes_between_two_dumps() -> None:
    empty: dict[Flow, Found] = {}
    here = find(RECORDED, GATEWAY, 9.0)
    ended = {BIRTH: replace(here[BIRTH], closing=True)}
    odd = {BIRTH: replace(here[BIRTH], left_alone="odd")}
    connection = here[BIRTH].connection

    def told(a: dict[Flow, Found], b: dict[Flow, Found]) -> tuple[object, ...]:
        c = compare(a, b)
        return c.opened, c.closed, c.lost, c.left_alone, c.present

    assert told(empty, here) == ((connection,), (), (), (), (connection,))
    assert told(here, here) == ((), (), (), (), (connection,))
    assert told(here, ended) == ((), (BIRTH,), (), (), ())
    assert told(ended, empty) == ((), (), (), (), ())
    assert told(here, empty) == ((), (), (BIRTH,), (), ())
    assert told(empty, odd) == ((), (), (), ((BIRTH, "odd"),), ())
    assert told(odd, odd) == ((), (), (), (), ())
