"""redirectd's own command line: what it checks before it becomes a daemon."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import syslog
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from appliance import __main__ as program
from appliance import __version__

ROOT = Path(__file__).resolve().parent.parent


def redirectd(*args: str) -> Result:
    return CliRunner().invoke(program.main, args)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "redirectd.toml"
    path.write_text("port = 5000\n")
    return path


def test_n_says_that_a_configuration_is_right(config: Path) -> None:
    result = redirectd("-n", "-f", str(config))
    assert (result.exit_code, result.stdout) == (0, f"{config}: configuration OK\n")


def test_n_names_every_fault_with_its_line(config: Path) -> None:
    config.write_text("port = 5000\nprot = 3\nuser = 5\n")
    result = redirectd("-n", "-f", str(config))
    assert result.exit_code == 1
    assert result.stdout == ""
    first, second = result.stderr.splitlines()
    assert first.startswith(f"{config}:2: prot: unknown key")
    assert second.startswith(f"{config}:3: user: 5 is no user name")


def test_a_faulty_configuration_starts_nothing(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Any] = []
    monkeypatch.setattr(program, "_run", started.append)
    config.write_text("prot = 3\n")
    assert redirectd("-d", "-f", str(config)).exit_code == 1
    assert started == []


def test_the_configuration_that_was_read_is_run(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program, "_run", lambda made: made.port % 256)
    monkeypatch.setattr(program, "_log_to", lambda *_: None)
    assert redirectd("-d", "-f", str(config)).exit_code == 5000 % 256


def test_only_root_may_start_it(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    config.chmod(0o644)
    result = redirectd("-d", "-f", str(config))
    assert result.exit_code == 1
    assert "only root" in result.stderr
    assert redirectd("-n", "-f", str(config)).exit_code == 0


def test_wrong_usage_is_exit_status_2() -> None:
    assert redirectd("-x").exit_code == 2
    assert redirectd("extra").exit_code == 2


def test_the_version_is_told() -> None:
    assert __version__ in redirectd("--version").stdout


def test_checking_loads_nothing_of_the_daemon(config: Path) -> None:
    """-n must work on a machine that can't run it, and fast: it stands in rc.d scripts."""
    code = (
        "import sys\n"
        "from appliance.__main__ import main\n"
        "try: main(['-n', '-f', sys.argv[1]])\n"
        "except SystemExit: pass\n"
        "print([m for m in sys.modules if m.startswith(('appliance.proc', 'keystore', 'asyncio',"
        " 'sqlite', 'cryptography'))])\n"
    )
    told = subprocess.run(
        [sys.executable, "-c", code, str(config)],
        capture_output=True, text=True, check=True, cwd=ROOT,
    ).stdout  # fmt: skip
    assert told.splitlines()[-1] == "[]"


def test_a_detached_daemon_has_no_terminal_and_a_session_of_its_own(tmp_path: Path) -> None:
    told = tmp_path / "told"
    code = (
        "import os, sys\n"
        "from appliance.__main__ import _detach\n"
        "before = os.getsid(0)\n"
        "_detach()\n"
        "ends = [os.readlink(f'/proc/self/fd/{n}') for n in (0, 1, 2)]\n"
        "new = os.getsid(0) not in (0, before)\n"
        "part, whole = sys.argv[1] + '.part', sys.argv[1]\n"
        "open(part, 'w').write(f'{os.getcwd()} {new} {set(ends)}')\n"
        "os.rename(part, whole)\n"
    )
    read_end, write_end = os.pipe()  # closed by the daemon when it ends
    os.set_inheritable(write_end, True)
    subprocess.run(
        [sys.executable, "-c", code, str(told)], check=True, cwd=ROOT, timeout=20,
        pass_fds=[write_end],
    )  # fmt: skip
    os.close(write_end)
    assert os.read(read_end, 1) == b""
    os.close(read_end)
    assert told.read_text() == "/ True {'/dev/null'}"


@pytest.mark.parametrize(
    ("level", "priority"),
    [(logging.CRITICAL, syslog.LOG_ERR), (logging.WARNING, syslog.LOG_WARNING),
     (logging.INFO, syslog.LOG_INFO), (logging.DEBUG, syslog.LOG_DEBUG)],
)  # fmt: skip
def test_a_record_goes_to_syslog_line_by_line(
    level: int, priority: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[tuple[int, str]] = []
    monkeypatch.setattr(syslog, "syslog", lambda p, text: sent.append((p, text)))
    record = logging.LogRecord("redirectd", level, "", 0, "one\n%s", ("two",), None)
    program._Syslog().emit(record)
    assert sent == [(priority, "one"), (priority, "two")]


def test_what_this_version_cannot_carry_out_is_refused(tmp_path: Path) -> None:
    config = tmp_path / "redirectd.toml"
    config.write_text('[[rule]]\nport = 22\nintegrity = "require"\n')
    result = redirectd("-n", "-f", str(config))
    assert result.exit_code == 1
    assert "rule 1" in result.output
    assert "leave it out" in result.output
