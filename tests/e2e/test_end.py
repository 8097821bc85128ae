"""The daemon is told to end, can't start, or finds no room on its disk."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.lab.daemon import Daemon
from tests.lab.host import Host
from tests.lab.net import Lab

from .scene import Role, Scene, addresses, remains, scene

roles = pytest.mark.parametrize("role", ["host", "gateway"])
EX_SOFTWARE = 70


def tables(host: Host) -> list[str]:
    return [
        line for line in host.run(["nft", "list", "tables"]).stdout.splitlines()
        if "redirectd" in line
    ]  # fmt: skip


def ends_well(s: Scene, new: str) -> None:
    s.move(new)
    s.arrived()
    s.flows()
    s.finish()
    s.released()


@roles
def test_a_daemon_that_is_told_to_end_leaves_only_what_connections_need(
    lab: Lab, role: Role
) -> None:
    s = scene(lab, role)
    s.open()
    s.bind()
    new = addresses(4)
    for daemon in s.daemons:
        assert daemon.stop() == 0
        assert tables(daemon.host) == []
        assert remains(daemon.host) == []
    s.flows()
    for daemon in s.daemons:
        daemon.start()
    s.bind()
    s.move(next(new))
    s.arrived()
    for daemon in s.daemons:
        assert daemon.stop() == 0
        assert tables(daemon.host) != []
    s.flows()
    for daemon in s.daemons:
        daemon.start()
    s.arrived()
    for daemon in s.daemons:  # in the middle of a move
        s.move(next(new))
        assert daemon.stop() == 0
        daemon.start()
        s.arrived()
    ends_well(s, next(new))
    for daemon in s.daemons:
        assert daemon.stop() == 0
        assert tables(daemon.host) == []


def test_a_damaged_keystore_ends_the_daemon_and_no_connection(lab: Lab) -> None:
    s = scene(lab, "gateway")
    s.open()
    s.bind()
    new = addresses(4)
    s.move(next(new))
    s.arrived()
    daemon = s.mover_daemon
    daemon.stop()
    keystore = daemon.host.dir / "state" / "keystore.db"
    good = keystore.read_bytes()
    keystore.write_bytes(b"x" * 4096)
    daemon.start(wait=False)
    assert daemon.process is not None
    assert daemon.process.wait(timeout=60) == EX_SOFTWARE
    assert "keystore.db: is not an SQLite database" in daemon.log
    assert "giving up" in daemon.log
    s.flows()
    keystore.write_bytes(good)
    daemon.start()
    ends_well(s, next(new))


@contextmanager
def small_disk(daemon: Daemon, size: str) -> Iterator[Path]:
    """The state directory on a file system of its own."""
    state = daemon.host.dir / "state"
    user = state.stat()
    daemon.stop()
    files = {path.name: path.read_bytes() for path in state.iterdir()}
    options = f"size={size},mode=700,uid={user.st_uid},gid={user.st_gid}"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(state)], check=True)
    try:
        for name, content in files.items():
            (state / name).write_bytes(content)
            (state / name).chmod(0o600)
            os.chown(state / name, user.st_uid, user.st_gid)
        daemon.start()
        yield state
    finally:
        # lazily: a daemon may still have files open there
        subprocess.run(["umount", "--lazy", str(state)], check=True)


def fill(path: Path) -> None:
    with path.open("wb", buffering=0) as ballast, suppress(OSError):
        while ballast.write(bytes(4096)):
            pass


def test_a_full_disk_ends_neither_the_daemon_nor_a_connection(lab: Lab) -> None:
    s = scene(lab)
    s.open()
    s.bind()
    new = addresses(4)
    with small_disk(s.mover_daemon, "2m") as state:
        s.bind()
        pids = s.mover_daemon.pids()
        fill(state / "ballast")
        for _ in range(3):
            s.move(next(new))
            s.arrived()
            s.flows(5)
        assert s.mover_daemon.pids() == pids
        assert "disk is full" in s.mover_daemon.log
        (state / "ballast").unlink()
        s.move(next(new))
        s.arrived()
        assert s.mover_daemon.events("command-failed")
        s.mover_daemon.kill()
        s.mover_daemon.start()
        s.arrived()
        ends_well(s, next(new))
