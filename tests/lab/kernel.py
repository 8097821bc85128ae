"""Network namespaces from Python: make, enter, configure, remove, reap.

Every namespace of a lab is called ``rdlab-PID-N-NAME``: PID is the process that owns
the lab, so that labs run side by side and the leftovers of a killed run can be told
from the namespaces of a living one (:func:`reap`).
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

PREFIX = "rdlab"
CLONE_NEWNET = 0x40000000
_NETNS_DIR = Path("/run/netns")
_LAB_NAME = re.compile(rf"^{PREFIX}-(\d+)-(\d+)(?:-|$)")
_libc = ctypes.CDLL(None, use_errno=True)


class LabError(RuntimeError):
    """The lab could not be built or a command in it failed."""


def _setns(fd: int) -> None:
    if _libc.setns(fd, CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), "setns")


@contextlib.contextmanager
def entered(netns: str) -> Iterator[None]:
    """The calling thread is inside ``netns``: sockets made here stay there.

    Only the thread moves (setns(2)), other threads and the process stay.
    """
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        target = os.open(_NETNS_DIR / netns, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _setns(target)
        finally:
            os.close(target)
        try:
            yield
        finally:
            _setns(home)
    finally:
        os.close(home)


def inside(netns: str, argv: Iterable[str]) -> list[str]:
    """``argv`` so that it runs in ``netns``; the process ID is that of the command."""
    return ["nsenter", f"--net={_NETNS_DIR / netns}", "--", *argv]


def command(argv: list[str], text: str | None = None, timeout: float = 30) -> str:
    """Run to the end and return stdout; LabError shows the command and its stderr."""
    done = subprocess.run(argv, input=text, capture_output=True, text=True, timeout=timeout)
    if done.returncode != 0:
        raise LabError(
            f"{' '.join(argv)} exited with {done.returncode}: {done.stderr.strip()}"
            + (f"\ninput was:\n{text}" if text else "")
        )
    return done.stdout


def ip_batch(lines: Iterable[str], netns: str | None = None) -> None:
    """Run ``ip`` commands (without the word ``ip``) in one process, in order."""
    text = "".join(f"{line}\n" for line in lines)
    if text:
        argv = ["ip", "-batch", "-"]
        # Not "ip -n": it makes a mount namespace each time.
        command(inside(netns, argv) if netns else argv, text)


def write_sysctls(netns: str, values: dict[str, str | int]) -> None:
    """Set sysctls by their path below /proc/sys; a missing one is an error."""
    with entered(netns):
        for name, value in values.items():
            Path("/proc/sys", name).write_text(str(value))


def read_sysctl(netns: str, name: str) -> str:
    with entered(netns):
        return Path("/proc/sys", name).read_text().strip()


def pids_in(*namespaces: str) -> list[int]:
    """Processes that live in any of these namespaces."""
    wanted = set()
    for name in namespaces:
        with contextlib.suppress(FileNotFoundError):
            wanted.add((_NETNS_DIR / name).stat().st_ino)
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                if os.stat(f"/proc/{entry}/ns/net").st_ino in wanted:
                    found.append(int(entry))
    return found


def kill_all_in(*namespaces: str, timeout: float = 5) -> None:
    """End every process in these namespaces and wait until none is left."""
    deadline = time.monotonic() + timeout
    while pids := pids_in(*namespaces):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > deadline:
            raise LabError(f"processes {pids} in {', '.join(namespaces)} do not end")
        time.sleep(0.002)  # the end of another's child can't be awaited


def delete_namespaces(*namespaces: str) -> None:
    kill_all_in(*namespaces)
    ip_batch(f"netns del {name}" for name in namespaces if (_NETNS_DIR / name).exists())


def namespaces() -> list[str]:
    """All named network namespaces of this machine."""
    return sorted(p.name for p in _NETNS_DIR.iterdir()) if _NETNS_DIR.is_dir() else []


def lab_namespaces() -> list[str]:
    """Those of labs, ours or not."""
    return [name for name in namespaces() if _LAB_NAME.match(name)]


def lab_directories() -> list[Path]:
    return sorted(p for p in Path(tempfile.gettempdir()).glob(f"{PREFIX}-*") if p.is_dir())


def start_time(pid: int) -> int | None:
    """Start of a process in clock ticks since boot; None when there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return int(text.rpartition(")")[2].split()[19])


def write_owner(directory: Path) -> None:
    pid = os.getpid()
    (directory / "owner").write_text(json.dumps({"pid": pid, "start": start_time(pid)}))


def _owner_lives(pid: int, directory: Path) -> bool:
    start = start_time(pid)
    if start is None:
        return False
    try:
        owner = json.loads((directory / "owner").read_text())
    except (OSError, ValueError):
        return True  # being made just now by that process
    return bool(owner["start"] == start)


def owned_by_dead(name: str) -> bool:
    """Whether ``name`` (a namespace or directory) belongs to a process that is gone."""
    match = _LAB_NAME.match(name)
    if match is None:
        return False
    directory = Path(tempfile.gettempdir()) / f"{PREFIX}-{match[1]}-{match[2]}"
    return not _owner_lives(int(match[1]), directory)


def reap() -> list[str]:
    """Remove namespaces, processes and directories of runs that were killed."""
    gone = []
    for name in lab_namespaces():
        if owned_by_dead(name):
            # Two reapers may meet: whoever comes second finds it gone already.
            with contextlib.suppress(LabError):
                delete_namespaces(name)
                gone.append(name)
    for directory in lab_directories():
        if owned_by_dead(directory.name):
            shutil.rmtree(directory, ignore_errors=True)
            gone.append(str(directory))
    return gone
