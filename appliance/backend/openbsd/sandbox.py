"""pledge(2) and unveil(2): what each process may do, in one table.

Elsewhere nothing is promised and nothing is hidden (docs/linux.md says what stands in for
it there).  This is the only module of the backend that uses ctypes.

After a promise no shared object can be loaded ("prot_exec"), so a process imports what it
may ever need before it enters: :data:`EXTENSIONS`.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import importlib
import logging
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ..api import BackendError

log = logging.getLogger("redirectd.openbsd")


@dataclass(frozen=True, slots=True)
class Cage:
    """promises  None: no pledge.  paths: path -> unveil permissions (r, w, x, c).

    forks  others are forked from it; unveil(2) is inherited, so it stays unlocked and each
           of them hides again what it need not see
    """

    promises: str | None
    paths: Mapping[str, str]
    forks: bool = False


_SYSTEM: Final = {"{code}": "r", "/usr/lib": "r", "/usr/libexec": "r", "/etc": "r"}

#: process -> what it may do.  ``{code}``: where Python and this program are;
#: ``{state}``, ``{run}``, ``{config}``: from the configuration.
CAGES: Final[Mapping[str, Cage]] = {
    # No promise allows DIOCGETSTATES and DIOCKILLSTATES ("pf" has neither), and pfctl must
    # be run: the privileged process stays unveil-only.
    "parent": Cage(
        None,
        {
            **_SYSTEM,
            "{config}": "r",
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
        forks=True,
    ),
    # inet: sending with a destination address needs it; route: IPv6 flags and routes; dns:
    # peers that are introduced by name; flock, fattr and cpath: SQLite's journal; unix: the
    # control socket
    "engine": Cage(
        "stdio rpath wpath cpath flock fattr inet unix dns route",
        {**_SYSTEM, "/dev/null": "rw", "{state}": "rwc", "{run}": "rwc"},
    ),
    # one divert socket and one Unix socket, both open already
    "packets": Cage("stdio inet", {}),
    # pcap narrows its filter while it runs, and "bpf" allows BIOCGSTATS alone: unveil-only
    "capture": Cage(None, {**_SYSTEM, "{state}": "rwc"}),
    # the admin page: its own socket, the control socket, its own state; /tmp: what waitress
    # has no memory for (a capture that is fetched)
    "web": Cage(
        "stdio rpath wpath cpath flock fattr inet unix",
        {**_SYSTEM, "/dev/null": "rw", "/tmp": "rwc", "{state}": "rwc", "{run}": "rw"},  # noqa: S108
    ),
}

#: what the standard library loads when it is first needed: names of hosts (idna), widths in
#: tracebacks, dates, numbers in JSON
EXTENSIONS: Final = (
    "_bisect", "_datetime", "_decimal", "_hashlib", "_heapq", "_json", "_opcode", "_queue",
    "_random", "_struct", "_zoneinfo", "array", "binascii", "fcntl", "math", "select",
    "unicodedata", "zlib",
    "_strptime", "encodings.idna", "encodings.latin_1", "concurrent.futures.thread",
)  # fmt: skip


def paths_of(cage: Cage, places: Mapping[str, str]) -> dict[str, str]:
    """The table's paths with this machine's directories filled in; KeyError names one that
    is missing."""
    found: dict[str, str] = {}
    for path, how in cage.paths.items():
        names = code() if path == "{code}" else [path.format(**places)]
        found |= dict.fromkeys(names, how)
    return found


def code() -> list[str]:
    """Directories from which Python loads: its own, a virtual environment's, this tree."""
    here = Path(__file__).resolve().parents[3]
    found = [sys.prefix, sys.base_prefix, str(here), "/usr/local"]
    found += [path for path in sys.path if os.path.isabs(path) and os.path.isdir(path)]
    return sorted(set(found))


#: what this process sees by now; a forked one begins with it
_seen: dict[str, str] = {}


def enter(process: str, places: Mapping[str, str]) -> bool:
    """Lock the calling process up for good; False where the system can't.

    Raises BackendError when the system can, and refuses: then nothing may go on.
    """
    library = _library()
    if library is None:
        return False
    preload()
    cage = CAGES[process]
    for path, how in (dict.fromkeys(_seen, "") | paths_of(cage, places)).items():
        # os.path.exists would not see what is hidden still
        if _call(library.unveil, path.encode(), how.encode(), errno.ENOENT):
            _seen[path] = how
    if _seen and not cage.forks:
        _call(library.unveil, None, None)
    if cage.promises is not None:
        _call(library.pledge, cage.promises.encode(), None)
    return True


def preload() -> None:
    for name in EXTENSIONS:
        with contextlib.suppress(ImportError):  # not the same in every version of Python
            importlib.import_module(name)


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


def _call(call: Any, first: bytes | None, second: bytes | None, bearable: int = 0) -> bool:
    if call(first, second) == 0:
        return True
    number = ctypes.get_errno()
    if number != bearable:
        what = (first or b"").decode()
        raise BackendError(f"{call.__name__}({what!r}): {os.strerror(number)}")
    return False
