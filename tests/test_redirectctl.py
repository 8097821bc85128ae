"""redirectctl against a real control socket: requests, tables, exit codes, secrets."""

from __future__ import annotations

import errno
import json
import os
import pty
import re
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from appliance import ctl_tables
from appliance.introduction import write_pair
from appliance.redirectctl import main

from .control_fake import (
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
from .keystore.samples import peer as peer_record

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
INTRODUCTION = write_pair(peer_record(), "introduction")


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


def commands(
    group: click.Group = main, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    for name, command in sorted(group.commands.items()):
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


# What is asked


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


# What is shown


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


# How it ends


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


# Events as they happen


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


# Secrets


@pytest.mark.parametrize(
    ("args", "name"), [("peer export office", "office.pair"), ("peer introduce new", "new.pair")]
)
def test_keys_go_to_a_new_file_for_the_owner_alone(daemon: Daemon, args: str, name: str) -> None:
    old = os.umask(0)
    try:
        told = daemon.ok(*args.split())
    finally:
        os.umask(old)
    path = daemon.cwd / name
    assert path.read_text() == SECRET
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert name in told
    assert "secret" not in told


def test_json_about_keys_in_a_file_holds_no_keys(daemon: Daemon) -> None:
    told = json.loads(daemon.ok("peer", "introduce", "new", "-o", "f", "--json"))
    assert told == {"peer": {**PEER, "name": "new"}, "file": "f"}


def test_keys_go_to_standard_output_when_asked(daemon: Daemon) -> None:
    assert daemon.ok("peer", "export", "office", "-o", "-") == SECRET
    assert list(daemon.cwd.iterdir()) == []


def test_an_existing_file_is_never_overwritten_and_the_daemon_not_asked(daemon: Daemon) -> None:
    (daemon.cwd / "new.pair").write_text("mine")
    (daemon.cwd / "link").symlink_to(daemon.cwd / "elsewhere")
    for output in ((), ("-o", "link"), ("-o", "/nonexistent/x")):
        result = daemon.ctl("peer", "introduce", "new", *output)
        assert result.exit_code == 1
        assert "-o FILE" in result.stderr
    assert (daemon.cwd / "new.pair").read_text() == "mine"
    assert daemon.asked == []


def test_a_refused_export_leaves_no_file(daemon: Daemon) -> None:
    daemon.operations.fault = refused("refused", "no")
    assert daemon.ctl("peer", "introduce", "new").exit_code == 1
    assert list(daemon.cwd.iterdir()) == []


@pytest.mark.parametrize("name", ["../../etc/passwd", "/", "..", "a b", "-o"])
def test_a_peers_name_can_not_choose_the_folder(daemon: Daemon, name: str) -> None:
    daemon.operations.answer = [{**PEER, "name": name}]
    daemon.ctl("peer", "export", PEER["peer_id"])
    daemon.operations.answer = None
    assert daemon.ctl("peer", "introduce", "--", name).exit_code == 0
    (made,) = daemon.cwd.iterdir()
    assert re.fullmatch(r"[A-Za-z0-9._-]+\.pair", made.name)
    assert not made.name.startswith(("-", "."))


@pytest.mark.parametrize("source", ["file", "dash", "stdin"])
def test_keys_are_imported_from_a_file_or_standard_input(daemon: Daemon, source: str) -> None:
    (daemon.cwd / "p").write_text(INTRODUCTION)
    words = {"file": ["p"], "dash": ["-"], "stdin": []}[source]
    text = None if source == "file" else INTRODUCTION
    assert "is trusted" in daemon.ok("peer", "import", *words, "--name", "home", text=text)
    assert daemon.asked == [("peer_import", (INTRODUCTION, "home"))]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (INTRODUCTION[:200].encode(), "end is missing"),
        (b"\xff\xfe", "not text"),
        (b"x" * 10_000_000, "longer than"),
    ],
)
def test_damaged_keys_are_refused_before_the_daemon_is_asked(
    daemon: Daemon, data: bytes, words: str
) -> None:
    (daemon.cwd / "p").write_bytes(data)
    result = daemon.ctl("peer", "import", "p")
    assert result.exit_code == 1
    assert words in result.stderr
    assert daemon.asked == []


def test_a_missing_file_to_import_is_wrong_usage(daemon: Daemon) -> None:
    assert daemon.ctl("peer", "import", "nowhere").exit_code == 2


# The admin page


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


# Questions


def at_a_terminal(daemon: Daemon, answer: str, *words: str) -> tuple[int, str]:
    """Run with a terminal as standard input, as for a person; exit status and output."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "appliance.redirectctl", "--socket", str(daemon.path), *words],
        stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=ENVIRONMENT,
    )  # fmt: skip
    os.close(theirs)
    os.write(ours, answer.encode() + b"\n")
    output, _ = process.communicate(timeout=20)
    os.close(ours)
    return process.returncode, output


def test_verify_shows_the_fingerprint_and_asks(daemon: Daemon) -> None:
    status, output = at_a_terminal(daemon, "n", "peer", "verify", "office")
    assert status == 1
    assert "12345 67890" in output
    assert ("peer_verify", (PEER["peer_id"],)) not in daemon.asked
    status, _ = at_a_terminal(daemon, "y", "peer", "verify", "abab")
    assert status == 0
    assert daemon.asked[-1] == ("peer_verify", (PEER["peer_id"],))


def test_forget_says_what_will_end_and_asks(daemon: Daemon) -> None:
    status, output = at_a_terminal(daemon, "n", "peer", "forget", "office")
    assert status == 1
    assert "2 connections" in output
    assert at_a_terminal(daemon, "", "peer", "forget", "office", "-y")[0] == 0
    assert daemon.asked[-1] == ("peer_forget", ("office",))


@pytest.mark.parametrize(
    ("named", "words"), [("abab", "names 2 peers"), ("aba", "no peer"), ("nobody", "no peer")]
)
def test_a_name_that_is_not_one_peer_is_told(daemon: Daemon, named: str, words: str) -> None:
    daemon.operations.answer = [PEER, {**PEER, "peer_id": "ab" * 15 + "00", "name": "b"}]
    result = daemon.ctl("peer", "export", named)
    assert result.exit_code == 1
    assert words in result.stderr
