"""The OpenBSD site set: the same bytes each time, scripts that parse, nothing forgotten."""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import openbsd_site
import pytest
import wheels
from siteset import Member, archive

from . import samples
from .conftest import ROOT

EPOCH = 1_767_225_600
SHELLS = [s for s in ("sh", "ksh", "bash") if shutil.which(s)]


@pytest.mark.parametrize("name", ["minimal", "everything"])
def test_two_builds_are_the_same_bytes(name: str) -> None:
    one, other = (openbsd_site.make(samples.parts(name), EPOCH) for _ in range(2))
    assert one == other


_MAKE = """
import sys
sys.dont_write_bytecode = True
sys.path[:0] = [sys.argv[1] + "/image-build", sys.argv[1]]
from pathlib import Path
import answers, openbsd, openbsd_site, release
config = Path(sys.argv[1], "pfconf/examples/minimal.toml")
parts = openbsd.check(openbsd.Wanted(
    source="", version=release.Version("7.8"), config=config.read_text(), config_path=config,
    output=Path("cf.img"), packages=Path(), card=answers.CARDS["2G"], root_password=None, epoch=1,
))
sys.stdout.buffer.write(openbsd_site.make(parts, 1_767_225_600))
"""


def test_two_checkouts_in_different_surroundings_make_the_same_bytes(tmp_path: Path) -> None:
    """Another place, umask, time zone, language, hash seed, and times of the files."""
    made = []
    source = ROOT
    for number, env in enumerate(
        [
            {"PYTHONHASHSEED": "1", "TZ": "UTC", "LC_ALL": "C"},
            {"PYTHONHASHSEED": "2", "TZ": "Asia/Tokyo", "LC_ALL": "C.UTF-8", "USER": "x"},
        ]
    ):
        tree = tmp_path / ("a" * number + "tree")
        for name in (*wheels.PACKAGES, "image-build"):
            shutil.copytree(
                source / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"),
                copy_function=shutil.copy2 if number else shutil.copy,
            )  # fmt: skip
        source = tree  # copied once: somebody may be at work in the other
        if number:
            for path in tree.rglob("*"):
                path.chmod(path.stat().st_mode & 0o700)
        done = subprocess.run(
            [sys.executable, "-c", _MAKE, tree],
            env={"PATH": os.environ["PATH"], **env}, capture_output=True, umask=0o077 * number,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr.decode()
        made.append(done.stdout)
    assert len(openbsd_site.unpack(made[0])) > 100
    assert made[0] == made[1]


def test_another_description_is_another_set() -> None:
    parts = samples.parts()
    changed = replace(parts, config=parts.config + "# changed\n")
    assert openbsd_site.make(parts, EPOCH) != openbsd_site.make(changed, EPOCH)


def test_everything_belongs_to_root_and_secrets_are_for_root_alone() -> None:
    data = openbsd_site.make(samples.parts("everything"), EPOCH)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        for member in tar:
            assert (member.uid, member.gid, member.mtime) == (0, 0, EPOCH), member.name
            assert member.mode & 0o022 == 0 or member.issym(), member.name
            if re.search("console-password|/cfg/.", member.name) and member.isreg():
                assert member.mode == 0o600, member.name


def test_the_set_holds_what_make_card_asks_for() -> None:
    files = openbsd_site.unpack(openbsd_site.make(samples.parts(), EPOCH))
    script = files["redirectd/make-card"].decode()
    asked = set(re.findall(r"\$here/([a-z][a-z.-]*)", script)) - {"syspatch"}
    present = {name.split("/")[1] for name in files if name.startswith("redirectd/")}
    assert asked <= present


@pytest.mark.parametrize("name", ["minimal", "everything"])
def test_every_script_parses_in_every_shell_of_this_machine(name: str) -> None:
    files = openbsd_site.unpack(openbsd_site.make(samples.parts(name), EPOCH))
    scripts = {n: d for n, d in files.items() if d.startswith((b"#!/bin/sh", b"#!/bin/ksh"))}
    assert {"install.site", "redirectd/make-card", "redirectd/root/etc/rc.slot"} <= scripts.keys()
    assert "redirectd/root/etc/rc.d/redirectd" in scripts
    assert "redirectd/root/etc/rc.d/redirectd_web" in scripts
    for shell in SHELLS:
        for script, data in scripts.items():
            done = subprocess.run([shell, "-n"], input=data, capture_output=True)
            assert done.returncode == 0, f"{shell} {script}: {done.stderr.decode()}"


def test_every_python_file_compiles() -> None:
    files = openbsd_site.unpack(openbsd_site.make(samples.parts(), EPOCH))
    programs = [n for n, d in files.items() if n.endswith(".py") or b"python3\n" in d[:40]]
    assert "redirectd/root/usr/local/sbin/redirectd" in programs
    for name in programs:
        compile(files[name], name, "exec")


def test_links_in_etc_lead_to_files_that_are_there() -> None:
    files = openbsd_site.unpack(openbsd_site.make(samples.parts("minimal"), EPOCH))
    links = files["redirectd/links"].decode().split()
    assert "pf.conf" in links
    assert "hostname.em0" in links
    assert all(f"redirectd/cfg/etc/{name}" in files for name in links)


def test_names_that_leave_the_archive_or_stand_twice_are_refused() -> None:
    for names in (["../x"], ["a/../../x"], [""], ["a", "a"], ["a", "a/b"]):
        with pytest.raises(ValueError, match=r".+"):
            archive([Member(name) for name in names], EPOCH)


def test_what_only_a_build_needs_is_listed_file_by_file(tmp_path: Path) -> None:
    from .releases import set_archive

    (tmp_path / "comp78.tgz").write_bytes(set_archive(["usr/bin/cc", "usr/include/a.h"]))
    assert openbsd_site.build_only([tmp_path / "comp78.tgz"]) == (
        "./usr/bin/cc", "./usr/include/a.h",
    )  # fmt: skip
