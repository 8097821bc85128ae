"""Whatever dies at whatever moment of a move: connections go on, nothing stays behind."""

from __future__ import annotations

import itertools
import os
import random
import time

import pytest

from tests.lab.daemon import Daemon
from tests.lab.fault import Who
from tests.lab.net import Lab

from .scene import Role, Scene, addresses, scene

roles = pytest.mark.parametrize("role", ["host", "gateway"])
FAULTY = ({"faulty": True}, {"faulty": True})
BOTH: tuple[Who, Who] = ("engine", "all")
KILLS = 50
SEED = "REDIRECTD_SEED"  # in the environment: repeat that run


def commands_of_a_move(s: Scene, daemon: Daemon, new: str) -> list[str]:
    """What the daemon's core orders from the first change of a path to the last event."""
    before = len(daemon.events())
    daemon.break_after(0)
    s.move(new)
    s.arrived()
    kind = "move-done" if daemon is s.mover_daemon else "peer-moved"
    daemon.wait_until(kind, lambda d: any(e["kind"] == kind for e in d.events()[:-before]))
    noted = daemon.noted()
    return noted[: len(noted) - noted[::-1].index("Log")]


def crash(s: Scene, daemon: Daemon, step: int, who: Who, new: str) -> bool:
    """The daemon dies after so many commands of a move; everything goes on.  False if the
    move had fewer commands."""
    daemon.break_after(step, who)
    s.move(new)
    died = daemon.wait_broken(timeout=3)
    if died and who == "all":
        daemon.start()
    s.arrived()
    s.flows(3)
    return died


@roles
def test_a_crash_after_each_command_of_a_move(lab: Lab, role: Role) -> None:
    """On either side, of the engine alone and of the whole daemon; each move is the next one
    for the crash before."""
    s = scene(lab, role, settings=FAULTY)
    s.open()
    s.open(interval=0.03)
    s.bind()
    new = itertools.cycle(addresses(4))
    for daemon in s.daemons:
        steps = commands_of_a_move(s, daemon, next(new))
        assert {"SaveBindings", "Apply", "Send", "Reinject"} <= set(steps)
        for step, command in enumerate(steps, 1):
            for who in BOTH:
                # NAT states of several connections may be lost one by one, or all at once
                late = step > len(steps) - len(s.streams)
                assert crash(s, daemon, step, who, next(new)) or late, (step, command, who)
    s.move(next(new))
    s.arrived()
    s.flows()
    s.finish()
    s.released()


def test_fifty_kills_at_any_moment_on_either_side(lab: Lab) -> None:
    seed = int(os.environ.get(SEED, random.SystemRandom().randrange(2**32)))
    print(f"{SEED}={seed}")
    rng = random.Random(seed)
    s = scene(lab, rng.choice(["host", "gateway"]), settings=FAULTY)
    s.open()
    s.open(mode="echo")
    s.bind()
    new = {"mover": itertools.cycle(addresses(4)), "far": itertools.cycle(addresses(4, "c"))}
    kills = 0
    while kills < KILLS:
        # Both ends may move, but only one at a time: somebody has to know where somebody is.
        who = rng.choice(["mover", "mover", "far"])
        for _ in range(rng.randrange(1, 4)):
            s.move(next(new[who]), first=rng.choice(["add", "del"]), who=who)
            time.sleep(rng.choice([0, 0.01, 0.03, 0.1, 0.3]) * rng.random())
            for daemon in rng.sample(s.daemons, rng.randrange(1, 3)):
                kills += kill(daemon, rng)
        s.arrived()
        s.flows(3)
    s.move(next(new["mover"]))
    s.arrived()
    s.flows()
    s.finish()
    s.released()


def kill(daemon: Daemon, rng: random.Random) -> int:
    """kill -9 of the engine or of its parent, whatever they are about to do; how many."""
    found = daemon.pids()
    if not found:
        return 0  # it is on its way into its namespace: not even a daemon yet
    if "engine" in found and rng.random() < 0.6:
        daemon.kill("engine")
    else:
        daemon.kill("parent")
        daemon.start(wait=False)
    return 1
