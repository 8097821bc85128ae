"""Recorded output of an OpenBSD 7.8 kernel."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent.parent / "fixtures" / "openbsd-7.8"


def records() -> bytes:
    """Three ``pfsync_state`` records, one after another."""
    return b"".join(
        bytes.fromhex(line)
        for line in (FOLDER / "states-diocgetstates.hex").read_text().splitlines()
    )


def states_text() -> str:
    """The same three states as ``pfctl -ss -vv`` printed them a moment earlier."""
    return (FOLDER / "states-pfctl-vv.txt").read_text()


def transcript(title: str) -> str:
    """The section of pfctl's transcript under ``=== title``."""
    sections = (FOLDER / "pfctl-transcript.txt").read_text().split("=== ")
    (found,) = [s for s in sections if s.split("\n", 1)[0] == title]
    return found.split("\n", 1)[1]


def route_actions() -> list[tuple[str, list[bytes]]]:
    """(ifconfig action, messages that it caused)"""
    data: dict[str, Any] = json.loads((FOLDER / "route-socket.json").read_text())
    return [
        (row["action"], [bytes.fromhex(text) for text in row["messages_hex"]])
        for row in data["route_socket"]
    ]
