"""Who gets in, and what is refused at the door."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from webui.app import create_app
from webui.credentials import Credentials, StateError
from webui.guard import CONTENT_SECURITY_POLICY
from webui.pages.auth import local_path
from webui.sessions import MAX_SESSIONS, Sessions

from .conftest import PASSWORD, Clock, Site, settings_for
from .fake_daemon import FakeDaemon, peer


def set_up(site: Site, **changes: str) -> int:
    code = site.credentials.setup_code
    data = {"code": code or "", "password": PASSWORD, "again": PASSWORD} | changes
    return site.post("/setup", **data).status_code


def test_the_first_start_asks_for_the_code_and_a_password(new_site: Site) -> None:
    response = new_site.client.get("/")
    assert response.headers["Location"] == "/setup"
    assert set_up(new_site) == 303
    assert new_site.client.get("/").status_code == 200
    assert new_site.credentials.setup_code is None
    assert new_site.credentials.check_password(PASSWORD)


def test_the_code_may_be_typed_without_dashes_and_in_capitals(new_site: Site) -> None:
    code = (new_site.credentials.setup_code or "").replace("-", " ").upper()
    assert set_up(new_site, code=code) == 303


@pytest.mark.parametrize(
    "changes",
    [
        {"code": "aaaa-aaaa-aaaa-aaaa"},
        {"code": ""},
        {"password": "short", "again": "short"},
        {"again": "something else"},
        {"password": "a" * 257, "again": "a" * 257},
        {"password": "aaaaaaaaaaaa", "again": "aaaaaaaaaaaa"},
    ],
)
def test_a_bad_set_up_sets_nothing(new_site: Site, changes: dict[str, str]) -> None:
    assert set_up(new_site, **changes) == 403
    assert not new_site.credentials.has_password
    assert new_site.credentials.setup_code is not None


def test_the_code_is_worth_nothing_once_a_password_is_set(new_site: Site) -> None:
    code = new_site.credentials.setup_code or ""
    token = new_site.token("/setup")
    assert set_up(new_site) == 303
    other = new_site.browser()
    data = {"csrf_token": token, "code": code, "password": "another password", "again": ""}
    assert other.post("/setup", data=data).status_code == 400
    assert other.get("/setup").headers["Location"] == "/login"
    assert not new_site.credentials.check_code(code)
    assert not new_site.credentials.check_code("")


def test_a_wrong_password_is_refused(site: Site) -> None:
    other = site.browser()
    response = site.post("/login", client=other, password="wrong-secret-42")
    assert response.status_code == 403
    assert "wrong-secret-42" not in response.get_data(as_text=True)
    assert other.get("/").status_code == 303


def test_guessing_is_slowed_down_and_the_owner_elsewhere_is_not(site: Site) -> None:
    guesser = site.browser("192.168.1.66")
    codes = [
        site.post("/login", client=guesser, password=f"guess {n}").status_code for n in range(6)
    ]
    assert codes == [403] * 5 + [429]
    last = site.post("/login", client=guesser, password=PASSWORD)
    assert last.status_code == 429
    assert last.headers["Retry-After"] == "60"
    owner = site.browser("192.168.1.20")
    assert site.post("/login", client=owner, password=PASSWORD).status_code == 303


def test_one_ipv6_host_counts_as_one_whatever_address_it_takes(site: Site) -> None:
    codes = []
    for number in range(6):
        guesser = site.browser(f"2001:db8::{number:x}")
        codes.append(site.post("/login", client=guesser, password="guess").status_code)
    assert codes[-1] == 429


def test_the_password_is_not_asked_for_too_often_for_exports(site: Site, fake: FakeDaemon) -> None:
    fake.peers = [peer(1)]
    page = f"/hosts/{1:032x}/export"
    codes = [site.post(page, password=f"guess {n}").status_code for n in range(6)]
    assert codes == [403] * 5 + [429]


@pytest.mark.parametrize(
    "path",
    ["/", "/connections/rows", "/hosts/", "/captures/", "/settings/", f"/hosts/{1:032x}/export"],
)
def test_nothing_is_shown_to_who_is_not_signed_in(site: Site, path: str) -> None:
    stranger = site.browser()
    response = stranger.get(path)
    assert response.status_code == 303
    assert response.headers["Location"].startswith("/login")


def test_nothing_is_done_for_who_is_not_signed_in(site: Site, fake: FakeDaemon) -> None:
    fake.peers = [peer(1, state="pending")]
    stranger = site.browser()
    token = site.token("/login", stranger)
    response = stranger.post(f"/hosts/{1:032x}/accept", data={"csrf_token": token})
    assert response.status_code == 303
    assert fake.asked == []


@pytest.mark.parametrize("token", [None, "", "forged"])
def test_a_form_without_its_token_changes_nothing(
    site: Site, fake: FakeDaemon, token: str | None
) -> None:
    fake.peers = [peer(1, state="pending")]
    data = {} if token is None else {"csrf_token": token}
    for path in (
        f"/hosts/{1:032x}/accept",
        f"/hosts/{1:032x}/forget",
        "/captures/start",
        "/hosts/import",
        "/logout",
    ):
        response = site.client.post(path, data=data)
        assert response.status_code == 400
        assert "Nothing was changed" in response.get_data(as_text=True)
    assert fake.peers[0]["state"] == "pending"
    assert site.client.get("/").status_code == 200


def test_every_route_that_changes_something_is_post_only(site: Site) -> None:
    safe = {"GET", "HEAD", "OPTIONS"}
    changing = {"accept", "verify", "revoke", "forget", "rename", "dns", "resend", "drop", "logout"}
    seen = set()
    for rule in site.app.url_map.iter_rules():
        view = rule.endpoint.rpartition(".")[2]
        if view in changing:
            assert not (rule.methods or set()) & safe - {"OPTIONS"}, rule
            seen.add(view)
    assert seen == changing


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "192.168.1.1.evil.example",
        "gateway.lan.evil.example:4788",
        "gateway.lan@evil.example",
        "[::1]",
        "",
        "192.168.1.1:4788:4788",
        "192.168.1.1/x",
    ],
)
@pytest.mark.parametrize("path", ["/", "/login", "/static/app.js", "/metrics", "/nothing"])
def test_a_foreign_host_header_is_refused(site: Site, host: str, path: str) -> None:
    response = site.client.get(path, headers={"Host": host})
    assert response.status_code == 421
    assert "redirectd" in response.get_data(as_text=True)


@pytest.mark.parametrize(
    "host", ["192.168.1.1", "192.168.1.1:4788", "gateway.lan", "GATEWAY.LAN.", "gateway.lan:443"]
)
def test_our_own_names_are_welcome(site: Site, host: str) -> None:
    assert site.client.get("/login", headers={"Host": host}).status_code == 200


def test_a_session_ends_when_nobody_clicks(site: Site) -> None:
    site.clock.now += 59 * 60
    assert site.client.get("/").status_code == 200
    site.clock.now += 61 * 60
    response = site.client.get("/hosts/")
    assert response.status_code == 303
    assert response.headers["Location"] == "/login?next=/hosts/"
    assert "You were signed out" in site.client.get("/login").get_data(as_text=True)


def test_a_page_that_watches_by_itself_does_not_keep_a_session_alive(site: Site) -> None:
    for _ in range(6):
        site.clock.now += 10.5 * 60
        last = site.client.get("/connections/rows", headers={"X-Live": "1"})
    assert last.status_code == 401


def test_a_session_ends_after_twelve_hours_in_any_case(site: Site) -> None:
    for _ in range(24):
        site.clock.now += 29 * 60
        assert site.client.get("/").status_code == 200
    site.clock.now += 30 * 60
    assert site.client.get("/").status_code == 303


def test_a_form_sent_after_the_session_ended_changes_nothing(site: Site, fake: FakeDaemon) -> None:
    fake.peers = [peer(1, state="pending")]
    page = f"/hosts/{1:032x}/accept"
    token = site.token(page)
    site.clock.now += 61 * 60
    response = site.client.post(page, data={"csrf_token": token})
    assert response.headers["Location"] == "/login"
    assert fake.peers[0]["state"] == "pending"
    assert "Nothing was changed" in site.client.get("/login").get_data(as_text=True)


def test_signing_out_ends_the_session_for_a_copied_cookie_too(site: Site) -> None:
    cookie = site.client.get_cookie("redirectd", domain="192.168.1.1")
    assert cookie is not None
    thief = site.browser()
    thief.set_cookie("redirectd", cookie.value, domain="192.168.1.1")
    assert thief.get("/").status_code == 200
    assert site.post("/logout", form_at="/").status_code == 303
    assert thief.get("/").status_code == 303


def test_signing_in_gives_a_session_of_its_own(site: Site) -> None:
    before = site.client.get_cookie("redirectd", domain="192.168.1.1")
    other = site.browser()
    assert site.post("/login", client=other, password=PASSWORD).status_code == 303
    after = other.get_cookie("redirectd", domain="192.168.1.1")
    assert before is not None
    assert after is not None
    assert before.value != after.value


def test_a_cookie_signed_by_somebody_else_is_worth_nothing(site: Site, tmp_path: Path) -> None:
    elsewhere = create_app(settings_for(tmp_path / "other"))
    with elsewhere.test_request_context():
        serializer = elsewhere.session_interface.get_signing_serializer(elsewhere)  # type: ignore[attr-defined]
        forged = serializer.dumps({"sid": "anything", "_permanent": True})
    stranger = site.browser()
    stranger.set_cookie("redirectd", forged, domain="192.168.1.1")
    assert stranger.get("/").status_code == 303


def test_a_new_password_signs_everybody_else_out(site: Site) -> None:
    other = site.browser()
    site.post("/login", client=other, password=PASSWORD)
    new = "something quite different"
    wrong = site.post("/settings/password", current="wrong", password=new, again=new)
    assert wrong.status_code == 403
    weak = site.post("/settings/password", current=PASSWORD, password="short", again="short")
    assert weak.status_code == 400
    response = site.post("/settings/password", current=PASSWORD, password=new, again=new)
    assert response.status_code == 303
    assert site.client.get("/").status_code == 200
    assert other.get("/").status_code == 303
    assert site.credentials.check_password(new)
    assert not site.credentials.check_password(PASSWORD)


def test_a_password_reset_on_the_console_ends_sessions_of_the_running_page(site: Site) -> None:
    code = site.credentials.reset()
    assert site.client.get("/").headers["Location"] == "/setup"
    assert set_up(site, code=code) == 303
    assert site.client.get("/").status_code == 200


def test_a_damaged_password_file_lets_nobody_in(site: Site) -> None:
    (site.settings.state_dir / "password").write_text("$argon2id$damaged")
    other = site.browser()
    assert site.post("/login", client=other, password=PASSWORD).status_code == 403


@pytest.mark.parametrize("path", ["/", "/login", "/static/app.js", "/nothing", "/metrics"])
def test_every_answer_carries_the_security_headers(site: Site, path: str) -> None:
    headers = site.client.get(path).headers
    assert headers["Content-Security-Policy"] == CONTENT_SECURITY_POLICY
    assert "unsafe" not in headers["Content-Security-Policy"]
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["X-Frame-Options"] == "DENY"
    assert headers["Referrer-Policy"] == "same-origin"
    assert "Cross-Origin-Opener-Policy" not in headers  # a browser would complain
    if not path.startswith("/static"):
        assert headers["Cache-Control"] == "no-store"


def test_the_cookie_is_out_of_reach_for_scripts_and_other_sites(site: Site) -> None:
    other = site.browser()
    cookie = site.post("/login", client=other, password=PASSWORD).headers["Set-Cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    assert "Secure" not in cookie


def test_behind_tls_the_cookie_never_travels_in_the_clear(tmp_path: Path, fake: FakeDaemon) -> None:
    app = create_app(settings_for(tmp_path, behind_tls=True))
    response = app.test_client().get("/setup", base_url="https://gateway.lan")
    cookie = response.headers["Set-Cookie"]
    assert response.headers["Cross-Origin-Opener-Policy"] == "same-origin"
    assert cookie.startswith("__Host-redirectd=")
    assert "Secure" in cookie
    assert "Path=/" in cookie
    assert "Domain" not in cookie


@pytest.mark.parametrize(
    ("target", "taken"),
    [
        ("/hosts/?q=a", "/hosts/?q=a"),
        ("//evil.example", "/"),
        ("/\\evil.example", "/"),
        ("/\t/evil.example", "/"),
        ("https://evil.example/", "/"),
        ("", "/"),
        (None, "/"),
    ],
)
def test_signing_in_leads_only_to_pages_of_ours(target: str | None, taken: str) -> None:
    assert local_path(target) == taken


def test_one_comes_back_to_the_page_one_wanted(site: Site) -> None:
    other = site.browser()
    login = other.get("/events/?q=key").headers["Location"]
    response = site.post(login, client=other, password=PASSWORD)
    assert response.headers["Location"] == "/events/?q=key"


def test_secrets_are_in_files_that_only_the_page_can_read(site: Site) -> None:
    directory = site.settings.state_dir
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    names = {path.name for path in directory.iterdir()}
    assert names == {"password", "secret", "metrics-token"}
    for path in directory.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert (directory / "password").read_text().startswith("$argon2id$")


def test_the_set_up_code_survives_a_restart(tmp_path: Path) -> None:
    first, second = (Credentials(tmp_path / "state") for _ in range(2))
    first.prepare()
    code = first.setup_code
    second.prepare()
    assert second.setup_code == code
    assert code is not None
    assert len(code.replace("-", "")) == 16


def test_a_directory_that_others_may_enter_is_refused(tmp_path: Path) -> None:
    directory = tmp_path / "state"
    directory.mkdir(mode=0o755)
    directory.chmod(0o755)
    with pytest.raises(StateError, match="chmod 700"):
        Credentials(directory).prepare()


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    credentials = Credentials(tmp_path / "state")
    credentials.prepare()
    (tmp_path / "state" / "secret").write_bytes(b"\xff\xff")
    with pytest.raises(StateError, match="secret: damaged"):
        credentials.prepare()


def test_no_secret_is_logged(
    new_site: Site, fake: FakeDaemon, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(0)
    fake.peers = [peer(1)]
    code = new_site.credentials.setup_code or ""
    set_up(new_site, code="zzzz-wrong-code-zzzz")
    set_up(new_site)
    new_site.post("/login", client=new_site.browser(), password="a wrong password")
    new_site.post(f"/hosts/{1:032x}/export", password=PASSWORD, **{"as": "text"})
    new_site.post("/hosts/introduce", name="cabin")
    assert "wrong password from 192.168.1.20" in caplog.text
    for secret in (code, "zzzz", PASSWORD, "a wrong password", "SECRET-KEYS"):
        assert secret not in caplog.text


def test_a_fault_in_the_page_shows_no_detail(
    site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> None:
        raise RuntimeError("inner detail")

    monkeypatch.setitem(site.app.view_functions, "overview.show", broken)
    response = site.client.get("/")
    assert response.status_code == 500
    assert "inner detail" not in response.get_data(as_text=True)
    assert "inner detail" in caplog.text


def test_numbers_need_the_token(site: Site, fake: FakeDaemon) -> None:
    for value in (None, "Bearer", "Bearer wrong", "Basic xyz", "Bearer ü"):
        headers = {} if value is None else {"Authorization": value}
        response = site.client.get("/metrics", headers=headers)
        assert response.status_code == 401
    assert fake.asked == []


def test_numbers_are_given_to_who_has_the_token(site: Site, fake: FakeDaemon) -> None:
    fake.peers = [peer(1, name="SECRET-NAME"), peer(2, state="pending")]
    headers = {"Authorization": f"Bearer {site.credentials.metrics_token}"}
    text = site.browser().get("/metrics", headers=headers).get_data(as_text=True)
    assert "redirectd_up 1.0" in text
    assert 'redirectd_peers{state="pending"} 1.0' in text
    assert "SECRET-NAME" not in text
    fake.stop()
    text = site.browser().get("/metrics", headers=headers).get_data(as_text=True)
    assert "redirectd_up 0.0" in text
    assert "redirectd_peers" not in text


def test_sessions_are_bounded() -> None:
    sessions = Sessions(60, 600, Clock())
    names = [sessions.open("a") for _ in range(MAX_SESSIONS + 1)]
    assert not sessions.check(names[0], "a", touch=True)
    assert sessions.check(names[1], "a", touch=True)
    assert sessions.check(names[-1], "a", touch=True)
    assert not sessions.check(names[-1], "b", touch=True)
