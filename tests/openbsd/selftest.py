"""redirectd's self-test on an OpenBSD machine: ``python3 -m tests.openbsd.selftest``

Run as root, in the source tree, with nothing but Python.  It plays four hosts in one
kernel (tests/openbsd/selftest_lab.py draws them), loads a pf ruleset of its own for a
minute or two, and puts everything back: interfaces, routes, pf, kernel variables.  Other
connections of the machine go on meanwhile.

    -l        list the checks
    -v        show where a check failed
    WORD ...  only the checks whose name has one of these words

Prints one line a check and ``N passed, N failed`` at the end; exits 1 when one failed.
"""

from __future__ import annotations

import os
import platform
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence

from appliance.backend.api import BackendError

from .selftest_checks import CHECKS
from .selftest_lab import CheckError, Lab

Check = tuple[str, Callable[[Lab], None]]


def chosen(words: Sequence[str], checks: Sequence[Check] = CHECKS) -> list[Check]:
    """Those whose name has one of ``words``; all of them without words."""
    return [c for c in checks if not words or any(w.lower() in c[0].lower() for w in words)]


def obstacle(system: str, uid: int) -> str | None:
    """Why the test can't be run here; None: it can."""
    if system != "OpenBSD":
        return f"this is {system}: the self-test needs an OpenBSD kernel"
    if uid != 0:
        return "run it as root: it makes interfaces and loads pf rules"
    return None


def run_checks(
    checks: Sequence[Check],
    lab: Lab,
    say: Callable[[str], None] = print,
    clock: Callable[[], float] = time.monotonic,
    verbose: bool = False,
) -> int:
    """Run each check, one line a check; how many failed."""
    failed = 0
    for name, check in checks:
        begun = clock()
        try:
            check(lab)
        except (CheckError, BackendError, OSError, AssertionError) as fault:
            failed += 1
            say(f"FAILED  {name}: {fault or type(fault).__name__}")
            if verbose:
                say("".join(traceback.format_exception(fault)))
        except Exception as fault:
            failed += 1
            say(f"FAILED  {name}: {type(fault).__name__}: {fault}")
            say("".join(traceback.format_exception(fault)))
        else:
            say(f"ok      {name} ({clock() - begun:.1f} s)")
    return failed


def stopped(number: int, frame: object) -> None:
    """A signal unwinds, so that everything is put back."""
    raise KeyboardInterrupt


def main(argv: Sequence[str]) -> int:
    flags = {word for word in argv if word.startswith("-")}
    if flags - {"-l", "-v"}:
        print(__doc__)
        return 2
    checks = chosen([word for word in argv if not word.startswith("-")])
    if "-l" in flags:
        print("\n".join(name for name, _ in checks))
        return 0
    why = obstacle(platform.system(), os.getuid())
    if why is not None:
        print(why, file=sys.stderr)
        return 2
    print(f"{platform.system()} {platform.release()} {platform.machine()}, "
          f"Python {platform.python_version()}")  # fmt: skip
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stopped)
    lab = Lab()
    try:
        with lab:
            failed = run_checks(checks, lab, verbose="-v" in flags)
    except BackendError as fault:
        print(f"FAILED  building the hosts: {fault}")
        failed = len(checks)
    except KeyboardInterrupt:
        print("interrupted; everything was put back")
        return 130
    if lab.troubles and "-v" in flags:
        print("while putting back:", *lab.troubles, sep="\n  ")
    print(f"{len(checks) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
