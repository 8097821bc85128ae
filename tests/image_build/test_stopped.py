"""A build that is stopped or refused at any step: a clear word, no half image, nothing runs."""

from __future__ import annotations

import http.server
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from .building import DEBIAN_STEPS, Bench, wait_until, wait_until_gone


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.mark.parametrize(
    ("step", "number"),
    [*((step, signal.SIGINT) for step in DEBIAN_STEPS), ("mmdebstrap", signal.SIGTERM),
     ("sfdisk", signal.SIGHUP)],
)  # fmt: skip
def test_a_debian_build_that_is_stopped_leaves_no_image_and_no_process(
    bench: Bench, number: signal.Signals, step: str
) -> None:
    bench.hang_at(step)
    build = bench.debian()
    group = bench.wait_until_started(build)
    build.send_signal(number)
    _, said = build.communicate(timeout=120)
    assert build.returncode == (130 if number == signal.SIGINT else 143)
    assert "kept" in said.splitlines()[-1]
    assert bench.left() == []
    wait_until_gone(group)


def test_a_stopped_build_goes_on_where_it_stood(bench: Bench) -> None:
    bench.hang_at("sqfstar")
    build = bench.debian()
    bench.wait_until_started(build)
    build.send_signal(signal.SIGINT)
    build.communicate(timeout=120)
    bench.stand_in("sqfstar", "exit 3")
    again = bench.debian()
    _, said = again.communicate(timeout=120)
    assert again.returncode == 1
    assert "packages: kept from an earlier run" in said
    assert "sqfstar" in said.partition("build: ")[2]
    assert bench.left() == []


#: the installer ends at once, so that the card's own guest is the one that hangs
_INSTALLED = "openbsd.follow_installer = lambda guest, url, shop: guest.cut_power()"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    ("program", "more"),
    [("xorriso", ""), ("qemu-system-x86_64", ""), ("qemu-system-x86_64", _INSTALLED)],
    ids=["disc", "installer", "card"],
)
def test_an_openbsd_build_that_is_stopped_leaves_no_image_and_no_process(
    bench: Bench, number: signal.Signals, program: str, more: str
) -> None:
    source = bench.release()
    bench.hang_at(program)
    if program.startswith("qemu"):
        # It has no children; the pseudo-terminal's end is what reaches it first.
        guest = "*-name\\ builder*" if more else "*-name\\ installer*"
        new = f"{bench.started}.new"
        bench.stand_in(
            program,
            f'case "$*" in {guest}) echo $$ >{new}; mv {new} {bench.started};; esac\n'
            "trap '' HUP\nexec sleep 600",
        )
    build = bench.openbsd(source, more=more)
    group = bench.wait_until_started(build)
    build.send_signal(number)
    _, said = build.communicate(timeout=120)
    assert build.returncode == 128 + number, said
    assert bench.left() == []
    wait_until_gone(group)


@contextmanager
def mirror(folder: Path, stuck: str) -> Iterator[tuple[str, threading.Event]]:
    """A web server that stops in the middle of the file ``stuck``; set when it does."""
    reached, go_on = threading.Event(), threading.Event()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            """Nobody reads it."""

        def do_GET(self) -> None:
            if not self.path.endswith(f"/{stuck}"):
                super().do_GET()
                return
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b"half")
            self.wfile.flush()
            reached.set()
            go_on.wait(240)

    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(Handler, directory=str(folder))
    )
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", reached
    finally:
        go_on.set()
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.parametrize("name", ["SHA256.sig", "base78.tgz"])
def test_a_fetch_that_is_stopped_leaves_nothing_of_the_release(bench: Bench, name: str) -> None:
    with mirror(bench.release(), name) as (url, reached):
        build = bench.openbsd(url)
        wait_until(reached.is_set, build)
        build.send_signal(signal.SIGINT)
        _, said = build.communicate(timeout=120)
    assert build.returncode == 130, said
    assert bench.left() == []
    assert not list(bench.work.glob("release-*"))


# -- refused ---------------------------------------------------------------------------------


def _changed(source: Path) -> None:
    with (source / "base78.tgz").open("ab") as file:
        file.write(b"!")


def _unsigned(source: Path) -> None:
    (source / "SHA256.sig").unlink()


def _other_list(source: Path) -> None:
    path = source / "SHA256.sig"
    path.write_bytes(path.read_bytes().replace(b"(bsd.rd)", b"(bsd.xx)"))


@pytest.mark.parametrize(
    ("spoil", "version", "words"),
    [
        (_changed, "7.8", "base78.tgz is not what was signed"),
        (_unsigned, "7.8", "there is no SHA256.sig"),
        (_other_list, "7.8", "the signature is wrong"),
        (lambda source: None, "7.9", "seems to be release 7.8, not 7.9"),
        (lambda source: None, "6.1", "openbsd-61-base.pub is missing"),
        (lambda source: None, "seven", "'seven' is no OpenBSD version"),
    ],
    ids=["changed", "unsigned", "other list", "wrong version", "no key", "no version"],
)
def test_a_release_that_is_not_right_stops_the_build_in_one_line(
    bench: Bench, spoil: object, version: str, words: str
) -> None:
    bench.release("7.9")  # for its key
    source = bench.release("7.8")
    assert callable(spoil)
    spoil(source)
    build = bench.openbsd(source, version)
    _, said = build.communicate(timeout=120)
    assert build.returncode == 1
    last = said.splitlines()[-1]
    assert last.startswith("build: ")
    assert words in last
    assert "Traceback" not in said
    assert bench.left() == []
    assert not list(bench.work.glob("release-*"))
