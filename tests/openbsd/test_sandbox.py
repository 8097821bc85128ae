"""The table of promises, and that nothing is promised elsewhere."""

from __future__ import annotations

import errno
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from appliance.backend.api import BackendError
from appliance.backend.openbsd import sandbox
from appliance.backend.openbsd.sandbox import CAGES, code, enter, paths_of
from appliance.proc.sandbox import enter as lock_up

#: pledge(2), OpenBSD 7.8
PROMISES = {
    "stdio", "rpath", "wpath", "cpath", "dpath", "tmppath", "inet", "mcast", "fattr", "chown",
    "flock", "unix", "dns", "getpw", "sendfd", "recvfd", "tape", "tty", "proc", "exec",
    "prot_exec", "settime", "ps", "vminfo", "id", "pf", "route", "wroute", "audio", "video",
    "bpf", "unveil", "error",
}  # fmt: skip


PLACES = {"state": "/var/x", "run": "/var/run/x", "config": "/etc/x.toml"}


@pytest.fixture(autouse=True)
def nothing_seen_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "_seen", {})


@pytest.mark.parametrize("process", CAGES)
def test_promises_and_permissions_are_words_that_the_kernel_knows(process: str) -> None:
    cage = CAGES[process]
    assert set((cage.promises or "").split()) <= PROMISES
    for path, how in paths_of(cage, PLACES).items():
        assert path.startswith("/")
        assert "{" not in path
        assert set(how) <= set("rwxc")


def test_who_speaks_with_the_network_can_run_nothing() -> None:
    for process in ("engine", "packets", "web"):
        words = set((CAGES[process].promises or "").split())
        assert words
        assert not words & {"exec", "proc", "prot_exec", "id", "pf", "unveil"}
    for process in CAGES.keys() - {"parent"}:
        assert not any("x" in how for how in CAGES[process].paths.values())


def test_only_who_needs_more_than_any_promise_allows_is_not_pledged() -> None:
    assert [name for name, cage in CAGES.items() if not cage.promises] == ["parent", "capture"]


def test_nobody_changes_the_program_or_what_is_configured() -> None:
    for cage in CAGES.values():
        paths = paths_of(cage, PLACES)
        assert {paths.get(path, "r") for path in (*code(), "/etc", PLACES["config"])} == {"r"}


def test_elsewhere_nothing_is_promised() -> None:
    assert enter("engine", PLACES) is False


def test_every_process_has_its_place_in_the_table() -> None:
    """The names with which the processes enter, against the table."""
    root = Path(__file__).resolve().parents[2]
    entered = set()
    for folder in ("appliance/proc", "webui"):
        for path in (root / folder).rglob("*.py"):
            entered |= set(re.findall(r'(?:sandbox\.enter|_lock_up)\("(\w+)"', path.read_text()))
    assert {"parent", "engine", "capture", "web"} <= entered <= CAGES.keys()


class Libc:
    """Refuses as unveil(2) and pledge(2) do: what is locked, and what is not there."""

    def __init__(self, refuse: str = "", missing: tuple[str, ...] = ()) -> None:
        self.said: list[tuple[str, bytes | None, bytes | None]] = []
        self.errno, self.refuse, self.missing = 0, refuse, missing
        for name in ("pledge", "unveil"):
            setattr(self, name, self._call(name))

    def _call(self, name: str) -> Any:
        def call(first: bytes | None, second: bytes | None) -> int:
            locked = ("unveil", None, None) in self.said or "pledge" in self.calls()
            self.errno = 0
            if name == self.refuse or (name == "unveil" and locked):
                self.errno = errno.EPERM
            elif first is not None and first.decode() in self.missing:
                self.errno = errno.ENOENT
            else:
                self.said.append((name, first, second))
            return -1 if self.errno else 0

        call.__name__ = name
        return call

    def calls(self) -> list[str]:
        return [name for name, _, _ in self.said]

    def visible(self) -> dict[str, str]:
        """Path -> permissions as they stand at the end."""
        said = [(a, b) for name, a, b in self.said if name == "unveil"]
        found = {a.decode(): b.decode() for a, b in said if a is not None and b is not None}
        return {path: how for path, how in found.items() if how}


def on_openbsd(monkeypatch: pytest.MonkeyPatch, libc: object) -> None:
    monkeypatch.setattr(sys, "platform", "openbsd7")
    fake = SimpleNamespace(
        CDLL=lambda name, use_errno: libc,
        c_char_p=None,
        c_int=None,
        get_errno=lambda: getattr(libc, "errno", 0),
    )
    monkeypatch.setattr(sandbox, "ctypes", fake)


def test_paths_are_unveiled_before_the_promises_and_then_locked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    libc = Libc()
    on_openbsd(monkeypatch, libc)
    assert enter("web", PLACES)
    assert libc.calls() == ["unveil"] * (len(libc.said) - 1) + ["pledge"]
    assert libc.visible() == paths_of(CAGES["web"], PLACES)
    assert libc.said[-2] == ("unveil", None, None)
    assert libc.said[-1][1] == (CAGES["web"].promises or "").encode()


@pytest.mark.parametrize("process", ["engine", "packets", "capture"])
def test_a_forked_process_hides_what_only_its_parent_needs(
    process: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    libc = Libc()
    on_openbsd(monkeypatch, libc)
    assert enter("parent", PLACES)
    assert libc.visible()["/sbin/pfctl"] == "x"
    assert set(libc.calls()) == {"unveil"}
    assert enter(process, PLACES)
    assert libc.visible() == paths_of(CAGES[process], PLACES)
    assert ("unveil", None, None) in libc.said


def test_a_forked_process_never_asks_for_more_than_its_parent_has() -> None:
    """unveil(2): "EPERM An attempt to increase permissions was made"."""
    outer = paths_of(CAGES["parent"], PLACES)
    for process in ("engine", "packets", "capture"):
        for path, how in paths_of(CAGES[process], PLACES).items():
            assert set(how) <= set(outer[path])


def test_what_is_not_there_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    libc = Libc(missing=("/dev/bpf",))
    on_openbsd(monkeypatch, libc)
    assert enter("parent", PLACES)
    assert "/dev/bpf" not in libc.visible()


def test_packet_workers_see_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    libc = Libc()
    on_openbsd(monkeypatch, libc)
    assert enter("packets", PLACES)
    assert libc.said == [("pledge", b"stdio inet", None)]


@pytest.mark.parametrize(("refused", "said"), [("pledge", "pledge"), ("unveil", "unveil")])
def test_a_refusal_ends_the_process(
    refused: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_openbsd(monkeypatch, Libc(refuse=refused))
    with pytest.raises(BackendError, match=rf"^{said}\('.*Operation not permitted"):
        enter("engine", PLACES)


def test_the_processes_hear_of_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    on_openbsd(monkeypatch, Libc(refuse="pledge"))
    with pytest.raises(OSError, match="pledge"):
        lock_up("web", Path("/var/x"), Path("/var/run/x/s"), None)


def test_places_come_from_the_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    libc = Libc()
    on_openbsd(monkeypatch, libc)
    lock_up("parent", Path("/nowhere/x"), Path("/nowhere/y/s"), Path("/nowhere/z"))
    seen = libc.visible()
    assert (seen["/nowhere/x"], seen["/nowhere/y"], seen["/nowhere/z"]) == ("rwc", "rwc", "r")


def test_a_libc_without_the_calls_is_no_sandbox(monkeypatch: pytest.MonkeyPatch) -> None:
    on_openbsd(monkeypatch, object())
    assert enter("engine", PLACES) is False
