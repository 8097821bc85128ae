"""Locking a process up once it has all it needs; what each may do is one table.

OpenBSD: pledge and unveil, :mod:`..backend.openbsd.sandbox`.  Linux: the user, the
capabilities and no_new_privs of :mod:`.privileges`, and the service units (docs/linux.md).
"""

from __future__ import annotations

import sys
from pathlib import Path

from ..backend.api import BackendError
from ..config import DEFAULT_PATH


def enter(process: str, state: Path, control: Path, config: Path | None) -> None:
    """For good; OSError when the system refuses: then nothing may go on.

    control  the control socket, whose directory it needs
    config   the file that was read
    """
    if sys.platform.startswith("openbsd"):
        from ..backend.openbsd import sandbox  # the admin page needs nothing of it elsewhere

        places = {"state": state, "run": control.parent, "config": config or DEFAULT_PATH}
        try:
            sandbox.enter(process, {name: str(path.resolve()) for name, path in places.items()})
        except BackendError as fault:
            raise OSError(str(fault)) from None
