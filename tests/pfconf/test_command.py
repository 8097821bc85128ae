"""The command line: render, check, diff."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from pfconf.__main__ import main

EXAMPLES = Path(__file__).resolve().parents[2] / "pfconf" / "examples"
MINIMAL = EXAMPLES / "minimal.toml"


def run(*args: object) -> Result:
    return CliRunner().invoke(main, [str(arg) for arg in args])


def test_render_prints_the_ruleset() -> None:
    result = run("render", MINIMAL)
    assert result.exit_code == 0
    assert result.output == (EXAMPLES / "minimal.pf.conf").read_text()


def test_render_writes_a_private_file_in_one_step(tmp_path: Path) -> None:
    target = tmp_path / "pf.conf"
    assert run("render", MINIMAL, "-o", target).exit_code == 0
    assert target.read_text() == (EXAMPLES / "minimal.pf.conf").read_text()
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [target]


def test_render_into_nowhere_says_that_nothing_changed(tmp_path: Path) -> None:
    result = run("render", MINIMAL, "-o", tmp_path / "none" / "pf.conf")
    assert result.exit_code == 1
    assert "nothing was changed" in result.stderr


def test_render_over_a_directory_leaves_no_file_behind(tmp_path: Path) -> None:
    (tmp_path / "pf.conf").mkdir()
    (tmp_path / "pf.conf" / "x").touch()
    result = run("render", MINIMAL, "-o", tmp_path / "pf.conf")
    assert result.exit_code != 0
    assert [p.name for p in tmp_path.iterdir()] == ["pf.conf"]


def test_check_is_silent_when_all_is_well() -> None:
    result = run("check", MINIMAL, "--pf-conf", EXAMPLES / "minimal.pf.conf")
    assert (result.exit_code, result.output) == (0, "")


def test_check_names_an_interface_that_the_machine_lacks() -> None:
    result = run("check", MINIMAL, "-i", "em0", "-i", "em7")
    assert result.exit_code == 1
    assert "minimal.toml:8: network[1].interface: unknown interface 'em1'" in result.stderr


def test_check_refuses_a_ruleset_with_the_anchor_after_nat(tmp_path: Path) -> None:
    target = tmp_path / "pf.conf"
    target.write_text('match out on em0 nat-to em0\nanchor "redirect/*"\n')
    result = run("check", MINIMAL, "--pf-conf", target)
    assert result.exit_code == 1
    assert f"{target}:2:" in result.stderr


def test_check_only_warns_of_what_still_works(tmp_path: Path) -> None:
    target = tmp_path / "pf.conf"
    target.write_text('anchor "redirect/*"\npass modulate state\n')
    result = run("check", MINIMAL, "--pf-conf", target)
    assert result.exit_code == 0
    assert f"{target}:2: warning:" in result.stderr


def test_diff_shows_what_would_change_and_exits_1(tmp_path: Path) -> None:
    target = tmp_path / "pf.conf"
    target.write_text((EXAMPLES / "minimal.pf.conf").read_text().replace("em1", "em9"))
    result = run("diff", MINIMAL, target)
    assert result.exit_code == 1
    assert '-lan_if = "em9"\n+lan_if = "em1"\n' in result.output


def test_diff_of_the_same_is_empty() -> None:
    result = run("diff", MINIMAL, EXAMPLES / "minimal.pf.conf")
    assert (result.exit_code, result.output) == (0, "")


@pytest.mark.parametrize(
    ("content", "told"),
    [(None, "can't be read"), (b"\xff\xfe", "not UTF-8"), (b"#" * ((1 << 20) + 2), "larger")],
)
def test_unreadable_descriptions_are_named(
    tmp_path: Path, content: bytes | None, told: str
) -> None:
    path = tmp_path / "gateway.toml"
    if content is not None:
        path.write_bytes(content)
    result = run("render", path)
    assert result.exit_code == 1
    assert told in result.stderr
    assert str(path) in result.stderr


@pytest.mark.parametrize("name", ["render", "check", "diff"])
def test_every_command_explains_itself(name: str) -> None:
    assert name in run("--help").output
    assert "DESCRIPTION" in run(name, "--help").output
