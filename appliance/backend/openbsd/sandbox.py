"""pledge(2) and unveil(2): what each process may do, in one table.

Optional: without ctypes or on another system nothing is promised and nothing is hidden.
This is the only module of the backend that uses ctypes.
"""

from __future__ import annotations

import ctypes
import logging
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from ..api import BackendError

log = logging.getLogger("redirectd.openbsd")


@dataclass(frozen=True, slots=True)
class Cage:
    """promises  None: no pledge.  paths: path -> unveil permissions (r, w, x, c)."""

    promises: str | None
    paths: Mapping[str, str]


_PYTHON: Final = {"/usr/local": "r", "/usr/lib": "r", "/usr/libexec": "r", "/etc": "r"}

#: process -> what it may do.  ``{state}``, ``{run}``: directories from the configuration.
CAGES: Final[Mapping[str, Cage]] = {
    # No promise allows DIOCGETSTATES and DIOCKILLSTATES ("pf" has neither), and pfctl must
    # be run: the privileged process stays unveil-only.
    "parent": Cage(
        None,
        {
            **_PYTHON,
            "/sbin/pfctl": "x",
            "/sbin/ifconfig": "x",
            "/sbin/sysctl": "x",
            "/usr/sbin/tcpdrop": "x",
            "/dev/pf": "rw",
            "/dev/bpf": "rw",
            "/dev/null": "rw",
            "/var/run": "rwc",
            "{state}": "rwc",
            "{run}": "rwc",
        },
    ),
    # inet: sending with a destination address needs it; route: IPv6 flags and routes;
    # flock, fattr and cpath: SQLite's journal; unix: the control socket
    "engine": Cage(
        "stdio rpath wpath cpath flock fattr inet unix dns route recvfd",
        {**_PYTHON, "/dev/urandom": "r", "/dev/null": "rw", "{state}": "rwc", "{run}": "rwc"},
    ),
    # one divert socket and one Unix socket, both open already
    "packets": Cage("stdio inet", {}),
    # the admin page: its own socket, the control socket, its own state
    "web": Cage(
        "stdio rpath wpath cpath flock fattr inet unix",
        {**_PYTHON, "/dev/urandom": "r", "/dev/null": "rw", "{state}": "rwc", "{run}": "rw"},
    ),
}


def paths_of(cage: Cage, state: str, run: str) -> dict[str, str]:
    """The table's paths with this configuration's directories filled in."""
    return {path.format(state=state, run=run): how for path, how in cage.paths.items()}


def enter(process: str, state: str, run: str) -> bool:
    """Lock the calling process up; False where the system can't.

    Raises BackendError when the system can, and refuses: then nothing may go on.
    """
    library = _library()
    if library is None:
        return False
    cage = CAGES[process]
    paths = paths_of(cage, state, run)
    for path, how in paths.items():
        if os.path.exists(path):
            _call(library.unveil, path.encode(), how.encode())
    if paths:
        _call(library.unveil, None, None)
    if cage.promises is not None:
        _call(library.pledge, cage.promises.encode(), None)
    return True


def _library() -> Any:
    """libc with both calls; None on another system."""
    if not sys.platform.startswith("openbsd"):
        return None
    try:
        library = ctypes.CDLL(None, use_errno=True)
        for name in ("pledge", "unveil"):
            call = getattr(library, name)
            call.argtypes, call.restype = (ctypes.c_char_p, ctypes.c_char_p), ctypes.c_int
    except (OSError, AttributeError) as fault:
        log.warning("no sandbox: %s", fault)
        return None
    return library


def _call(call: Any, first: bytes | None, second: bytes | None) -> None:
    if call(first, second) != 0:
        number = ctypes.get_errno()
        what = (first or b"").decode()
        raise BackendError(f"{call.__name__}({what!r}): {os.strerror(number)}")
