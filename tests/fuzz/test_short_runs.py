"""A few thousand inputs for each fuzz target; long runs are made by hand."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.fuzz.targets import TARGETS


@pytest.mark.parametrize("name", TARGETS)
def test_short_run_finds_nothing(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", name, "-runs=4000", "-max_total_time=2", "-seed=1"],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "runs" in done.stdout + done.stderr


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_are_good_inputs(name: str) -> None:
    target, seeds = TARGETS[name]
    for seed in seeds:
        target(seed)
