"""What the fake daemon's gateway knows in most tests of pages, and the way in."""

from __future__ import annotations

import time

from playwright.sync_api import Page, expect

from .conftest import PASSWORD, Served
from .fake_daemon import FakeDaemon, bound, capture, connection, event, move, peer


def fill(fake: FakeDaemon) -> None:
    pending, trusted = peer(1, name="laptop", state="pending"), peer(2, name="office")
    fake.peers = [pending, trusted]
    fake.connections = [
        connection(1),
        bound(2, trusted),
        bound(
            3,
            trusted,
            state="redirected",
            moves=2,
            last_move=time.time() - 5,
            wire=["203.0.113.9:20003", "198.51.100.4:22"],
        ),
    ]
    fake.moves = [move(1), move(2, peer_id=trusted["peer_id"], refused=1)]
    fake.events = [event(2, level="warning", text="key changed"), event(1)]
    fake.captures = [capture(2, state="running"), capture(1, state="failed", why="no pcap", size=0)]


def sign_in(page: Page, served: Served) -> None:
    if not served.credentials.has_password:
        served.credentials.set_password(PASSWORD)
    page.goto(served.url)
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Overview")


def populate(fake: FakeDaemon) -> None:
    """A home with a little of everything."""
    now = time.time()
    laptop = peer(1, name="laptop", state="pending", session="none")
    office = peer(2, name="office", addresses=["198.51.100.23", "2001:db8:5::23"])
    backup = peer(3, name="backup", state="verified", dns_name="backup.example.net")
    old = peer(4, name="old-vps", state="revoked", session="none")
    fake.peers = [laptop, office, backup, old]
    moved = {"moves": 2, "last_move": now - 40}
    fake.connections = [
        bound(
            1,
            office,
            state="redirected",
            wire=["203.0.113.7:20001", "198.51.100.23:22"],
            birth=["203.0.113.99:20001", "198.51.100.23:22"],
            **moved,
        ),
        bound(2, backup, state="held", held=4, held_since=now - 1),
        bound(3, office, integrity="on", path="divert"),
        bound(
            4,
            backup,
            inside=["[2001:db8:aaaa:bbbb:cccc:dddd:eeee:10]:40004", "[2001:db8:5::23]:873"],
            birth=["[2001:db8:aaaa:bbbb:cccc:dddd:eeee:10]:40004", "[2001:db8:5::23]:873"],
        ),
        connection(5),
        connection(6, state="short", since=now - 3, why=""),
    ]
    fake.moves = [
        move(1, new="203.0.113.7", old="203.0.113.99"),
        move(2, peer_id=office["peer_id"], old="198.51.100.77", new="198.51.100.23"),
        move(30, handover_ms=1240.0, refused=1, connections=12),
    ]
    fake.events = [
        event(6, level="alert", kind="key-changed", text="laptop shows another key than before"),
        event(5, kind="moved", text="moved 3 connections to 203.0.113.7 in 43 ms"),
        event(4, level="warning", kind="refused", text="old-vps was refused: it is revoked"),
        event(3, kind="bound", text="bound a connection with office", peer_id=office["peer_id"]),
        event(2, level="debug", kind="timer", text="asked 198.51.100.6 once"),
        event(1, text="met office for the first time"),
    ]
    fake.captures = [
        capture(3, text="connection 192.168.1.10:20001 to 198.51.100.23:22", state="running"),
        capture(2, state="failed", size=0, why="can't capture on any: permission denied"),
        capture(1, text="host backup", size=812_345),
    ]
    fake.warnings = [
        {
            "kind": "key-changed",
            "text": "laptop shows another key than before.",
            "peer_id": laptop["peer_id"],
            "conn_id": None,
        }
    ]
