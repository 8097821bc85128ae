"""Captures: packets of one connection or host, recorded for a while, to be downloaded."""

from __future__ import annotations

import re
from collections.abc import Iterator

from flask import (
    Blueprint,
    Response,
    current_app,
    flash,
    redirect,
    render_template,
    request,
    stream_with_context,
    url_for,
)
from werkzeug.wrappers import Response as AnyResponse

from ..client import DaemonError
from ..context import daemon

blueprint = Blueprint("captures", __name__, url_prefix="/captures")
MAX_SECONDS = 300
MAX_MIB = 16


@blueprint.get("/")
def index() -> str:
    return render_template("captures.html", captures=daemon().captures())


@blueprint.post("/start")
def start() -> AnyResponse:
    seconds = _number("seconds", MAX_SECONDS, "A capture takes 1 to 300 seconds.")
    size = _number("mib", MAX_MIB, "A capture has 1 to 16 MiB.")
    conn, peer = (request.form.get(key) or None for key in ("conn", "peer"))
    made = daemon().start_capture(conn, peer, seconds, size << 20)
    current_app.logger.info("capture %s asked for by %s", made.id, request.remote_addr)
    flash(f"Packets of {made.text} are being recorded.", "ok")
    return redirect(url_for("captures.index"), 303)


def _number(field: str, most: int, fault: str) -> int:
    text = request.form.get(field, "")
    if not re.fullmatch(r"[0-9]{1,4}", text) or not 1 <= int(text) <= most:
        raise DaemonError("bad-request", fault)
    return int(text)


@blueprint.get("/<capture_id>.pcap")
def download(capture_id: str) -> AnyResponse:
    """In pieces: the whole of it need not fit into memory."""
    found = daemon().capture(capture_id)
    first = daemon().capture_piece(found.id, 0)
    current_app.logger.info("capture %s downloaded by %s", found.id, request.remote_addr)

    def pieces() -> Iterator[bytes]:
        piece = first
        while piece.data:
            yield piece.data
            if piece.next is None:
                return
            piece = daemon().capture_piece(found.id, piece.next)

    return Response(
        stream_with_context(pieces()),
        mimetype="application/vnd.tcpdump.pcap",
        headers={"Content-Disposition": f'attachment; filename="redirectd-{found.id}.pcap"'},
    )


@blueprint.get("/<capture_id>/delete")
def ask_delete(capture_id: str) -> str:
    return render_template("capture_delete.html", capture=daemon().capture(capture_id))


@blueprint.post("/<capture_id>/delete")
def delete(capture_id: str) -> AnyResponse:
    daemon().delete_capture(capture_id)
    flash("The capture is deleted.", "ok")
    return redirect(url_for("captures.index"), 303)
