"""From the new address to the application's next bytes, after outages of 1, 10 and 60 s.

A stream paced at 10 ms a direction, 20 ms round trip, at a host and at a NAT gateway.  The
old address goes, and after the outage another one comes.  Of long outages there are fewer,
with more streams at once: as many samples.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from tests.lab.net import Lab
from tests.lab.streams import Stream, Traffic, open_stream

from .common import Pair, Result, pair, quantile, spread
from .gap import FAR, RTT

STREAMS = {1: 1, 10: 2, 60: 5}  # outage in seconds -> streams a direction


def _outage(p: Pair, streams: dict[str, list[Stream]], seconds: float) -> dict[str, list[float]]:
    """Milliseconds by sending side."""
    every = [stream for group in streams.values() for stream in group]
    for stream in every:
        stream.mark()
    p.flip.del_now()
    time.sleep(seconds)
    p.flip.now, p.flip.other = p.flip.other, p.flip.now
    there = p.flip.add_other()
    p.flip.now, p.flip.other = p.flip.other, p.flip.now
    for stream in every:
        stream.wait(30)
    took: dict[str, list[float]] = {}
    for side, group in streams.items():
        for stream in group:
            report = stream.report("far" if side == "mover" else "near")
            assert report.gap_began is not None
            gap = (report.gap_began - there) * 1000 + report.longest_gap_ms
            took.setdefault(side, []).append(gap)
    return took


def _case(gateway: bool, seconds: int, n: int) -> Iterator[Result]:
    where = "gateway" if gateway else "host"
    count = min(n, STREAMS[seconds])
    took: dict[str, list[float]] = {"mover": [], "far": []}
    with Lab() as lab:
        p = pair(lab, gateway=gateway, rtt_ms=RTT)
        assert p.daemons is not None
        near, far = Traffic(p.end), Traffic(p.far)
        streams = {
            "mover": [open_stream(near, far, FAR, down=False) for _ in range(count)],
            "far": [open_stream(near, far, FAR, up=False) for _ in range(count)],
        }
        for daemon in p.daemons:
            daemon.wait_bound(2 * count)
        for done in range(-(-n // count)):
            for side, samples in _outage(p, streams, seconds).items():
                took[side] += samples
            for daemon in p.daemons:
                daemon.wait_moved(done + 1)
        faults = [f for group in streams.values() for s in group for f in s.finish().faults]
    for side, trips in (("mover", 1), ("far", 2)):
        bound = trips * RTT + 30
        yield Result(
            "recover", f"{where}, {side} sends: after {seconds} s", f"{spread(took[side])} ms",
            f"p95 ≤ {bound:.0f} ms", quantile(took[side], 0.95) <= bound, took[side],
        )  # fmt: skip
    yield Result("recover", f"{where}, {seconds} s: bytes", "; ".join(faults) or "exact", "exact",
                 not faults)  # fmt: skip


def run(n: int) -> Iterator[Result]:
    for gateway in (False, True):
        for seconds in STREAMS:
            yield from _case(gateway, seconds, n)
