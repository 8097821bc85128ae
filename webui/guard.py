"""What every request passes first (Host, sign-in) and every answer carries (headers)."""

from __future__ import annotations

import re

from flask import (
    Flask,
    Response,
    abort,
    flash,
    redirect,
    render_template,
    request,
    session,
    url_for,
)
from werkzeug.wrappers import Response as BaseResponse

from .context import Page, page_of

# Nothing from another machine, nothing inline: script in a host name stays text even if a
# template forgot to escape it.
CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)
_HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # Not no-referrer: behind TLS the CSRF check compares the referrer (RFC 9110, 10.1.3).
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=(), payment=(), usb=()",
}
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]{2,45}\]|[0-9A-Za-z.-]{1,253})(?::[0-9]{1,5})?")
OPEN_ENDPOINTS = frozenset(
    {"static", "auth.login", "auth.do_login", "auth.setup", "auth.do_setup", "metrics.show"}
)
SESSION_KEY = "sid"
LIVE_HEADER = "X-Live"


def is_live() -> bool:
    """Whether the page itself asks again, without a person having done anything."""
    return LIVE_HEADER in request.headers


def signed_in(page: Page, touch: bool) -> bool:
    name = session.get(SESSION_KEY)
    return isinstance(name, str) and page.sessions.check(name, page.credentials.generation, touch)


def _check_host() -> None:
    """DNS rebinding: a foreign name that was made to point here (RFC 9110, 7.2 and 17.1)."""
    match = _HOST.fullmatch(request.headers.get("Host", ""))
    if match is None or match[1].lower().rstrip(".") not in page_of().settings.hosts:
        abort(421)


def _check_sign_in() -> BaseResponse | None:
    if request.endpoint in OPEN_ENDPOINTS:
        return None
    page = page_of()
    if not page.credentials.has_password:
        return redirect(url_for("auth.setup"), 303)
    if signed_in(page, touch=not is_live()):
        return None
    if is_live():
        return Response("signed out\n", 401, mimetype="text/plain")
    was_signed_in = SESSION_KEY in session
    session.clear()
    if was_signed_in:
        text = "You were signed out."
        if request.method == "POST":
            text += " Nothing was changed: sign in and do it again."
        flash(text, "info")
    target = request.full_path.rstrip("?") if request.method == "GET" else None
    return redirect(url_for("auth.login", next=target if target != "/" else None), 303)


def _add_headers(response: Response) -> Response:
    for name, value in _HEADERS.items():
        response.headers.setdefault(name, value)
    if page_of().settings.behind_tls:
        # Browsers heed it on secure origins only, and complain elsewhere (HTML 7.1.3).
        response.headers.setdefault("Cross-Origin-Opener-Policy", "same-origin")
    if request.endpoint != "static":
        response.headers.setdefault("Cache-Control", "no-store")
    return response


def install(app: Flask) -> None:
    """Register the checks, in this order. CSRF comes after them (see app.py)."""
    app.before_request(_check_host)
    app.before_request(_check_sign_in)
    app.after_request(_add_headers)

    @app.errorhandler(421)
    def foreign_host(_error: object) -> tuple[str, int]:
        return render_template("foreign_host.html"), 421
