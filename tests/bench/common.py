"""What the benchmarks share: quantiles, quick address changes, a standing pair."""

from __future__ import annotations

import math
import resource
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tests.lab.daemon import Daemon, introduce
from tests.lab.host import Host
from tests.lab.net import Lab
from tests.lab.topologies import A2, A, Home, TwoHosts, home, two_hosts


@dataclass(frozen=True, slots=True)
class Result:
    """One line of the report; ``fine`` is None where there is no limit."""

    bench: str
    what: str
    value: str
    limit: str = ""
    fine: bool | None = None
    raw: Any = None


def quantile(values: Sequence[float], q: float) -> float:
    """The smallest value that at least ``q`` of them do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(q * len(ordered)) - 1)]


def spread(values: Sequence[float]) -> str:
    return f"{quantile(values, 0.5):.1f} (p95 {quantile(values, 0.95):.1f})"


class QuickIp:
    """``ip -batch`` kept open in a machine: a change costs no start of a process."""

    def __init__(self, host: Host) -> None:
        self._process = host.popen(["ip", "-force", "-batch", "-"], stdin=subprocess.PIPE)

    def do(self, *lines: str) -> float:
        """Returns the moment just before the first takes effect (monotonic, s)."""
        assert self._process.stdin is not None
        text = "".join(f"{line}\n" for line in lines).encode()
        began = time.monotonic()
        self._process.stdin.write(text)
        self._process.stdin.flush()
        return began


class Flip:
    """One machine that goes back and forth between two addresses of net-a."""

    def __init__(self, host: Host, dev: str) -> None:
        self._ip = QuickIp(host)
        self._dev = dev
        self.now, self.other = A[0], A2[0]

    def add_other(self) -> float:
        return self._ip.do(*self._adding())

    def del_now(self) -> float:
        """The old address goes; what was the other is the one from now on."""
        began = self._ip.do(f"addr del {self.now} dev {self._dev}")
        self.now, self.other = self.other, self.now
        return began

    def _adding(self) -> list[str]:
        return [
            f"addr add {self.other} brd + dev {self._dev}",
            f"route replace default via 198.51.100.1 dev {self._dev} metric 100",
        ]


@dataclass(slots=True)
class Pair:
    """A mover and its correspondent, both with redirectd; ``end`` is where the mover's
    connections come from (itself, or the laptop behind it)."""

    lab: Lab
    mover: Host
    end: Host
    far: Host
    daemons: tuple[Daemon, Daemon] | None
    flip: Flip


def pair(
    lab: Lab, *, gateway: bool, rtt_ms: float | None, protect: bool = True, **settings: Any
) -> Pair:
    top: Home | TwoHosts
    own: dict[str, Any] = {}
    if gateway:
        top = home(lab, rtt_ms)
        mover, end, far, dev = top.home, top.laptop, top.server, "wan"
        own = {"interfaces": {"inside": ["lan"], "outside": ["wan"]}}
    else:
        top = two_hosts(lab, rtt_ms)
        mover, end, far, dev = top.alice, top.alice, top.bob, "eth0"
    daemons = None
    if protect:
        settings = {"long_lived_after": 1, **settings}
        daemons = lab.daemon(mover, **own, **settings), lab.daemon(far, **settings)
        introduce(*daemons)
    return Pair(lab, mover, end, far, daemons, Flip(mover, dev))


def many_files() -> None:
    """Thousands of connections need as many descriptors."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
