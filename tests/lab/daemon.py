"""redirectd on a machine of the lab: configured, started, asked, killed.

a, b = Daemon(alice), Daemon(bob, discover=[])
introduce(a, b)
a.wait_bound(1)
a.ctl("connections", state="bound")
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import tomlkit

from appliance.proc.worker import NAME

from .expose import ROOT, readable
from .fault import Fault, Who
from .host import Host
from .kernel import LabError

READY = 15.0  # seconds within which a started daemon answers
USER = "nobody"  # exists everywhere; an installed daemon has a user of its own


class ControlError(LabError):
    """The daemon refused; ``code`` is one of docs/control.md."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code


class NotReachable(LabError):
    """No daemon answers on the control socket."""


class Daemon:
    """One redirectd.  ``settings`` are keys of redirectd.toml, ``_`` for ``-``.

    faulty  started so that :meth:`break_after` can kill it
    """

    def __init__(
        self, host: Host, *, start: bool = True, faulty: bool = False, **settings: Any
    ) -> None:
        self.host = host
        self.control = host.dir / "run" / "control.sock"
        self.log_path = host.dir / "redirectd.log"
        self.config_path = host.dir / "etc" / "redirectd.toml"
        self.process: subprocess.Popen[bytes] | None = None
        self.fault = host.dir / "state" / "fault" if faulty else None
        self._breaks: Who = "engine"
        self.settings: dict[str, Any] = {
            "state_dir": str(host.dir / "state"),
            "control_socket": str(self.control),
            "user": USER,
        }
        self.configure(**settings)
        if start:
            self.start()

    def __repr__(self) -> str:
        return f"<redirectd on {self.host.name}>"

    def configure(self, **settings: Any) -> None:
        """Write redirectd.toml; takes effect at the next start."""
        self.settings.update(settings)
        self.config_path.write_text(tomlkit.dumps(_kebab(self.settings)))

    # -- life --------------------------------------------------------------------------

    def start(self, wait: bool = True) -> None:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
        program = ["appliance", "-d"]
        if self.fault is not None:
            program = ["tests.lab.faulty", "--fault", str(self.fault)]
        with self.log_path.open("ab") as log:
            self.process = self.host.popen(
                readable(
                    [sys.executable, "-m", *program, "-f", str(self.config_path)],
                    [self.host.lab.dir],
                ),
                stdout=log,
                stderr=log,
                env=environment,
            )
        if wait:
            self.wait_ready()

    def wait_ready(self, timeout: float = READY) -> None:
        """Until ``status`` is answered; LabError shows the log when it never is."""
        deadline = time.monotonic() + timeout
        while True:
            try:
                self.ctl("status")
                return
            except NotReachable as error:
                ended = self.process is not None and self.process.poll() is not None
                if ended or time.monotonic() > deadline:
                    how = f"ended with {self.process.poll()}" if ended and self.process else error
                    raise LabError(f"{self} did not start ({how}); its log:\n{self.log}") from None
            time.sleep(0.01)

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def pids(self) -> dict[str, int]:
        """``parent``, ``engine``, ``worker`` (on the divert path); none before the shell
        that starts it (:mod:`.expose`) has made way for it."""
        if self.process is None or self.process.poll() is not None:
            return {}
        found = {"parent": self.process.pid}
        command = Path(f"/proc/{self.process.pid}/cmdline").read_bytes()
        if not command.startswith(sys.executable.encode() + b"\0"):
            return {}
        for pid in _children(self.process.pid):
            with contextlib.suppress(FileNotFoundError):
                found["worker" if _is_worker(pid) else "engine"] = pid
        return found

    def kill(self, who: Literal["parent", "engine", "worker", "all"] = "all") -> None:
        """kill -9.  A killed engine or packet worker is started again by its parent."""
        pids = self.pids()
        for pid in pids.values() if who == "all" else [pids[who]]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if who in ("parent", "all") and self.process is not None:
            self.process.wait(timeout=10)

    def reload(self) -> None:
        """SIGHUP; until an engine with the new configuration answers."""
        assert self.process is not None
        before = self.pids()["engine"]
        self.process.send_signal(signal.SIGHUP)
        self.wait_until(
            "another engine", lambda d: d.pids().get("engine", before) != before and d.ctl("status")
        )

    def break_after(self, commands: int, who: Who = "engine") -> None:
        """Let the engine die after so many commands of the next change of address (0: only
        note them)."""
        if self.fault is None:
            raise LabError(f"{self} was not started with faulty=True")
        self._breaks = who
        Fault(commands, who).write(self.fault)

    def wait_broken(self, timeout: float = 10) -> bool:
        """Until the engine has died as it was told to; with "all", the parent as well.
        False if it did not come to that command."""
        assert self.fault is not None
        assert self.process is not None
        deadline = time.monotonic() + timeout
        while self.fault.exists():
            if time.monotonic() > deadline:
                self.fault.unlink()
                return False
            time.sleep(0.005)
        if self._breaks == "all":
            self.process.wait(timeout=timeout)
        return True

    def noted(self) -> list[str]:
        """The commands of the change of address since :meth:`break_after`."""
        return Path(f"{self.fault}.log").read_text().split()

    def stop(self, timeout: float = 10) -> int:
        """SIGTERM, as systemd does; the exit status."""
        if self.process is None:
            raise LabError(f"{self} is not running")
        self.process.terminate()
        status = self.process.wait(timeout=timeout)
        self.process = None
        return status

    def restart(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.stop()
        self.start()

    # -- asking -----------------------------------------------------------------------

    def ctl(self, do: str, **args: Any) -> Any:
        """One request on the control socket (docs/control.md); ControlError if refused."""
        with self._connect() as sock, sock.makefile("rb") as lines:
            sock.sendall(json.dumps({"id": 1, "do": do, "args": args}).encode() + b"\n")
            try:
                line = lines.readline()
            except OSError as error:
                raise NotReachable(f"{self}: {error}") from None
        if not line:
            raise NotReachable(f"{self} closed the control socket")
        answer = json.loads(line)
        if not answer["ok"]:
            raise ControlError(answer["error"]["code"], answer["error"]["message"])
        return answer["data"]

    def _connect(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(30)
        try:
            sock.connect(str(self.control))
        except OSError as error:
            sock.close()
            raise NotReachable(f"{self}: {error}") from None
        return sock

    @contextlib.contextmanager
    def monitor(self) -> Iterator[Iterator[dict[str, Any]]]:
        """Events as they happen."""
        with self._connect() as sock, sock.makefile("rb") as lines:
            sock.sendall(b'{"id": 1, "do": "monitor", "args": {}}\n')
            lines.readline()
            yield (json.loads(line)["event"] for line in lines)

    def redirectctl(self, *args: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """The command line program."""
        return self.host.run(
            [sys.executable, "-m", "appliance.redirectctl", "--socket", str(self.control), *args],
            check=check,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )

    def connections(self, state: str | None = None) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = self.ctl("connections", **({"state": state} if state else {}))
        return rows

    def events(self, kind: str | None = None) -> list[dict[str, Any]]:
        """Newest first."""
        rows: list[dict[str, Any]] = self.ctl("events", limit=1000)
        return [row for row in rows if kind is None or row["kind"] == kind]

    # -- waiting -----------------------------------------------------------------------

    def wait_until(self, what: str, ready: Callable[[Daemon], Any], timeout: float = 40) -> Any:
        """Ask until ``ready(self)`` is true; its value.  ``what`` names it in the error.

        A daemon that is being restarted counts as not ready.
        """
        deadline = time.monotonic() + timeout
        while True:
            asked = time.monotonic()
            with contextlib.suppress(NotReachable):
                value = ready(self)
                if value:
                    return value
            now = time.monotonic()
            if now > deadline:
                raise LabError(f"{self}: {what}: not within {timeout} s\n{self.describe()}")
            # the state behind the control socket; asking must not keep the daemon busy
            time.sleep(max(0.02, 4 * (now - asked)))

    def bound(self) -> list[dict[str, Any]]:
        return [c for c in self.connections() if c["conn_id"] is not None]

    def wait_bound(self, n: int = 1, timeout: float = 30) -> list[dict[str, Any]]:
        """Until exactly ``n`` connections are bound; those."""
        self.wait_until(f"{n} connections bound", lambda d: d.count_bound() == n, timeout)
        return self.bound()

    def count_bound(self) -> int:
        """How many are bound, in whatever state; cheap with thousands of them."""
        counts = self.ctl("status")["connections"]
        return sum(int(counts[state]) for state in ("bound", "held", "redirected"))

    def wait_released(self, timeout: float = 40) -> None:
        """Until no connection is bound any more."""
        self.wait_until("nothing bound", lambda d: not d.count_bound(), timeout)

    def wait_moved(self, moves: int, timeout: float = 40) -> list[dict[str, Any]]:
        """Until every bound connection has moved ``moves`` times and flows again."""

        def settled(daemon: Daemon) -> list[dict[str, Any]]:
            rows = daemon.bound()
            fine = all(c["moves"] >= moves and c["state"] != "held" for c in rows)
            return rows if fine else []

        rows: list[dict[str, Any]] = self.wait_until(f"{moves} moves made", settled, timeout)
        return rows

    def describe(self) -> str:
        """What a failed test should show."""
        lines = [f"--- {self}"]
        for what in ("status", "peers", "connections", "moves"):
            try:
                lines.append(f"{what}: {json.dumps(self.ctl(what))[:20_000]}")
            except LabError as error:
                lines.append(f"{what}: {error}")
        return "\n".join([*lines, "log:", self.log[-6000:]])

    # -- cost --------------------------------------------------------------------------

    def memory(self) -> dict[str, tuple[float, float]]:
        """Process -> (resident, proportional share) in MB."""
        found = {}
        for name, pid in self.pids().items():
            values = {}
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
                key, _, rest = line.partition(":")
                values[key] = int(rest.split()[0]) / 1024
            found[name] = (values["Rss"], values["Pss"])
        return found

    def cpu_seconds(self) -> float:
        """CPU time of all its processes so far."""
        ticks = 0
        for pid in self.pids().values():
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")


def _children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in text.split()]


def _is_worker(pid: int) -> bool:
    return Path(f"/proc/{pid}/comm").read_text() == f"{NAME}\n"


def _kebab(value: Any) -> Any:
    """Keys as redirectd.toml writes them; None leaves a key out."""
    if isinstance(value, dict):
        return {k.replace("_", "-"): _kebab(v) for k, v in value.items() if v is not None}
    if isinstance(value, list | tuple):
        return [_kebab(v) for v in value]
    return value


def introduce(one: Daemon, other: Daemon, *, version: int = 4, port: int = 4787) -> None:
    """Give two daemons keys for each other, as an operator would by export and import."""
    made = one.ctl(
        "peer.introduce",
        name=other.host.name,
        address=other.host.address(version),
        port=port,
    )
    other.ctl("peer.import", text=made["text"], name=one.host.name)
