"""Parent and engine: what one sends the other understands, and nothing else passes."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.backend.api import BackendError
from appliance.proc.ipc import HEADER, EngineLink, Message, ParentLink, ProtocolError, unpack_header
from appliance.proc.servant import Servant
from appliance.rewrite.flow import Flow
from appliance.rewrite.redirect import Entry

FLOW = Flow.of("192.0.2.1", 40000, "198.51.100.1", 22)
ENTRY = Entry("ab" * 16, FLOW, FLOW, True, True, (FLOW,), None, ())


class Recorder:
    """Stands for both RedirectTable and Host; says what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Any]] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: self.asked.append((name, args))

    def reserve(self, wanted: Mapping[str, Flow]) -> dict[str, Flow | None]:
        return {conn: None if flow.local.port == 1 else flow for conn, flow in wanted.items()}

    def apply(self, entries: Sequence[Entry]) -> None:
        if not entries:
            raise BackendError("nft: no entries")
        self.asked.append(("apply", list(entries)))


@pytest.fixture
def served() -> Iterator[tuple[socket.socket, Recorder]]:
    ours, theirs = socket.socketpair()
    recorder = Recorder()
    servant = Servant(recorder, recorder)

    def serve() -> None:
        link = EngineLink(ours)
        try:
            while True:
                servant.serve_one(link)
        except (EOFError, ProtocolError):
            ours.close()

    thread = threading.Thread(target=serve)
    thread.start()
    yield theirs, recorder
    theirs.close()
    thread.join(10)
    assert not thread.is_alive()


def ask(sock: socket.socket, kind: Message, body: dict[str, Any]) -> Any:
    async def once() -> Any:
        link = await ParentLink.connect(sock.dup())
        try:
            return await link.call(kind, body)
        finally:
            await link.close()

    return asyncio.run(once())


def test_entries_arrive_as_they_were_sent(served: tuple[socket.socket, Recorder]) -> None:
    sock, recorder = served
    assert ask(sock, Message.APPLY, {"entries": [ENTRY.to_json()]}) is None
    assert recorder.asked == [("apply", [ENTRY]), ("keep", ([ENTRY],))]


def test_reserved_ports_come_back_with_none_for_a_full_host(
    served: tuple[socket.socket, Recorder],
) -> None:
    full = FLOW.with_local(FLOW.local.addr, 1)
    got = ask(served[0], Message.RESERVE, {"wanted": {"a": str(FLOW), "b": str(full)}})
    assert got == {"a": str(FLOW), "b": None}


@pytest.mark.parametrize(
    ("kind", "body", "why"),
    [
        (Message.APPLY, {"entries": []}, "nft: no entries"),
        (Message.APPLY, {"entries": "x"}, "not a list"),
        (Message.APPLY, {"entries": [{**ENTRY.to_json(), "conn_id": "x; flush"}]}, "connection ID"),
        (Message.PARK, {"addr": "1.2.3.4; reboot"}, "1.2.3.4; reboot"),
        (Message.DONE, {}, "not a request"),
        (Message.REMOVE, {"conn_ids": [1]}, "list of texts"),
    ],
)
def test_a_faulty_request_is_refused_and_the_next_one_served(
    served: tuple[socket.socket, Recorder], kind: Message, body: dict[str, Any], why: str
) -> None:
    with pytest.raises(BackendError, match=why):
        ask(served[0], kind, body)
    assert ask(served[0], Message.REMOVE, {"conn_ids": ["a"]}) is None


@given(st.binary(min_size=HEADER.size, max_size=HEADER.size))
def test_any_header_is_a_bounded_message_or_refused(header: bytes) -> None:
    try:
        kind, length = unpack_header(header)
    except ProtocolError:
        return
    assert kind in Message
    assert length <= 32 << 20


def test_a_parent_that_is_gone_ends_the_engine() -> None:
    ours, theirs = socket.socketpair()
    ours.close()
    with pytest.raises((EOFError, ConnectionError)):
        ask(theirs, Message.DUMP, {})
    theirs.close()
