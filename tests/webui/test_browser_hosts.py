"""Known hosts in a real browser."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from .browser import Complaints, assert_accessible, assert_fits, shoot, window
from .conftest import PASSWORD, Served
from .fake_daemon import FakeDaemon, bound, peer
from .homes import populate, sign_in

SIZES = pytest.mark.parametrize("size", ["phone", "desktop"])


@SIZES
def test_a_host_from_pending_to_forgotten(
    browser: Browser, served: Served, fake: FakeDaemon, size: str
) -> None:
    populate(fake)
    laptop = fake.peers[0]
    fake.connections.append(bound(9, laptop))
    with window(browser, size) as page:
        complaints = Complaints(page)
        sign_in(page, served)
        page.get_by_role("link", name="Known hosts", exact=True).click()
        page.get_by_role("link", name="Accept…").click()
        page.get_by_role("button", name="Accept").click()
        expect(page.get_by_text("laptop is trusted.")).to_be_visible()
        page.get_by_role("link", name="Verify…").click()
        expect(page.locator(".fingerprint")).to_have_text(laptop["fingerprint"])
        page.get_by_role("button", name="It is the same").click()
        expect(page.get_by_text("laptop is verified.")).to_be_visible()
        page.get_by_label("What you call it").fill("workbench")
        page.get_by_role("button", name="Rename").click()
        expect(page.get_by_role("heading", level=1)).to_contain_text("workbench")
        page.get_by_role("link", name="Revoke…").click()
        expect(page.get_by_text("1 connection will end when its address")).to_be_visible()
        page.get_by_role("link", name="Cancel").click()
        assert laptop["state"] == "verified"
        page.get_by_role("link", name="Revoke…").click()
        page.get_by_role("button", name="Revoke").click()
        expect(page.get_by_text("is refused from now on")).to_be_visible()
        page.get_by_role("link", name="Forget…").click()
        page.get_by_role("button", name="Forget").click()
        expect(page.get_by_text("workbench is forgotten.")).to_be_visible()
        assert laptop not in fake.peers
        assert complaints.said == []


@SIZES
def test_keys_leave_and_come_back(
    browser: Browser, served: Served, fake: FakeDaemon, size: str, tmp_path: Path
) -> None:
    fake.peers = [peer(2, name="office")]
    with window(browser, size) as page:
        sign_in(page, served)
        page.goto(f"{served.url}/hosts/{fake.peers[0]['peer_id']}")
        page.get_by_role("link", name="Export keys…").click()
        page.get_by_label("Your password").fill(PASSWORD)
        with page.expect_download() as waiting:
            page.get_by_role("button", name="Download a file").click()
        saved = tmp_path / waiting.value.suggested_filename
        waiting.value.save_as(saved)
        assert saved.name == "redirectd-office.txt"
        fake.peers = []
        page.goto(f"{served.url}/hosts/")
        page.get_by_role("link", name="Import", exact=True).click()
        page.get_by_label("A file").set_input_files(saved)
        page.get_by_role("button", name="Import").click()
        expect(page.get_by_text("office is introduced.")).to_be_visible()
        page.goto(f"{served.url}/hosts/import")
        page.get_by_label("or the text itself").fill("redirectd-pair-1\nkeys of cabin")
        page.get_by_role("button", name="Import").click()
        expect(page.get_by_text("cabin is introduced.")).to_be_visible()
        page.goto(f"{served.url}/hosts/introduce")
        page.get_by_label("Name of the other host").fill("boat")
        page.get_by_role("button", name="Make keys").click()
        expect(page.get_by_label("The text")).to_have_value(
            "redirectd-pair-1\nSECRET-KEYS-FOR boat\n"
        )
        assert_accessible(page)
        assert_fits(page)
        shoot(page, f"introduced-{size}")


@pytest.mark.parametrize("javascript", [True, False])
def test_a_ten_megabyte_file_is_refused(
    browser: Browser, served: Served, fake: FakeDaemon, tmp_path: Path, javascript: bool
) -> None:
    big = tmp_path / "big.txt"
    big.write_bytes(b"x" * (10 << 20))
    with window(browser, "desktop", javascript=javascript) as page:
        sign_in(page, served)
        page.goto(f"{served.url}/hosts/import")
        page.get_by_label("A file").set_input_files(big)
        page.get_by_role("button", name="Import").click()
        expect(page.get_by_text("too large").first).to_be_visible()
        assert fake.done("peer.import") == []
