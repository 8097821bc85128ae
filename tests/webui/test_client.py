"""The control-socket client against a daemon that misbehaves."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from webui import client as client_module
from webui.client import ControlClient, DaemonDown, DaemonError
from webui.daemon import Daemon

from .fake_daemon import FakeDaemon, connection, peer


class OneAnswer:
    """Accepts clients and lets ``behave`` do what it likes with each."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.behave: Callable[[socket.socket], None] = lambda _socket: None
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen(8)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with client, contextlib.suppress(OSError):
                self.behave(client)

    def stop(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(5)

    def answer(self, data: bytes) -> None:
        def behave(client: socket.socket) -> None:
            client.recv(65536)
            client.sendall(data)

        self.behave = behave


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OneAnswer]:
    server = OneAnswer(tmp_path_factory.mktemp("odd") / "control.sock")
    yield server
    server.stop()


def test_the_answer_is_the_data(fake: FakeDaemon) -> None:
    fake.peers = [peer(1)]
    with ControlClient(fake.path) as client:
        assert client.call("peers")[0]["name"] == "host-1"
        assert client.call("status")["version"] == "0.1.0"


def test_a_refusal_carries_its_code_and_the_connection_goes_on(fake: FakeDaemon) -> None:
    with ControlClient(fake.path) as client:
        with pytest.raises(DaemonError, match="no peer") as caught:
            client.call("peer.accept", peer="x")
        assert caught.value.code == "not-found"
        assert client.call("peers") == []


def test_an_answer_of_5000_connections_fits(fake: FakeDaemon) -> None:
    fake.connections = [connection(number) for number in range(5000)]
    daemon = Daemon(ControlClient(fake.path))
    assert len(daemon.connections()) == 5000
    daemon.close()


def test_a_missing_socket_is_named(tmp_path: Path) -> None:
    with pytest.raises(DaemonDown, match="not there") as caught:
        ControlClient(tmp_path / "none.sock").call("status")
    assert caught.value.path == tmp_path / "none.sock"


def test_a_socket_that_nobody_serves_is_named(tmp_path: Path) -> None:
    path = tmp_path / "dead.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with pytest.raises(DaemonDown, match="nobody listens"):
        ControlClient(path).call("status")


def test_a_request_that_is_too_long_is_not_sent(fake: FakeDaemon) -> None:
    with pytest.raises(DaemonError, match="too long"):
        ControlClient(fake.path).call("peer.import", text="x" * (1 << 20))
    assert fake.asked == []


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"hello\n",
        b"[]\n",
        b"{}\n",
        b'{"id": 2, "ok": true, "data": []}\n',
        b'{"id": 1, "ok": false}\n',
        b'{"id": 1, "ok": false, "error": "no"}\n',
        b'{"id": 1, "ok": true, "data": []}\nmore',
        b'{"id": 1, "ok": true, "data": [',
        b"\xff\xff\n",
        b"[" * 100_000 + b"\n",
    ],
)
def test_what_is_no_answer_counts_as_down(odd: OneAnswer, data: bytes) -> None:
    odd.answer(data)
    with pytest.raises(DaemonDown):
        ControlClient(odd.path, timeout=2).call("peers")


def test_an_answer_without_end_is_cut_off(odd: OneAnswer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "MAX_ANSWER", 1 << 20)

    def pour(client: socket.socket) -> None:
        while True:
            client.sendall(b"x" * 65536)

    odd.behave = pour
    with pytest.raises(DaemonDown, match="more than"):
        ControlClient(odd.path).call("peers")


def test_an_answer_that_trickles_in_does_not_hold_the_page_up(odd: OneAnswer) -> None:
    done = threading.Event()

    def trickle(client: socket.socket) -> None:
        while not done.wait(0.02):
            client.sendall(b" ")

    odd.behave = trickle
    began = time.monotonic()
    with pytest.raises(DaemonDown, match="no answer in time"):
        ControlClient(odd.path, timeout=0.3).call("peers")
    done.set()
    assert time.monotonic() - began < 2


def test_after_a_failure_the_next_call_starts_afresh(odd: OneAnswer) -> None:
    client = ControlClient(odd.path, timeout=2)
    odd.answer(b"nonsense\n")
    with pytest.raises(DaemonDown):
        client.call("peers")
    odd.answer(b'{"id": 2, "ok": true, "data": 7}\n')
    assert client.call("peers") == 7
    client.close()


@given(st.binary(max_size=200))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_bytes_are_an_answer_or_a_daemon_that_is_down(odd: OneAnswer, data: bytes) -> None:
    odd.answer(data + b"\n")
    with (
        ControlClient(odd.path, timeout=2) as client,
        contextlib.suppress(DaemonDown, DaemonError),
    ):
        client.call("peers")


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["peer_id", "name", "state", "id", "time", "addresses", "x"]),
            inner,
            max_size=5,
        )
    ),
    max_leaves=12,
)


@given(_json)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_data_of_any_shape_is_typed_or_refused(odd: OneAnswer, data: Any) -> None:
    odd.answer(json.dumps({"id": 1, "ok": True, "data": data}).encode() + b"\n")
    operations: list[Callable[[Daemon], object]] = [
        Daemon.status,
        Daemon.peers,
        Daemon.connections,
        Daemon.config,
        lambda daemon: daemon.events(5),
        lambda daemon: daemon.moves(5),
    ]
    for operation in operations:
        daemon = Daemon(ControlClient(odd.path, timeout=2))
        try:
            operation(daemon)
        except DaemonDown:
            pass
        finally:
            daemon.close()
