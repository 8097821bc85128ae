"""The whole build command, with programs that stand for the slow and the missing ones."""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import ports
from release import Version

from . import releases, samples
from .conftest import ROOT

STAND_IN = Path(__file__).with_name("stand_in_mmdebstrap.py")
#: what the builds call, in the order in which the Debian build does
DEBIAN_STEPS = ("mmdebstrap", "sqfstar", "mkfs.vfat", "mmd", "mcopy", "syslinux", "mkfs.ext4",
                "sfdisk")  # fmt: skip

_PATCHES = """
import sys
sys.path[:0] = [{image_build!r}, {root!r}]
from pathlib import Path
import debian, openbsd, release, wheels
debian.MBR = Path("/etc/hostname")
wheels.need_python = lambda version: None
wheels.make_wheelhouse = lambda shop, path: path.mkdir()
wheels.make_pypcap_source = lambda shop, path: path.mkdir()
wheels.make_site_packages = lambda shop, house, path, epoch: path.mkdir()
debian.need_space = openbsd.need_space = lambda directory, size: None
release.KEYS = Path({keys!r})
{more}
from build_command import main
main()
"""


@dataclass
class Bench:
    """A folder with everything that a build reads and writes.

    started  holds the process group of the program that hangs, once it does
    """

    folder: Path

    def __post_init__(self) -> None:
        self.programs = self.folder / "bin"
        self.started = self.folder / "started"
        self.output = self.folder / "out/cf.img"
        self.work = self.folder / "work"
        self.programs.mkdir(parents=True)
        for name in (*DEBIAN_STEPS, "xorriso", "qemu-system-x86_64"):
            self.stand_in(name, "exit 0")
        # these two make a file, which the next step takes
        for name in ("sqfstar", "xorriso"):
            self.stand_in(
                name, 'for w; do case $w in *.partial*) [ -d "$w" ] || : >"$w"; esac; done'
            )
        self.stand_in("mmdebstrap", f'exec {sys.executable} {STAND_IN} "$@"')

    def stand_in(self, name: str, script: str) -> None:
        path = self.programs / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def hang_at(self, name: str) -> None:
        """This program tells its process group and goes on until it is ended, with a child."""
        new = f"{self.started}.new"
        self.stand_in(name, f"echo $$ >{new}\nmv {new} {self.started}\nsleep 600 &\nwait")

    def command(self, *arguments: str | Path, more: str = "") -> subprocess.Popen[str]:
        """``image-build/build ARGUMENTS -o .. --work ..``; ``more``: further patches."""
        script = _PATCHES.format(
            image_build=str(ROOT / "image-build"), root=str(ROOT), more=more,
            keys=str(self.folder / "keys"),
        )  # fmt: skip
        return subprocess.Popen(
            [sys.executable, "-c", script, *arguments, "-o", self.output, "--work", self.work],
            env={**os.environ, "PATH": f"{self.programs}:{os.environ['PATH']}"},
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def debian(self) -> subprocess.Popen[str]:
        return self.command("debian", "--config", self.description("eth"))

    def openbsd(
        self, source: str | Path, version: str = "7.8", more: str = ""
    ) -> subprocess.Popen[str]:
        packages = self.folder / "packages"
        if not packages.exists():
            packages.mkdir()
            for name in ports.FROM_PORTS:
                package(packages, f"{name.removesuffix('--')}-3.1")
        return self.command(
            "openbsd", "--config", self.description("em"), "--release", str(source),
            "--version", version, "--packages", packages, "--accelerator", "tcg", more=more,
        )  # fmt: skip

    def description(self, card: str) -> Path:
        path = self.folder / "gateway.toml"
        path.write_text((samples.EXAMPLES / "minimal.toml").read_text().replace("em", card))
        return path

    def release(self, version: str = "7.8") -> Path:
        """A signed release; its key is the one that the build trusts."""
        folder = self.folder / f"release-{version}"
        releases.make(folder, self.folder / "keys", Version(version).text)
        return folder

    def wait_until_started(self, build: subprocess.Popen[str]) -> int:
        wait_until(self.started.exists, build)
        return int(self.started.read_text())

    def left(self) -> list[str]:
        """What lies under or beside the final name, and halves in the workshop."""
        beside = self.output.parent.iterdir() if self.output.parent.exists() else ()
        return sorted(p.name for p in (*beside, *self.work.glob("*.partial*")))


def wait_until(happened: Callable[[], bool], build: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not happened():
        assert build.poll() is None, build.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def living(group: int) -> list[str]:
    """Processes of a group, without dead ones that init has not collected yet."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, pgrp = stat.read_text().rpartition(") ")[2].split()[:3]
            if int(pgrp) == group and state != "Z":
                found.append(str(stat))
    return found


def wait_until_gone(group: int) -> None:
    """A process that was killed may need a moment to be gone on a busy machine."""
    deadline = time.monotonic() + 60
    while rest := living(group):
        assert time.monotonic() < deadline, rest
        time.sleep(0.02)


def package(folder: Path, name: str, *depends: str) -> None:
    """An OpenBSD package with nothing in it but its packing list."""
    text = f"@name {name}\n" + "".join(f"@depend x/{d}:{d}-*:{d}\n" for d in depends)
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        info = tarfile.TarInfo("+CONTENTS")
        info.size = len(text)
        tar.addfile(info, io.BytesIO(text.encode()))
    (folder / f"{name}.tgz").write_bytes(gzip.compress(packed.getvalue()))
