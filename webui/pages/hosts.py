"""Known hosts: whom this machine has met, and what the owner thinks of them."""

from __future__ import annotations

import re
from collections.abc import Callable

from flask import (
    Blueprint,
    current_app,
    flash,
    redirect,
    render_template,
    request,
    url_for,
)
from werkzeug.wrappers import Response

from ..client import DaemonError
from ..context import daemon, page_of
from ..daemon import Peer
from ..present import PEER_STATES

blueprint = Blueprint("hosts", __name__, url_prefix="/hosts")
MAX_NAME = 64
MAX_EXPORT = 64 << 10
SHOWN = 100
_Answer = str | tuple[str, int] | Response


@blueprint.get("/")
def index() -> str:
    search = request.args.get("q", "").strip()[:200]
    state = request.args.get("state", "")
    state = state if state in PEER_STATES else ""
    page_text = request.args.get("page", "1")
    peers = daemon().peers()
    found = sorted(
        (peer for peer in peers if (not state or peer.state == state) and _matches(peer, search)),
        # Whoever waits for an answer comes first.
        key=lambda peer: (peer.state != "pending", peer.name.casefold(), peer.peer_id),
    )
    pages = max(1, -(-len(found) // SHOWN))
    page = min(max(1, int(page_text)), pages) if re.fullmatch(r"[0-9]{1,6}", page_text) else 1
    return render_template(
        "hosts.html",
        peers=found[(page - 1) * SHOWN : page * SHOWN],
        matching=len(found),
        total=len(peers),
        search=search,
        state=state,
        page=page,
        pages=pages,
    )


def _matches(peer: Peer, search: str) -> bool:
    wanted = search.casefold()
    fields = (peer.name, peer.peer_id, peer.dns_name or "", *peer.addresses)
    return not wanted or any(wanted in field.casefold() for field in fields)


@blueprint.get("/<peer_id>")
def show(peer_id: str) -> str:
    return render_template("host.html", peer=daemon().peer(peer_id))


@blueprint.get("/<peer_id>/<any(accept, verify, revoke, forget, export):act>")
def ask(peer_id: str, act: str) -> str:
    return _question(peer_id, act, None)


def _question(peer_id: str, act: str, fault: str | None) -> str:
    return render_template(f"host_{act}.html", peer=daemon().peer(peer_id), fault=fault)


def _done(peer: Peer, text: str) -> Response:
    page_of().snapshots.forget()
    flash(text, "ok")
    return redirect(url_for("hosts.show", peer_id=peer.peer_id), 303)


@blueprint.post("/<peer_id>/accept")
def accept(peer_id: str) -> Response:
    peer = daemon().accept(peer_id)
    return _done(peer, f"{peer.name} is trusted. Compare fingerprints when you can.")


@blueprint.post("/<peer_id>/verify")
def verify(peer_id: str) -> Response:
    peer = daemon().verify(peer_id)
    return _done(peer, f"{peer.name} is verified.")


@blueprint.post("/<peer_id>/revoke")
def revoke(peer_id: str) -> Response:
    peer = daemon().revoke(peer_id)
    return _done(peer, f"{peer.name} is refused from now on.")


@blueprint.post("/<peer_id>/forget")
def forget(peer_id: str) -> Response:
    name = daemon().peer(peer_id).name
    count = daemon().forget(peer_id)
    page_of().snapshots.forget()
    noun = "connection is" if count == 1 else "connections are"
    flash(
        f"{name} is forgotten." + (f" {count} {noun} no longer protected." if count else ""), "ok"
    )
    return redirect(url_for("hosts.index"), 303)


@blueprint.post("/<peer_id>/rename")
def rename(peer_id: str) -> Response:
    name = _name(request.form.get("name", ""))
    if name is None:
        raise DaemonError("bad-request", f"A name has 1 to {MAX_NAME} characters.")
    return _done(daemon().rename(peer_id, name), f"The host is called {name} now.")


@blueprint.post("/<peer_id>/dns")
def dns(peer_id: str) -> Response:
    text = request.form.get("dns_name", "").strip()
    if len(text) > 253:
        raise DaemonError("bad-request", "A DNS name has at most 253 characters.")
    peer = daemon().set_dns_name(peer_id, text or None)
    return _done(peer, f"The DNS name is {text}." if text else "The DNS name is removed.")


@blueprint.post("/<peer_id>/export")
def export(peer_id: str) -> _Answer:
    """Keys leave the machine: the password is asked again, an open browser is not enough."""
    page = page_of()
    if not page.throttle.allowed(request.remote_addr):
        return _question(peer_id, "export", "Too many attempts. Wait a minute."), 429
    if not page.credentials.check_password(request.form.get("password", "")):
        page.throttle.failed(request.remote_addr)
        return _question(peer_id, "export", "That is not the password."), 403
    peer = daemon().peer(peer_id)
    text = daemon().export(peer_id)
    current_app.logger.info("keys of peer %s exported to %s", peer_id, request.remote_addr)
    if request.form.get("as") == "file":
        return _download(text, peer.name)
    return render_template("host_exported.html", peer=peer, text=text, introduced=False)


def _download(text: str, name: str) -> Response:
    safe = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "host"
    return Response(
        text,
        mimetype="text/plain; charset=utf-8",
        headers={"Content-Disposition": f'attachment; filename="redirectd-{safe}.txt"'},
    )


@blueprint.get("/import")
def ask_import() -> str:
    return render_template("host_import.html", fault=None, name="")


@blueprint.post("/import")
def do_import() -> _Answer:
    upload = request.files.get("file")
    pasted = request.form.get("text", "")
    given = request.form.get("name", "")

    def again(fault: str) -> _Answer:
        # What was pasted is a secret: it is not sent back.
        return render_template("host_import.html", fault=fault, name=given[:MAX_NAME]), 400

    if upload is not None and upload.filename:
        data = upload.stream.read(MAX_EXPORT + 1)
        try:
            text = data.decode()
        except UnicodeDecodeError:
            return again("This file is not an export of redirectd: it is not text.")
    else:
        text = pasted
    if len(text) > MAX_EXPORT:
        return again("This is too long to be an export of redirectd.")
    if not text.strip():
        return again("Choose a file, or paste the text of an export.")
    if given.strip() and _name(given) is None:
        return again(f"A name has 1 to {MAX_NAME} characters.")
    return _try(lambda: _imported(text, given), again)


def _imported(text: str, given: str) -> Response:
    peer = daemon().import_peer(text, _name(given))
    return _done(peer, f"{peer.name} is introduced.")


@blueprint.get("/introduce")
def ask_introduce() -> str:
    return render_template("host_introduce.html", fault=None, given={})


@blueprint.post("/introduce")
def do_introduce() -> _Answer:
    given = {key: request.form.get(key, "").strip()[:253] for key in ("name", "address", "port")}

    def again(fault: str) -> _Answer:
        return render_template("host_introduce.html", fault=fault, given=given), 400

    name = _name(given["name"])
    if name is None:
        return again(f"A name has 1 to {MAX_NAME} characters.")
    port: int | None = None
    if given["port"]:
        if not re.fullmatch(r"[0-9]{1,5}", given["port"]) or not 1 <= int(given["port"]) <= 65535:
            return again("A port is a number from 1 to 65535.")
        port = int(given["port"])

    def introduced() -> _Answer:
        made = daemon().introduce(name, given["address"] or None, port)
        current_app.logger.info("peer %s introduced", made.peer.peer_id)
        return render_template(
            "host_exported.html", peer=made.peer, text=made.text, introduced=True
        )

    return _try(introduced, again)


def _try(act: Callable[[], _Answer], again: Callable[[str], _Answer]) -> _Answer:
    """A fault in what was typed is shown at the form, other faults on a page of their own."""
    try:
        return act()
    except DaemonError as error:
        if error.code == "internal":
            raise
        return again(error.message)


def _name(text: str) -> str | None:
    """The name without space around it, or None when it is empty, too long or not printable."""
    name = text.strip()
    return name if 0 < len(name) <= MAX_NAME and name.isprintable() else None
