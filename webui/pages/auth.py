"""First start, signing in and out."""

from __future__ import annotations

from flask import (
    Blueprint,
    current_app,
    flash,
    redirect,
    render_template,
    request,
    session,
    url_for,
)
from werkzeug.wrappers import Response

from ..context import Page, page_of
from ..credentials import MIN_PASSWORD, password_fault
from ..guard import SESSION_KEY

blueprint = Blueprint("auth", __name__)
_Answer = str | tuple[str, int] | tuple[str, int, dict[str, str]] | Response


def open_session(page: Page) -> None:
    """A fresh session, so that a cookie from before the sign-in is worth nothing."""
    session.clear()
    session.permanent = True
    session[SESSION_KEY] = page.sessions.open(page.credentials.generation)


def local_path(target: str | None) -> str:
    """``target`` when it is a path of ours, else the overview: no open redirect."""
    if not target or not target.startswith("/") or target.startswith("//"):
        return "/"
    # Browsers take a backslash for a slash, and drop tabs and newlines (WHATWG URL, 4.4).
    odd = any(ord(char) < 0x21 or char == "\\" for char in target)
    return "/" if odd else target


def too_often(template: str) -> _Answer:
    fault = "Too many attempts. Wait a minute, then try again."
    return render_template(template, fault=fault, minimum=MIN_PASSWORD), 429, {"Retry-After": "60"}


@blueprint.get("/login")
def login() -> _Answer:
    page = page_of()
    if not page.credentials.has_password:
        return redirect(url_for("auth.setup"), 303)
    return render_template("login.html", fault=None)


@blueprint.post("/login")
def do_login() -> _Answer:
    page = page_of()
    if not page.credentials.has_password:
        return redirect(url_for("auth.setup"), 303)
    if not page.throttle.allowed(request.remote_addr):
        return too_often("login.html")
    if not page.credentials.check_password(request.form.get("password", "")):
        page.throttle.failed(request.remote_addr)
        current_app.logger.warning("wrong password from %s", request.remote_addr)
        return render_template("login.html", fault="That is not the password."), 403
    open_session(page)
    current_app.logger.info("signed in from %s", request.remote_addr)
    return redirect(local_path(request.args.get("next")), 303)


@blueprint.get("/setup")
def setup() -> _Answer:
    if page_of().credentials.has_password:
        return redirect(url_for("auth.login"), 303)
    return render_template("setup.html", fault=None, minimum=MIN_PASSWORD)


@blueprint.post("/setup")
def do_setup() -> _Answer:
    page = page_of()
    if page.credentials.has_password:
        return redirect(url_for("auth.login"), 303)
    if not page.throttle.allowed(request.remote_addr):
        return too_often("setup.html")
    fault: str | None
    if not page.credentials.check_code(request.form.get("code", "")):
        page.throttle.failed(request.remote_addr)
        current_app.logger.warning("wrong set-up code from %s", request.remote_addr)
        fault = "That is not the set-up code."
    else:
        fault = password_fault(request.form.get("password", ""), request.form.get("again", ""))
    if fault is not None:
        return render_template("setup.html", fault=fault, minimum=MIN_PASSWORD), 403
    page.credentials.set_password(request.form["password"])
    page.sessions.close_all()
    open_session(page)
    current_app.logger.info("password set from %s", request.remote_addr)
    flash("The password is set, and you are signed in.", "ok")
    return redirect(url_for("overview.show"), 303)


@blueprint.post("/logout")
def logout() -> Response:
    page_of().sessions.close(session.get(SESSION_KEY, ""))
    session.clear()
    flash("You are signed out.", "info")
    return redirect(url_for("auth.login"), 303)
