"""The gap that an application sees: a stream paced at 10 ms, 20 ms round trip.

    make before break     the new address comes 0.7 s before the old one goes: longest gap,
                          beside a control run of the same length without a move
    outage                the old address goes, the new one comes 1 s later: from then to
                          the first record at the receiver
Both with the moving side sending and with the far side sending, at a host and at a NAT
gateway.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from tests.lab.daemon import Daemon
from tests.lab.net import Lab
from tests.lab.streams import Stream, Traffic, open_stream

from .common import Pair, Result, pair, quantile, spread

RTT = 20.0
FAR = "192.0.2.9"


def _settled(daemons: tuple[Daemon, Daemon], moves: int) -> None:
    for daemon in daemons:
        daemon.wait_moved(moves)


def _make_before_break(p: Pair, streams: list[Stream]) -> None:
    p.flip.add_other()
    time.sleep(0.7)
    for stream in streams:
        stream.mark()
    p.flip.del_now()


def _gap(stream: Stream, side: str) -> float:
    return stream.report("far" if side == "mover" else "near").longest_gap_ms


def _case(gateway: bool, n: int) -> Iterator[Result]:
    where = "gateway" if gateway else "host"
    gaps: dict[str, list[float]] = {"mover": [], "far": []}
    control: dict[str, list[float]] = {"mover": [], "far": []}
    outage: dict[str, list[float]] = {"mover": [], "far": []}
    with Lab() as lab:
        p = pair(lab, gateway=gateway, rtt_ms=RTT)
        assert p.daemons is not None
        near, far = Traffic(p.end), Traffic(p.far)
        # One stream a direction, so that neither's acknowledgements help the other.
        streams = {
            "mover": open_stream(near, far, FAR, down=False),
            "far": open_stream(near, far, FAR, up=False),
        }
        for daemon in p.daemons:
            daemon.wait_bound(2)
        both = list(streams.values())
        moves = 0
        for _ in range(n):
            for stream in both:
                stream.mark()
            time.sleep(1)
            for side, stream in streams.items():
                control[side].append(_gap(stream, side))
            _make_before_break(p, both)
            time.sleep(1)
            for side, stream in streams.items():
                gaps[side].append(_gap(stream, side))
            moves += 1
            _settled(p.daemons, moves)

            for stream in both:
                stream.mark()
            p.flip.del_now()
            time.sleep(1)
            p.flip.now, p.flip.other = p.flip.other, p.flip.now
            there = p.flip.add_other()
            p.flip.now, p.flip.other = p.flip.other, p.flip.now
            for stream in both:
                stream.wait(30)
            for side, stream in streams.items():
                report = stream.report("far" if side == "mover" else "near")
                assert report.gap_began is not None
                outage[side].append((report.gap_began - there) * 1000 + report.longest_gap_ms)
            moves += 1
            _settled(p.daemons, moves)
        faults = [fault for stream in both for fault in stream.finish().faults]
    for side in ("mover", "far"):
        bound = quantile(control[side], 0.5) + 10
        yield Result("gap", f"{where}, {side} sends: control", f"{spread(control[side])} ms")
        yield Result(
            "gap", f"{where}, {side} sends: make before break",
            f"{spread(gaps[side])} ms", f"≤ {bound:.1f} ms (control + 10)",
            quantile(gaps[side], 0.5) <= bound, gaps[side],
        )  # fmt: skip
        bound = RTT * (1 if side == "mover" else 2) + 30
        yield Result(
            "gap", f"{where}, {side} sends: after 1 s outage",
            f"{spread(outage[side])} ms", f"≤ {bound:.0f} ms",
            quantile(outage[side], 0.5) <= bound, outage[side],
        )  # fmt: skip
    yield Result(
        "gap", f"{where}: {moves} moves, bytes", "; ".join(faults) or "exact", "exact", not faults
    )


def run(n: int) -> Iterator[Result]:
    yield from _case(gateway=False, n=n)
    yield from _case(gateway=True, n=n)
