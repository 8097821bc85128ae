"""The network between hosts in memory: a fake clock, delays, loss, and who has which address."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from appliance.protocol.inputs import Connection
from appliance.rewrite.flow import Address, Endpoint, Flow

if TYPE_CHECKING:
    from .sim import Host

PORT = 4787
RTO = 0.4


@dataclass(slots=True)
class End:
    """One end of a TCP connection, by its birth flow."""

    connection: Connection
    seq: int
    ack: int
    received: list[int] = field(default_factory=list)
    unacked: list[int] = field(default_factory=list)
    reset: bool = False


@dataclass(frozen=True, slots=True)
class Tcp:
    flow: Flow  # as the sender's side sees it on the wire
    seq: int
    ack: int
    data: int | None
    rst: bool = False


@dataclass(frozen=True, slots=True)
class Udp:
    source: Endpoint
    target: Endpoint
    data: bytes


class Net:
    """Carries packets; ``delay`` seconds one way, each packet lost with chance ``loss``."""

    def __init__(self, seed: int = 1, delay: float = 0.01) -> None:
        self.now = 1_700_000_000.0
        self.delay = delay
        self.loss = self.duplicate = self.jitter = 0.0
        self.random = random.Random(seed)
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.serial = itertools.count()
        self.hosts: list[Host] = []
        self.udp: list[Udp] = []
        self.violations: list[str] = []
        self.plain_ports: set[int] = set()  # of connections that nobody keeps
        self.udp_filter: Callable[[Udp], bool] = lambda packet: True
        self.translate: Callable[[Udp | Tcp], Udp | Tcp] = lambda packet: packet
        self.strangers: set[Address] = set()

    def at(self, when: float, what: Callable[[], None]) -> None:
        """Do something at a time to come."""
        heapq.heappush(self.events, (when, next(self.serial), what))

    def owner(self, addr: Address) -> Host | None:
        found = (h for h in self.hosts if addr in h.addresses or addr in h.behind)
        return next((h for h in found if h.core), None)

    def carry(self, packet: Udp | Tcp) -> None:
        packet = self.translate(packet)
        if isinstance(packet, Udp):
            self.udp.append(packet)
            if not self.udp_filter(packet):
                return
        copies = 2 if self.random.random() < self.duplicate else 1
        for _ in range(copies):
            if self.random.random() >= self.loss:
                delay = self.delay + self.random.random() * self.jitter
                self.at(self.now + delay, lambda: self._deliver(packet))

    def _deliver(self, packet: Udp | Tcp) -> None:
        if isinstance(packet, Udp):
            host = self.owner(packet.target.addr)
            if host is not None:
                host.udp_in(packet)
        else:
            host = self.owner(packet.flow.remote.addr)
            if host is not None:
                host.tcp_in(packet)

    def run(self, seconds: float) -> None:
        """Let so much time pass."""
        end = self.now + seconds
        while True:
            timers = [(t, h) for h in self.hosts if (t := h.next_timer()) is not None]
            timer = min(timers, key=lambda item: item[0], default=None)
            event = self.events[0][0] if self.events else None
            candidates = [t for t in (event, timer[0] if timer else None) if t is not None]
            if not candidates or min(candidates) > end:
                break
            self.now = max(self.now, min(candidates))
            if event is not None and event <= self.now:
                heapq.heappop(self.events)[2]()
            elif timer is not None:
                timer[1].tick()
        self.now = end

    def run_until(
        self, done: Callable[[], bool], limit: float = 60.0, step: float = 0.005
    ) -> float:
        """Seconds that it took; AssertionError after ``limit``."""
        start = self.now
        while not done():
            assert self.now - start < limit, "it did not happen"
            self.run(step)
        return self.now - start
