"""requirements.lock says the same as pyproject.toml, and everything in it has its hash."""

from __future__ import annotations

import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import wheels
from packaging.requirements import Requirement
from packaging.utils import NormalizedName, canonicalize_name
from packaging.version import Version

from .conftest import ROOT

PIN = re.compile(r"([a-z0-9][a-z0-9.-]*)==([^ ;\\]+) \\")
#: of sqlite-utils, for the plug-ins that its command line installs
NOT_SHIPPED = {"pip"}
HASH = re.compile(r" {4}--hash=sha256:[0-9a-f]{64}( \\)?")


def pins(path: Path) -> dict[NormalizedName, Version]:
    return {
        canonicalize_name(match[1]): Version(match[2])
        for match in map(PIN.fullmatch, path.read_text().splitlines())
        if match
    }


def declared() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return [Requirement(text) for text in project["dependencies"]]


def missing(wanted: Requirement, locked: dict[NormalizedName, Version]) -> str | None:
    """What is wrong with the lock as far as ``wanted`` goes."""
    elsewhere = wanted.marker is not None and not wanted.marker.evaluate({"extra": ""})
    if elsewhere or wanted.name in NOT_SHIPPED:
        return None
    found = locked.get(canonicalize_name(wanted.name))
    if found is None:
        return f"{wanted} is not in {wheels.LOCK.name}"
    if not wanted.specifier.contains(found, prereleases=True):
        return f"{wanted} is declared, {found} is locked"
    return None


@pytest.mark.parametrize("wanted", declared(), ids=lambda wanted: wanted.name)
def test_what_redirectd_declares_is_locked_in_a_version_that_fits(wanted: Requirement) -> None:
    assert missing(wanted, pins(wheels.LOCK)) is None


def test_what_locked_packages_need_is_locked_too() -> None:
    """As the packages themselves say, where this machine has the very version."""
    locked = pins(wheels.LOCK)
    installed = {canonicalize_name(d.name): d for d in metadata.distributions()}
    same = [
        installed[name]
        for name, version in locked.items()
        if name in installed and Version(installed[name].version) == version
    ]
    wrong = [missing(Requirement(text), locked) for d in same for text in d.requires or ()]
    assert [text for text in wrong if text is not None] == []


def test_nothing_is_locked_that_nothing_needs() -> None:
    locked = pins(wheels.LOCK)
    needed = {canonicalize_name(wanted.name) for wanted in declared()}
    installed = {canonicalize_name(d.name): d for d in metadata.distributions()}
    for name, version in locked.items():
        if name not in installed or Version(installed[name].version) != version:
            pytest.skip(f"{name} {version} is not installed, so what it needs is not known")
    reached: set[NormalizedName] = set()
    while rest := needed - reached:
        for name in rest:
            reached.add(name)
            known = installed.get(name)
            for text in (known.requires if known else None) or ():
                needed.add(canonicalize_name(Requirement(text).name))
    assert locked.keys() - reached == set()


@pytest.mark.parametrize("path", [wheels.LOCK, wheels.BUILD_LOCK], ids=lambda path: path.name)
def test_every_pin_has_a_hash_and_there_is_nothing_but_pins(path: Path) -> None:
    lines = [li for li in path.read_text().splitlines() if li and not li.startswith("#")]
    assert pins(path)
    for line, before in zip(lines, ["", *lines], strict=False):
        assert bool(PIN.fullmatch(line)) != bool(HASH.fullmatch(line)), line
        # a backslash goes on with a hash; without one the next is a pin
        assert bool(HASH.fullmatch(line)) == before.endswith("\\"), line
    assert not lines[-1].endswith("\\")
