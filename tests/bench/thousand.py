"""1,000 connections moved by one address change message."""

from __future__ import annotations

import time
from collections.abc import Iterator

from tests.lab.daemon import Daemon
from tests.lab.net import Lab
from tests.lab.streams import Traffic, open_streams

from .common import Result, pair, quantile, spread

CONNECTIONS = 1000


def _handover(mover: Daemon, after: int) -> float:
    """Milliseconds that the next move took, awaited."""

    def done(daemon: Daemon) -> float | None:
        newest = daemon.ctl("moves", limit=1)
        row = newest[0] if newest else {"id": 0}
        return float(row["handover_ms"]) if row["id"] > after and row["done"] else None

    took: float = mover.wait_until("the move is done", done, timeout=60)
    return took


def run(n: int) -> Iterator[Result]:
    handovers: list[float] = []
    with Lab() as lab:
        p = pair(lab, gateway=False, rtt_ms=20)
        assert p.daemons is not None
        mover, _ = p.daemons
        near_end, far_end = Traffic(p.end), Traffic(p.far)
        began = time.monotonic()
        streams = open_streams(near_end, far_end, "192.0.2.9", CONNECTIONS, mode="idle")
        opened = time.monotonic()
        for daemon in p.daemons:
            daemon.wait_bound(CONNECTIONS, timeout=120)
        bound = time.monotonic() - opened
        for _ in range(max(5, n // 2)):
            last = mover.ctl("moves", limit=1)
            p.flip.add_other()
            p.flip.del_now()
            handovers.append(_handover(mover, last[0]["id"] if last else 0))
        for stream in streams:
            stream.say()
            stream.say(side="far")
        for stream in streams:
            stream.wait_for(1)
        faults = [fault for stream in streams for fault in stream.finish().faults]
    yield Result(
        "thousand", "1,000 connections opened, bound", f"{opened - began:.1f} s, {bound:.1f} s"
    )
    yield Result(
        "thousand", "1,000 connections moved by one message", f"{spread(handovers)} ms", "≤ 300 ms",
        quantile(handovers, 0.5) <= 300, handovers,
    )  # fmt: skip
    yield Result("thousand", "bytes", "; ".join(faults[:3]) or "exact", "exact", not faults)
