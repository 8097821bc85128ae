"""What the blueprints share: one Page an application, one Daemon a request."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from flask import Flask, current_app, g

from .client import ControlClient
from .credentials import Credentials
from .daemon import Daemon
from .live import LiveTable, Snapshots
from .sessions import Sessions
from .settings import Settings
from .throttle import Throttle

_EXTENSION = "redirectd-web"


@dataclass(frozen=True, slots=True)
class Page:
    """Everything that outlives a request. ``now``: seconds since the epoch."""

    settings: Settings
    credentials: Credentials
    sessions: Sessions
    throttle: Throttle
    snapshots: Snapshots
    table: LiveTable
    now: Callable[[], float]

    def daemon(self) -> Daemon:
        return Daemon(ControlClient(self.settings.control_socket))


def attach(app: Flask, page: Page) -> None:
    app.extensions[_EXTENSION] = page

    @app.teardown_appcontext
    def hang_up(_error: BaseException | None) -> None:
        daemon = g.pop("daemon", None)
        if daemon is not None:
            daemon.close()


def page_of() -> Page:
    return cast(Page, current_app.extensions[_EXTENSION])


def daemon() -> Daemon:
    """This request's connection to the daemon; hung up when the request ends."""
    if "daemon" not in g:
        g.daemon = page_of().daemon()
    return cast(Daemon, g.daemon)
