"""The demo's admin page: reachable on loopback, unprivileged, gone with the lab."""

from __future__ import annotations

import socket
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

from .daemon import Daemon
from .net import Lab
from .page import open_page
from .topologies import two_hosts


def test_the_page_is_there_with_its_code_and_goes_with_the_lab() -> None:
    with Lab() as lab:
        page = open_page(lab, Daemon(two_hosts(lab).alice))
        with urllib.request.urlopen(page.url) as answer:
            assert answer.url == f"{page.url}/setup"
        assert page.setup_code
        (served,) = [p for p in Path("/proc").glob("[0-9]*") if _serves(p, str(lab.dir))]
        uids = next(x for x in (served / "status").read_text().split("\n") if "Uid:" in x)
        assert "0" not in uids.split()[1:]
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", urlsplit(page.url).port or 0)) != 0


def _serves(process: Path, folder: str) -> bool:
    try:
        command = (process / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return b"webui" in command and f"{folder}/page.toml".encode() in command
