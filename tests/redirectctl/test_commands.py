"""redirectctl against a real control socket: requests, exit codes, captures."""

from __future__ import annotations

import errno
import json
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from appliance.introduction import write_pair
from appliance.redirectctl import main

from ..control_fake import (
    CAPTURE,
    CONNECTION,
    EVENT,
    MOVE,
    PEER,
    SECRET,
    STATUS,
    FakeOperations,
    refused,
    served,
)
from ..keystore.samples import peer as peer_record
from .conftest import ENVIRONMENT, Daemon

INTRODUCTION = write_pair(peer_record(), "introduction")


def commands(
    group: click.Group = main, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    for name, command in sorted(group.commands.items()):
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


@pytest.mark.parametrize(
    ("args", "call"),
    [
        ("show peers", ("peers", ())),
        ("peer list", ("peers", ())),
        ("show connections", ("connections", (None, None))),
        ("show connections --state held --peer office", ("connections", ("held", "office"))),
        ("show redirects", ("redirects", ())),
        ("show events", ("events", (100, None, None, None))),
        ("show events -n 5 --before 9 --level alert --search x", ("events", (5, 9, "alert", "x"))),
        ("show moves -n 3", ("moves", (3,))),
        ("show status", ("status", ())),
        ("show config", ("config", ())),
        ("peer accept office", ("peer_accept", ("office",))),
        ("peer verify office", ("peer_verify", ("office",))),
        ("peer rename office home", ("peer_rename", ("office", "home"))),
        ("peer revoke office", ("peer_revoke", ("office",))),
        ("peer forget office", ("peer_forget", ("office",))),
        ("peer dns office a.example", ("peer_dns", ("office", "a.example"))),
        ("peer dns office", ("peer_dns", ("office", None))),
        ("peer export office -o -", ("peer_export", ("office",))),
        ("peer introduce new --address fd00::1 --port 9 -o -",
         ("peer_introduce", ("new", ip_address("fd00::1"), 9))),
        ("connection resend efef", ("connection_resend", ("efef",))),
        ("connection path efef divert", ("connection_path", ("efef", "divert"))),
        ("connection drop efef", ("connection_drop", ("efef",))),
        ("capture start --peer office", ("capture_start", (None, "office", 60, 4 << 20))),
        ("capture start --connection efef --seconds 5 --bytes 2048",
         ("capture_start", ("efef", None, 5, 2048))),
        ("capture list", ("capture_list", ())),
        ("capture delete abc", ("capture_delete", ("abc",))),
        ("move 192.0.2.1", ("move", (ip_address("192.0.2.1"), None))),
        ("move 192.0.2.1 --from 192.0.2.2",
         ("move", (ip_address("192.0.2.1"), ip_address("192.0.2.2")))),
    ],
)  # fmt: skip
def test_a_command_asks_for_one_thing(
    daemon: Daemon, args: str, call: tuple[str, tuple[Any, ...]]
) -> None:
    assert daemon.ok(*args.split())
    assert daemon.asked == [call]


@pytest.mark.parametrize(
    ("args", "data"),
    [
        ("show peers", [PEER]),
        ("peer list", [PEER]),
        ("show connections", [CONNECTION]),
        ("show redirects", [CONNECTION]),
        ("show events", [EVENT]),
        ("show moves", [MOVE]),
        ("show status", STATUS),
        ("show config", {"path": "/etc/redirectd.toml", "settings": {}}),
        ("peer accept a", PEER),
        ("peer verify a", PEER),
        ("peer rename a b", {**PEER, "name": "b"}),
        ("peer revoke a", PEER),
        ("peer forget a", {"connections": 2}),
        ("peer dns a b.example", {**PEER, "dns_name": "b.example"}),
        ("peer export a -o -", {"text": SECRET}),
        ("peer introduce a -o -", {"peer": {**PEER, "name": "a"}, "text": SECRET}),
        ("connection resend a", {}),
        ("connection path a kernel", {}),
        ("connection drop a", {}),
        ("capture start --peer a", CAPTURE),
        ("capture list", [CAPTURE]),
        ("capture delete a", {}),
        ("move 192.0.2.1", {}),
    ],
)
@pytest.mark.parametrize("place", ["before", "after"])
def test_json_is_the_daemons_own_data(daemon: Daemon, args: str, data: Any, place: str) -> None:
    words = ["--json", *args.split()] if place == "before" else [*args.split(), "--json"]
    assert json.loads(daemon.ok(*words)) == data


def test_every_command_takes_json_and_socket_and_has_a_help() -> None:
    for path, command in commands():
        options = {o for p in command.params for o in p.opts}
        assert {"--json", "--socket"} <= options, path
        assert command.help, path


def test_an_option_beats_the_environment(daemon: Daemon) -> None:
    runner = CliRunner(env={"REDIRECTD_SOCKET": "/nonexistent"})
    for words in (["--socket", str(daemon.path), "show", "peers"],
                  ["show", "peers", "--socket", str(daemon.path)]):  # fmt: skip
        assert runner.invoke(main, words).exit_code == 0


def test_a_capture_is_fetched_in_pieces_into_a_new_private_file(daemon: Daemon) -> None:
    assert "wrote abc.pcap: 12 bytes" in daemon.ok("capture", "get", "abc")
    made = daemon.cwd / "abc.pcap"
    assert made.read_bytes() == b"first second"
    assert stat.S_IMODE(made.stat().st_mode) == 0o600
    assert daemon.ctl("capture", "get", "abc").exit_code == 1
    assert made.read_bytes() == b"first second"
    assert daemon.ok("capture", "get", "abc", "-o", "-") == "first second"


def test_a_capture_that_is_not_there_leaves_no_file(daemon: Daemon) -> None:
    daemon.operations.fault = refused("not-found", "no capture 'abc'")
    assert daemon.ctl("capture", "get", "abc").exit_code == 1
    assert list(daemon.cwd.iterdir()) == []


@pytest.mark.parametrize("args", [[], ["--peer", "a", "--connection", "b"]])
def test_a_capture_is_of_one_thing(daemon: Daemon, args: list[str]) -> None:
    assert daemon.ctl("capture", "start", *args).exit_code == 2


@pytest.mark.parametrize(
    "code", ["not-found", "ambiguous", "conflict", "refused", "internal", "bad-request"]
)
def test_a_refusal_is_exit_status_1(daemon: Daemon, code: str) -> None:
    daemon.operations.fault = refused(code, "no peer 'x': see 'redirectctl show peers'")
    result = daemon.ctl("peer", "accept", "x")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr == "redirectctl: no peer 'x': see 'redirectctl show peers'\n"
    told = json.loads(daemon.ctl("--json", "peer", "accept", "x").stderr)
    assert told["error"]["code"] == code


@pytest.mark.parametrize(
    "args",
    ["nonsense", "show", "show nonsense", "peer accept", "show events -n 0", "show peers extra",
     "show connections --state dead", "peer introduce a --port 70000", "--frobnicate show peers"],
)  # fmt: skip
def test_wrong_usage_is_exit_status_2(daemon: Daemon, args: str) -> None:
    assert daemon.ctl(*args.split()).exit_code == 2
    assert daemon.asked == []


def test_no_daemon_is_exit_status_3_with_the_remedy(tmp_path: Path) -> None:
    nowhere = tmp_path / "control.sock"
    result = CliRunner().invoke(main, ["--socket", str(nowhere), "show", "peers"])
    assert result.exit_code == 3
    assert str(nowhere) in result.stderr
    assert "systemctl start redirectd" in result.stderr


def test_a_socket_that_may_not_be_opened_is_exit_status_3(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def connect(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("socket.socket.connect", connect)
    result = CliRunner().invoke(main, ["--socket", str(tmp_path / "x"), "show", "peers"])
    assert result.exit_code == 3
    assert "group" in result.stderr


def test_what_is_not_redirectd_is_exit_status_3(tmp_path: Path) -> None:
    for number, answer in enumerate(
        (b"", b"hello\n", b"[]\n", b"{}\n", b'{"id":1,"ok":false,"error":3}\n')
    ):
        path = tmp_path / f"{number}.sock"
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(str(path))
            sock.listen()

            def serve(sock: socket.socket = sock, answer: bytes = answer) -> None:
                client, _ = sock.accept()
                with client:
                    client.recv(65536)
                    client.sendall(answer)

            thread = threading.Thread(target=serve)
            thread.start()
            result = CliRunner().invoke(main, ["--socket", str(path), "show", "peers"])
            thread.join()
        assert result.exit_code == 3, answer


@pytest.mark.parametrize("as_json", [False, True])
def test_monitor_prints_events_until_the_daemon_ends(tmp_path: Path, as_json: bool) -> None:
    operations = FakeOperations()
    path = tmp_path / "control.sock"
    words = [sys.executable, "-m", "appliance.redirectctl", "--socket", str(path), "monitor"]
    with served(operations, path) as loop:
        process = subprocess.Popen(
            words + ["--json"] * as_json, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, env=ENVIRONMENT,
        )  # fmt: skip
        assert process.stdout is not None
        assert operations.listened.wait(20)
        loop.call_soon_threadsafe(operations.tell, EVENT)
        line = process.stdout.readline()
        if as_json:
            assert json.loads(line) == EVENT
        else:
            assert line.endswith("notice move: moved [peer abababab]\n")
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 3
    assert "closed" in errors


@pytest.mark.parametrize("as_json", [False, True])
def test_web_tells_address_and_set_up_code(tmp_path: Path, as_json: bool) -> None:
    config = tmp_path / "redirectd.toml"
    config.write_text(f"[web]\nlisten = '127.0.0.1:4799'\nstate-dir = '{tmp_path}/web'\n")
    result = CliRunner().invoke(main, ["web", "-f", str(config)] + ["--json"] * as_json)
    assert result.exit_code == 0, result.stderr
    text = json.loads(result.stdout)["text"] if as_json else result.stdout
    assert "http://127.0.0.1:4799/" in text
    assert (tmp_path / "web" / "setup-code").read_text().strip() in text


def test_web_tells_what_is_wrong_with_the_configuration(tmp_path: Path) -> None:
    config = tmp_path / "redirectd.toml"
    config.write_text("[web]\nlisten = 3\n")
    result = CliRunner().invoke(main, ["web", "-f", str(config)])
    assert result.exit_code == 1
    assert "web.listen" in result.stderr
