"""The admin page for a daemon of the lab, on this machine's loopback for its own browser.

It runs outside the lab's machines, with nothing but the control socket, as `nobody`.
"""

from __future__ import annotations

import os
import pwd
import socket
import subprocess
import sys
import time
from dataclasses import dataclass

import tomlkit

from webui.credentials import Credentials

from .daemon import USER, Daemon
from .expose import ROOT, readable
from .kernel import LabError
from .net import Lab

READY = 15.0  # seconds


@dataclass(frozen=True, slots=True)
class AdminPage:
    """``setup_code`` is asked for once, in the browser."""

    url: str
    setup_code: str | None


def open_page(lab: Lab, daemon: Daemon, port: int = 0) -> AdminPage:
    """Starts it; it ends with the lab.  ``port`` 0: any that is free.  LabError."""
    port = port or _free_port()
    account = pwd.getpwnam(USER)
    state = lab.dir / "page"
    state.mkdir(mode=0o700)
    os.chown(state, account.pw_uid, account.pw_gid)
    config = lab.dir / "page.toml"
    web = {"listen": [f"127.0.0.1:{port}"], "state-dir": str(state)}
    config.write_text(tomlkit.dumps({"control-socket": str(daemon.control), "web": web}))
    config.chmod(0o644)
    become = ["setpriv", f"--reuid={account.pw_uid}", f"--regid={account.pw_gid}"]
    become += ["--clear-groups", "--no-new-privs", "--"]
    program = [sys.executable, "-m", "webui", "-f", str(config)]
    with (lab.dir / "page.log").open("wb") as log:
        process = subprocess.Popen(
            readable([*become, *program], [lab.dir]),
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
            start_new_session=True,  # Ctrl-C is for the lab, which then cleans up
        )  # fmt: skip
    lab.on_close(_end, process)
    deadline = time.monotonic() + READY
    while not _answers(port):
        if process.poll() is not None or time.monotonic() > deadline:
            said = (lab.dir / "page.log").read_text(errors="replace")
            raise LabError(f"the admin page did not start on port {port}:\n{said[-2000:]}")
        time.sleep(0.05)
    return AdminPage(f"http://127.0.0.1:{port}", Credentials(state).setup_code)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
