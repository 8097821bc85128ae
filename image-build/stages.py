"""Steps of a build: shown, kept for the next run, cleaned up when they fail.

    with Workshop(Path("work")) as shop:
        tar = shop.stage("packages", inputs, make_tar)     # work/packages-<digest>
        with finished(Path("cf.img")) as image:            # cf.img appears whole or not at all
            ...

A stage's result is named after the digest of its inputs and is renamed into place when
it is complete, so a build that was stopped anywhere goes on where it stood, and a changed
input is never served from an old result.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import IO

_PATIENCE = 20.0  # mmdebstrap takes its mounts down when it is asked to end
_FULL = 1 << 20  # bytes free that are as good as none
_KEEP = 3  # results of a stage that stay for later runs


class BuildError(Exception):
    """The build can't go on; the message is for the person who started it."""


class Stopped(BaseException):
    """SIGTERM or SIGHUP came."""


def digest_of(*inputs: object) -> str:
    """A short name for ``inputs``: texts, bytes, numbers, paths of files or folders."""
    total = hashlib.sha256()
    for item in inputs:
        if isinstance(item, Path):
            for path in sorted(p for p in item.rglob("*") if p.is_file()) or [item]:
                if "__pycache__" in path.parts:
                    continue
                # the path within what was named: a moved tree is the same tree
                total.update(repr(str(path.relative_to(item))).encode())
                total.update(hashlib.sha256(path.read_bytes()).digest())
        else:
            total.update(repr(item).encode())
        total.update(b"\0")
    return total.hexdigest()[:16]


class Workshop:
    """A directory for half-finished things, for one build at a time."""

    def __init__(self, directory: Path, out: IO[str] | None = None) -> None:
        self.directory = directory
        self._out = out or sys.stderr
        self._lock: IO[str] | None = None
        self._children: set[subprocess.Popen[bytes]] = set()
        self._old: dict[int, object] = {}
        self.times: dict[str, float] = {}

    def __enter__(self) -> Workshop:
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._lock = (self.directory / "lock").open("w")
        except OSError as error:
            raise BuildError(f"{self.directory}: {error.strerror}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise BuildError(
                f"another build works in {self.directory}: wait for it, or name another --work"
            ) from None
        for leftover in self.directory.glob("*.partial"):  # of a build that was killed
            remove(leftover)
        for number in (signal.SIGTERM, signal.SIGHUP):
            self._old[number] = signal.signal(number, self._stop)
        return self

    def __exit__(self, *_: object) -> None:
        try:
            for child in list(self._children):
                self._end(child)
            for leftover in self.directory.glob("*.partial"):
                remove(leftover)
        finally:
            for number, handler in self._old.items():
                signal.signal(number, handler)  # type: ignore[arg-type]
            if self._lock is not None:
                self._lock.close()

    @staticmethod
    def _stop(number: int, _frame: FrameType | None) -> None:
        raise Stopped(signal.Signals(number).name)

    # -- telling ---------------------------------------------------------------------

    def say(self, text: str) -> None:
        print(text, file=self._out, flush=True)

    # -- stages ----------------------------------------------------------------------

    def stage(self, name: str, inputs: Sequence[object], make: Callable[[Path], None]) -> Path:
        """The result of ``make(path)`` (a file or a directory), made or kept from before."""
        place = self.directory / f"{name}-{digest_of(*inputs)}"
        if place.exists():
            os.utime(place)
            self.say(f"{name}: kept from an earlier run")
            return place
        self.say(f"{name} ...")
        start = time.monotonic()
        partial = place.with_name(f"{place.name}.partial")
        remove(partial)
        try:
            make(partial)
            os.rename(partial, place)
        except OSError as error:
            raise explained(error, self.directory) from error
        finally:
            remove(partial)
        self.times[name] = time.monotonic() - start
        self.say(f"{name}: done in {self.times[name]:.0f} s")
        self._forget(name, place)
        return place

    def _forget(self, name: str, newest: Path) -> None:
        rest = [p for p in self.directory.glob(f"{name}-*") if p != newest]
        rest.sort(key=lambda p: p.stat().st_mtime, reverse=True)
        for old in rest[_KEEP - 1 :]:
            remove(old)

    # -- programs --------------------------------------------------------------------

    def run(
        self,
        argv: Sequence[str | Path],
        *,
        stdin: IO[bytes] | int | None = None,
        stdout: IO[bytes] | int | None = None,
        text: str | None = None,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> bytes:
        """Run a program to its end; BuildError with its last words when it fails.

        It gets a process group of its own, so that Ctrl-C reaches this program alone,
        which then ends the other in order.
        """
        words = [str(word) for word in argv]
        # mkfs and sfdisk are where an ordinary user's PATH does not look
        path = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
        if shutil.which(words[0], path=path) is None:
            raise BuildError(f"{words[0]} is missing{where_from(words[0])}")
        log = self.directory / "log"
        with log.open("ab") as errors:
            start = errors.tell()
            child = subprocess.Popen(
                words,
                stdin=subprocess.PIPE if text is not None else (stdin or subprocess.DEVNULL),
                stdout=subprocess.PIPE if stdout is None else stdout,
                stderr=errors,
                env={**os.environ, **(env or {}), "PATH": path},
                cwd=cwd,
                start_new_session=True,
            )
            self._children.add(child)
            try:
                output, _ = child.communicate(None if text is None else text.encode())
            finally:
                self._end(child)
        if child.returncode != 0:
            with log.open("rb") as file:
                file.seek(start)
                said = file.read()[-4000:].decode(errors="replace").strip().splitlines()[-12:]
            # A full disk may have swallowed the program's own words as well.
            full = shutil.disk_usage(self.directory).free < _FULL
            if full or any("No space left on device" in line for line in said):
                raise explained(OSError(errno.ENOSPC, ""), self.directory)
            raise BuildError(
                f"{' '.join(words)[:300]} exited with {child.returncode}:\n  " + "\n  ".join(said)
            )
        return output or b""

    def _end(self, child: subprocess.Popen[bytes]) -> None:
        """Make sure that a child and its own children are gone."""
        try:
            if child.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGTERM)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(_PATIENCE)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        finally:
            self._children.discard(child)


_PACKAGES = {
    "mmdebstrap": "mmdebstrap", "sqfstar": "squashfs-tools", "mkfs.ext4": "e2fsprogs",
    "mkfs.vfat": "dosfstools", "mcopy": "mtools", "mmd": "mtools", "sfdisk": "fdisk",
    "syslinux": "syslinux", "xorriso": "xorriso", "qemu-system-x86_64": "qemu-system-x86",
}  # fmt: skip


def where_from(program: str) -> str:
    package = _PACKAGES.get(program)
    return "" if package is None else f": install the package {package}"


def explained(error: OSError, where: Path) -> BuildError:
    """A file system's refusal in words."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return BuildError(f"no space left in {error.filename or where}: nothing was written")
    place = f"{error.filename}: " if error.filename else ""
    return BuildError(f"{place}{error.strerror or error}")


def need_space(directory: Path, size: int) -> None:
    """BuildError unless ``size`` bytes are free where ``directory`` lies."""
    place = directory.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < size:
        raise BuildError(
            f"{place} has {free / 1e6:.0f} MB free, the build needs {size / 1e6:.0f} MB:"
            " nothing was written"
        )


def remove(path: Path) -> None:
    """Remove a file or a tree, whatever the modes in it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, onerror=_writable_first)
    else:
        path.unlink(missing_ok=True)


def _writable_first(function: Callable[..., object], path: str, error: object) -> None:
    os.chmod(os.path.dirname(path), 0o700)
    function(path)


@contextlib.contextmanager
def finished(output: Path) -> Iterator[Path]:
    """A file under another name that becomes ``output`` when the block ends well."""
    partial = output.with_name(f".{output.name}.partial")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        partial.unlink(missing_ok=True)
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, output)
        folder = os.open(output.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise explained(error, output.parent) from error
    finally:
        partial.unlink(missing_ok=True)
