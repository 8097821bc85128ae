"""One move, its traces, and the silence after it."""

from __future__ import annotations

from typing import Literal

import pytest

from tests.lab.kernel import LabError
from tests.lab.net import Lab

from .scene import Role, addresses, scene

roles = pytest.mark.parametrize("role", ["host", "gateway"])
versions = pytest.mark.parametrize("version", [4, 6])


@roles
@versions
@pytest.mark.parametrize("first", ["del", "add"])
def test_the_mover_gets_another_address(
    lab: Lab, role: Role, version: int, first: Literal["add", "del"]
) -> None:
    s = scene(lab, role, version)
    s.open()
    s.bind()
    s.move(next(addresses(version)), first)
    s.settle(1)
    s.flows()
    s.finish()
    s.released()


def test_both_ends_quiet_for_a_minute(lab: Lab) -> None:
    """Nothing may depend on traffic: not our memory, not the NAT's."""
    s = scene(lab, "gateway")
    stream = s.open(mode="idle")
    s.bind()
    s.move(next(addresses(4)))
    s.settle(1)
    with pytest.raises(LabError, match=r"(?i)time"):  # a minute in which nothing arrives
        stream.far.do("wait", name=stream.name, received=1, timeout=60)
    stream.say(1, "far")
    stream.near.do("wait", name=stream.name, received=1, timeout=5)
    stream.say(1, "near")
    stream.far.do("wait", name=stream.name, received=1, timeout=5)
    s.finish()
