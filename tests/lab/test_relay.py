"""The delay relay is exact enough to measure handovers with."""

from __future__ import annotations

import re
import statistics

from tests.lab import topologies
from tests.lab.net import Lab
from tests.lab.relay_control import Relay
from tests.lab.streams import Traffic, open_stream


def _round_trips(top: topologies.TwoHosts, n: int) -> list[float]:
    done = top.alice.run(["ping", f"-c{n}", "-i0.01", "-W0.5", "192.0.2.9"], check=False)
    return [float(t) for t in re.findall(r"time=([\d.]+) ms", done.stdout)]


def _relay(top: topologies.TwoHosts) -> Relay:
    relay = top.bob.interface().relay
    assert relay is not None
    return relay


def test_round_trips_take_what_was_asked_for(lab: Lab) -> None:
    top = topologies.two_hosts(lab, rtt_ms=20)
    _round_trips(top, 5)  # neighbours find each other
    times = _round_trips(top, 100)
    assert len(times) == 100
    assert min(times) >= 20
    # The median shows the relay, the worst this machine's other work.
    assert statistics.median(times) < 21
    assert statistics.quantiles(times, n=20)[-1] < 60  # a busy machine; make bench has the figure


def test_the_round_trip_time_changes_while_traffic_flows(lab: Lab) -> None:
    top = topologies.two_hosts(lab, rtt_ms=2)
    _round_trips(top, 5)
    _relay(top).set(rtt_ms=30)
    assert 30 <= statistics.median(_round_trips(top, 20)) < 32


def test_bulk_traffic_passes_at_more_than_fifty_megabits(lab: Lab) -> None:
    top = topologies.two_hosts(lab, rtt_ms=20)
    stream = open_stream(Traffic(top.alice), Traffic(top.bob), "192.0.2.9", mode="bulk", down=False)
    stream.wait(200)
    first = stream.report()
    stream.wait(2000, timeout=30)
    last = stream.report()
    assert last.received - first.received >= 2000
    outcome = stream.finish()
    outcome.check()


def test_a_blackout_silences_both_directions_and_ends(lab: Lab) -> None:
    top = topologies.two_hosts(lab, rtt_ms=2)
    stream = open_stream(Traffic(top.alice), Traffic(top.bob), "192.0.2.9")
    stream.wait(10)
    _relay(top).set(blackout=True)
    assert _round_trips(top, 3) == []
    _relay(top).set(blackout=False)
    stream.wait(10)
    outcome = stream.finish()
    outcome.check()
    assert outcome.far.longest_gap_ms > 30


def test_loss_loses_about_as_much_as_asked(lab: Lab) -> None:
    top = topologies.two_hosts(lab, rtt_ms=1)
    _round_trips(top, 5)
    _relay(top).set(loss=0.5, seed=7)
    # An echo needs both ways: a quarter comes back.
    assert 20 <= len(_round_trips(top, 200)) <= 90
    _relay(top).set(loss=0)
    assert len(_round_trips(top, 20)) == 20


def test_offload_off_keeps_data_intact(lab: Lab) -> None:
    top = topologies.two_hosts(lab, rtt_ms=1)
    top.alice.offload(False)
    top.bob.offload(False)
    stream = open_stream(Traffic(top.alice), Traffic(top.bob), "192.0.2.9", mode="bulk")
    stream.wait(300)
    stream.finish().check()
