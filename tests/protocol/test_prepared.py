"""A second address beside the first: prepared, used, renewed, forgotten."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from appliance.protocol.commands import Apply, Reinject, SaveBindings, Send
from appliance.rewrite.flow import Flow

from .sim import Net
from .test_move import everybody_talks, pair


@pytest.fixture
def net() -> Net:
    return Net()


def test_a_new_address_alone_is_no_reason_to_move_but_is_prepared(net: Net) -> None:
    a, b, births = pair(net, 3)
    b.readdress("203.0.113.2", "192.0.2.7")
    net.run(1)
    assert b.sees("move") == []
    for birth in births:
        entry = b.entry_of(birth)
        assert entry
        assert entry.wire_out == birth
        assert len(entry.wires) == 2
    everybody_talks(a, b, births)


def test_a_move_to_a_prepared_address_waits_for_nothing(net: Net) -> None:
    a, b, births = pair(net, 3)
    b.readdress("203.0.113.2", "192.0.2.7")
    net.run(1)
    mark_b, mark_a = len(b.done), len(a.done)
    b.readdress("192.0.2.7")
    kinds = [type(c) for c in b.done[mark_b:]]
    applied = [c for c in b.done[mark_b:] if isinstance(c, Apply)]
    assert all(e.wire_out is not None for e in applied[-1].entries)
    assert kinds.index(SaveBindings) < kinds.index(Send) < kinds.index(Reinject)
    # the far end follows after one way, and is told to nobody twice
    net.run(0.0101)
    far = [c for c in a.done[mark_a:] if isinstance(c, Apply)]
    assert all(e.wire_out.remote.addr == ip_address("192.0.2.7") for e in far[-1].entries)  # type: ignore[union-attr]
    net.run(0.0101)
    assert b.sees("move-done")[0].data["handover_ms"] < 21
    everybody_talks(a, b, births)


def test_a_prepared_address_is_renewed_and_forgotten_when_it_is_gone(net: Net) -> None:
    a, b, births = pair(net)
    b.readdress("203.0.113.2", "192.0.2.7")
    net.run(3600)
    spare = Flow.of("192.0.2.7", 40000, "198.51.100.2", 22)
    assert spare.reversed() in a.entry_of(births[0].reversed()).wires  # type: ignore[union-attr]
    b.readdress("203.0.113.2")
    assert spare in b.entry_of(births[0]).stale  # type: ignore[union-attr]
    net.run(700)
    assert spare.reversed() in a.entry_of(births[0].reversed()).stale  # type: ignore[union-attr]
    everybody_talks(a, b, births)


def test_a_connection_that_is_bound_later_is_prepared_as_well(net: Net) -> None:
    a, b, births = pair(net)
    b.readdress("203.0.113.2", "192.0.2.7")
    net.run(1)
    births.append(b.connect("203.0.113.2", 41000, a, "198.51.100.2", 22))
    net.run(3)
    entry = a.entry_of(births[1].reversed())
    assert entry
    assert len(entry.wires) == 2


def test_an_address_that_is_deprecated_or_without_link_is_left(net: Net) -> None:
    a, b, births = pair(net)
    b.address("203.0.113.2", usable=False)
    assert b.entry_of(births[0]).wire_out is None  # type: ignore[union-attr]
    b.address("192.0.2.7")
    net.run(1)
    everybody_talks(a, b, births)
    assert b.sees("move-done")
    wires = b.entry_of(births[0]).wires  # type: ignore[union-attr]
    assert len(wires) == 2  # packets to the old address may still come


def test_the_operator_moves_connections_and_back(net: Net) -> None:
    a, b, births = pair(net, 2)
    b.readdress("203.0.113.2", "192.0.2.7")
    assert b.core
    assert b.core.move(ip_address("192.0.2.7"), None, net.now) == 2
    b.drain()
    everybody_talks(a, b, births)
    net.run(5)
    assert b.entry_of(births[0]).wire_out.local.addr == ip_address("192.0.2.7")  # type: ignore[union-attr]
    assert b.core.move(ip_address("203.0.113.2"), ip_address("192.0.2.7"), net.now) == 2
    b.drain()
    net.run(5)
    everybody_talks(a, b, births)
    assert b.entry_of(births[0]).wire_out == births[0]  # type: ignore[union-attr]


@pytest.mark.parametrize("away", [1, 700])
def test_a_prepared_address_is_not_relied_on_unless_the_far_end_said_so_lately(
    net: Net, away: int
) -> None:
    a, b, births = pair(net)
    if away > 1:  # it had said so, but that is too long ago
        b.readdress("203.0.113.2", "192.0.2.10")
        net.run(1)
    net.udp_filter = lambda packet: False
    b.readdress("203.0.113.2", "192.0.2.10")
    net.run(away)
    b.readdress("192.0.2.10")
    assert b.entry_of(births[0]).wire_out is None  # type: ignore[union-attr]
    net.udp_filter = lambda packet: True
    net.run(31)
    everybody_talks(a, b, births)
