"""Faulty descriptions, kept as data: each file says on the faulty line what is told.

``# fault: KEY: PART`` stands on the line that the message must name; ``# fault-file: PART``
when the whole file is meant; ``# fault-toml: LINE`` when no comment could stand there.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from appliance.config_reading import ConfigError, Fault
from pfconf.__main__ import main, parse_description

FILES = sorted((Path(__file__).parent / "faulty").glob("*.toml"))
MARK = re.compile(r"# fault: ([a-z0-9\[\].-]+): (.+)$")


def faults(path: Path) -> tuple[Fault, ...]:
    with pytest.raises(ConfigError) as caught:
        parse_description(path.read_text(), path)
    return caught.value.faults


def test_there_are_a_hundred_of_them() -> None:
    assert len(FILES) >= 100


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_fault_is_told_with_line_key_and_reason(path: Path) -> None:
    found = faults(path)
    told = {(f.line, f.key): f"{f.problem}; {f.remedy}" for f in found}
    wanted = 0
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if marked := MARK.search(line):
            assert (number, marked[1]) in told, told
            assert marked[2] in told[number, marked[1]]
            wanted += 1
        elif "# fault-file: " in line:
            part = line.partition("# fault-file: ")[2]
            assert any(part in text for text in told.values())
            wanted += 1
        elif "# fault-toml: " in line:
            assert [f.line for f in found] == [int(line.partition("# fault-toml: ")[2])]
            assert "is not TOML" in found[0].problem
            wanted += 1
    assert wanted == len(found)


def test_render_writes_nothing_for_any_of_them(tmp_path: Path) -> None:
    target = tmp_path / "pf.conf"
    target.write_text("before\n")
    for path in FILES:
        result = CliRunner().invoke(main, ["render", str(path), "-o", str(target)])
        assert result.exit_code == 1, path
        assert str(path) in result.stderr
        assert result.stdout == ""
    assert target.read_text() == "before\n"
    assert [p.name for p in tmp_path.iterdir()] == ["pf.conf"]
