"""waitress, set up for a small machine."""

from __future__ import annotations

from typing import Any

from flask import Flask
from waitress.server import create_server

from .settings import Settings

THREADS = 6
# Above create_app's MAX_BODY, so that the application refuses what is a little too long with a
# page that says so; what is far too long is refused before it is read to its end.
MAX_BODY = 1 << 20


def make_server(app: Flask, settings: Settings) -> Any:
    """A server bound to ``settings.listen``, not yet running: call ``run()``; OSError if taken."""
    options: dict[str, Any] = {
        "listen": [str(item) for item in settings.listen],
        "threads": THREADS,
        "connection_limit": 64,
        "max_request_body_size": MAX_BODY,
        "max_request_header_size": 16 << 10,
        "inbuf_overflow": MAX_BODY + 1,
        "channel_timeout": 60,
        "ident": None,
    }
    if settings.behind_tls:
        options |= {
            "trusted_proxy": settings.listen[0].address,
            "trusted_proxy_count": 1,
            "trusted_proxy_headers": {"x-forwarded-for", "x-forwarded-proto"},
            "clear_untrusted_proxy_headers": True,
        }
    return create_server(app, **options)
