"""How things stand, at a glance."""

from __future__ import annotations

from flask import Blueprint, render_template

from ..changes import Change, changes
from ..context import daemon

blueprint = Blueprint("overview", __name__)
# Enough to hold all parts of the last address change: one for each host that was told.
NEWEST = 200


@blueprint.get("/")
def show() -> str:
    status = daemon().status()
    found: list[Change] = []
    if status.last_move is not None:
        names = {peer.peer_id: peer.name for peer in daemon().peers()}
        ours = (move for move in daemon().moves(NEWEST) if move.ours)
        found = changes(ours, names)
    return render_template("overview.html", status=status, change=found[0] if found else None)
