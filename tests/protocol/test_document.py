"""docs/protocol.md: its tables are the layouts, its numbers the constants.

``python -m tests.protocol.test_document`` writes the tables anew.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from appliance.protocol import absence, announcer, correspondent, exchange, proposer, replay, status
from appliance.protocol.frames import FRAMES, MAX_LISTED
from appliance.protocol.message import MAX_DATAGRAM, PLAIN
from appliance.protocol.settings import Limits, Timing

FILE = Path(__file__).parents[2] / "docs" / "protocol.md"


def fields(kind: Any) -> str:
    parts = [f"`{name}` {codec.describe()}" for name, codec in kind.LAYOUT]
    if kind.SIZE:
        parts.append(f"zeros up to {kind.SIZE} bytes")
    return "; ".join(parts) or "–"


def message_table() -> str:
    rows = [f"| {k.TYPE.value} | {k.TYPE.name} | {fields(k)} |" for k in PLAIN]
    data = "| 11 | DATA | `to` 32-bit number; `counter` 64-bit number; payload; `mac` 16 bytes |"
    rows.append(data)
    rows.sort(key=lambda row: int(row.split("|")[1]))
    return "\n".join(["| type | name | after the type |", "|---|---|---|", *rows])


def enums() -> list[str]:
    found: dict[str, str] = {}
    for kind in (*PLAIN, *FRAMES):
        for _, codec in kind.LAYOUT:
            for part in (codec, getattr(codec, "item", None)):
                word = getattr(getattr(part, "second", part), "kind", None)
                if word is not None:
                    values = ", ".join(f"{w.value} {w.name}" for w in word)
                    found[word.__name__] = f"`{word.__name__}`: {values}."
    return [found[name] for name in sorted(found)]


def frame_table() -> str:
    rows = [f"| {k.KIND.value} | {k.KIND.name} | {fields(k)} |" for k in FRAMES]
    return "\n".join(["| kind | name | body |", "|---|---|---|", *rows, "", *enums()])


def filled(text: str) -> str:
    for name, table in (("messages", message_table()), ("frames", frame_table())):
        block = f"<!-- {name} -->\n\n{table}\n\n<!-- end -->"
        text = re.sub(
            rf"<!-- {name} -->(?:\n\n\|.*?\n\n<!-- end -->)?",
            lambda _, block=block: block,
            text,
            flags=re.S,
        )
    return text


def test_the_tables_are_the_layouts() -> None:
    text = FILE.read_text()
    assert filled(text) == text


def test_the_numbers_are_the_constants() -> None:
    text = FILE.read_text()
    limits, timing = Limits(), Timing()
    for phrase in (
        f"at most {MAX_DATAGRAM:,} bytes",
        f"window of {replay.WIDTH:,} counters",
        f"(at most {MAX_LISTED})",
        f"| known hosts | {limits.peers:,};",
        f"they answer | {limits.contacts:,} |",
        f"| half-open first contacts | {limits.half_open},",
        f"HELLO and CONTACT_1 answered | {limits.hello_rate:.0f} a second;",
        f"K1 answered without cookie | {limits.handshake_rate:.0f} a second;",
        f"unfinished K1s kept | {exchange.MAX_PENDING} a peer, {exchange.PENDING_LIFE:.0f} s",
        f"challenges | {limits.challenge_rate:.0f} a second",
        f"remembered | {correspondent.MAX_CHANGES} |",
        f"At most {limits.bindings} proposals",
        f"| 64, {proposer.PROPOSAL_LIFE:.0f} s |",
        f"doubling up to {announcer.CAP:.0f} s",
        f"up to {absence.PROBE_CAP:.0f} s between two",
        f"in vain for {absence.FORGOTTEN:.0f} s",
        f"PING has been repeated for {absence.LOST} s",
        f"ADDRESS_CHANGE is awaited for {absence.MOVE_FIRST:.0f} s",
        f"receiver's end gets {status.FAR_CLOSED_WAIT:.0f} s",
        f"let in at the correspondent for {timing.settle:.0f} s",
        f"stay {timing.linger:.0f} s longer",
        f"no OFFER came for {timing.responder:.0f} s",
    ):
        assert phrase in text, phrase
    assert timing.rekey == 3600
    assert timing.idle == timing.prepared == 600
    assert announcer.SAFE_PART == 0.8


if __name__ == "__main__":
    FILE.write_text(filled(FILE.read_text()))
