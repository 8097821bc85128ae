"""Address changes as a time line."""

from __future__ import annotations

from flask import Blueprint, render_template

from ..changes import changes
from ..context import daemon

blueprint = Blueprint("history", __name__, url_prefix="/history")
SHOWN = 200


@blueprint.get("/")
def show() -> str:
    moves = daemon().moves(SHOWN)
    names = {peer.peer_id: peer.name for peer in daemon().peers()}
    return render_template(
        "history.html", changes=changes(moves, names), status=daemon().status(), shown=SHOWN
    )
