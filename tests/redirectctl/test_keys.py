"""Keys leave and come by redirectctl: never to the wrong eyes, never half."""

from __future__ import annotations

import json
import os
import re
import stat

import pytest

from appliance.introduction import write_pair

from ..control_fake import (
    PEER,
    SECRET,
    refused,
)
from ..keystore.samples import peer as peer_record
from .conftest import Daemon

INTRODUCTION = write_pair(peer_record(), "introduction")


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
