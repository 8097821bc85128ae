"""A build that is stopped, starved or wrong leaves nothing behind under the final name."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from stages import BuildError, Workshop, digest_of, explained, finished, need_space

from .conftest import ROOT


def test_a_finished_stage_is_kept_and_a_changed_input_makes_it_anew(tmp_path: Path) -> None:
    made: list[Path] = []

    def make(path: Path) -> None:
        made.append(path)
        path.write_text("done")

    for inputs in (["a"], ["a"], ["b"]):
        with Workshop(tmp_path) as shop:
            assert shop.stage("step", inputs, make).read_text() == "done"
    assert len(made) == 2


def test_a_stage_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def make(path: Path) -> None:
        path.mkdir()
        (path / "half").write_text("x")
        raise BuildError("no")

    with Workshop(tmp_path) as shop, pytest.raises(BuildError):
        shop.stage("step", [], make)
    assert [p.name for p in tmp_path.iterdir()] == ["lock"]


def test_old_results_go_and_the_newest_stay(tmp_path: Path) -> None:
    with Workshop(tmp_path) as shop:
        for number in range(6):
            path = shop.stage("step", [number], lambda p: p.touch())
            os.utime(path, (number, number))
    assert len(list(tmp_path.glob("step-*"))) <= 4
    assert path.exists()


def test_two_builds_do_not_share_a_workshop(tmp_path: Path) -> None:
    with Workshop(tmp_path), pytest.raises(BuildError, match="another build"), Workshop(tmp_path):
        pass


def test_a_digest_follows_contents_and_names(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/x").write_text("1")
    first = digest_of(tmp_path / "a", 1)
    assert digest_of(tmp_path / "a", 1) == first
    (tmp_path / "a/x").write_text("2")
    assert digest_of(tmp_path / "a", 1) != first
    (tmp_path / "a/x").write_text("1")
    (tmp_path / "a/x").rename(tmp_path / "a/y")
    assert digest_of(tmp_path / "a", 1) != first


def test_an_output_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    output = tmp_path / "cf.img"
    output.write_text("the one before")
    with pytest.raises(TypeError), finished(output) as partial:
        partial.write_text(7)  # type: ignore[arg-type]
    assert output.read_text() == "the one before"
    with finished(output) as partial:
        partial.write_text("whole")
    assert [p.name for p in tmp_path.iterdir()] == ["cf.img"]
    assert output.read_text() == "whole"


def test_a_failing_program_is_quoted(tmp_path: Path) -> None:
    with Workshop(tmp_path) as shop, pytest.raises(BuildError, match="because of me"):
        shop.run(["sh", "-c", "echo because of me >&2; exit 3"])


def test_a_missing_program_names_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with Workshop(tmp_path / "w") as shop, pytest.raises(BuildError, match="package mmdebstrap"):
        shop.run(["mmdebstrap"])


def test_a_disk_that_is_too_small_is_noticed_before(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="MB free, the build needs"):
        need_space(tmp_path / "not/there/yet", 1 << 60)


def test_a_disk_that_fills_up_is_told_in_words(tmp_path: Path) -> None:
    """On a real file system of one megabyte, in a mount namespace of its own."""
    script = f"""
import sys
sys.path.insert(0, {str(ROOT / "image-build")!r})
from pathlib import Path
from stages import BuildError, Workshop, finished
small = Path({str(tmp_path)!r})
try:
    with Workshop(small / "work") as shop:
        shop.stage("step", [], lambda path: path.write_bytes(bytes(2 << 20)))
except BuildError as error:
    print(error)
try:
    with finished(small / "cf.img") as image:
        image.write_bytes(bytes(2 << 20))
except BuildError as error:
    print(error)
try:
    with Workshop(small / "work") as shop:
        shop.run(["dd", "if=/dev/zero", f"of={{small}}/x.partial", "bs=1M", "count=2"])
except BuildError as error:
    print(error)
print(sorted(p.name for p in small.rglob("*") if p.name not in ("log", "x.partial")))
"""
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c",
         f"mount -t tmpfs -o size=1m none {tmp_path} && exec {sys.executable} -c \"$0\"", script],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.stderr == "step ...\n"
    *errors, left = done.stdout.splitlines()
    assert len(errors) == 3
    assert all("no space left" in error for error in errors)
    assert left == "['lock', 'work']"


def test_other_errors_keep_their_words() -> None:
    assert "Permission denied: x" not in str(
        explained(OSError(13, "Permission denied", "x"), Path())
    )
    assert "x: Permission denied" in str(explained(OSError(13, "Permission denied", "x"), Path()))
