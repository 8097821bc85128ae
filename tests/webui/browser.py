"""Debian's chromium, driven by Playwright; screenshots go to out/screenshots."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, Playwright, ViewportSize, expect

CHROMIUM = "/usr/bin/chromium"
SCREENSHOTS = Path(__file__).resolve().parents[2] / "out" / "screenshots"
# Without these chromium looks for updates and for its maker's hosts at every start.
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SIZES: dict[str, ViewportSize] = {
    "phone": {"width": 360, "height": 740},
    "desktop": {"width": 1280, "height": 800},
}


expect.set_options(timeout=20_000)  # milliseconds; CI is busy


def launch(playwright: Playwright) -> Browser:
    return playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)


class Complaints:
    """What the browser's console and the policy said; a test ends with none."""

    def __init__(self, page: Page) -> None:
        self.said: list[str] = []
        page.on("pageerror", lambda error: self.said.append(f"error: {error}"))
        page.on(
            "console",
            lambda message: self.said.append(message.text) if message.type == "error" else None,
        )


@contextmanager
def window(
    browser: Browser,
    size: str,
    *,
    scheme: Literal["light", "dark"] = "light",
    javascript: bool = True,
) -> Iterator[Page]:
    """A fresh profile's only page, in a zone that is not the gateway's."""
    context = browser.new_context(
        viewport=SIZES[size],
        color_scheme=scheme,
        java_script_enabled=javascript,
        locale="en-GB",
        timezone_id="Asia/Tokyo",
    )
    page = context.new_page()
    page.set_default_timeout(60_000)
    try:
        yield page
    finally:
        context.close()


def shoot(page: Page, name: str) -> None:
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=True)


def assert_accessible(page: Page) -> None:
    """No serious or critical finding of axe-core."""
    results = Axe().run(page)
    grave = [
        f"{found['id']}: {found['help']}: {[node['html'][:160] for node in found['nodes']]}"
        for found in results.response["violations"]
        if found["impact"] in ("serious", "critical")
    ]
    assert not grave, f"{page.url}: {grave}"


def assert_fits(page: Page) -> None:
    """Nothing makes the page itself wider than the window."""
    width = page.evaluate("document.documentElement.scrollWidth")
    assert width <= page.evaluate("innerWidth"), page.url
