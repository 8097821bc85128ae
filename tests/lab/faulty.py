"""redirectd as ``python -m appliance`` runs it, but killed after a command of its engine.

    python -m tests.lab.faulty -f FILE --fault FAULT

FAULT is a file in the state directory that a test writes (:mod:`.fault`) and the engine
takes away when it dies of it.  Counted are the engine's commands from the first
``SaveBindings``, ``Apply`` or ``ReservePorts`` on: with one of them every change of
address begins, on either side.
Beside it, ``FAULT.log`` gets a line for each counted command.

Restarts are quick, however often a test kills the engine: pauses stay short, and the
parent has imported already what the engine needs.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import click

from appliance.__main__ import _log_to
from appliance.config import Config, load
from appliance.proc.engine import main as engine_main
from appliance.proc.inherited import Inherited
from appliance.proc.parent import Parent, Restarts

from .fault import Fault

FIRST = ("SaveBindings", "Apply", "ReservePorts")
RESTARTS = Restarts(first=0.05, most=0.05)


class Hook:
    """``after_command`` of the engine: looks at the file once a command."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._log = Path(f"{path}.log")
        self._armed: tuple[int, int] | None = None
        self._count = 0

    def __call__(self, command: object) -> None:
        try:
            stat = self._path.stat()
        except FileNotFoundError:
            return
        if self._armed != (stat.st_ino, stat.st_mtime_ns):
            self._armed, self._count = (stat.st_ino, stat.st_mtime_ns), 0
        name = type(command).__name__
        if not self._count and name not in FIRST:
            return
        self._count += 1
        with self._log.open("a") as log:
            log.write(f"{name}\n")
        fault = Fault.read(self._path)
        if self._count == fault.after:
            if fault.who == "all":
                self._path.with_suffix(".all").touch()
            self._path.unlink()
            os.kill(os.getpid(), signal.SIGKILL)


class FaultyParent(Parent):
    """Dies with an engine whose fault says so."""

    def __init__(self, config: Config, main: Callable[[Config, Inherited], None], fault: Path):
        super().__init__(config, main, RESTARTS)
        self._both = fault.with_suffix(".all")

    def _one_engine(self, *args: object) -> None:
        super()._one_engine(*args)  # type: ignore[arg-type]
        with contextlib.suppress(FileNotFoundError):
            self._both.unlink()
            os.kill(os.getpid(), signal.SIGKILL)


@click.command()
@click.option("-f", "path", type=click.Path(path_type=Path), required=True)
@click.option("--fault", type=click.Path(path_type=Path), required=True)
def main(path: Path, fault: Path) -> None:
    _log_to(stderr=True, verbose=True)

    def engine(config: Config, inherited: Inherited) -> None:
        engine_main(config, inherited, Hook(fault))

    sys.exit(FaultyParent(load(path), engine, fault).run())


if __name__ == "__main__":
    main()
