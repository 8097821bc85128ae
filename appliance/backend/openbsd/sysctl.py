"""Kernel variables that the divert path needs, set at the start and put back at the end."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from ..api import BackendError
from .system import SYSCTL, Runner, run

log = logging.getLogger("redirectd.openbsd")

#: locally sent TCP arrives at a divert socket as super-packets of up to 16 KB, and sending
#: those again fails with EMSGSIZE
DIVERT: Mapping[str, str] = {"net.inet.tcp.tso": "0"}


class Sysctls:
    """Remembers what was there before."""

    def __init__(self, runner: Runner = run) -> None:
        self._run = runner
        self._before: dict[str, str] = {}

    def set(self, wanted: Mapping[str, str] = DIVERT) -> None:
        for name, value in wanted.items():
            try:
                before = self._run([SYSCTL, "-n", name], "").strip()
                if before != value:
                    self._run([SYSCTL, f"{name}={value}"], "")
                    self._before.setdefault(name, before)
            except BackendError as fault:
                # before 7.7 the variable is not there, and neither is TSO
                log.warning("%s stays as it is: %s", name, fault)

    def restore(self) -> None:
        while self._before:
            name, value = self._before.popitem()
            try:
                self._run([SYSCTL, f"{name}={value}"], "")
            except BackendError as fault:
                log.warning("%s was not put back to %s: %s", name, value, fault)
