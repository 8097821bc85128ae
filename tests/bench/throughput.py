"""Throughput of a redirected connection, by either path ÷ without redirectd, interleaved.

The divert path once at the mover alone, with a correspondent on the kernel path, and once at
both ends: then two packet workers share the cores with sender and receiver.  1448B:
segmentation offload off at every card, so it shows the cost per packet.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from tests.lab.host import Host
from tests.lab.net import Lab
from tests.lab.services import read_line

from .common import Pair, Result, pair, quantile

PORT = 5001
PATHS = {
    "": ("kernel", "kernel"),
    ", divert path at the mover": ("divert", "kernel"),
    ", divert path at both ends": ("divert", "divert"),
}
BURST = 1.0
# From linux.md's prototypes: host 1448B, host GSO, gateway 1448B, gateway GSO.
DIVERT_GOAL = 0.25  # GSO
GOALS = {(False, False): 0.82, (False, True): 0.86, (True, False): 0.77, (True, True): 0.94}


class Blast:
    def __init__(self, p: Pair) -> None:
        program = str(Path(__file__).with_name("blast.py"))
        self._receiver = self._start(p.far, [program, "recv", str(PORT)])
        self._sender = self._start(p.end, [program, "send", "192.0.2.9", str(PORT)])

    def _start(self, host: Host, argv: list[str]) -> subprocess.Popen[bytes]:
        process = host.popen(
            [sys.executable, "-IS", *argv], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert read_line(process) == b"ready\n"
        return process

    def burst(self, seconds: float) -> float:
        """Mbit/s"""
        assert self._sender.stdin is not None
        self._sender.stdin.write(f"{seconds}\n".encode())
        self._sender.stdin.flush()
        row = json.loads(read_line(self._sender, seconds + 20))
        return float(row["bytes"]) * 8 / 1e6 / float(row["seconds"])


def _offload(p: Pair, on: bool) -> None:
    for host in {p.mover.name: p.mover, p.end.name: p.end, p.far.name: p.far}.values():
        for dev in host.interfaces:
            host.offload(on, dev)


def moved(p: Pair, *paths: str) -> Blast:
    """A connection of ``p`` that is redirected, by these paths at mover and far end."""
    blast = Blast(p)
    assert p.daemons is not None
    for daemon, path in zip(p.daemons, paths, strict=True):
        (row,) = daemon.wait_bound(1)
        daemon.ctl("connection.path", conn=row["conn_id"], path=path)
    p.flip.add_other()
    p.flip.del_now()
    for daemon in p.daemons:
        daemon.wait_moved(1)
    return blast


def _case(gateway: bool, gso: bool, n: int) -> Iterator[Result]:
    with ExitStack() as stack:
        labs = [stack.enter_context(Lab()) for _ in range(1 + len(PATHS))]
        plain = pair(labs[0], gateway=gateway, rtt_ms=None, protect=False)
        kept = [pair(lab, gateway=gateway, rtt_ms=None) for lab in labs[1:]]
        for p in (plain, *kept):
            _offload(p, gso)
        blasts = [Blast(plain)]
        blasts += [moved(p, *paths) for p, paths in zip(kept, PATHS.values(), strict=True)]
        for blast in blasts:
            blast.burst(0.3)
        bursts = [[blast.burst(BURST) for blast in blasts] for _ in range(n)]
    name = f"{'gateway' if gateway else 'host'} {'GSO' if gso else '1448B'}"
    mbits = [quantile([row[i] for row in bursts], 0.5) for i in range(len(blasts))]
    goals = [GOALS[gateway, gso], *[DIVERT_GOAL if gso else None] * 2]
    for number, (path, goal) in enumerate(zip(PATHS, goals, strict=True), 1):
        pairs = [(row[0], row[number]) for row in bursts]
        ratio = quantile([b / a for a, b in pairs], 0.5)
        yield Result(
            "throughput", f"{name}{path}: {mbits[0]:,.0f} → {mbits[number]:,.0f} Mbit/s",
            f"{ratio:.2f}", "" if goal is None else f"≥ {goal}",
            None if goal is None else ratio >= goal, pairs,
        )  # fmt: skip


def run(n: int) -> Iterator[Result]:
    for gateway in (False, True):
        for gso in (False, True):
            yield from _case(gateway, gso, max(5, n // 2))
