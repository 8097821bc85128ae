"""A real control socket, and redirectctl in this process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from appliance.redirectctl import main

from ..control_fake import (
    FakeOperations,
    served,
)

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}


@dataclass
class Daemon:
    operations: FakeOperations
    path: Path
    cwd: Path

    def ctl(self, *args: str, text: str | None = None) -> Result:
        """In this process: output and exit status."""
        return CliRunner(env={"REDIRECTD_SOCKET": str(self.path)}).invoke(main, args, input=text)

    def ok(self, *args: str, text: str | None = None) -> str:
        result = self.ctl(*args, text=text)
        assert result.exit_code == 0, result.output
        return result.stdout

    @property
    def asked(self) -> list[tuple[str, tuple[Any, ...]]]:
        return self.operations.asked


@pytest.fixture
def daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Daemon]:
    cwd = tmp_path / "cwd"
    cwd.mkdir()
    monkeypatch.chdir(cwd)
    operations = FakeOperations()
    path = tmp_path / "control.sock"
    with served(operations, path):
        yield Daemon(operations, path, cwd)
