"""The page behind waitress: what the server itself adds or refuses."""

from __future__ import annotations

import http.client
import re
import select
import socket
import threading
from pathlib import Path
from urllib.parse import urlencode

import pytest

from webui.serve import MAX_BODY

from .conftest import PASSWORD, Served, serve, settings_for
from .fake_daemon import FakeDaemon, peer

FRONT = {"X-Forwarded-Proto": "https", "Host": "gateway.lan"}


def ask(
    served: Served, path: str, *, headers: dict[str, str], form: dict[str, str] | None = None
) -> tuple[int, http.client.HTTPMessage, str]:
    host, _, port = served.url.removeprefix("http://").rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=10)
    try:
        if form is None:
            connection.request("GET", path, headers=headers)
        else:
            kind = {"Content-Type": "application/x-www-form-urlencoded"}
            connection.request("POST", path, urlencode(form), headers | kind)
        response = connection.getresponse()
        return response.status, response.headers, response.read().decode()
    finally:
        connection.close()


def try_password(served: Served, password: str, headers: dict[str, str]) -> int:
    _, got, page = ask(served, "/login", headers=headers)
    cookie = (got["Set-Cookie"] or "").partition(";")[0]
    token = re.search(r'csrf_token" value="([^"]+)"', page)
    assert token is not None
    same_site = headers | {"Cookie": cookie, "Referer": "https://gateway.lan/login"}
    form = {"csrf_token": token[1], "password": password}
    return ask(served, "/login", headers=same_site, form=form)[0]


def test_behind_a_tls_front_one_signs_in_and_guessers_are_told_apart(
    tmp_path: Path, fake: FakeDaemon
) -> None:
    with serve(settings_for(tmp_path, behind_tls=True)) as served:
        served.credentials.set_password(PASSWORD)
        guesser = FRONT | {"X-Forwarded-For": "192.168.1.66"}
        codes = [try_password(served, f"guess {n}", guesser) for n in range(6)]
        assert codes == [403] * 5 + [429]
        assert try_password(served, PASSWORD, FRONT | {"X-Forwarded-For": "192.168.1.20"}) == 303


def test_without_a_front_nobody_can_say_where_they_come_from(served: Served) -> None:
    served.credentials.set_password(PASSWORD)
    codes = [
        try_password(served, "guess", {"X-Forwarded-For": f"192.168.1.{number}"})
        for number in range(6)
    ]
    assert codes == [403] * 5 + [429]


def test_a_body_without_end_is_cut_off_before_it_is_sent_in_full(served: Served) -> None:
    host, _, port = served.url.removeprefix("http://").rpartition(":")
    head = (
        "POST /hosts/import HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        "Content-Type: application/x-www-form-urlencoded\r\nContent-Length: 100000000\r\n\r\n"
    )
    with socket.create_connection((host, int(port)), timeout=10) as client:
        client.sendall(head.encode())
        sent, answer = 0, b""
        client.setblocking(False)
        while sent < 100_000_000:
            readable, writable, _ = select.select([client], [client], [], 10)
            assert readable or writable, "the server neither reads nor answers"
            try:
                if readable:
                    answer = client.recv(4096)
                    break
                sent += client.send(b"x" * 65536)
            except ConnectionError:
                break
    # What the kernel's buffers take comes on top.
    assert sent < MAX_BODY + (8 << 20)
    assert answer.startswith(b"HTTP/1.1 413") or not answer


def test_the_answer_does_not_name_the_server(served: Served) -> None:
    _, headers, _ = ask(served, "/login", headers={})
    assert headers["Server"] is None


@pytest.mark.parametrize("watchers", [20])
def test_more_watchers_than_threads_are_all_answered(
    served: Served, fake: FakeDaemon, watchers: int
) -> None:
    fake.peers = [peer(1)]
    codes: list[int] = []

    def watch() -> None:
        codes.append(ask(served, "/login", headers={})[0])

    served.credentials.set_password(PASSWORD)
    threads = [threading.Thread(target=watch) for _ in range(watchers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert codes == [200] * watchers
