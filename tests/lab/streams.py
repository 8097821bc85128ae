"""Handles for :mod:`tests.lab.traffic`: byte-exact TCP connections between two machines.

one, two = Traffic(alice), Traffic(bob)
stream = open_stream(one, two, "192.0.2.9", mode="paced")
stream.wait_far(100)                  # the far end has 100 records
... move ...
stream.finish().check()               # AssertionError unless byte-exact
"""

from __future__ import annotations

import contextlib
import itertools
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from .host import Host
from .kernel import LabError

Mode = Literal["paced", "bulk", "idle", "echo"]
_names = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Report:
    """One end of a connection; times in milliseconds (``gap_began``: monotonic seconds)."""

    sent: int
    received: int
    lost: int
    doubled: int
    altered: int
    longest_gap_ms: float
    gap_began: float | None
    longest_delay_ms: float
    hash_sent: str
    hash_received: str
    complete: bool
    error: str | None
    closed: bool
    local: tuple[str, int]
    remote: tuple[str, int]


def _report(row: dict[str, Any]) -> Report:
    return Report(**{**row, "local": tuple(row["local"]), "remote": tuple(row["remote"])})


class Traffic:
    """A traffic program on a machine; ends with the lab."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self._ids = itertools.count(1)
        self._process = host.popen(
            [sys.executable, "-IS", str(Path(__file__).with_name("traffic.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._ports: dict[int, int] = {}

    def do(self, command: str, **args: Any) -> Any:
        """Send a command and wait for its answer; LabError carries its error."""
        return self.do_all([(command, args)])[0]

    def do_all(self, requests: Sequence[tuple[str, dict[str, Any]]]) -> list[Any]:
        """Commands that run at the same time; their answers in order."""
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        numbers = [next(self._ids) for _ in requests]
        for number, (command, args) in zip(numbers, requests, strict=True):
            line = json.dumps({"id": number, "do": command, "args": args}) + "\n"
            process.stdin.write(line.encode())
        process.stdin.flush()
        replies: dict[int, dict[str, Any]] = {}
        while len(replies) < len(numbers):
            answer = process.stdout.readline()
            if not answer:
                raise LabError(f"the traffic program on {self.host.name} ended")
            reply = json.loads(answer)
            replies[reply["id"]] = reply
        for number, (command, _) in zip(numbers, requests, strict=True):
            if "error" in replies[number]:
                raise LabError(f"{self.host.name}: {command}: {replies[number]['error']}")
        return [replies[number]["data"] for number in numbers]

    def listen(self, port: int = 0, addr: str | None = None) -> int:
        """Accept connections; returns the port.  Listening twice is once."""
        if port not in self._ports:
            got = self.do("listen", addr=addr, port=port)["port"]
            self._ports[port] = self._ports[got] = got
        return self._ports[port]

    def report(self, name: str) -> Report:
        return _report(self.do("report", name=name))

    def stop(self) -> None:
        self._process.kill()
        self._process.wait(timeout=10)
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()


class Stream:
    """A connection with both its ends: ``near`` opened it, ``far`` accepted it."""

    def __init__(self, near: Traffic, far: Traffic, name: str, mode: Mode, gets: str) -> None:
        self.near = near
        self.far = far
        self.name = name
        self.mode = mode
        self._sides = {"near": near, "far": far}
        self._receivers = [end for side, end in self._sides.items() if side in gets]

    def report(self, side: Literal["near", "far"] = "far") -> Report:
        return self._sides[side].report(self.name)

    def wait(
        self, received: int = 10, side: Literal["near", "far"] | None = None, timeout: float = 30
    ) -> None:
        """Until ``received`` more records have come, to every receiving end or to one."""
        ends = self._receivers if side is None else [self._sides[side]]
        wanted = [(end, end.report(self.name).received + received) for end in ends]
        for end, number in wanted:
            end.do("wait", name=self.name, received=number, timeout=timeout)

    def wait_for(self, received: int, timeout: float = 30) -> None:
        """Until every receiving end has got ``received`` records in all."""
        for end in self._receivers:
            end.do("wait", name=self.name, received=received, timeout=timeout)

    def say(self, n: int = 1, side: Literal["near", "far"] = "near") -> None:
        self._sides[side].do("say", name=self.name, n=n)

    def mark(self) -> None:
        """The longest gap and delay count from now on."""
        for end in (self.near, self.far):
            end.do("mark", name=self.name)

    def wait_gone(self, side: Literal["near", "far"] = "near", timeout: float = 30) -> Report:
        """Until the connection has ended (or was finished) at one end."""
        end = self._sides[side]
        return _report(end.do("wait", name=self.name, gone=True, timeout=timeout))

    def drop(self) -> None:
        self.near.do("drop", name=self.name)

    def finish(self, timeout: float = 30) -> Outcome:
        """Both ends stop sending; whatever is under way is awaited."""
        # An echoing end finishes by itself once it has sent everything back.
        for end in [self.near] if self.mode == "echo" else [self.near, self.far]:
            end.do("end", name=self.name)
        for end in (self.near, self.far):
            with contextlib.suppress(LabError):  # closed by a fault: the outcome shows it
                end.do("wait", name=self.name, gone=True, timeout=timeout)
        return Outcome(self.near.report(self.name), self.far.report(self.name))


@dataclass(frozen=True, slots=True)
class Outcome:
    near: Report
    far: Report

    @property
    def faults(self) -> list[str]:
        """What went wrong, in words; empty when every byte came through once."""
        found = []
        for name, one, other in (("up", self.near, self.far), ("down", self.far, self.near)):
            if one.error:
                found.append(f"{name}: sender says {one.error}")
            if one.sent != other.received or one.hash_sent != other.hash_received:
                found.append(
                    f"{name}: {one.sent} sent, {other.received} received, {other.lost} lost, "
                    f"{other.doubled} doubled, {other.altered} altered, "
                    f"{'same' if one.hash_sent == other.hash_received else 'another'} hash"
                )
        return found

    def check(self) -> None:
        assert not self.faults, "; ".join(self.faults)


def open_stream(
    near: Traffic,
    far: Traffic,
    addr: str,
    *,
    mode: Mode = "paced",
    up: bool = True,
    down: bool = True,
    interval: float = 0.01,
    size: int | None = None,
    port: int = 0,
    source: tuple[str, int] | None = None,
) -> Stream:
    """Open a connection from ``near`` to ``far`` at ``addr``.

    up, down  whether the opening and the accepting end send
    interval  seconds between records (paced, echo)
    size      bytes of a record's body; 100 (bulk: 16,384)
    source    address and port to open it from (port 0: any)
    """
    return open_streams(
        near,
        far,
        addr,
        1,
        mode=mode,
        up=up,
        down=down,
        interval=interval,
        size=size,
        port=port,
        source=source,
    )[0]


def open_streams(
    near: Traffic,
    far: Traffic,
    addr: str,
    n: int,
    *,
    mode: Mode = "paced",
    up: bool = True,
    down: bool = True,
    interval: float = 0.01,
    size: int | None = None,
    port: int = 0,
    source: tuple[str, int] | None = None,
) -> list[Stream]:
    """``n`` connections like :func:`open_stream`'s, opened at the same time."""
    order = {
        "addr": addr,
        "port": far.listen(port),
        "source": source,
        "mode": mode,
        "up": up,
        "down": down,
        "interval": interval,
        "size": size if size is not None else (16384 if mode == "bulk" else 100),
    }
    gets = ("far " if up else "") + ("near" if down or mode == "echo" else "")
    streams: list[Stream] = []
    while len(streams) < n:
        # A bounded number under way: a listening socket's queue has an end.
        names = [f"s{next(_names)}" for _ in range(min(100, n - len(streams)))]
        near.do_all([("connect", {"name": name, **order}) for name in names])
        far.do_all([("wait", {"name": name, "sent": 0, "timeout": 10}) for name in names])
        streams += [Stream(near, far, name, mode, gets) for name in names]
    return streams
