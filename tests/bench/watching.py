"""What a watching browser costs: throughput and handover, with one and without, interleaved.

The browser is an HTTP client that signs in and asks as the page's script does: for the rows that
have changed, once a second.
"""

from __future__ import annotations

import contextlib
import json
import re
import threading
import urllib.parse
import urllib.request
from collections.abc import Iterator
from http.cookiejar import CookieJar

from tests.lab.daemon import Daemon
from tests.lab.kernel import LabError
from tests.lab.net import Lab
from tests.lab.page import AdminPage, open_page
from tests.lab.streams import Traffic, open_stream

from .common import Pair, Result, pair, quantile, spread
from .throughput import BURST, Blast

EVERY = 1.0  # seconds, as data-every of the page's table
ALLOWED = 1.1


class Watcher:
    """A signed-in browser that looks only within :meth:`watching`."""

    def __init__(self, page: AdminPage) -> None:
        self._url = page.url
        jar = urllib.request.HTTPCookieProcessor(CookieJar())
        self._opener = urllib.request.build_opener(jar)
        self._version = ""
        self.looks = 0
        token = re.search(r'name="csrf_token" value="([^"]+)"', self._get("/setup").decode())
        if token is None or page.setup_code is None:
            raise LabError("the admin page does not ask for its set-up code")
        word = "bench bench bench"
        form = {"csrf_token": token[1], "code": page.setup_code, "password": word, "again": word}
        self._get("/setup", urllib.parse.urlencode(form).encode())
        self._look()

    def _get(self, path: str, data: bytes | None = None) -> bytes:
        with self._opener.open(self._url + path, data, timeout=10) as answer:
            found: bytes = answer.read()
            return found

    def _look(self) -> None:
        since = urllib.parse.quote(self._version)
        self._version = json.loads(self._get(f"/connections/rows?since={since}"))["version"]
        self.looks += 1

    @contextlib.contextmanager
    def watching(self, really: bool) -> Iterator[None]:
        stop = threading.Event()

        def watch() -> None:
            while not stop.is_set():
                self._look()
                stop.wait(EVERY)

        thread = threading.Thread(target=watch, name="browser")
        if really:
            thread.start()
        try:
            yield
        finally:
            stop.set()
            if really:
                thread.join()


def _handover(p: Pair, mover: Daemon, moves: int) -> float:
    """Milliseconds that the next move took."""
    assert p.daemons is not None
    p.flip.add_other()
    p.flip.del_now()
    for daemon in p.daemons:
        daemon.wait_moved(moves)

    def newest(daemon: Daemon) -> float | None:
        rows = [row for row in daemon.ctl("moves", limit=1) if row["done"]]
        return None if not rows or len(daemon.ctl("moves")) < moves else rows[0]["handover_ms"]

    took: float = mover.wait_until("the move is done", newest)
    return took


def run(n: int) -> Iterator[Result]:
    for path in ("kernel", "divert"):
        yield from _case(path, n)


def _case(path: str, n: int) -> Iterator[Result]:
    throughput: dict[bool, list[float]] = {True: [], False: []}
    handover: dict[bool, list[float]] = {True: [], False: []}
    with Lab() as lab:
        p = pair(lab, gateway=True, rtt_ms=None, rule=[{"path": path}])
        assert p.daemons is not None
        mover = p.daemons[0]
        watcher = Watcher(open_page(lab, mover))
        stream = open_stream(Traffic(p.end), Traffic(p.far), "192.0.2.9")
        blast = Blast(p)
        for daemon in p.daemons:
            daemon.wait_bound(2)
        moves = 0
        for round_ in range(max(5, n // 2)):
            for watched in (True, False) if round_ % 2 else (False, True):
                with watcher.watching(watched):
                    moves += 1
                    handover[watched].append(_handover(p, mover, moves))
                    throughput[watched].append(blast.burst(BURST))
        stream.drop()
    if watcher.looks < len(throughput[True]):
        raise LabError("nobody watched")
    rate = {watched: quantile(found, 0.5) for watched, found in throughput.items()}
    ratio = quantile([a / b for a, b in zip(*throughput.values(), strict=True)], 0.5)
    yield Result(
        "watching", f"gateway, {path}: {rate[False]:,.0f} → {rate[True]:,.0f} Mbit/s",
        f"{ratio:.2f}", f"≥ {1 / ALLOWED:.2f}", ratio >= 1 / ALLOWED, throughput[True],
    )  # fmt: skip
    alone, seen = (quantile(handover[watched], 0.5) for watched in (False, True))
    yield Result(
        "watching", f"handover, {path}, alone {spread(handover[False])} ms",
        f"{spread(handover[True])} ms", f"≤ {ALLOWED * alone:.1f} ms (× {ALLOWED})",
        seen <= ALLOWED * alone, handover[True],
    )  # fmt: skip
