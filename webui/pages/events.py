"""The daemon's log, searchable."""

from __future__ import annotations

from flask import Blueprint, render_template, request

from ..context import daemon
from ..present import LEVELS

blueprint = Blueprint("events", __name__, url_prefix="/events")
SHOWN = 100
MAX_SEARCH = 200


@blueprint.get("/")
def index() -> str:
    search = request.args.get("q", "").strip()[:MAX_SEARCH]
    level = request.args.get("level", "")
    level = level if level in LEVELS else ""
    before_text = request.args.get("before", "")
    before = int(before_text) if before_text.isascii() and before_text.isdigit() else None
    if before is not None and before >= 1 << 63:
        before = None
    # One more than is shown: whether there is another page behind this one.
    found = daemon().events(SHOWN + 1, before, level or None, search or None)
    return render_template(
        "events.html",
        events=found[:SHOWN],
        older=found[SHOWN - 1].id if len(found) > SHOWN else None,
        search=search,
        level=level,
        levels=LEVELS,
        before=before,
        names={peer.peer_id: peer.name for peer in daemon().peers()},
    )
