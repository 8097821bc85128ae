"""Answers of the daemon as text for a terminal.

Names, reasons and events can hold what another host chose: nothing unprintable of it
reaches the terminal.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any

from tabulate import tabulate

Json = dict[str, Any]


def clean(value: object) -> str:
    """One printable line; ``-`` for nothing."""
    if value is None or value == "":
        return "-"
    return "".join(c if c.isprintable() else "?" for c in str(value))


def when(seconds: object) -> str:
    """Seconds since the epoch as local time."""
    if not isinstance(seconds, (int, float)) or seconds <= 0:
        return "-"
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
    except (OverflowError, ValueError, OSError):
        return "-"


def age(since: object, now: float) -> str:
    """``12s``, ``5m``, ``3h``, ``2d``: as much as fits in a column."""
    if not isinstance(since, (int, float)) or not 0 < since <= now + 1:
        return "-"
    spent = max(0.0, now - since)
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if spent >= 2 * length:
            return f"{spent / length:.0f}{unit}"
    return f"{spent:.0f}s"


def peers(rows: Sequence[Json], now: float, long: bool = False) -> str:
    if not rows:
        return "no peers yet: they are met when a long-lived connection to them exists"
    heads = ["NAME", "ID", "STATE", "SESSION", "CONNS", "ADDRESS", "CONTACT"]
    if long:
        heads += ["DNS NAME", "FINGERPRINT"]
    return _table(
        heads,
        (
            [
                row.get("name"), _short(row.get("peer_id")), row.get("state"), row.get("session"),
                row.get("connections"), _first(row.get("addresses")),
                age(row.get("last_contact"), now),
                *([row.get("dns_name"), row.get("fingerprint")] if long else []),
            ]
            for row in rows
        ),
    )  # fmt: skip


def connections(rows: Sequence[Json], now: float) -> str:
    if not rows:
        return "no connections"
    return _table(
        ["ID", "STATE", "PEER", "LOCAL", "REMOTE", "NOW ON THE WIRE", "AGE", "MOVES", "WHY"],
        (
            [
                _short(row.get("conn_id")), row.get("state"),
                row.get("peer_name") or _short(row.get("peer_id")),
                *_ends(row.get("inside")), _wire(row),
                age(row.get("since"), now), row.get("moves"), row.get("why"),
            ]
            for row in rows
        ),
    )  # fmt: skip


def moves(rows: Sequence[Json]) -> str:
    if not rows:
        return "no address change so far"
    return _table(
        ["TIME", "WHO", "FROM", "TO", "PEER", "CONNS", "REFUSED", "HANDOVER", "DONE"],
        (
            [
                when(row.get("time")), "they" if row.get("ours") is False else "we",
                row.get("old"), row.get("new"), _short(row.get("peer_id")),
                row.get("connections"), row.get("refused"), _ms(row.get("handover_ms")),
                "yes" if row.get("done") else "no",
            ]
            for row in rows
        ),
    )  # fmt: skip


def events(rows: Sequence[Json]) -> str:
    """Oldest first, as one reads."""
    return "\n".join(event(row) for row in reversed(rows)) or "no events"


def event(row: Json) -> str:
    who = "".join(
        f" {word} {_short(row.get(key))}"
        for word, key in (("peer", "peer_id"), ("connection", "conn_id"))
        if row.get(key)
    )
    level, kind, text = (clean(row.get(k)) for k in ("level", "kind", "text"))
    return f"{when(row.get('time'))} {level} {kind}: {text}{f' [{who[1:]}]' if who else ''}"


def captures(rows: Sequence[Json], now: float) -> str:
    if not rows:
        return "no captures: see 'redirectctl capture start --help'"
    return _table(
        ["ID", "STATE", "BYTES", "AGE", "OF", "WHY"],
        (
            [
                row.get("id"), row.get("state"), row.get("size"), age(row.get("started"), now),
                row.get("text"), row.get("why"),
            ]
            for row in rows
        ),
    )  # fmt: skip


def status(data: Json, now: float) -> str:
    def counts(key: str) -> str:
        found = data.get(key) or {}
        return ", ".join(f"{clean(n)} {clean(name)}" for name, n in found.items()) or "-"

    lines = [
        ("redirectd", f"{clean(data.get('version'))}, up {age(data.get('since'), now)},"
                      f" UDP port {clean(data.get('port'))}"),
        *(
            ("address", f"{clean(a.get('addr'))} on {clean(a.get('ifname'))},"
                        f" for {age(a.get('since'), now)}")
            for a in data.get("addresses") or []
        ),
        ("peers", counts("peers")),
        ("connections", counts("connections")),
    ]  # fmt: skip
    if move := data.get("last_move"):
        lines.append((
            "last move",
            f"{clean(move.get('old'))} to {clean(move.get('new'))} at {when(move.get('time'))},"
            f" {clean(move.get('connections'))} connections, {_ms(move.get('handover_ms'))}",
        ))  # fmt: skip
    lines += [("warning", clean(w.get("text"))) for w in data.get("warnings") or []]
    return "\n".join(f"{name + ':':<13}{text}" for name, text in lines)


def settings(data: Json) -> str:
    lines = [f"from {clean(data.get('path'))}"]
    for key, value in (data.get("settings") or {}).items():
        lines += _setting(str(key), value)
    return "\n".join(lines)


def _setting(key: str, value: Any) -> list[str]:
    if isinstance(value, dict):
        return [line for k, v in value.items() for line in _setting(f"{key}.{k}", v)]
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return [x for n, v in enumerate(value, 1) for x in _setting(f"{key}[{n}]", v)]
    if isinstance(value, list):
        value = ", ".join(map(str, value))
    elif isinstance(value, bool):
        value = str(value).lower()
    return [f"{clean(key)} = {clean(value)}"]


def _table(heads: list[str], rows: Iterable[Sequence[object]]) -> str:
    cells = [[clean(cell) for cell in row] for row in rows]
    return tabulate(cells, heads, tablefmt="plain", disable_numparse=True)


def _short(identity: object) -> str | None:
    return identity[:8] if isinstance(identity, str) else None


def _first(texts: object) -> object:
    return texts[0] if isinstance(texts, list) and texts else None


def _ends(flow: object) -> Sequence[object]:
    return flow if isinstance(flow, list) and len(flow) == 2 else (None, None)


def _wire(row: Json) -> object:
    """Only what differs from the birth tuple is worth a column."""
    wire, birth = _ends(row.get("wire")), _ends(row.get("birth"))
    if row.get("state") == "held":
        return f"held, {clean(row.get('held'))} segments"
    changed = [str(w) for w, b in zip(wire, birth, strict=True) if w is not None and w != b]
    return " ".join(changed)


def _ms(value: object) -> str:
    return f"{value:.1f} ms" if isinstance(value, (int, float)) else "-"
