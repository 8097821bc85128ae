"""Peers that do not answer: probed when a connection is stuck, waited for, found again."""

from __future__ import annotations

from typing import Literal

import pytest

from appliance.protocol.absence import FORGOTTEN
from appliance.protocol.commands import Abort, Guard, Reinject
from appliance.protocol.inputs import Segment
from appliance.protocol.settings import CoreSettings, Rule, Rules
from appliance.rewrite.flow import Flow

from .net import Net
from .sim import Host, introduce, talk


def pair(net: Net, hold_max: float | None = None, count: int = 1) -> tuple[Host, Host, list[Flow]]:
    rules = Rules(default=Rule(hold_max=hold_max))
    settings = CoreSettings(
        long_lived_after=rules.after, path_for=rules.path, hold_max=rules.hold_max
    )
    a = Host(net, "alice", "198.51.100.2", settings=settings)
    b = Host(net, "bob", "203.0.113.2")
    introduce(a, b)
    births = [b.connect("203.0.113.2", 40000 + n, a, "198.51.100.2", 22) for n in range(count)]
    net.run_until(lambda: len(a.kernel) == len(b.kernel) == count, limit=30)
    net.run(1)
    return a, b, [birth.reversed() for birth in births]


def silence(host: Host, birth: Flow) -> None:
    """What the tap reports when the end of ``birth`` repeats itself in vain."""
    assert host.core
    host.core.silence(birth, host.net.now)
    host.drain()


def states(host: Host) -> list[str]:
    assert host.core
    return [view.state for view in host.core.connections()]


def silent_peer(a: Host, b: Host, birth: Flow) -> None:
    """Until a waits for b, who is off."""
    b.stop()
    for _ in range(3):
        silence(a, birth)
        a.net.run(1)
    assert len(a.guarded) == 1


def test_idle_connections_cost_nothing() -> None:
    net = Net()
    pair(net)
    net.run(5)
    mark = len(net.udp)
    net.run(300)
    assert net.udp[mark:] == []


def test_a_peer_that_answers_is_not_gone_however_silent_its_tcp_is() -> None:
    net = Net()
    a, _, births = pair(net)
    for _ in range(20):
        silence(a, births[0])
        net.run(1)
    assert a.guarded == set()
    assert states(a) == ["bound"]


def test_lost_probes_alone_do_not_make_a_peer_gone() -> None:
    """One stuck moment, and then the connection goes on though no datagram arrives."""
    net = Net()
    a, b, births = pair(net)
    net.udp_filter = lambda packet: False
    silence(a, births[0])
    net.run(60)
    assert a.guarded == set()
    talk(a, births[0], b)
    assert states(a) == ["bound"]


def test_a_silent_peer_is_waited_for_and_shown() -> None:
    net = Net()
    a, b, births = pair(net)
    silent_peer(a, b, births[0])
    assert a.core
    (view,) = a.core.connections()
    assert (view.state, view.why) == ("held", "peer does not answer")
    assert view.held_since is not None
    assert net.now - 3 < view.held_since < net.now
    (entry,) = a.kernel.values()
    assert entry.wire_out == births[0]  # it goes on sending: it may be wrong
    assert len(a.sees("peer-silent")) == 1


def test_only_what_is_stuck_is_waited_for() -> None:
    net = Net()
    a, b, births = pair(net, count=2)
    silent_peer(a, b, births[1])
    entry = a.entry_of(births[1])
    assert entry
    assert a.guarded == {entry.conn_id}
    assert sorted(states(a)) == ["bound", "held"]


def test_a_silent_peer_is_probed_every_three_seconds_at_most() -> None:
    net = Net()
    a, b, births = pair(net)
    silent_peer(a, b, births[0])
    net.run(30)
    mark = len(net.udp)
    net.run(100)
    assert 20 <= len(net.udp[mark:]) <= 100


def test_a_peer_that_is_heard_again_gets_at_once_what_was_in_vain() -> None:
    net = Net()
    a, b, births = pair(net)
    silent_peer(a, b, births[0])
    a.done.clear()
    b.start()
    net.run(40)
    assert a.guarded == set()
    assert any(isinstance(c, Reinject) for c in a.done)
    assert states(a) == ["bound"]
    assert a.core
    assert a.core.connections()[0].held_since is None
    talk(a, births[0], b)


@pytest.mark.parametrize("direction", ["in", "out"])
def test_a_segment_of_a_waiting_connection_shows_life(direction: Literal["in", "out"]) -> None:
    """TCP may be back before the next probe; its window is open then, its patience at an end."""
    net = Net()
    a, b, births = pair(net)
    silent_peer(a, b, births[0])
    net.run(30)
    a.done.clear()
    mark = len(net.udp)
    assert a.core
    for _ in range(50):  # many at once make one probe
        a.core.segment_seen(Segment(births[0], direction, 1, 2), net.now)
        a.drain()
    assert len(net.udp[mark:]) == 1
    assert (a.guarded == set()) == (direction == "in")
    assert any(isinstance(c, Reinject) for c in a.done) == (direction == "in")
    a.core.segment_seen(Segment(births[0].reversed(), direction, 1, 2), net.now)
    silence(a, births[0])
    assert len(a.guarded) == 1  # it was nothing: the wait goes on


def test_a_peer_that_comes_back_elsewhere_is_sent_to_there() -> None:
    net = Net()
    a, b, births = pair(net)
    b.readdress()
    for _ in range(3):
        silence(a, births[0])
        net.run(1)
    assert a.guarded
    net.run(60)
    value = a.say(births[0])
    b.readdress("192.0.2.7")
    net.run(3)
    assert a.guarded == set()
    assert value in b.ends[births[0].reversed()].received
    talk(a, births[0], b)


def test_waiting_ends_when_a_connection_goes_on_without_its_daemons() -> None:
    net = Net()
    a, b, births = pair(net)
    silent_peer(a, b, births[0])
    net.run(FORGOTTEN - 10)
    assert a.guarded
    net.run(20)
    assert a.guarded == set()
    mark = len(net.udp)
    net.run(200)
    assert len(net.udp[mark:]) < 10  # the session is asked for by and by, nothing is probed
    assert states(a) == ["bound"]


def test_waiting_ends_with_the_connection() -> None:
    net = Net()
    a, b, births = pair(net)
    silent_peer(a, b, births[0])
    a.close(births[0])
    net.run(60)
    assert a.guarded == set()
    assert a.kernel == {}


def test_a_revoked_peer_is_not_waited_for() -> None:
    net = Net()
    a, b, births = pair(net)
    silent_peer(a, b, births[0])
    assert a.core
    a.core.revoke(next(iter(a.disk_peers)), net.now)
    a.drain()
    assert a.guarded == set()
    assert isinstance([c for c in a.done if isinstance(c, Guard)][-1], Guard)


@pytest.mark.parametrize("own", [True, False], ids=["own address gone", "peer gone"])
def test_waiting_ends_where_the_operator_says(own: bool) -> None:
    net = Net()
    a, b, births = pair(net, hold_max=120)
    if own:
        a.readdress()
    else:
        silent_peer(a, b, births[0])
    net.run(110)
    assert births[0] in a.ends
    net.run(15)
    assert births[0] not in a.ends
    assert [c for c in a.done if isinstance(c, Abort)] == [Abort(births[0], True)]
    assert len(a.sees("held-too-long")) == 1


def test_waiting_goes_on_after_a_restart_and_ends_as_well() -> None:
    net = Net()
    a, _, births = pair(net, hold_max=120)
    a.readdress()
    a.stop()
    a.start()
    net.run(130)
    assert births[0] not in a.ends


def test_who_is_back_in_time_is_not_ended() -> None:
    net = Net()
    a, b, births = pair(net, hold_max=120)
    a.readdress()
    net.run(100)
    a.readdress("198.51.100.9")
    net.run(200)
    talk(a, births[0], b)
    assert a.sees("held-too-long") == []


def test_the_operator_may_want_to_wait_for_ever() -> None:
    net = Net()
    a, b, births = pair(net, hold_max=None)
    a.readdress()
    net.run(7200)
    a.readdress("198.51.100.9")
    net.run(60)
    talk(a, births[0], b)
