"""After its promises (pledge(2)) a process can load no shared object.

Here, where nothing is promised: all that a daemon at work has loaded is there before it
would promise.
"""

from __future__ import annotations

import http.client
import socket
import subprocess
import sys
from pathlib import Path

from tests.lab.net import Lab

from .scene import addresses, scene

ROOT = Path(__file__).resolve().parents[2]
SHOW = "print(open('/proc/self/maps').read())"


def objects(maps: str) -> set[str]:
    """Shared objects in proc_pid_maps(5)."""
    paths = {line.split(maxsplit=5)[5] for line in maps.splitlines() if line.count("/")}
    return {path.strip() for path in paths if ".so" in path}


def loaded_first(program: str) -> set[str]:
    """By the program's imports, and what it imports before its promises."""
    code = (
        f"import appliance.__main__, appliance.proc.parent, {program}\n"
        f"from appliance.backend.openbsd.sandbox import preload\npreload()\n{SHOW}"
    )
    argv = [sys.executable, "-c", code]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=True)
    return objects(done.stdout)


def test_the_engine_loads_nothing_later(lab: Lab) -> None:
    s = scene(lab, "host", 4)
    s.open()
    s.bind()
    s.move(next(addresses(4)))
    s.settle(1)
    s.flows()
    daemon = s.mover_daemon
    for what in ("status", "peers", "list", "events"):
        daemon.redirectctl(what, check=False)
    engine = Path(f"/proc/{daemon.pids()['engine']}/maps").read_text()
    assert any("sqlite" in path for path in objects(engine))
    assert objects(engine) <= loaded_first("appliance.proc.engine")
    s.finish()


def test_the_admin_page_loads_nothing_later(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    config = tmp_path / "redirectd.toml"
    state = tmp_path / "web"
    state.mkdir(mode=0o700)
    config.write_text(
        f'control-socket = "{tmp_path}/none.sock"\n'
        f'[web]\nenabled = true\nlisten = ["127.0.0.1:{port}"]\nstate-dir = "{state}"\n'
    )
    argv = [sys.executable, "-m", "webui", "-f", str(config)]
    with subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True) as page:
        try:
            assert page.stdout is not None
            assert "serving" in page.stdout.readline()
            visitor = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            answers = []
            for path in ("/", "/login", "/setup", "/metrics", "/none"):
                visitor.request("GET", path)
                answer = visitor.getresponse()
                answer.read()
                answers.append(answer.status)
            assert all(status < 500 for status in answers), answers
            maps = Path(f"/proc/{page.pid}/maps").read_text()
            assert objects(maps) <= loaded_first("webui.__main__")
        finally:
            page.terminate()
