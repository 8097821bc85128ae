"""How values look: times, durations, states and fingerprints in the templates."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from flask import Flask
from markupsafe import Markup

from .context import page_of
from .daemon import Connection

PEER_STATES: Mapping[str, str] = {
    "pending": "waits for you",
    "trusted": "trusted",
    "verified": "verified",
    "revoked": "revoked",
}
PEER_STATE_TEXTS: Mapping[str, str] = {
    "pending": "Nothing is protected with this host until you accept it.",
    "trusted": "Accepted without comparing fingerprints: safe unless somebody stood in between "
    "at the first contact.",
    "verified": "You compared the fingerprints: this is the host you think it is.",
    "revoked": "This host is refused. Its connections are not protected.",
}
SESSIONS: Mapping[str, str] = {
    "none": "not in touch",
    "handshake": "getting in touch",
    "up": "in touch",
}
CONNECTION_STATES: Mapping[str, str] = {
    "short": "short-lived",
    "long": "long-lived",
    "bound": "protected",
    "held": "held",
    "redirected": "redirected",
}
CONNECTION_STATE_TEXTS: Mapping[str, str] = {
    "short": "Younger than ten seconds: ends when an address changes.",
    "long": "Old enough to be worth keeping, but not protected.",
    "bound": "Goes on when an address changes.",
    "held": "An address is changing right now: packets wait.",
    "redirected": "An address has changed since it began, and it goes on.",
}
CAPTURE_STATES: Mapping[str, str] = {
    "running": "recording",
    "done": "done",
    "failed": "failed",
}
LEVELS = ("debug", "info", "notice", "warning", "alert")


def duration(seconds: float | None) -> str:
    """At most two units: ``12 s``, ``3 min``, ``2 h 5 min``, ``3 d``."""
    if seconds is None or not math.isfinite(seconds):
        return "–"
    whole = max(0, int(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min"
    if whole < 86400:
        return _two(whole // 3600, "h", whole % 3600 // 60, "min")
    return _two(whole // 86400, "d", whole % 86400 // 3600, "h")


def _two(large: int, large_unit: str, small: int, small_unit: str) -> str:
    return f"{large} {large_unit}" + (f" {small} {small_unit}" if small else "")


def milliseconds(value: float | None) -> str:
    """A handover time: ``43 ms``, ``1.2 s``, ``12 s``."""
    if value is None or not math.isfinite(value):
        return "–"
    if value < 1000:
        return f"{value:.0f} ms"
    return f"{value / 1000:.1f} s" if value < 10_000 else duration(value / 1000)


def _moment(when: float | None) -> datetime | None:
    if when is None:
        return None
    try:
        return datetime.fromtimestamp(when, UTC)
    except (ValueError, OverflowError, OSError):
        return None


def when(value: float | None) -> str:
    """A point in time, in this machine's zone; app.js puts it into the reader's."""
    moment = _moment(value)
    if moment is None:
        return Markup('<span class="none">–</span>')
    shown = moment.astimezone().strftime("%Y-%m-%d %H:%M:%S %Z")
    iso = moment.strftime("%Y-%m-%dT%H:%M:%SZ")
    return Markup('<time datetime="{}" data-when>{}</time>').format(iso, shown)


def ago(value: float | None) -> str:
    """How long something has been so; app.js keeps it counting."""
    moment = _moment(value)
    if moment is None or value is None:
        return Markup('<span class="none">–</span>')
    iso = moment.strftime("%Y-%m-%dT%H:%M:%SZ")
    shown = duration(page_of().now() - value)
    return Markup('<time datetime="{}" data-ago>{}</time>').format(iso, shown)


def words(fingerprint: str) -> list[str]:
    """The words or groups of a fingerprint, one by one, to be read aloud."""
    return fingerprint.split()


def host_of(connection: Connection) -> str:
    """Who is at the far end: the peer's name, or the address."""
    if connection.peer_name:
        return connection.peer_name
    return connection.inside[1].rpartition(":")[0].strip("[]")


def flatten(settings: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as ``(dotted key, value as text)``, in their order."""
    rows: list[tuple[str, str]] = []
    for key, value in settings.items():
        name = f"{prefix}{str(key).replace('_', '-')}"
        if isinstance(value, Mapping):
            rows += flatten(value, f"{name}.")
        elif isinstance(value, list) and value and all(isinstance(i, Mapping) for i in value):
            for number, item in enumerate(value, 1):
                rows += flatten(item, f"{name}[{number}].")
        else:
            rows.append((name, _text(value)))
    return rows


def _text(value: Any) -> str:
    if value is None:
        return "not set"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value)) or "none"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def start_commands() -> tuple[str, ...]:
    """How the daemon is started on this system, and how to look what ails it."""
    if sys.platform.startswith("openbsd"):
        return ("rcctl start redirectd", "tail /var/log/daemon")
    return ("systemctl start redirectd", "journalctl -u redirectd -e")


def install(app: Flask) -> None:
    app.jinja_env.trim_blocks = True
    app.jinja_env.lstrip_blocks = True
    app.jinja_env.filters.update(
        when=when, ago=ago, ms=milliseconds, words=words, duration=duration
    )
    app.jinja_env.globals.update(
        peer_states=PEER_STATES,
        peer_state_texts=PEER_STATE_TEXTS,
        sessions=SESSIONS,
        connection_states=CONNECTION_STATES,
        connection_state_texts=CONNECTION_STATE_TEXTS,
        capture_states=CAPTURE_STATES,
        host_of=host_of,
        start_commands=start_commands,
    )
