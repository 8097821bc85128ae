"""What redirectctl asks a person before it does it."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

import pytest

from ..control_fake import (
    PEER,
)
from .conftest import ENVIRONMENT, Daemon


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
