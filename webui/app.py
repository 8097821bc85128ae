"""create_app(): the admin page as a WSGI application."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta

from flask import Flask, render_template, request
from flask_wtf import CSRFProtect
from flask_wtf.csrf import CSRFError
from werkzeug.exceptions import HTTPException

from . import guard, present
from .client import DaemonDown, DaemonError
from .context import Page, attach, page_of
from .credentials import Credentials, StateError
from .live import LiveTable, Snapshots
from .pages import auth, captures, connections, events, history, hosts, metrics, overview, settings
from .sessions import Sessions
from .settings import Settings
from .throttle import Throttle

# An exported pair is a few hundred bytes; nothing else that comes in is longer than a line.
MAX_BODY = 256 << 10
_STATUS_OF = {"not-found": 404, "bad-request": 400, "ambiguous": 400, "conflict": 409}


def create_app(
    config: Settings,
    *,
    clock: Callable[[], float] = time.monotonic,
    now: Callable[[], float] = time.time,
) -> Flask:
    """The application for ``config``; StateError when its state directory can't be used.

    ``clock`` counts seconds and never goes back; ``now`` is seconds since the epoch.
    """
    credentials = Credentials(config.state_dir)
    credentials.prepare()
    app = Flask(__name__)
    app.config.update(
        SECRET_KEY=credentials.secret,
        MAX_CONTENT_LENGTH=MAX_BODY,
        MAX_FORM_MEMORY_SIZE=MAX_BODY,
        MAX_FORM_PARTS=20,
        # The prefix makes browsers refuse the cookie for other paths and names (RFC 6265bis).
        SESSION_COOKIE_NAME="__Host-redirectd" if config.behind_tls else "redirectd",
        SESSION_COOKIE_SECURE=config.behind_tls,
        SESSION_COOKIE_HTTPONLY=True,
        SESSION_COOKIE_SAMESITE="Strict",
        PERMANENT_SESSION_LIFETIME=timedelta(hours=config.session_max),
        WTF_CSRF_TIME_LIMIT=config.session_max * 3600,
        SEND_FILE_MAX_AGE_DEFAULT=3600,
    )
    attach(
        app,
        Page(
            settings=config,
            credentials=credentials,
            sessions=Sessions(config.session_idle * 60, config.session_max * 3600, clock),
            throttle=Throttle(),
            snapshots=Snapshots(clock),
            table=LiveTable(),
            now=now,
        ),
    )
    guard.install(app)
    CSRFProtect(app)
    present.install(app)
    for module in (
        auth, overview, connections, hosts, history, events, captures, settings, metrics,
    ):  # fmt: skip
        app.register_blueprint(module.blueprint)
    _handle_errors(app)
    return app


def _handle_errors(app: Flask) -> None:
    @app.errorhandler(DaemonDown)
    def daemon_down(error: DaemonDown) -> tuple[str, int]:
        page_of().snapshots.forget()
        return render_template("daemon_down.html", error=error), 503

    @app.errorhandler(DaemonError)
    def daemon_refused(error: DaemonError) -> tuple[str, int]:
        title = "Not found" if error.code == "not-found" else "redirectd refused this"
        status = _STATUS_OF.get(error.code, 500 if error.code == "internal" else 409)
        return render_template("error.html", title=title, text=error.message), status

    @app.errorhandler(StateError)
    def no_state(error: StateError) -> tuple[str, int]:
        app.logger.error("%s", error)
        text = "The page's own files cannot be read; its log names the file."
        return render_template("error.html", title="Not now", text=text), 500

    @app.errorhandler(CSRFError)
    def no_token(error: CSRFError) -> tuple[str, int]:
        text = (
            "This form was too old, or it was sent from another site. Nothing was changed. "
            "Go back, reload the page and try again."
        )
        return render_template("error.html", title="Form refused", text=text), 400

    @app.errorhandler(413)
    def too_large(_error: object) -> tuple[str, int]:
        text = (
            "What was sent is too large to be an export of redirectd, which is a few hundred "
            "bytes of text. Nothing was imported."
        )
        return render_template("error.html", title="Too large", text=text), 413

    @app.errorhandler(HTTPException)
    def other(error: HTTPException) -> tuple[str, int]:
        text = {
            404: "There is no such page.",
            405: "This address cannot be opened like that.",
        }.get(error.code or 500, error.description or "")
        return render_template("error.html", title=error.name, text=text), error.code or 500

    @app.errorhandler(Exception)
    def broken(error: Exception) -> tuple[str, int]:
        app.logger.error("%s %s failed", request.method, request.path, exc_info=error)
        text = "Something went wrong in the page itself; its log has the details."
        return render_template("error.html", title="Internal error", text=text), 500
