"""Rules and packet worker: who is told what, and in which order; workers that die."""

from __future__ import annotations

import os
import select
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from appliance.backend.api import BackendError
from appliance.backend.fake import FakeTable
from appliance.proc.diverted import PathTable, WorkerProcess
from appliance.rewrite.flow import Flow
from appliance.rewrite.redirect import Entry

BIRTH = Flow.of("192.0.2.1", 40000, "198.51.100.1", 22)
WIRE = Flow.of("192.0.2.2", 40000, "198.51.100.1", 22)
DIVERTED = Entry("ab" * 16, BIRTH, BIRTH, True, True, (BIRTH,), BIRTH, path="divert")
MOVED = replace(DIVERTED, wires=(WIRE, BIRTH), wire_out=WIRE)
OTHER = replace(DIVERTED, conn_id="cd" * 16, path="kernel")


def text(entries: Iterable[Entry]) -> str:
    return ",".join(f"{e.conn_id[:2]}>{e.wire_out and e.wire_out.local.addr}" for e in entries)


class Told:
    """Lines in a file, which every process can add to."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.touch()
        path.chmod(0o666)

    def add(self, *words: str) -> None:
        with self._path.open("a") as file:
            file.write(" ".join(words).strip() + "\n")

    def take(self) -> list[str]:
        lines = self._path.read_text().splitlines()
        self._path.write_text("")
        return lines


class Side:
    """A packet worker that notes what it is told."""

    def __init__(self, queue: socket.socket, told: Told) -> None:
        self._queue, self._told = queue, told

    def fileno(self) -> int:
        return self._queue.fileno()

    def read(self) -> int:
        return 0

    def drain(self) -> None:
        self._told.add("worker drains")

    def load(self, entries: Iterable[Entry]) -> None:
        self._told.add("worker loads", text(entries))

    def apply(self, entries: Iterable[Entry]) -> None:
        self._told.add("worker applies", text(entries))

    def remove(self, conn_ids: Iterable[str]) -> None:
        self._told.add("worker removes", ",".join(c[:2] for c in conn_ids))


class Table(FakeTable):
    def __init__(self, told: Told) -> None:
        super().__init__()
        self._told = told

    def apply(self, entries: Sequence[Entry]) -> None:
        self._told.add("rules", ",".join(f"{text([e])}:{e.path}" for e in entries))
        super().apply(entries)

    def replace_all(self, entries: Sequence[Entry]) -> None:
        self._told.add("all rules", text(entries))
        super().replace_all(entries)

    def remove(self, conn_ids: Iterable[str]) -> None:
        self._told.add("no rules")
        super().remove(conn_ids)


class Both:
    def __init__(self, told: Told) -> None:
        self.told = told
        self.far_ends: list[socket.socket] = []
        self.process = WorkerProcess(self._queue, lambda queue: Side(queue, told), "nobody")
        self.rules = Table(told)
        self.table = PathTable(self.rules, self.process)
        self.table.open()

    def _queue(self) -> socket.socket:
        queue, far_end = socket.socketpair()
        self.far_ends.append(far_end)
        return queue

    def told_by(self, act: Callable[[], None]) -> list[str]:
        self.told.take()
        act()
        return self.told.take()

    def wait(self) -> int:
        """Until there is a worker; its process ID."""
        deadline = time.monotonic() + 20
        while not self.process.channels():
            assert time.monotonic() < deadline
            time.sleep(self.process.due() or 0)
            self.process.look()
        return child_pid()


def child_pid() -> int:
    return int(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()[-1])


@pytest.fixture
def both() -> Iterator[Both]:
    with tempfile.TemporaryDirectory() as name:  # tmp_path is closed to strangers
        Path(name).chmod(0o755)
        made = Both(Told(Path(name) / "told"))
        yield made
        made.process.close()
        for far_end in made.far_ends:
            far_end.close()


def test_a_connection_is_known_before_it_is_queued_and_until_nothing_is(both: Both) -> None:
    both.told_by(lambda: both.table.replace_all([]))
    assert both.told_by(lambda: both.table.apply([OTHER])) == ["rules cd>192.0.2.1:kernel"]
    assert both.process.channels() == []
    said = both.told_by(lambda: both.table.apply([DIVERTED, OTHER]))
    assert said == ["worker loads ab>192.0.2.1", "worker applies ab>192.0.2.1",
                    "rules ab>192.0.2.1:divert,cd>192.0.2.1:kernel"]  # fmt: skip
    assert both.told_by(lambda: both.table.apply([MOVED])) == [
        "worker applies ab>192.0.2.2", "rules ab>192.0.2.2:divert",
    ]  # fmt: skip
    assert both.told_by(lambda: both.table.apply([replace(MOVED, path="kernel")])) == [
        "rules ab>192.0.2.2:kernel", "worker drains", "worker removes ab",
    ]  # fmt: skip
    both.table.apply([MOVED])
    assert both.told_by(lambda: both.table.remove([MOVED.conn_id, "unknown"])) == [
        "no rules", "worker drains", "worker removes ab",
    ]  # fmt: skip


def test_a_connection_is_shut_by_the_rules_first_and_opened_by_them_last(both: Both) -> None:
    both.table.replace_all([DIVERTED])
    shut = replace(MOVED, wire_out=None)
    assert both.told_by(lambda: both.table.apply([shut])) == [
        "worker applies ab>192.0.2.1", "rules ab>None:divert", "worker drains",
        "worker applies ab>None",
    ]  # fmt: skip
    assert both.told_by(lambda: both.table.apply([MOVED])) == [
        "worker applies ab>192.0.2.2", "rules ab>192.0.2.2:divert",
    ]  # fmt: skip


def test_all_rules_anew_leave_the_worker_with_exactly_those(both: Both) -> None:
    both.table.replace_all([DIVERTED])
    another = replace(DIVERTED, conn_id="ef" * 16)
    assert both.told_by(lambda: both.table.replace_all([OTHER, another])) == [
        "worker applies ef>192.0.2.1", "all rules cd>192.0.2.1,ef>192.0.2.1", "worker drains",
        "worker loads ef>192.0.2.1",
    ]  # fmt: skip


def test_a_worker_that_dies_is_started_again_with_all_it_must_know(both: Both) -> None:
    both.table.replace_all([DIVERTED])
    pid = both.wait()
    os.kill(pid, signal.SIGKILL)
    assert select.select(both.process.channels(), [], [], 10)[0]
    both.process.look()
    assert both.process.channels() == []
    assert both.told_by(lambda: both.table.apply([MOVED])) == ["rules ab>192.0.2.2:divert"]
    assert both.wait() != pid
    both.table.apply([MOVED])  # it has answered, so it has begun
    both.table.apply([OTHER])  # asks nothing of it
    said = both.told_by(lambda: both.table.remove([OTHER.conn_id]))
    assert said == ["no rules"]


def test_what_it_misses_by_dying_at_that_moment_it_hears_at_its_start(both: Both) -> None:
    both.table.replace_all([DIVERTED])
    os.kill(both.wait(), signal.SIGKILL)
    assert select.select(both.process.channels(), [], [], 10)[0]
    assert both.told_by(lambda: both.table.apply([MOVED])) == ["rules ab>192.0.2.2:divert"]
    both.wait()
    assert both.told_by(lambda: both.table.remove([MOVED.conn_id]))[-1] == "worker removes ab"


def test_the_kernel_goes_on_where_the_daemon_ends(both: Both) -> None:
    both.table.replace_all([MOVED, OTHER])
    said = both.told_by(lambda: both.table.close(keep=True))
    assert said == ["rules ab>192.0.2.2:kernel"]
    assert both.rules.kept is True
    assert both.process.channels() == []
    both.table = PathTable(both.rules, both.process)


def test_nothing_changes_where_there_can_be_no_worker(both: Both) -> None:
    def refuse() -> socket.socket:
        raise BackendError("no NFQUEUE")

    table = PathTable(both.rules, WorkerProcess(refuse, lambda queue: Side(queue, both.told), "x"))
    table.replace_all([OTHER])
    with pytest.raises(BackendError, match="NFQUEUE"):
        table.apply([DIVERTED])
    assert both.rules.entries == {OTHER.conn_id: OTHER}
    table.apply([OTHER])
