"""What 5,000 bound, idle connections cost."""

from __future__ import annotations

import time
from collections.abc import Iterator

from tests.lab.net import Lab
from tests.lab.streams import Traffic, open_streams

from .common import Result, pair

CONNECTIONS = 5000
SECONDS = 20


def run(n: int) -> Iterator[Result]:
    with Lab() as lab:
        p = pair(lab, gateway=False, rtt_ms=None)
        assert p.daemons is not None
        empty = [sum(pss for _, pss in d.memory().values()) for d in p.daemons]
        near, far = Traffic(p.end), Traffic(p.far)
        open_streams(near, far, "192.0.2.9", CONNECTIONS, mode="idle")
        opened = time.monotonic()
        for daemon in p.daemons:
            daemon.wait_bound(CONNECTIONS, timeout=300)
        yield Result("idle", "5,000 connections bound within", f"{time.monotonic() - opened:.1f} s")
        time.sleep(5)  # what binding left to do is not idleness
        before = [daemon.cpu_seconds() for daemon in p.daemons]
        time.sleep(SECONDS)
        for name, daemon, was, bare in zip(
            ("opener", "far"), p.daemons, before, empty, strict=True
        ):
            percent = 100 * (daemon.cpu_seconds() - was) / SECONDS
            yield Result(
                "idle", f"{name}: CPU", f"{percent:.2f} % of a core", "≤ 1 %", percent <= 1
            )
            memory = daemon.memory()
            total = sum(pss for _, pss in memory.values())
            parts = ", ".join(f"{k} {rss:.0f}/{pss:.0f}" for k, (rss, pss) in memory.items())
            yield Result(
                "idle", f"{name}: memory, RSS/PSS MB: {parts}; empty {bare:.0f}",
                f"{total:.0f} MB", "goal 60 MB", total <= 60,
            )  # fmt: skip
