"""Known hosts: accept, verify, rename, revoke, forget, export, import."""

from __future__ import annotations

import html
import io

import pytest

from .conftest import PASSWORD, Site
from .fake_daemon import FakeDaemon
from .homes import fill


@pytest.mark.parametrize(("act", "state"), [("accept", "trusted"), ("verify", "verified")])
def test_a_pending_host_is_accepted_and_verified(
    site: Site, fake: FakeDaemon, act: str, state: str
) -> None:
    fill(fake)
    page = f"/hosts/{fake.peers[0]['peer_id']}/{act}"
    question = site.client.get(page).get_data(as_text=True)
    assert fake.peers[0]["fingerprint"].split()[0] in question
    assert fake.peers[0]["state"] == "pending"
    assert site.post(page).status_code == 303
    assert fake.peers[0]["state"] == state


@pytest.mark.parametrize("act", ["revoke", "forget"])
def test_what_ends_protection_says_so_first(site: Site, fake: FakeDaemon, act: str) -> None:
    fill(fake)
    page = f"/hosts/{fake.peers[1]['peer_id']}/{act}"
    question = site.client.get(page).get_data(as_text=True)
    assert "2 connections will end when their address next changes." in question
    assert fake.done(f"peer.{act}") == []
    assert site.post(page).status_code == 303
    assert fake.done(f"peer.{act}") == [{"peer": f"{2:032x}"}]


def test_a_host_is_renamed_and_given_a_dns_name(site: Site, fake: FakeDaemon) -> None:
    fill(fake)
    page = f"/hosts/{fake.peers[0]['peer_id']}"
    assert site.post(f"{page}/rename", form_at=page, name="  bench ").status_code == 303
    assert fake.peers[0]["name"] == "bench"
    assert site.post(f"{page}/dns", form_at=page, dns_name="b.example").status_code == 303
    assert fake.peers[0]["dns_name"] == "b.example"
    assert site.post(f"{page}/dns", form_at=page, dns_name="").status_code == 303
    assert fake.peers[0]["dns_name"] is None


@pytest.mark.parametrize("name", ["", "x" * 65, "a\nb", "bell\x07"])
def test_a_name_that_cannot_be_shown_is_refused(site: Site, fake: FakeDaemon, name: str) -> None:
    fill(fake)
    page = f"/hosts/{fake.peers[0]['peer_id']}"
    assert site.post(f"{page}/rename", form_at=page, name=name).status_code == 400
    assert fake.peers[0]["name"] == "laptop"


def test_a_refusal_of_the_daemon_is_shown(site: Site, fake: FakeDaemon) -> None:
    fill(fake)
    page = f"/hosts/{fake.peers[0]['peer_id']}"
    response = site.post(f"{page}/rename", form_at=page, name="office")
    assert response.status_code == 409
    assert "another peer is called" in html.unescape(response.get_data(as_text=True))


def test_an_export_needs_the_password_and_comes_as_a_file(site: Site, fake: FakeDaemon) -> None:
    fill(fake)
    page = f"/hosts/{fake.peers[1]['peer_id']}/export"
    refused = site.post(page, password="wrong password")
    assert refused.status_code == 403
    assert "SECRET" not in refused.get_data(as_text=True)
    assert fake.done("peer.export") == []
    response = site.post(page, password=PASSWORD, **{"as": "file"})
    assert "SECRET-KEYS-OF office" in response.get_data(as_text=True)
    assert response.headers["Content-Disposition"] == 'attachment; filename="redirectd-office.txt"'
    assert response.headers["Cache-Control"] == "no-store"


def test_an_export_can_be_shown_as_text(site: Site, fake: FakeDaemon) -> None:
    fill(fake)
    page = f"/hosts/{fake.peers[1]['peer_id']}/export"
    response = site.post(page, password=PASSWORD, **{"as": "text"})
    assert "SECRET-KEYS-OF office" in response.get_data(as_text=True)
    assert "Content-Disposition" not in response.headers


def test_a_host_is_imported_by_pasting(site: Site, fake: FakeDaemon) -> None:
    response = site.post("/hosts/import", text="redirectd-pair-1\nkeys of far", name="")
    assert response.status_code == 303
    assert [known["name"] for known in fake.peers] == ["far"]


def test_a_host_is_imported_from_a_file_under_a_name(site: Site, fake: FakeDaemon) -> None:
    upload = (io.BytesIO(b"redirectd-pair-1\nkeys of far"), "pair.txt")
    assert site.post("/hosts/import", file=upload, text="", name="near").status_code == 303
    assert fake.done("peer.import") == [{"text": "redirectd-pair-1\nkeys of far", "name": "near"}]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({}, "Choose a file"),
        ({"text": "PRIVATE nonsense"}, "not an export of redirectd"),
        ({"file": (b"\xff\xfe\x00", "x.bin")}, "it is not text"),
        ({"text": "x" * 70000}, "too long"),
    ],
)
def test_what_is_no_export_is_refused(
    site: Site, fake: FakeDaemon, data: dict[str, object], said: str
) -> None:
    match data.get("file"):
        case (bytes() as content, name):
            data = {"file": (io.BytesIO(content), name)}
    response = site.post("/hosts/import", **data)
    assert response.status_code == 400
    text = response.get_data(as_text=True)
    assert said in text
    assert "PRIVATE" not in text
    assert fake.peers == []


def test_a_ten_megabyte_import_is_refused(site: Site, fake: FakeDaemon) -> None:
    upload = (io.BytesIO(b"x" * (10 << 20)), "big.txt")
    response = site.post("/hosts/import", file=upload)
    assert response.status_code == 413
    assert fake.done("peer.import") == []


def test_a_host_is_introduced_and_its_text_shown_once(site: Site, fake: FakeDaemon) -> None:
    response = site.post("/hosts/introduce", name="cabin", address="198.51.100.9", port="4787")
    assert "SECRET-KEYS-FOR cabin" in response.get_data(as_text=True)
    assert fake.done("peer.introduce") == [
        {"name": "cabin", "address": "198.51.100.9", "port": 4787}
    ]


@pytest.mark.parametrize("port", ["0", "70000", "x", "-1", "4787 "])
def test_a_port_out_of_range_is_refused(site: Site, fake: FakeDaemon, port: str) -> None:
    response = site.post("/hosts/introduce", name="cabin", port=port)
    assert response.status_code == (200 if port == "4787 " else 400)
    assert len(fake.done("peer.introduce")) == (1 if port == "4787 " else 0)
