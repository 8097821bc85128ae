"""The handle of a delay relay (the relay itself is :mod:`tests.lab.relay`)."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from pathlib import Path

from . import kernel


class Relay:
    """A cable with a delay, loss and blackouts, for both directions alike.

    rtt_ms  round-trip time that it adds, half in each direction
    """

    def __init__(self, netns: str, left: str, right: str, rtt_ms: float) -> None:
        self._argv = kernel.inside(
            netns, [sys.executable, "-ISS", str(Path(__file__).with_name("relay.py")), left, right]
        )
        self._settings: dict[str, float | bool | int] = {"rtt_ms": rtt_ms}
        self._process: subprocess.Popen[bytes] | None = None
        self.restart()

    def restart(self) -> None:
        """Needed when an end of the cable was replaced."""
        self.stop()
        self._process = subprocess.Popen(
            self._argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )
        self._say(self._settings)

    def set(self, **settings: float | bool | int) -> None:
        """``rtt_ms=``, ``loss=`` (0 to 1), ``blackout=True``, ``seed=``; returns once
        they are in force.  Frames under way keep the delay that they began with."""
        self._settings.update(settings)
        self._say(settings)

    def _say(self, settings: dict[str, float | bool | int]) -> None:
        process = self._process
        if process is None or process.stdin is None or process.stdout is None:
            raise kernel.LabError("the relay is stopped")
        process.stdin.write(json.dumps(settings).encode() + b"\n")
        process.stdin.flush()
        if process.stdout.readline() != b"ok\n":
            raise kernel.LabError(f"the relay ended with {process.wait(5)}")

    def stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait(timeout=10)
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
