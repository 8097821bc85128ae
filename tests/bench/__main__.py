"""``make bench``: runs the benchmarks, prints a table, writes out/bench.json."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from pathlib import Path

from tabulate import tabulate

from tests.lab.kernel import LabError

from . import common, gap, idle, integrity, recover, rewrite, stream, thousand, throughput, watching

BENCHES = {
    "gap": gap,
    "recover": recover,
    "throughput": throughput,
    "thousand": thousand,
    "idle": idle,
    "rewrite": rewrite,
    "integrity": integrity,
    "stream": stream,
    "watching": watching,
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="make bench", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("benches", nargs="*", choices=[*BENCHES, []], metavar="|".join(BENCHES))
    parser.add_argument("-n", type=int, default=20, help="repeats (20)")
    parser.add_argument("--strict", action="store_true", help="exit 1 if a limit is missed")
    options = parser.parse_args()
    common.many_files()
    results: list[common.Result] = []
    broken = False
    for name in options.benches or BENCHES:
        print(f"bench: {name}: {(BENCHES[name].__doc__ or '').splitlines()[0]}", flush=True)
        began = time.monotonic()
        try:
            for result in BENCHES[name].run(options.n):
                results.append(result)
                print(f"  {result.what}: {result.value}  {result.limit}", flush=True)
        except LabError as error:
            broken = True
            print(f"bench: {name} broke: {error}", file=sys.stderr)
        print(f"  ({time.monotonic() - began:.0f} s)", flush=True)
    words = {True: "yes", False: "NO", None: ""}
    rows = [(r.bench, r.what, r.value, r.limit, words[r.fine]) for r in results]
    print("\n" + tabulate(rows, ["bench", "what", "median", "limit", "met"], disable_numparse=True))
    out = Path("out")
    out.mkdir(exist_ok=True)
    rows_json = [dataclasses.asdict(result) for result in results]
    (out / "bench.json").write_text(json.dumps(rows_json, indent=1) + "\n")
    missed = any(result.fine is False for result in results)
    return 1 if broken or (options.strict and missed) else 0


if __name__ == "__main__":
    sys.exit(main())
