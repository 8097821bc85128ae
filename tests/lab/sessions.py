"""Programs as people use them, watched: ssh that prints a counter, psql that keeps a
ledger, rsync that copies a file.  Each knows afterwards what was lost or doubled.
"""

from __future__ import annotations

import bisect
import contextlib
import hashlib
import os
import subprocess
import threading
import time
from abc import ABC, abstractmethod
from pathlib import Path

from .host import Host
from .services import Postgres, Rsyncd, Sshd


class Session(ABC):
    """A connection in use.  ``beats`` are the times (monotonic, s) at which something
    arrived; a thread of its own collects them."""

    name: str
    unit: str  # what is counted

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.beats: list[float] = []
        self.numbers: list[int] = []
        self.ended: float | None = None
        self.last_words = ""
        self._words = threading.Thread(target=self._read_errors, daemon=True)
        self._words.start()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @abstractmethod
    def watch(self) -> None:
        """Runs in the thread until the program is through."""

    @abstractmethod
    def finish(self, timeout: float = 30) -> None:
        """Bring it to its natural end and wait for that."""

    @abstractmethod
    def faults(self) -> list[str]:
        """After :meth:`finish`: what was lost, doubled or altered, in words."""

    def _run(self) -> None:
        with contextlib.suppress(OSError, ValueError):  # a pipe that ended with the program
            self.watch()
        self.ended = time.monotonic()

    def _read_errors(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.last_words = line.decode(errors="replace").strip()

    @property
    def alive(self) -> bool:
        return self.ended is None

    @property
    def died(self) -> float | None:
        """When it ended without being asked to (monotonic, s)."""
        return self.ended if self.ended is not None and not self._asked else None

    _asked = False

    def beat(self, number: int) -> None:
        self.numbers.append(number)
        self.beats.append(time.monotonic())

    def beats_in(self, seconds: float) -> int:
        """How many arrived within the last ``seconds``."""
        return len(self.beats) - bisect.bisect_left(self.beats, time.monotonic() - seconds)

    def first_after(self, moment: float, timeout: float = 15) -> float | None:
        """When the first arrival after ``moment`` was, awaited; None: none in time."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            index = bisect.bisect_right(self.beats, moment)
            if index < len(self.beats):
                return self.beats[index]
            if self.ended is not None:
                return None
            time.sleep(0.002)
        return None

    def wait_beats(self, n: int, timeout: float = 15) -> bool:
        """Until ``n`` more have arrived; False: not in time."""
        wanted = len(self.beats) + n
        deadline = time.monotonic() + timeout
        while len(self.beats) < wanted:
            if time.monotonic() > deadline or self.ended is not None:
                return False
            time.sleep(0.005)
        return True

    def longest_gap(self, since: float = 0.0, until: float = float("inf")) -> float:
        """Longest time between two arrivals that overlaps the interval, in seconds."""
        pairs = zip(self.beats, self.beats[1:], strict=False)
        return max((b - a for a, b in pairs if b >= since and a <= until), default=0.0)

    def _await_end(self, timeout: float) -> None:
        self._thread.join(timeout)
        if self._thread.is_alive():
            self.process.kill()
            self._thread.join(5)
            self.last_words = self.last_words or f"did not end within {timeout:.0f} s"
        self.process.wait(timeout=5)
        self._words.join(5)

    def sequence_faults(self, total: int | None) -> list[str]:
        """Numbers must have come as 1, 2, 3 … ``total``."""
        found = []
        lost = set(range(1, (total or max(self.numbers, default=0)) + 1)) - set(self.numbers)
        doubled = len(self.numbers) - len(set(self.numbers))
        if lost:
            found.append(f"{len(lost)} lost")
        if doubled:
            found.append(f"{doubled} doubled")
        if self.numbers != sorted(self.numbers):
            found.append("out of order")
        if total is None:
            found.append("never ended properly" + (f": {self.last_words}" * bool(self.last_words)))
        return found


class SshCounter(Session):
    """ssh to a shell that prints 1, 2, 3 …, one number every 100 ms, until it reads a line."""

    unit = "lines"
    SCRIPT = "i=0; until read -r -t 0.1 line; do i=$((i+1)); echo $i; done; echo end $i"

    def __init__(self, name: str, host: Host, sshd: Sshd, addr: str) -> None:
        self.name = name
        self.total: int | None = None
        # Life signs, as many people configure them: a dead session is noticed.
        options = sshd.options(alive_interval=3, alive_count=2)
        super().__init__(
            host.popen(
                ["ssh", *options, addr, f"bash -c '{self.SCRIPT}'"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
        )

    def watch(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(b"end "):
                self.total = int(line[4:])
            else:
                self.beat(int(line))

    def finish(self, timeout: float = 30) -> None:
        self._asked = self.ended is None
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):
            self.process.stdin.write(b"stop\n")
            self.process.stdin.flush()
        self._await_end(timeout)

    def faults(self) -> list[str]:
        return self.sequence_faults(self.total)


class PsqlLedger(Session):
    """psql that inserts 1, 2, 3 …, each once the one before was answered."""

    unit = "rows"
    INTERVAL = 0.1

    def __init__(self, name: str, host: Host, postgres: Postgres, addr: str) -> None:
        self.name = name
        self._stop = threading.Event()
        self._rows: tuple[int, int] | None = None
        super().__init__(
            host.popen(
                postgres.psql(addr),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
        )

    def watch(self) -> None:
        self._ask("create temporary table ledger (n int);", answer=False)
        number = 0
        while not self._stop.is_set():
            number += 1
            began = time.monotonic()
            answer = self._ask(f"insert into ledger values ({number}) returning n;")
            if not answer:
                return
            self.beat(int(answer))
            self._stop.wait(max(0, began + self.INTERVAL - time.monotonic()))
        counts = self._ask("select count(*), count(distinct n) from ledger;")
        if counts:
            rows, distinct = counts.split(b"|")
            self._rows = int(rows), int(distinct)
        assert self.process.stdin is not None
        self.process.stdin.close()

    def _ask(self, statement: str, answer: bool = True) -> bytes:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(statement.encode() + b"\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip() if answer else b""

    def finish(self, timeout: float = 30) -> None:
        self._asked = self.ended is None
        self._stop.set()
        self._await_end(timeout)

    def faults(self) -> list[str]:
        if self._rows is None:
            return self.sequence_faults(None)
        rows, distinct = self._rows
        found = self.sequence_faults(len(self.numbers))
        if rows != len(self.numbers) or distinct != rows:
            found.append(f"the table has {rows} rows, {distinct} different")
        return found


class RsyncCopy(Session):
    """rsync that uploads a file at a steady rate; what arrives is seen in the file."""

    unit = "kB"

    def __init__(
        self, name: str, host: Host, rsyncd: Rsyncd, addr: str, size: int, rate_kb: int
    ) -> None:
        """size in bytes, rate in kB/s"""
        self.name = name
        self.size = size
        self.source = host.dir / "state" / f"{name.replace(' ', '-')}.bin"
        self.target = rsyncd.path / self.source.name
        with self.source.open("wb") as file:
            for _ in range(0, size, 1 << 20):
                file.write(os.urandom(min(1 << 20, size)))
        self.size = self.source.stat().st_size
        super().__init__(
            host.popen(
                ["rsync", "--whole-file", "--inplace", f"--bwlimit={rate_kb}",
                 str(self.source), rsyncd.url(addr, self.source.name)],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            )
        )  # fmt: skip

    def watch(self) -> None:
        seen = 0
        while self.process.poll() is None:
            have = self.target.stat().st_size if self.target.exists() else 0
            if have > seen:
                seen = have
                self.beat(seen // 1024)
            time.sleep(0.005)  # growth of a file by another process

    def finish(self, timeout: float = 120) -> None:
        self._asked = True
        self._await_end(timeout)

    @property
    def died(self) -> float | None:
        return self.ended if self.ended is not None and self.process.returncode != 0 else None

    def faults(self) -> list[str]:
        found = []
        if self.process.returncode != 0:
            found.append(f"rsync exited with {self.process.returncode}: {self.last_words}")
        elif _sha256(self.source) != _sha256(self.target):
            found.append("the copy differs")
        return found


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
