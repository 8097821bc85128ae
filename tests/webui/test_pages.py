"""The pages as a browser without JavaScript gets them."""

from __future__ import annotations

import html
import time
from html.parser import HTMLParser

import pytest

from .conftest import PASSWORD, Site
from .fake_daemon import CAPTURED, FakeDaemon, event, move, peer
from .homes import fill

PAGES = ("/", "/connections/", "/hosts/", "/history/", "/events/", "/captures/", "/settings/")
SCRIPT = '<script>alert("x")</script><img src=x onerror=alert(1)>'


class _Tags(HTMLParser):
    """Which elements and attributes a page has."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))


def tags(text: str) -> list[tuple[str, dict[str, str | None]]]:
    parser = _Tags()
    parser.feed(text)
    return parser.seen


@pytest.mark.parametrize("path", PAGES)
def test_every_page_shows_without_any_data(site: Site, path: str) -> None:
    assert site.client.get(path).status_code == 200


@pytest.mark.parametrize("path", PAGES)
def test_every_page_shows_with_data(site: Site, fake: FakeDaemon, path: str) -> None:
    fill(fake)
    assert site.client.get(path).status_code == 200


@pytest.mark.parametrize("path", PAGES)
def test_every_page_says_how_to_start_the_daemon_when_it_is_stopped(
    site: Site, fake: FakeDaemon, path: str
) -> None:
    fake.stop()
    response = site.client.get(path)
    assert response.status_code == 503
    text = response.get_data(as_text=True)
    assert "redirectd does not answer" in text
    assert "start redirectd" in text
    assert "the socket is not there" in text


def test_the_overview_says_how_things_stand(site: Site, fake: FakeDaemon) -> None:
    fill(fake)
    fake.warnings = [
        {"kind": "key", "text": "laptop shows another key", "peer_id": fake.peers[0]["peer_id"]}
    ]
    text = site.client.get("/").get_data(as_text=True)
    assert '<p class="big" id="protected">2</p>' in text
    assert "203.0.113.7" in text
    assert "43 ms" in text
    assert "laptop shows another key" in text


def test_connections_show_names_states_and_both_addresses(site: Site, fake: FakeDaemon) -> None:
    fill(fake)
    text = site.client.get("/connections/").get_data(as_text=True)
    for wanted in ("office", "redirected", "192.168.1.10:20003", "203.0.113.9:20003"):
        assert wanted in text
    assert "far end does not run redirectd" in text


def test_connections_can_be_filtered_by_text_and_state(site: Site, fake: FakeDaemon) -> None:
    fill(fake)
    text = site.client.get("/connections/?q=20003").get_data(as_text=True)
    assert "192.168.1.10:20003" in text
    assert "192.168.1.10:20002" not in text
    text = site.client.get("/connections/?state=bound").get_data(as_text=True)
    assert "192.168.1.10:20002" in text
    assert "192.168.1.10:20003" not in text
    assert "No connection matches" in site.client.get("/connections/?q=nobody").get_data(
        as_text=True
    )


def test_only_changed_rows_are_sent_again(site: Site, fake: FakeDaemon) -> None:
    fill(fake)
    first = site.client.get("/connections/rows").get_json()
    assert len(first["rows"]) == 3
    same = site.client.get(f"/connections/rows?since={first['version']}").get_json()
    assert same["order"] is None
    assert same["rows"] == {}
    fake.connections[1]["state"] = "held"
    site.clock.now += 2
    later = site.client.get(f"/connections/rows?since={first['version']}").get_json()
    assert len(later["rows"]) == 1
    (row,) = later["rows"].values()
    assert "held" in row
    assert later["order"][0] in later["rows"]
    assert later["counts"]["held"] == 1


def test_many_watchers_ask_the_daemon_once_a_second(site: Site, fake: FakeDaemon) -> None:
    fill(fake)
    for _ in range(10):
        site.client.get("/connections/rows")
    assert len(fake.done("connections")) == 1


def test_a_connection_can_be_sent_again_and_dropped(site: Site, fake: FakeDaemon) -> None:
    fill(fake)
    conn_id = fake.connections[2]["conn_id"]
    page = f"/connections/{conn_id}"
    response = site.post(f"{page}/resend", form_at=page)
    assert response.status_code == 303
    assert fake.done("connection.resend") == [{"conn": conn_id}]
    question = site.client.get(f"{page}/drop").get_data(as_text=True)
    assert "it ends at once" in question
    assert site.post(f"{page}/drop").status_code == 303
    assert fake.done("connection.drop") == [{"conn": conn_id}]


def test_packets_of_a_connection_are_recorded_downloaded_and_deleted(
    site: Site, fake: FakeDaemon
) -> None:
    fill(fake)
    conn = fake.connections[1]["conn_id"]
    response = site.post(
        "/captures/start", form_at=f"/connections/{conn}", conn=conn, seconds="10", mib="2"
    )
    assert response.status_code == 303
    assert fake.done("capture.start") == [{"conn": conn, "seconds": 10, "bytes": 2 << 20}]
    made = fake.captures[0]
    assert made["text"] in html.unescape(site.client.get("/captures/").get_data(as_text=True))
    file = site.client.get(f"/captures/{made['id']}.pcap")
    assert file.get_data() == CAPTURED
    assert file.headers["Content-Disposition"] == (
        f'attachment; filename="redirectd-{made["id"]}.pcap"'
    )
    question = f"/captures/{made['id']}/delete"
    assert "still running" in site.client.get(question).get_data(as_text=True)
    assert site.post(question).status_code == 303
    assert made not in fake.captures
    assert site.client.get(f"/captures/{made['id']}.pcap").status_code == 404


def test_packets_of_a_host_are_recorded(site: Site, fake: FakeDaemon) -> None:
    fill(fake)
    peer_id = fake.peers[1]["peer_id"]
    page = f"/hosts/{peer_id}"
    site.post("/captures/start", form_at=page, peer=peer_id, seconds="300", mib="16")
    assert fake.done("capture.start") == [{"peer": peer_id, "seconds": 300, "bytes": 16 << 20}]


@pytest.mark.parametrize(
    "change", [{"seconds": "0"}, {"seconds": "301"}, {"seconds": "1e2"}, {"mib": "17"}, {"mib": ""}]
)
def test_a_capture_without_bounds_is_refused(
    site: Site, fake: FakeDaemon, change: dict[str, str]
) -> None:
    fill(fake)
    given = {"peer": fake.peers[1]["peer_id"], "seconds": "9", "mib": "1"} | change
    page = f"/hosts/{given['peer']}"
    assert site.post("/captures/start", form_at=page, **given).status_code == 400
    assert fake.done("capture.start") == []


def test_a_connection_that_ended_is_not_found(site: Site) -> None:
    response = site.client.get("/connections/00000000000000aa")
    assert response.status_code == 404
    assert "has ended" in response.get_data(as_text=True)


def test_an_address_change_is_one_however_many_hosts_were_told(
    site: Site, fake: FakeDaemon
) -> None:
    fill(fake)
    laptop, office = (known["peer_id"] for known in fake.peers)
    ends = {"old": "203.0.113.1", "new": "203.0.113.2", "time": time.time()}
    fake.moves = [
        move(3, peer_id=office, handover_ms=1200.0, connections=4, refused=1, **ends),
        move(2, peer_id=laptop, handover_ms=40.0, connections=1, **ends),
        move(1, peer_id=laptop, done=False, handover_ms=None),
    ]
    for path in ("/history/", "/"):
        text = " ".join(site.client.get(path).get_data(as_text=True).split())
        assert "5 connections with office, laptop carried over in 1.2 s. " in text
        assert "1 refused." in text
    assert "3 connections with laptop being carried over" in " ".join(
        site.client.get("/history/").get_data(as_text=True).split()
    )


def test_a_change_of_the_other_hosts_address_is_told_as_such(site: Site, fake: FakeDaemon) -> None:
    fill(fake)
    theirs = {"ours": False, "handover_ms": None, "peer_id": fake.peers[1]["peer_id"]}
    fake.moves = [move(1, old="198.51.100.4", new="198.51.100.5", **theirs), move(2)]
    text = site.client.get("/history/").get_data(as_text=True)
    assert text.count("office changed its address") == 1
    assert "198.51.100.5" in text
    overview = site.client.get("/").get_data(as_text=True)
    assert "198.51.100.5" not in overview
    assert fake.moves[1]["new"] in overview


def test_events_are_searched_and_paged(site: Site, fake: FakeDaemon) -> None:
    fake.events = [event(number) for number in range(250, 0, -1)]
    fake.events[3]["level"] = "alert"
    text = site.client.get("/events/").get_data(as_text=True)
    assert "met host number 250" in text
    assert "before=151" in text
    text = site.client.get("/events/?before=151").get_data(as_text=True)
    assert "met host number 150" in text
    assert "met host number 151" not in text
    text = site.client.get("/events/?level=warning").get_data(as_text=True)
    assert "met host number 247" in text
    assert "met host number 246" not in text
    assert "Nothing found" in site.client.get("/events/?q=nobody").get_data(as_text=True)


def test_settings_are_shown_and_explained(site: Site) -> None:
    text = site.client.get("/settings/").get_data(as_text=True)
    assert "interfaces.outside" in text
    assert "waits under Known hosts until you accept it" in text
    assert "Rule for port 22: a connection takes its packets through the kernel" in text


def test_script_in_a_name_is_shown_as_text(site: Site, fake: FakeDaemon) -> None:
    fill(fake)
    fake.peers[1]["name"] = fake.connections[2]["peer_name"] = SCRIPT
    fake.peers[1]["dns_name"] = fake.peers[1]["fingerprint"] = SCRIPT
    fake.connections[2]["why"] = fake.events[0]["text"] = SCRIPT
    fake.events[0]["peer_id"] = fake.peers[1]["peer_id"]
    fake.warnings = [{"kind": "x", "text": SCRIPT, "peer_id": None, "conn_id": None}]
    fake.config["first-contact"] = SCRIPT
    peer_id, conn_id = fake.peers[1]["peer_id"], fake.connections[2]["conn_id"]
    acts = [f"/hosts/{peer_id}/{act}" for act in ("verify", "revoke", "forget", "export")]
    paths = [*PAGES, f"/hosts/{peer_id}", f"/connections/{conn_id}", *acts]
    for path in [*paths, f"/connections/{conn_id}/drop"]:
        seen = tags(site.client.get(path).get_data(as_text=True))
        scripts = [attrs for tag, attrs in seen if tag == "script"]
        assert scripts == [{"src": "/static/app.js", "defer": None}], path
        assert not [tag for tag, _ in seen if tag == "img"], path
    (row,) = [
        text
        for text in site.client.get("/connections/rows").get_json()["rows"].values()
        if "alert" in text
    ]
    assert not {tag for tag, _ in tags(row)} & {"script", "img"}


def test_a_download_name_has_no_odd_characters(site: Site, fake: FakeDaemon) -> None:
    fill(fake)
    fake.peers[1]["name"] = '../"x"\r\nSet-Cookie: a'
    page = f"/hosts/{fake.peers[1]['peer_id']}/export"
    response = site.post(page, password=PASSWORD, **{"as": "file"})
    assert (
        response.headers["Content-Disposition"]
        == 'attachment; filename="redirectd-x-Set-Cookie-a.txt"'
    )


def test_a_page_without_javascript_has_no_inline_code(site: Site, fake: FakeDaemon) -> None:
    fill(fake)
    for path in PAGES:
        for tag, attrs in tags(site.client.get(path).get_data(as_text=True)):
            assert tag != "style", path
            assert not [name for name in attrs if name == "style" or name.startswith("on")], path


def test_nothing_is_loaded_from_another_machine(site: Site, fake: FakeDaemon) -> None:
    fill(fake)
    for path in PAGES:
        for tag, attrs in tags(site.client.get(path).get_data(as_text=True)):
            for name in ("src", "href", "action"):
                assert "//" not in (attrs.get(name) or ""), (path, tag)


def test_a_daemon_of_another_version_is_named_as_such(site: Site, fake: FakeDaemon) -> None:
    fake.raw_answer = b'{"id": 1, "ok": true, "data": {"nothing": "known"}}\n'
    response = site.client.get("/")
    assert response.status_code == 503
    assert "of another version" in response.get_data(as_text=True)


def test_500_hosts_are_shown_in_parts(site: Site, fake: FakeDaemon) -> None:
    fake.peers = [peer(number) for number in range(1, 501)]
    began = time.perf_counter()
    text = site.client.get("/hosts/").get_data(as_text=True)
    assert time.perf_counter() - began < 1
    assert text.count('<li class="card">') == 100
    assert "1 of 5" in text
    assert "5 of 5" in site.client.get("/hosts/?page=5").get_data(as_text=True)


@pytest.mark.parametrize("page", ["0", "-1", "x", "99999999999999999999", "²"])
def test_a_part_that_makes_no_sense_shows_the_list_all_the_same(
    site: Site, fake: FakeDaemon, page: str
) -> None:
    fill(fake)
    for path in ("/hosts/", "/connections/"):
        response = site.client.get(path, query_string={"page": page, "size": page})
        assert response.status_code == 200
        assert "office" in response.get_data(as_text=True)
    assert site.client.get("/events/", query_string={"before": page}).status_code == 200


def test_what_is_not_there_is_said_so(site: Site) -> None:
    assert site.client.get("/nothing").status_code == 404
    assert site.client.get(f"/hosts/{5:032x}").status_code == 404
    assert site.client.get("/logout").status_code == 405
