"""Live connections: the table that updates by itself, and one connection's own page."""

from __future__ import annotations

from typing import Any

from flask import (
    Blueprint,
    flash,
    get_template_attribute,
    jsonify,
    redirect,
    render_template,
    request,
    url_for,
)
from werkzeug.wrappers import Response

from ..context import daemon, page_of
from ..live import PAGE_SIZES, STATE_ORDER, Query, Selection, select

blueprint = Blueprint("connections", __name__, url_prefix="/connections")
MAX_SEARCH = 200


def _number(text: str | None, default: int) -> int:
    return int(text) if text and text.isascii() and text.isdigit() and len(text) < 7 else default


def query_of_request() -> Query:
    """The filter in the address; what makes no sense is taken as not given."""
    size = _number(request.args.get("size"), PAGE_SIZES[0])
    state = request.args.get("state", "")
    return Query(
        text=request.args.get("q", "").strip()[:MAX_SEARCH],
        state=state if state in STATE_ORDER else "",
        peer=request.args.get("peer", "")[:64],
        size=size if size in PAGE_SIZES else PAGE_SIZES[0],
        page=_number(request.args.get("page"), 1),
    )


def _selection(query: Query) -> Selection:
    rows = page_of().snapshots.rows(lambda: daemon().connections())
    return select(rows, query)


@blueprint.get("/")
def index() -> str:
    query = query_of_request()
    selection = _selection(query)
    return render_template(
        "connections.html",
        query=query,
        selection=selection,
        version=page_of().table.version(selection.rows),
        sizes=PAGE_SIZES,
        states=STATE_ORDER,
    )


@blueprint.get("/rows")
def rows() -> Response:
    """What differs from version ``since``: see app.js."""
    selection = _selection(query_of_request())
    update = page_of().table.update(selection.rows, request.args.get("since", ""))
    row = get_template_attribute("_rows.html", "connection_row")
    answer: dict[str, Any] = {
        "version": update.version,
        "total": selection.total,
        "matching": selection.matching,
        "counts": dict(selection.counts),
        "order": update.order,
        "rows": {item.key: row(item) for item in update.changed},
    }
    return jsonify(answer)


@blueprint.get("/<conn_id>")
def show(conn_id: str) -> str:
    return render_template("connection.html", connection=daemon().connection(conn_id))


@blueprint.post("/<conn_id>/resend")
def resend(conn_id: str) -> Response:
    daemon().resend(conn_id)
    flash("The newest address change of this connection was sent again.", "ok")
    return redirect(url_for("connections.show", conn_id=conn_id), 303)


@blueprint.get("/<conn_id>/drop")
def ask_drop(conn_id: str) -> str:
    return render_template("connection_drop.html", connection=daemon().connection(conn_id))


@blueprint.post("/<conn_id>/drop")
def drop(conn_id: str) -> Response:
    daemon().drop(conn_id)
    page_of().snapshots.forget()
    flash("The connection is not protected any more.", "ok")
    return redirect(url_for("connections.index"), 303)
