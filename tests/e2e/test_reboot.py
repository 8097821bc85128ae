"""A machine loses its power: of everything it had, only the disk and its cables stay."""

from __future__ import annotations

import itertools
from typing import Literal

import pytest

from tests.lab import topologies as t
from tests.lab.net import Lab
from tests.lab.streams import Mode, Traffic

from .scene import Scene, addresses, scene

FAULTY = ({"faulty": True}, {"faulty": True})


def gateway_scene(
    lab: Lab, version: int = 4, faulty: bool = False, second: Mode = "echo"
) -> Scene:
    s = scene(lab, "gateway", version, settings=FAULTY if faulty else ({}, {}))
    loose = s.mover.run(["sysctl", "-n", "net.netfilter.nf_conntrack_tcp_loose"]).stdout
    assert (loose.strip(), "invalid drop" in s.mover.ruleset("inet", "home")) == ("0", True)
    s.open()
    s.open(mode=second)
    s.bind()
    return s


def goes_on(s: Scene) -> None:
    s.arrived()
    s.flows(5)


def ends_well(s: Scene, new: str) -> None:
    """The next move works, and at the end nothing is left."""
    s.move(new)
    goes_on(s)
    s.finish()
    s.released()


def test_the_gateway_reboots_before_and_after_a_move(lab: Lab) -> None:
    s = gateway_scene(lab, version=6)
    new = addresses(6)
    for _ in range(2):
        s.mover.reboot()
        s.mover_daemon.start()
        goes_on(s)
        s.move(next(new))
        goes_on(s)
    s.mover.reboot()
    s.mover_daemon.start()
    goes_on(s)
    ends_well(s, next(new))


def test_the_gateway_reboots_after_each_command_of_a_move(lab: Lab) -> None:
    s = gateway_scene(lab, faulty=True)
    new = itertools.cycle(addresses(4))
    for step in itertools.count(1):
        s.mover_daemon.break_after(step, "all")
        s.move(next(new))
        if not s.mover_daemon.wait_broken(timeout=3):
            break
        s.mover.reboot()
        s.mover_daemon.start()
        goes_on(s)
    assert step > 8
    ends_well(s, next(new))


def test_addresses_change_while_the_gateway_is_off(lab: Lab) -> None:
    """Its own, as after a power cut where the provider gives a new lease, or the far end's."""
    s = gateway_scene(lab)
    near, far = addresses(4), addresses(4, "c")
    for whose in ("mover", "far", "mover"):
        with s.mover.powered_off():
            if whose == "far":
                s.move(next(far), who="far")
            else:
                wan, address = s.mover.interface("wan"), next(near)
                wan.addresses = [address if a == s.at["mover"] else a for a in wan.addresses]
                s.at["mover"] = address
        s.mover_daemon.start()
        goes_on(s)
    ends_well(s, next(near))


@pytest.mark.parametrize("side", ["near", "far"])
def test_a_host_that_reboots_has_ended_its_connections(
    lab: Lab, side: Literal["near", "far"]
) -> None:
    """Its sockets are gone for good: the other end learns it at once, not from silence."""
    s = scene(lab)
    s.open()
    s.open(mode="idle")
    s.bind()
    host, daemon = (s.mover, s.mover_daemon) if side == "near" else (s.far, s.far_daemon)
    for moved in (False, True):
        if moved:
            s.move(next(addresses(4)))
            s.arrived()
        host.reboot()
        daemon.start()
        for stream in s.streams:
            # where nothing is translated its own RST comes through, else the kernel is asked
            # to end the socket (SOCK_DESTROY: ECONNABORTED)
            told = "ConnectionAbortedError" if moved else "ConnectionResetError"
            assert told in (stream.wait_gone("far" if side == "near" else "near").error or "")
        s.released()
        begin_anew(s, side)
    ends_well(s, t.A[0])


def test_the_far_host_reboots_and_the_lan_host_learns_it(lab: Lab) -> None:
    s = gateway_scene(lab)
    for moved in (False, True):
        if moved:
            s.move(next(addresses(4)))
            s.arrived()
        s.far.reboot()
        s.far_daemon.start()
        for stream in s.streams:
            assert "ConnectionResetError" in (stream.wait_gone("near").error or "")
        s.released(aborted=moved)
        begin_anew(s, "far")
    s.move(t.A[0])
    goes_on(s)
    s.finish()
    s.released(aborted=True)


def test_a_lan_host_reboots_and_the_far_host_learns_it(lab: Lab) -> None:
    """It runs no daemon: the RST comes from its own stack, when something is sent to it, and
    is withheld until the gateway confirms it."""
    s = gateway_scene(lab, second="paced")
    for moved in (False, True):
        if moved:
            s.move(next(addresses(4)))
            s.arrived()
        s.near.reboot()
        for stream in s.streams:
            error = stream.wait_gone("far", timeout=10).error or ""
            assert "ConnectionResetError" in error or "ConnectionAbortedError" in error
        s.released()
        begin_anew(s, "near")
    ends_well(s, t.A[0])


def begin_anew(s: Scene, rebooted: Literal["near", "far"]) -> None:
    """A new connection between the two, after one of them rebooted."""
    near, far = s.traffic
    s.traffic = (Traffic(s.near), far) if rebooted == "near" else (near, Traffic(s.far))
    s.streams.clear()
    s.open()
    s.open()
    s.bind()
