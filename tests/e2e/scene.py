"""Two daemons, a connection between them, and ways to move an end of it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from tests.lab import topologies as t
from tests.lab.daemon import Daemon, introduce
from tests.lab.host import Host
from tests.lab.net import Lab
from tests.lab.streams import Stream, Traffic, open_stream

Role = Literal["host", "gateway"]
MARK = "0x72640001"  # of reserved ports in connection tracking
SOON = 0.3  # seconds after which a connection counts as long-lived; 10 in real life


@dataclass
class Scene:
    """``near`` opens connections to ``far``; ``mover`` and ``keeper`` run the daemons.

    near and mover are one machine, or near stands in the LAN behind mover.
    """

    lab: Lab
    version: int
    mover: Host
    near: Host
    far: Host
    daemons: tuple[Daemon, Daemon]
    traffic: tuple[Traffic, Traffic]
    at: dict[str, str]
    streams: list[Stream] = field(default_factory=list)

    @property
    def mover_daemon(self) -> Daemon:
        return self.daemons[0]

    @property
    def far_daemon(self) -> Daemon:
        return self.daemons[1]

    def open(self, **how: Any) -> Stream:
        stream = open_stream(*self.traffic, self.far.address(self.version), **how)
        self.streams.append(stream)
        return stream

    def bind(self, n: int | None = None) -> None:
        """Wait until all streams are bound at both ends."""
        count = len(self.streams) if n is None else n
        for daemon in self.daemons:
            daemon.wait_bound(count)

    def move(self, new: str, first: Literal["add", "del"] = "del", who: str = "mover") -> None:
        """Give the mover (or "far") another address; does not wait."""
        host = self.mover if who == "mover" else self.far
        host.replace_address(self.at[who], new, first=first)
        self.at[who] = new

    def settle(self, moves: int) -> None:
        """Wait until both ends agree that so many moves were made."""
        for daemon in self.daemons:
            daemon.wait_moved(moves)

    def arrived(self, timeout: float = 20) -> None:
        """Wait until both ends know where both are, and nothing is held."""
        ends = [addr.partition("/")[0] for addr in (self.at["mover"], self.at["far"])]

        def there(daemon: Daemon) -> bool:
            rows = daemon.bound()
            wanted = ends if daemon is self.mover_daemon else ends[::-1]
            return len(rows) == len(self.streams) and all(
                [ip_of(end) for end in row["wire"]] == wanted and row["state"] != "held"
                for row in rows
            )

        for daemon in self.daemons:
            daemon.wait_until(f"at {' and '.join(ends)}", there, timeout)

    def flows(self, records: int = 30) -> None:
        """Wait until every stream has brought so many more records to each receiving end."""
        wanted = [
            (s, max(s.report(side).received for side in ("near", "far"))) for s in self.streams
        ]
        for stream, received in wanted:
            stream.wait_for(received + records)

    def finish(self) -> None:
        """End all streams, and compare every byte."""
        for stream in self.streams:
            stream.finish().check()

    def released(self, aborted: bool = False) -> None:
        """Wait until nothing of the ended connections is left: no row, no rule, no address.

        aborted  a LAN host was told by RST; for two minutes it is told again
        """
        for daemon in self.daemons:
            daemon.wait_released(30)
        for host in (self.mover, self.far):
            host_is_clean(host, but="goto told_off" if aborted else None)


def ip_of(endpoint: str) -> str:
    """The address in ``192.0.2.1:22`` or ``[2001:db8::1]:22``."""
    return endpoint.rpartition(":")[0].strip("[]")


def remains(host: Host) -> list[str]:
    """What is left of ended connections: elements of our tables, parked addresses,
    reserved ports."""
    rules = host.run(["nft", "list", "ruleset"]).stdout.splitlines()
    left = [line.strip() for line in rules if "elements = {" in line and " . " in line]
    for family in ("-4", "-6"):
        routes = host.run(["ip", family, "route", "show", "table", "local", "dev", "lo"]).stdout
        left += [r for r in routes.splitlines() if "127.0.0" not in r and "::1 " not in r]
        policy = host.run(["ip", family, "rule", "show"]).stdout
        left += [r.strip() for r in policy.splitlines() if "lookup 4787" in r]
        tracked = host.run(["conntrack", "-L", "-f", f"ipv{family[1:]}", "-m", MARK]).stdout
        left += tracked.splitlines()
    return left


def host_is_clean(host: Host, timeout: float = 5, but: str | None = None) -> None:
    """Nothing of ours is left on ``host`` (the core forgets a little before the kernel)."""
    deadline = time.monotonic() + timeout
    while left := [line for line in remains(host) if but is None or but not in line]:
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


def scene(
    lab: Lab,
    role: Role = "host",
    version: int = 4,
    rtt_ms: float | None = None,
    settings: Sequence[dict[str, Any]] = ({}, {}),
) -> Scene:
    """``role``: what the mover is."""
    if role == "host":
        two = t.two_hosts(lab, rtt_ms)
        mover, near, far = two.alice, two.alice, two.bob
    else:
        home = t.home(lab, rtt_ms, masquerade6=True)
        mover, near, far = home.home, home.laptop, home.server
    one, other = (
        lab.daemon(host, long_lived_after=SOON, **extra)
        for host, extra in zip((mover, far), settings, strict=True)
    )
    introduce(one, other, version=version)
    which = 0 if version == 4 else 1
    return Scene(
        lab, version, mover, near, far, (one, other), (Traffic(near), Traffic(far)),
        {"mover": t.A[which], "far": t.C[which]},
    )  # fmt: skip


def addresses(version: int, base: Literal["a", "c"] = "a") -> Iterator[str]:
    """Fresh addresses in the network where the mover ("a") or the far host ("c") is."""
    prefix = {
        ("a", 4): "198.51.100.{}/24", ("a", 6): "2001:db8:a::{}/64",
        ("c", 4): "192.0.2.{}/24", ("c", 6): "2001:db8:c::{}/64",
    }[base, version]  # fmt: skip
    return (prefix.format(n) for n in range(50, 99))
