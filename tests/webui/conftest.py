"""A page with a scripted daemon behind it: as a Flask client, and as a served site."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import attrs
import pytest
from argon2 import PasswordHasher
from flask import Flask
from flask.testing import FlaskClient
from playwright.sync_api import Browser as Chromium
from playwright.sync_api import sync_playwright
from waitress import wasyncore
from werkzeug.test import TestResponse

from webui.app import create_app
from webui.credentials import Credentials
from webui.serve import make_server
from webui.settings import Listen, Settings

from .browser import launch
from .fake_daemon import FakeDaemon

PASSWORD = "correct horse battery"
# As little work as Argon2 allows: tests sign in hundreds of times.
QUICK_HASH = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1).hash(PASSWORD)


@dataclass
class Clock:
    """Seconds that pass only when a test says so."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[FakeDaemon]:
    daemon = FakeDaemon(tmp_path / "control.sock")
    yield daemon
    if daemon.path.exists():
        daemon.stop()


class Browser(FlaskClient):
    """Opens the page by its address, unless told another Host."""

    def open(self, *args: Any, **options: Any) -> TestResponse:
        return super().open(*args, **({"base_url": "http://192.168.1.1:4788"} | options))


@dataclass
class Site:
    """The application without a server; ``client`` is one browser."""

    app: Flask
    settings: Settings
    credentials: Credentials
    clock: Clock
    client: FlaskClient = field(init=False)

    def __post_init__(self) -> None:
        self.client = self.browser()

    def browser(self, address: str = "192.168.1.20") -> FlaskClient:
        client = self.app.test_client()
        client.environ_base["REMOTE_ADDR"] = address
        return client

    def token(self, path: str, client: FlaskClient | None = None) -> str:
        page = (client or self.client).get(path).get_data(as_text=True)
        match = re.search(r'name="csrf_token" value="([^"]+)"', page)
        assert match is not None, page
        return match[1]

    def post(
        self,
        path: str,
        *,
        form_at: str | None = None,
        client: FlaskClient | None = None,
        **data: object,
    ) -> TestResponse:
        """Send the form that stands at ``form_at`` (or ``path``) as a browser does."""
        client = client or self.client
        token = self.token(form_at or path, client)
        return client.post(path, data={"csrf_token": token, **data})

    def sign_in(self) -> None:
        response = self.post("/login", password=PASSWORD)
        assert response.status_code == 303, response.get_data(as_text=True)


def settings_for(tmp_path: Path, **changes: object) -> Settings:
    values: dict[str, object] = {
        "listen": (Listen("192.168.1.1", 4788),),
        "names": ("gateway.lan",),
        "state_dir": tmp_path / "state",
        "control_socket": tmp_path / "control.sock",
    }
    return Settings(**(values | changes))  # type: ignore[arg-type]


@pytest.fixture
def new_site(tmp_path: Path, fake: FakeDaemon) -> Site:
    """First start: no password is set."""
    settings = settings_for(tmp_path)
    clock = Clock()
    app = create_app(settings, clock=clock)
    app.test_client_class = Browser
    return Site(app, settings, Credentials(settings.state_dir), clock)


@pytest.fixture
def site(new_site: Site) -> Site:
    """The owner is signed in."""
    (new_site.settings.state_dir / "password").write_text(QUICK_HASH)
    (new_site.settings.state_dir / "password").chmod(0o600)
    (new_site.settings.state_dir / "setup-code").unlink()
    new_site.sign_in()
    return new_site


@dataclass
class Served:
    """The page behind waitress on loopback."""

    url: str
    settings: Settings
    credentials: Credentials


@contextmanager
def serve(settings: Settings) -> Iterator[Served]:
    """Serves on a free port of loopback for as long as the context lasts."""
    settings = attrs.evolve(settings, listen=(Listen("127.0.0.1", 0),))
    server = make_server(create_app(settings), settings)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{server.effective_port}"
    yield Served(url, settings, Credentials(settings.state_dir))
    # In the server's own thread; with nothing left to listen to, its loop ends.
    server.trigger.pull_trigger(lambda: wasyncore.close_all(server._map))
    thread.join(10)
    server.task_dispatcher.shutdown()


@pytest.fixture
def served(tmp_path: Path, fake: FakeDaemon) -> Iterator[Served]:
    with serve(settings_for(tmp_path)) as site:
        yield site


# Not longer than a module: Playwright's event loop is in the way of tests that run their own.
@pytest.fixture(scope="module")
def browser() -> Iterator[Chromium]:
    with sync_playwright() as playwright:
        chromium = launch(playwright)
        yield chromium
        chromium.close()
