"""Outages that outlast TCP's own patience, and daemons that can't hear each other."""

from __future__ import annotations

import time

import pytest

from tests.lab.daemon import Daemon
from tests.lab.net import Lab

from .scene import Role, Scene, addresses, scene

roles = pytest.mark.parametrize("role", ["host", "gateway"])
LONG = [45, pytest.param(600, marks=[pytest.mark.long, pytest.mark.timeout(900)])]
BLOCKED = [30, pytest.param(600, marks=[pytest.mark.long, pytest.mark.timeout(900)])]
IMPATIENT = {"net/ipv4/tcp_retries2": 5}  # gives up after some 13 s


def impatient(s: Scene) -> None:
    for host in {s.mover, s.near, s.far}:
        host.sysctl(IMPATIENT)


def waits(daemon: Daemon) -> list[float | None]:
    """Since when each connection is held; empty while one is not."""
    rows = daemon.bound()
    return [row["held_since"] for row in rows] if all(r["state"] == "held" for r in rows) else []


@roles
@pytest.mark.parametrize("seconds", LONG)
def test_a_connection_outlives_an_outage_of_its_mover(lab: Lab, role: Role, seconds: float) -> None:
    s = scene(lab, role)
    impatient(s)
    s.open()
    s.bind()
    s.flows()
    s.mover.del_address(s.at["mover"])
    began = time.monotonic()
    for daemon in s.daemons:
        assert all(daemon.wait_until("the connection is held", waits, timeout=20))
    assert "does not answer" in s.far_daemon.bound()[0]["why"]
    time.sleep(seconds - (time.monotonic() - began))
    assert all(waits(daemon) for daemon in s.daemons)
    s.streams[0].mark()
    new = next(addresses(4))
    s.mover.add_address(new)
    s.at["mover"] = new
    s.settle(1)
    s.flows()
    s.arrived()
    s.finish()


@pytest.mark.parametrize("who", ["mover", "far"])
def test_a_silent_wire_is_outlived_at_both_ends(lab: Lab, who: str) -> None:
    """No address changes: both ends only notice that nothing comes."""
    s = scene(lab)
    impatient(s)
    s.open()
    s.bind()
    s.flows()
    host = s.mover if who == "mover" else s.far
    host.cut()
    for daemon in s.daemons:
        daemon.wait_until("the connection is held", waits, timeout=20)
    time.sleep(25)
    host.mend()
    for daemon in s.daemons:
        daemon.wait_until("nothing is held", lambda d: not waits(d), timeout=20)
    s.flows()
    s.finish()


@roles
@pytest.mark.parametrize("seconds", BLOCKED)
def test_lost_udp_never_stalls_healthy_tcp(lab: Lab, role: Role, seconds: float) -> None:
    s = scene(lab, role)
    s.open()
    s.open(mode="bulk", down=False)
    s.bind()
    s.flows()
    s.lab.block_udp()
    s.streams[0].mark()
    time.sleep(seconds)
    for side in ("near", "far"):
        assert s.streams[0].report(side).longest_gap_ms < 200
    assert not any(row["state"] == "held" for daemon in s.daemons for row in daemon.bound())
    s.lab.block_udp(False)
    s.finish()


@roles
def test_patience_ends_where_the_operator_says(lab: Lab, role: Role) -> None:
    rule = {"rule": [{"prefix": "0.0.0.0/0", "hold_max": 4}]}
    s = scene(lab, role, settings=(rule, {}))
    stream = s.open()
    s.bind()
    s.mover.del_address(s.at["mover"])
    assert stream.wait_gone("near", timeout=15).error
    assert s.mover_daemon.events("held-too-long")
    s.mover.add_address(s.at["mover"])
    stream.wait_gone("far", timeout=60)


@roles
def test_a_far_host_that_rebooted_says_so_and_our_end_gets_a_reset(lab: Lab, role: Role) -> None:
    s = scene(lab, role)
    stream = s.open()
    s.bind()
    s.move(next(addresses(4)))
    s.settle(1)
    s.flows()
    with s.far.powered_off():
        s.mover_daemon.wait_until("the connection is held", waits, timeout=20)
    s.far_daemon.start()
    gone = stream.wait_gone("near", timeout=40)
    assert gone.error
    assert "reset" in gone.error.lower() or "abort" in gone.error.lower()
