"""The programs that the backend runs, each by its full path and with a time limit.

A :class:`Runner` is handed to everything that runs one, so that tests can stand in.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence

from ..api import BackendError

PFCTL = "/sbin/pfctl"
IFCONFIG = "/sbin/ifconfig"
SYSCTL = "/sbin/sysctl"
TCPDROP = "/usr/sbin/tcpdrop"

#: seconds; 2,000 rules load in 0.63 s on an emulated processor
TIME_LIMIT = 30.0

#: (arguments, standard input) -> standard output; BackendError when it fails
Runner = Callable[[Sequence[str], str], str]


def run(argv: Sequence[str], stdin: str = "") -> str:
    """Run a program; what it printed.  Never through a shell."""
    try:
        done = subprocess.run(
            list(argv),
            input=stdin,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TIME_LIMIT,
            env={"PATH": "/bin:/sbin:/usr/bin:/usr/sbin", "LC_ALL": "C"},
            check=False,
        )
    except FileNotFoundError:
        raise BackendError(f"{argv[0]} is not there: is this OpenBSD?") from None
    except subprocess.TimeoutExpired:
        raise BackendError(f"{' '.join(argv)} took longer than {TIME_LIMIT:.0f} s") from None
    except OSError as fault:
        raise BackendError(f"{argv[0]} can't be run: {fault.strerror}") from None
    if done.returncode != 0:
        raise BackendError(failure(argv, done.returncode, done.stderr, stdin))
    return done.stdout


def failure(argv: Sequence[str], status: int, stderr: str, stdin: str) -> str:
    """One line: the command, what it said, and the input line that it named.

    pfctl says ``stdin:3: syntax error``; the third line is shown with it.
    """
    said = [line for line in stderr.splitlines() if line.strip()]
    text = said[0] if said else f"exit status {status}"
    parts = text.split(":")
    if parts[0] == "stdin" and len(parts) > 1 and parts[1].isdigit():
        lines = stdin.splitlines()
        number = int(parts[1])
        if 0 < number <= len(lines):
            text += f" in {lines[number - 1]!r}"
    return f"{' '.join(argv)}: {text}"
