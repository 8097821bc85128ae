"""Fixtures for every test: the lab, and a check that nothing of it stays behind."""

from __future__ import annotations

import os
import re
import subprocess
import threading
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from tests.lab import kernel
from tests.lab.net import Lab

# How long an example takes says how loaded this machine is, and nothing of the code.
settings.register_profile("here", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("here")


def _machine_state() -> dict[str, str]:
    """What a lab must leave alone: this machine's own rules, routes and cards."""
    if os.geteuid() != 0:
        return {}
    commands = {
        "nftables rules": ["nft", "list", "ruleset"],
        "policy routing": ["ip", "rule"],
        "IPv4 routes": ["ip", "-4", "route", "show", "table", "all"],
        "interfaces": ["ip", "-o", "link", "show"],
    }
    return {
        what: subprocess.run(argv, capture_output=True, text=True, check=True).stdout
        for what, argv in commands.items()
    }


def _ours(names: list[str]) -> list[str]:
    """Names with our process ID in them, as every test gives to what it makes; other
    runs may be under way on this machine."""
    return [name for name in names if str(os.getpid()) in re.findall(r"\d+", name)]


def _leftovers() -> list[str]:
    names = _ours(kernel.namespaces())
    found = [f"namespace {name}" for name in names]
    found += [f"process {pid} in a lab" for pid in kernel.pids_in(*names)]
    found += [f"directory {d}" for d in kernel.lab_directories() if _ours([d.name])]
    return found


@pytest.fixture(scope="session", autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """Fails the run when namespaces, processes or rules of ours outlive it."""
    before = _machine_state()
    yield
    left = _leftovers()
    after = _machine_state()
    left += [f"{what} changed:\n{after[what]}" for what in before if before[what] != after[what]]
    assert not left, "left behind: " + "; ".join(left)


@pytest.fixture
def lab() -> Iterator[Lab]:
    """An empty lab.  Needs root, and says so instead of skipping."""
    if os.geteuid() != 0:
        pytest.fail("the lab makes network namespaces: run as root ('make test' uses sudo)")
    with Lab() as made:
        yield made


def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> None:
    """A failed lab test shows its daemons' state and logs."""
    if call.when != "call" or call.excinfo is None:
        return
    lab = getattr(item, "funcargs", {}).get("lab")
    if isinstance(lab, Lab) and threading.current_thread() is threading.main_thread():
        for daemon in lab.daemons:
            item.add_report_section("call", f"redirectd on {daemon.host.name}", daemon.describe())
