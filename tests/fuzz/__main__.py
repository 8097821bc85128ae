"""Fuzz a target: python -m tests.fuzz TARGET [-runs=N] [-max_total_time=SECONDS] [...]

Coverage-guided where atheris is installed (further arguments are libFuzzer's, directories
are corpora; long runs: leave the limits out), by blind mutation of the seeds otherwise.
Without a target it lists them.
"""

from __future__ import annotations

import importlib.util
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path


def main(arguments: Sequence[str]) -> int:
    guided = importlib.util.find_spec("atheris") is not None
    if guided:
        import atheris

        # What is imported in here reports which of its branches were taken.
        with atheris.instrument_imports(include=["appliance"]):
            from .targets import TARGETS
    else:
        from .targets import TARGETS
    if not arguments or arguments[0] not in TARGETS:
        print(__doc__.splitlines()[0], *TARGETS, sep="\n  ")
        return 2
    target, seeds = TARGETS[arguments[0]]
    if not guided:
        return _blind(target, seeds, arguments[1:])
    with tempfile.TemporaryDirectory() as corpus:
        for number, seed in enumerate(seeds):
            (Path(corpus) / str(number)).write_bytes(seed)
        # Failing inputs go where the caller says, not into the tree.
        findings = f"-artifact_prefix={tempfile.gettempdir()}/"
        atheris.Setup([sys.argv[0], findings, *arguments[1:], corpus], target)
        atheris.Fuzz()
    return 0


def _blind(target: object, seeds: Sequence[bytes], arguments: Sequence[str]) -> int:
    options = dict(word.lstrip("-").split("=", 1) for word in arguments if "=" in word)
    runs = int(options.get("runs", -1))
    until = time.monotonic() + float(options.get("max_total_time", "inf"))
    rng = random.Random(int(options.get("seed", 1)))
    done = 0
    while done != runs and time.monotonic() < until:
        data = bytearray(rng.choice(seeds))
        for _ in range(rng.randrange(8)):
            if data:
                data[rng.randrange(len(data))] = rng.randrange(256)
        del data[rng.randrange(len(data) + 1) if rng.random() < 0.3 else len(data) :]
        assert callable(target)
        target(bytes(data))
        done += 1
    print(f"{done} runs without coverage")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
