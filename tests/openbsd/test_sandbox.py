"""The table of promises, and that nothing is promised elsewhere."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from appliance.backend.api import BackendError
from appliance.backend.openbsd import sandbox
from appliance.backend.openbsd.sandbox import CAGES, enter, paths_of

#: pledge(2), OpenBSD 7.8
PROMISES = {
    "stdio", "rpath", "wpath", "cpath", "dpath", "tmppath", "inet", "mcast", "fattr", "chown",
    "flock", "unix", "dns", "getpw", "sendfd", "recvfd", "tape", "tty", "proc", "exec",
    "prot_exec", "settime", "ps", "vminfo", "id", "pf", "route", "wroute", "audio", "video",
    "bpf", "unveil", "error",
}  # fmt: skip


@pytest.mark.parametrize("process", CAGES)
def test_promises_and_permissions_are_words_that_the_kernel_knows(process: str) -> None:
    cage = CAGES[process]
    assert set((cage.promises or "").split()) <= PROMISES
    for path, how in paths_of(cage, "/var/lib/x", "/var/run/x").items():
        assert path.startswith("/")
        assert "{" not in path
        assert set(how) <= set("rwxc")


def test_who_speaks_with_the_network_can_run_nothing() -> None:
    for process in ("engine", "packets", "web"):
        words = set((CAGES[process].promises or "").split())
        assert words
        assert not words & {"exec", "proc", "prot_exec", "id", "pf", "unveil"}
        assert not any("x" in how for how in CAGES[process].paths.values())


def test_only_the_parent_is_not_pledged() -> None:
    assert [name for name, cage in CAGES.items() if cage.promises is None] == ["parent"]


def test_elsewhere_nothing_is_promised() -> None:
    assert enter("engine", "/var/lib/x", "/var/run/x") is False


class Libc:
    def __init__(self, result: int = 0) -> None:
        self.said: list[tuple[str, bytes | None, bytes | None]] = []
        for name in ("pledge", "unveil"):
            setattr(self, name, self._call(name, result))

    def _call(self, name: str, result: int) -> Any:
        def call(first: bytes | None, second: bytes | None) -> int:
            self.said.append((name, first, second))
            return result

        call.__name__ = name
        return call


def on_openbsd(monkeypatch: pytest.MonkeyPatch, libc: object) -> None:
    monkeypatch.setattr(sys, "platform", "openbsd7")
    fake = SimpleNamespace(
        CDLL=lambda name, use_errno: libc,
        c_char_p=None,
        c_int=None,
        get_errno=lambda: 1,
    )
    monkeypatch.setattr(sandbox, "ctypes", fake)


def test_paths_are_unveiled_before_the_promises_and_then_locked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    libc = Libc()
    on_openbsd(monkeypatch, libc)
    assert enter("engine", "/tmp", "/var/run")
    calls = [name for name, _, _ in libc.said]
    assert calls == ["unveil"] * (len(calls) - 1) + ["pledge"]
    assert ("unveil", b"/tmp", b"rwc") in libc.said
    assert libc.said[-2] == ("unveil", None, None)
    assert libc.said[-1][1] == (CAGES["engine"].promises or "").encode()


def test_packet_workers_see_no_file_and_the_parent_is_only_unveiled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    libc = Libc()
    on_openbsd(monkeypatch, libc)
    assert enter("packets", "/tmp", "/tmp")
    assert [name for name, _, _ in libc.said] == ["pledge"]
    libc.said.clear()
    assert enter("parent", "/tmp", "/tmp")
    assert {name for name, _, _ in libc.said} == {"unveil"}


def test_a_refusal_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    on_openbsd(monkeypatch, Libc(-1))
    with pytest.raises(BackendError, match=r"pledge\('stdio inet'\)"):
        enter("packets", "/tmp", "/tmp")


def test_a_libc_without_the_calls_is_no_sandbox(monkeypatch: pytest.MonkeyPatch) -> None:
    on_openbsd(monkeypatch, object())
    assert enter("engine", "/tmp", "/tmp") is False
