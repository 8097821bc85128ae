"""What redirectctl shows: tables, and nothing that steers a terminal."""

from __future__ import annotations

import re
from typing import Any

import pytest

from appliance import ctl_tables

from ..control_fake import (
    CONNECTION,
    EVENT,
    PEER,
    STATUS,
    refused,
)
from .conftest import Daemon


def test_peers_are_shown_as_a_table(daemon: Daemon) -> None:
    lines = daemon.ok("show", "peers").split("\n")
    assert lines[0].split() == ["NAME", "ID", "STATE", "SESSION", "CONNS", "ADDRESS", "CONTACT"]
    assert lines[1].split()[:6] == ["office", "abababab", "trusted", "up", "2", "203.0.113.9"]
    assert "12345 67890" in daemon.ok("show", "peers", "-l")


def test_a_redirected_connection_shows_what_differs_on_the_wire(daemon: Daemon) -> None:
    row = daemon.ok("show", "connections").split("\n")[1].split()
    assert row[:6] == ["efefefef", "redirected", "office", "192.168.1.5:50000", "203.0.113.9:22",
                       "198.51.100.99:40001"]  # fmt: skip
    daemon.operations.answer = [{**CONNECTION, "state": "held", "held": 4}]
    assert "held, 4 segments" in daemon.ok("show", "connections")
    unbound = {"conn_id": None, "peer_id": None, "peer_name": None, "wire": None, "state": "long"}
    daemon.operations.answer = [{**CONNECTION, **unbound, "why": "far end is mute"}]
    assert daemon.ok("show", "connections").split("\n")[1].startswith("-     long")
    assert "far end is mute" in daemon.ok("show", "connections")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ("show peers", "no peers yet"),
        ("show connections", "no connections"),
        ("show redirects", "no redirects"),
        ("show events", "no events"),
        ("show moves", "no address change"),
        ("capture list", "no captures"),
    ],
)
def test_nothing_to_show_is_said(daemon: Daemon, args: str, words: str) -> None:
    daemon.operations.answer = []
    assert words in daemon.ok(*args.split())


def test_status_is_shown_with_its_warnings(daemon: Daemon) -> None:
    text = daemon.ok("show", "status")
    assert "198.51.100.99 on eth0" in text
    assert "2 redirected" in text
    assert "21.5 ms" in text
    assert re.search(r"^warning: +the path translates$", text, re.M)


def test_settings_are_shown_flat(daemon: Daemon) -> None:
    daemon.operations.answer = {
        "path": "/etc/redirectd.toml",
        "settings": {"port": 1, "discover": ["10.0.0.0/8"], "web": {"enabled": True},
                     "rule": [{"port": 22}]},
    }  # fmt: skip
    assert daemon.ok("show", "config").split("\n")[:-1] == [
        "from /etc/redirectd.toml", "port = 1", "discover = 10.0.0.0/8", "web.enabled = true",
        "rule[1].port = 22",
    ]  # fmt: skip


def test_what_another_host_chose_can_not_steer_the_terminal(daemon: Daemon) -> None:
    evil = "\x1b[2J\x07\u202eoffice\n"
    daemon.operations.answer = [{**PEER, "name": evil, "addresses": [evil], "state": evil}]
    outputs = [daemon.ok("show", "peers", "-l")]
    daemon.operations.answer = [{**CONNECTION, "peer_name": evil, "why": evil, "wire": [evil] * 2}]
    outputs.append(daemon.ok("show", "connections"))
    daemon.operations.answer = [{**EVENT, "text": evil, "kind": evil}]
    outputs.append(daemon.ok("show", "events"))
    daemon.operations.answer = {**STATUS, "warnings": [{"text": evil}]}
    outputs.append(daemon.ok("show", "status"))
    daemon.operations.fault = refused("refused", evil)
    outputs.append(daemon.ctl("peer", "accept", "x").stderr)
    for output in outputs:
        assert "office" in output
        assert all(c.isprintable() or c == "\n" for c in output)


@pytest.mark.parametrize("row", [{}, {"since": "x", "wire": 3, "addresses": 7, "time": 1e300}])
def test_a_strange_answer_is_shown_and_no_crash(row: dict[str, Any]) -> None:
    for text in (
        ctl_tables.peers([row], 0.0, True), ctl_tables.connections([row], 0.0),
        ctl_tables.moves([row]), ctl_tables.events([row]), ctl_tables.status({}, 0.0),
        ctl_tables.settings({}),
    ):  # fmt: skip
        assert text


@pytest.mark.parametrize(
    ("spent", "shown"),
    [(0, "0s"), (119, "119s"), (120, "2m"), (7199, "120m"), (7200, "2h"), (172800, "2d")],
)
def test_ages_are_short(spent: float, shown: str) -> None:
    assert ctl_tables.age(1e9, 1e9 + spent) == shown
