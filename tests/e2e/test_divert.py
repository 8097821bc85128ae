"""The divert path: packets of chosen connections are translated by a packet worker."""

from __future__ import annotations

import itertools
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.lab.daemon import Daemon
from tests.lab.kernel import LabError
from tests.lab.net import Lab
from tests.lab.streams import Stream

from .scene import Role, addresses, scene

DIVERT: dict[str, Any] = {"rule": [{"path": "divert"}]}
BOTH = (DIVERT, DIVERT)
PORT = 7001  # of the one connection on the divert path, where not all are
ONE: dict[str, Any] = {"rule": [{"port": PORT, "path": "divert"}]}
CHANGES = 30
SEED = "REDIRECTD_SEED"  # in the environment: repeat that run
CAP_NET_ADMIN = 1 << 12  # capabilities(7)

roles = pytest.mark.parametrize("role", ["host", "gateway"])
versions = pytest.mark.parametrize("version", [4, 6])


def on(path: str) -> Callable[[Daemon], bool]:
    return lambda daemon: {row["path"] for row in daemon.bound()} == {path}


def queued(daemon: Daemon) -> int:
    """Packets that the divert path has brought so far (id_sequence, the last but one)."""
    rows = daemon.host.run(["cat", "/proc/net/netfilter/nfnetlink_queue"]).stdout.split()
    return int(rows[7]) if rows else 0


def choose(daemon: Daemon, path: str) -> None:
    for row in daemon.bound():
        daemon.ctl("connection.path", conn=row["conn_id"], path=path)


def stands_still(stream: Stream, seconds: float) -> None:
    """Nothing of it arrives any more."""
    received = stream.report("far").received + 5
    with pytest.raises(LabError, match=r"(?i)time"):
        stream.far.do("wait", name=stream.name, received=received, timeout=seconds)


@contextmanager
def seeded() -> Iterator[random.Random]:
    seed = int(os.environ.get(SEED, random.SystemRandom().randrange(2**32)))
    print(f"{SEED}={seed}")
    yield random.Random(seed)


@roles
@versions
def test_the_mover_gets_another_address(lab: Lab, role: Role, version: int) -> None:
    s = scene(lab, role, version, settings=BOTH)
    s.open()
    s.bind()
    new = addresses(version)
    s.move(next(new), "del")
    s.settle(1)
    s.flows()
    s.move(next(new), "add")
    s.settle(2)
    before = [queued(daemon) for daemon in s.daemons]
    s.flows()
    for daemon, count in zip(s.daemons, before, strict=True):
        assert on("divert")(daemon)
        assert queued(daemon) >= count + 30
    s.finish()
    s.released()


@roles
@versions
def test_the_far_end_gets_another_address(lab: Lab, role: Role, version: int) -> None:
    s = scene(lab, role, version, settings=BOTH)
    s.open()
    s.bind()
    s.move(next(addresses(version, "c")), who="far")
    s.settle(1)
    s.flows()
    s.move(next(addresses(version)))
    s.settle(2)
    s.flows()
    s.finish()


@roles
@pytest.mark.parametrize("diverted", [0, 1], ids=["mover", "correspondent"])
def test_only_one_end_takes_the_divert_path(lab: Lab, role: Role, diverted: int) -> None:
    s = scene(lab, role, settings=(DIVERT, {}) if diverted == 0 else ({}, DIVERT))
    s.open(mode="bulk")
    s.bind()
    s.move(next(addresses(4)))
    s.settle(1)
    s.flows()
    assert on("divert")(s.daemons[diverted])
    assert on("kernel")(s.daemons[1 - diverted])
    s.finish()


@roles
@versions
def test_changes_of_path_and_address_at_random_moments_lose_no_byte(
    lab: Lab, role: Role, version: int
) -> None:
    s = scene(lab, role, version)
    s.open(mode="bulk")
    s.bind()
    new = itertools.cycle(addresses(version))
    with seeded() as rng:
        for _ in range(CHANGES):
            time.sleep(0.1 * rng.random())
            if rng.random() < 0.2:
                s.move(next(new), first=rng.choice(["add", "del"]))
            daemon = rng.choice(s.daemons)
            choose(daemon, rng.choice(["kernel", "divert"]))
    s.arrived()
    for path in ("divert", "kernel"):
        for daemon in s.daemons:
            choose(daemon, path)
            daemon.wait_until(f"the {path} path", on(path))
        s.flows()
    s.finish()
    s.released()


def test_a_path_that_the_operator_asks_for(lab: Lab) -> None:
    s = scene(lab)
    s.open()
    s.bind()
    conn_id = s.mover_daemon.bound()[0]["conn_id"]
    assert queued(s.mover_daemon) == 0
    done = s.mover_daemon.redirectctl("connection", "path", conn_id[:8], "divert")
    assert done.stdout == "on the divert path\n"
    s.flows()
    assert queued(s.mover_daemon) > 0
    shown = s.mover_daemon.redirectctl("show", "connections", "--json").stdout
    assert '"path": "divert"' in shown
    s.mover_daemon.redirectctl("connection", "path", conn_id[:8], "kernel")
    before = queued(s.mover_daemon)
    s.flows()
    assert queued(s.mover_daemon) == before
    assert {e["text"].rpartition(" takes ")[2] for e in s.mover_daemon.events("path")} == {
        "the divert path", "the kernel path",
    }  # fmt: skip
    s.finish()


def test_rules_that_are_read_again_choose_the_path(lab: Lab) -> None:
    s = scene(lab)
    s.open(mode="bulk")
    s.bind()
    s.move(next(addresses(4)))
    s.settle(1)
    daemon = s.mover_daemon
    for path in ("divert", "kernel"):
        daemon.configure(rule=[{"path": path}])
        daemon.reload()
        daemon.wait_until(f"the {path} path", on(path))
        s.flows()
    daemon.configure(rule=[{"path": "elsewhere"}])
    assert daemon.process is not None
    daemon.process.send_signal(signal.SIGHUP)
    daemon.wait_until("it complains", lambda d: "stays as it was" in d.log)
    s.flows()
    s.finish()


def test_without_a_worker_others_go_on(lab: Lab) -> None:
    s = scene(lab, settings=(ONE, ONE))
    diverted, other = s.open(port=PORT), s.open()
    s.bind()
    s.move(next(addresses(4)))
    s.settle(1)
    s.flows()
    pid = s.mover_daemon.pids()["worker"]
    os.kill(pid, signal.SIGSTOP)  # as one that hangs: a dead one is back too soon
    stands_still(diverted, 1.0)
    other.wait_for(other.report().received + 30)
    s.mover_daemon.kill("worker")
    s.flows()
    assert s.mover_daemon.pids()["worker"] != pid
    s.finish()
    s.released()


@roles
def test_workers_that_die_in_the_middle_of_moves(lab: Lab, role: Role) -> None:
    s = scene(lab, role, settings=BOTH)
    s.open()
    s.open(mode="echo")
    s.bind()
    new = itertools.cycle(addresses(4))
    with seeded() as rng:
        for _ in range(6):
            s.move(next(new), first=rng.choice(["add", "del"]))
            time.sleep(0.1 * rng.random())
            daemon = rng.choice(s.daemons)
            daemon.wait_until("a worker", lambda d: "worker" in d.pids())
            daemon.kill("worker")
            s.arrived()
            s.flows(3)
    s.finish()
    s.released()


@pytest.mark.parametrize("who", ["engine", "parent"])
def test_a_daemon_that_dies_is_started_again(lab: Lab, who: Any) -> None:
    s = scene(lab, settings=BOTH)
    s.open()
    s.bind()
    s.move(next(addresses(4)))
    s.settle(1)
    for daemon in s.daemons:
        daemon.kill(who)
        if who == "parent":
            daemon.start()
    s.bind()
    s.flows()
    s.move(next(addresses(4)))
    s.settle(1)
    s.flows()
    assert all(on("divert")(daemon) for daemon in s.daemons)
    s.finish()


def test_connections_go_on_while_the_daemon_is_stopped(lab: Lab) -> None:
    s = scene(lab, settings=BOTH)
    s.open()
    s.bind()
    s.move(next(addresses(4)))
    s.settle(1)
    for daemon in s.daemons:
        daemon.stop()
    s.flows()
    for daemon in s.daemons:
        daemon.start()
        daemon.wait_until("the divert path", on("divert"))
    s.flows()
    s.finish()


def test_what_is_held_is_shown_and_goes_out_at_the_end(lab: Lab) -> None:
    s = scene(lab, settings=BOTH)
    stream = s.open(mode="idle")
    s.bind()
    began = time.time()
    s.mover.del_address(s.at["mover"])

    def held(daemon: Daemon) -> bool:
        row = daemon.bound()[0]
        return bool(row["state"] == "held" and row["held"])

    s.mover_daemon.wait_until("shut", lambda d: d.bound()[0]["state"] == "held")
    stream.say(2, "near")
    s.mover_daemon.wait_until("a segment is held", held)
    row = s.mover_daemon.bound()[0]
    assert row["path"] == "divert"
    assert began - 1 < row["held_since"] < time.time() + 1
    new = next(addresses(4))
    s.mover.add_address(new)
    s.at["mover"] = new
    s.settle(1)
    stream.far.do("wait", name=stream.name, received=2, timeout=10)
    row = s.mover_daemon.bound()[0]
    assert (row["held"], row["held_since"]) == (0, None)
    s.finish()


def test_a_worker_has_no_more_than_it_needs(lab: Lab) -> None:
    s = scene(lab, settings=BOTH)
    pid = s.mover_daemon.pids()["worker"]
    found = status(pid)
    assert "0" not in found["Uid"].split()
    for kind in ("CapPrm", "CapEff"):
        assert int(found[kind], 16) == CAP_NET_ADMIN
    for kind in ("CapInh", "CapBnd", "CapAmb"):
        assert int(found[kind], 16) == 0
    assert found["NoNewPrivs"] == "1"
    links = [os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir()]
    assert sum(link.startswith("socket:") for link in links) == 2
    assert len(links) == 5


def status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}
