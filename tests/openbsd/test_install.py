"""What is installed, and that files of the administrator's are left alone."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

import pytest

from appliance.config import parse_config

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "appliance" / "share" / "install.sh"
SHARE = ROOT / "appliance" / "share" / "openbsd"


def install(
    dest: Path, system: str, prefix: str = "/usr/local"
) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "DESTDIR": str(dest), "OS": system, "PREFIX": prefix}
    return subprocess.run(
        ["sh", str(SCRIPT)], env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("system", ["OpenBSD", "Linux"])
def test_everything_stands_below_destdir_with_its_mode(tmp_path: Path, system: str) -> None:
    done = install(tmp_path, system, "/opt/r")
    assert (done.returncode, done.stderr) == (0, "")
    man = "man" if system == "OpenBSD" else "share/man"
    for path, mode in {
        "opt/r/sbin/redirectd": 0o755,
        "opt/r/sbin/redirectd-web": 0o755,
        "opt/r/sbin/pfconf": 0o755,
        f"opt/r/{man}/man1/pfconf.1": 0o644,
        f"opt/r/{man}/man8/redirectd.8": 0o644,
        "opt/r/share/examples/redirectd/everything.toml": 0o644,
        "etc/redirectd.toml": 0o644,
    }.items():
        assert stat.S_IMODE((tmp_path / path).stat().st_mode) == mode, path
    text = (tmp_path / "opt/r/sbin/redirectd").read_text()
    assert text.startswith("#!/opt/r/lib/redirectd/bin/python3\n")
    unit = tmp_path / "etc/systemd/system/redirectd.service"
    assert unit.exists() == (system == "Linux")
    assert not [p for p in tmp_path.rglob("*") if "@PREFIX@" in p.name or p.suffix == ".new"]


def test_openbsd_gets_what_its_own_daemons_have(tmp_path: Path) -> None:
    install(tmp_path, "OpenBSD")
    rc = (tmp_path / "etc/rc.d/redirectd").read_text()
    assert 'daemon="/usr/local/sbin/redirectd"' in rc
    assert 'pexp="/usr/local/[^ ]*python3[^ ]* ${daemon}' in rc
    assert stat.S_IMODE((tmp_path / "etc/rc.d/redirectd").stat().st_mode) == 0o555
    config = parse_config((tmp_path / "etc/redirectd.toml").read_text())
    assert str(config.control_socket) == "/var/run/redirectd/control.sock"
    assert str(config.state_dir) == "/var/redirectd"
    line = (tmp_path / "etc/newsyslog.conf").read_text().split()
    assert line[:3] == ["/var/log/redirectd", "root:_redirectd", "640"]


def test_files_of_the_administrators_are_left_alone(tmp_path: Path) -> None:
    etc = tmp_path / "etc"
    etc.mkdir()
    (etc / "redirectd.toml").write_text("port = 9\n")
    (etc / "syslog.conf").write_text("*.err /dev/console\n")
    for _ in range(2):
        assert "stays as it is" in install(tmp_path, "OpenBSD").stdout
    assert (etc / "redirectd.toml").read_text() == "port = 9\n"
    syslog = (etc / "syslog.conf").read_text()
    assert syslog.startswith("*.err")
    assert syslog.count("!!redirectd") == 1
    assert (etc / "newsyslog.conf").read_text().count("\n") == 1


def test_another_system_gets_nothing(tmp_path: Path) -> None:
    done = install(tmp_path, "Plan9")
    assert done.returncode == 1
    assert "neither OpenBSD nor Linux" in done.stderr
    assert list(tmp_path.iterdir()) == []


def rc(tmp_path: Path, action: str, running: int) -> tuple[int, list[str]]:
    """Run the rc.d script with a stand-in for rc.subr; what it called, in order."""
    log = tmp_path / "log"
    log.write_text("")
    count = tmp_path / "count"
    count.write_text(str(running))
    subr = f"""
    say() {{ echo "$@" >> {log}; }}
    rc_exec() {{ say "exec $1"; }}
    rc_stop() {{ say stop; }}
    rc_start() {{ say start; }}
    rc_check() {{
        n=$(cat {count}); say check
        [ "$n" -gt 0 ] || return 1
        echo $((n - 1)) > {count}
    }}
    sleep() {{ :; }}
    rc_cmd() {{ rc_$1; }}
    """
    text = (SHARE / "redirectd.rc").read_text().replace("@PREFIX@", "/usr/local")
    script = tmp_path / "redirectd"
    script.write_text(text.replace(". /etc/rc.d/rc.subr", subr))
    done = subprocess.run(["sh", str(script), action], check=False)
    return done.returncode, log.read_text().splitlines()


def test_configtest_is_the_daemons_own(tmp_path: Path) -> None:
    assert rc(tmp_path, "configtest", 0) == (0, ["exec /usr/local/sbin/redirectd -n "])


def test_reload_waits_for_the_old_daemon_to_end(tmp_path: Path) -> None:
    status, calls = rc(tmp_path, "reload", 2)
    assert (status, calls) == (0, ["stop", "check", "check", "check", "start"])


def test_reload_gives_up_on_one_that_does_not_end(tmp_path: Path) -> None:
    status, calls = rc(tmp_path, "reload", 1000)
    assert status == 1
    assert "start" not in calls
