"""The page before a real daemon, in the lab: what the stand-in daemon promises must be so."""

from __future__ import annotations

from pathlib import Path

import dpkt
import pytest
from playwright.sync_api import Browser, Page, expect

from tests.lab.daemon import Daemon, introduce
from tests.lab.net import Lab
from tests.lab.streams import Traffic, open_stream
from tests.lab.topologies import A, B, two_hosts

from .browser import Complaints, assert_accessible, assert_fits, shoot, window
from .conftest import PASSWORD, Served, serve, settings_for

SIZES = pytest.mark.parametrize("size", ["phone", "desktop"])


def first_sign_in(page: Page, served: Served) -> None:
    page.goto(served.url)
    page.get_by_label("Set-up code").fill(served.credentials.setup_code or "")
    page.get_by_label("New password").fill(PASSWORD)
    page.get_by_label("The same again").fill(PASSWORD)
    page.get_by_role("button", name="Set the password").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Overview")


@SIZES
def test_a_connection_becomes_protected_and_moves_before_ones_eyes(
    lab: Lab, browser: Browser, tmp_path: Path, size: str
) -> None:
    top = two_hosts(lab)
    alice, bob = (Daemon(host, long_lived_after=2) for host in (top.alice, top.bob))
    introduce(alice, bob)
    near, far = Traffic(top.alice), Traffic(top.bob)
    settings = settings_for(tmp_path, control_socket=alice.control)
    with serve(settings) as served, window(browser, size) as page:
        complaints = Complaints(page)
        first_sign_in(page, served)
        page.get_by_role("link", name="Connections", exact=True).click()
        page.evaluate("window.neverReloaded = true")
        stream = open_stream(near, far, top.bob.address())
        row = page.locator("tbody tr").filter(has_text=f":{stream_port(alice)}")
        expect(row).to_contain_text("short-lived")
        expect(row).to_contain_text("protected", timeout=15_000)
        expect(row).to_contain_text("bob")
        top.alice.unplug()
        top.alice.plug(network=top.net.b)
        top.alice.replace_address(A[0], B[0])
        expect(row).to_contain_text("redirected", timeout=15_000)
        expect(row).to_contain_text(B[0].partition("/")[0])
        shoot(page, f"real-connections-{size}")
        assert page.evaluate("window.neverReloaded") is True
        stream.finish().check()
        (seen_by_bob,) = bob.wait_until("bob noted the move", lambda d: d.ctl("moves"))
        old, new = A[0].partition("/")[0], B[0].partition("/")[0]
        assert [seen_by_bob[k] for k in ("ours", "old", "new")] == [False, old, new]
        assert [row["ours"] for row in alice.ctl("moves")] == [True]
        for name, path in {"overview": "/", "history": "/history/", "events": "/events/"}.items():
            page.goto(served.url + path)
            assert_accessible(page)
            assert_fits(page)
            shoot(page, f"real-{name}-{size}")
        page.goto(f"{served.url}/settings/")
        expect(page.get_by_text("is protected once it is 2 s old")).to_be_visible()
        assert complaints.said == []


def stream_port(daemon: Daemon) -> str:
    """The local port of the only connection that there is."""
    rows = daemon.wait_until("one connection", lambda d: d.connections())
    return str(rows[0]["inside"][0]).rpartition(":")[2]


@SIZES
def test_a_host_from_first_contact_to_forgotten(
    lab: Lab, browser: Browser, tmp_path: Path, size: str
) -> None:
    top = two_hosts(lab)
    alice = Daemon(top.alice, long_lived_after=1, first_contact="ask")
    bob = Daemon(top.bob, long_lived_after=1)
    near, far = Traffic(top.alice), Traffic(top.bob)
    stream = open_stream(near, far, top.bob.address())
    settings = settings_for(tmp_path, control_socket=alice.control)
    with serve(settings) as served, window(browser, size) as page:
        complaints = Complaints(page)
        first_sign_in(page, served)
        page.get_by_role("link", name="Known hosts", exact=True).click()
        page.get_by_role("link", name="Accept…").click(timeout=30_000)
        page.get_by_role("button", name="Accept").click()
        expect(page.get_by_text("is trusted.")).to_be_visible()
        alice.wait_bound(1)
        page.get_by_role("link", name="Verify…").click()
        (seen_by_bob,) = bob.ctl("peers")
        expect(page.locator(".fingerprint")).to_have_text(seen_by_bob["fingerprint"])
        shoot(page, f"real-verify-{size}")
        page.get_by_role("button", name="It is the same").click()
        expect(page.get_by_text("is verified.")).to_be_visible()
        page.get_by_label("What you call it").fill("Bob's <b>box</b>")
        page.get_by_role("button", name="Rename").click()
        expect(page.get_by_role("heading", level=1)).to_contain_text("Bob's <b>box</b>")
        page.get_by_role("link", name="Show its connections").click()
        page.locator("tbody tr a").click()
        page.get_by_role("button", name="Send the address change again").click()
        expect(page.locator("main")).to_contain_text("address change")
        (known,) = alice.ctl("peers")
        page.goto(f"{served.url}/hosts/{known['peer_id']}/export")
        page.get_by_label("Your password").fill(PASSWORD)
        with page.expect_download() as waiting:
            page.get_by_role("button", name="Download a file").click()
        backup = tmp_path / waiting.value.suggested_filename
        waiting.value.save_as(backup)
        page.goto(f"{served.url}/hosts/{known['peer_id']}/revoke")
        expect(page.get_by_text("1 connection will end")).to_be_visible()
        page.get_by_role("button", name="Revoke").click()
        expect(page.get_by_text("is refused from now on")).to_be_visible()
        assert [known["state"] for known in alice.ctl("peers")] == ["revoked"]
        page.get_by_role("link", name="Forget…").click()
        page.get_by_role("button", name="Forget").click()
        expect(page.get_by_text("is forgotten.")).to_be_visible()
        assert alice.ctl("peers") == []
        page.get_by_role("link", name="Import", exact=True).click()
        page.get_by_label("A file").set_input_files(backup)
        page.get_by_role("button", name="Import").click()
        expect(page.get_by_text("is introduced.")).to_be_visible()
        # bob's own daemon may have made itself known meanwhile: it is pending
        (again,) = (peer for peer in alice.ctl("peers") if peer["state"] != "pending")
        for key in ("peer_id", "name", "fingerprint", "state"):
            assert again[key] == known[key]
        assert complaints.said == []
    stream.drop()


@SIZES
def test_a_capture_is_recorded_and_read_back(
    lab: Lab, browser: Browser, tmp_path: Path, size: str
) -> None:
    top = two_hosts(lab)
    alice, bob = (Daemon(host, long_lived_after=1) for host in (top.alice, top.bob))
    introduce(alice, bob)
    near, far = Traffic(top.alice), Traffic(top.bob)
    streams = [open_stream(near, far, top.bob.address()) for _ in range(2)]
    row = alice.wait_bound(2)[0]
    settings = settings_for(tmp_path, control_socket=alice.control)
    with serve(settings) as served, window(browser, size) as page:
        complaints = Complaints(page)
        first_sign_in(page, served)
        page.goto(f"{served.url}/connections/{row['conn_id']}")
        page.get_by_label("seconds").fill("2")
        page.get_by_role("button", name="Record").click()
        expect(page.get_by_role("heading", level=1)).to_have_text("Captures")
        card = page.locator("main li").filter(has_text=row["inside"][0])
        expect(card).to_contain_text("recording")
        assert_accessible(page)
        assert_fits(page)
        shoot(page, f"real-capture-running-{size}")
        expect(card).to_contain_text("done", timeout=15_000)
        shoot(page, f"real-capture-done-{size}")
        with page.expect_download() as waiting:
            card.get_by_role("link", name="Download").click()
        file = tmp_path / waiting.value.suggested_filename
        waiting.value.save_as(file)
        card.get_by_role("link", name="Delete…").click()
        page.get_by_role("button", name="Delete").click()
        expect(page.get_by_text("Nothing is recorded.")).to_be_visible()
        assert complaints.said == []
    with file.open("rb") as data:
        packets = [dpkt.ip.IP(frame) for _, frame in dpkt.pcap.Reader(data)]
    ports = {(packet.data.sport, packet.data.dport) for packet in packets}
    local, remote = (int(end.rpartition(":")[2]) for end in row["wire"])
    assert ports == {(local, remote), (remote, local)}
    for stream in streams:
        stream.finish().check()


def test_two_hosts_are_introduced_by_browser_alone(
    lab: Lab, browser: Browser, tmp_path: Path
) -> None:
    top = two_hosts(lab)
    alice, bob = (
        Daemon(h, long_lived_after=1, first_contact="strict") for h in (top.alice, top.bob)
    )
    at_alice = serve(settings_for(tmp_path / "a", control_socket=alice.control))
    at_bob = serve(settings_for(tmp_path / "b", control_socket=bob.control))
    with at_alice as one, at_bob as other, window(browser, "phone") as page:
        first_sign_in(page, one)
        page.goto(f"{one.url}/hosts/introduce")
        page.get_by_label("Name of the other host").fill("bob")
        page.get_by_label("Its address").fill(top.bob.address())
        page.get_by_role("button", name="Make keys").click()
        text = page.get_by_label("The text").input_value()
        page.goto(f"{one.url}/hosts/import")
        page.get_by_label("or the text itself").fill("nonsense")
        page.get_by_role("button", name="Import").click()
        expect(page.get_by_role("alert").first).to_be_visible()
        shoot(page, "real-import-refused")
        page.context.clear_cookies()
        first_sign_in(page, other)
        page.goto(f"{other.url}/hosts/import")
        page.get_by_label("or the text itself").fill(text)
        page.get_by_label("Name (leave").fill("alice")
        page.get_by_role("button", name="Import").click()
        expect(page.get_by_text("alice is introduced.")).to_be_visible()
        stream = open_stream(Traffic(top.alice), Traffic(top.bob), top.bob.address())
        alice.wait_bound(1)
        bob.wait_bound(1)
        stream.drop()
