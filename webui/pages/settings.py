"""What the daemon runs with, explained; and the page's own password."""

from __future__ import annotations

from flask import Blueprint, current_app, flash, redirect, render_template, request, url_for
from werkzeug.wrappers import Response

from ..context import daemon, page_of
from ..credentials import MIN_PASSWORD, password_fault
from ..explain import explain
from ..present import flatten
from .auth import open_session

blueprint = Blueprint("settings", __name__, url_prefix="/settings")


@blueprint.get("/")
def show() -> str:
    config = daemon().config()
    return render_template(
        "settings.html",
        config=config,
        rows=flatten(config.settings),
        policy=explain(config.settings),
        settings=page_of().settings,
    )


def _password_page(fault: str | None) -> str:
    return render_template("password.html", fault=fault, minimum=MIN_PASSWORD)


@blueprint.get("/password")
def password() -> str:
    return _password_page(None)


@blueprint.post("/password")
def do_password() -> Response | tuple[str, int]:
    page = page_of()
    if not page.throttle.allowed(request.remote_addr):
        return _password_page("Too many attempts. Wait a minute, then try again."), 429
    if not page.credentials.check_password(request.form.get("current", "")):
        page.throttle.failed(request.remote_addr)
        return _password_page("That is not the current password."), 403
    fault = password_fault(request.form.get("password", ""), request.form.get("again", ""))
    if fault is not None:
        return _password_page(fault), 400
    page.credentials.set_password(request.form["password"])
    page.sessions.close_all()
    open_session(page)
    current_app.logger.info("password changed from %s", request.remote_addr)
    flash("The password is changed. Everybody else is signed out.", "ok")
    return redirect(url_for("settings.show"), 303)
