"""The control socket: docs/control.md to the letter, bounded, and no surprise for the engine."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.proc import control
from appliance.proc.control import ControlServer, Operations
from appliance.proc.control_requests import OPERATIONS, ControlError, parse_request

from .control_fake import CONNECTION, EVENT, PEER, STATUS, FakeOperations, listening

DOC = Path(__file__).resolve().parent.parent / "docs" / "control.md"
Json = dict[str, Any]


class Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def ask(self, do: str, args: Json | None = None, id: Any = 1) -> Json:
        return await self.raw(json.dumps({"id": id, "do": do, "args": args or {}}).encode())

    async def raw(self, line: bytes) -> Json:
        self.writer.write(line + b"\n")
        return await self.read()

    async def read(self) -> Json:
        line = await self.reader.readline()
        assert line.endswith(b"\n"), "the server closed"
        answer: Json = json.loads(line)
        return answer

    async def closed(self) -> bool:
        return await self.reader.read(1) == b""


@contextlib.asynccontextmanager
async def serving(
    operations: FakeOperations, path: Path
) -> AsyncIterator[Callable[[], Awaitable[Client]]]:
    task = asyncio.create_task(ControlServer(operations, listening(path)).run())
    clients: list[Client] = []

    async def connect() -> Client:
        client = Client(*await asyncio.open_unix_connection(str(path), limit=32 << 20))
        clients.append(client)
        return client

    try:
        yield connect
    finally:
        for client in clients:
            client.writer.close()
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def served(path: Path, talk: Callable[[FakeOperations, Any], Awaitable[None]]) -> None:
    async def life() -> None:
        operations = FakeOperations()
        async with asyncio.timeout(20), serving(operations, path) as connect:
            await talk(operations, connect)

    asyncio.run(life())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "control.sock"


# The contract


def test_operations_are_those_of_the_document() -> None:
    table = DOC.read_text().split("| do | args | data |")[1].split("\n\n")[0]
    named: set[str] = set()
    for row in table.strip().split("\n"):
        cells = row.split("|")
        if len(cells) > 2:
            named |= set(re.findall(r"`([a-z.]+)`", cells[1]))
    assert named == set(OPERATIONS)


def test_every_operation_fits_the_protocol() -> None:
    for do, operation in OPERATIONS.items():
        if do == "monitor":
            continue
        wanted = list(inspect.signature(getattr(Operations, operation.method)).parameters)
        given_ = [a.parameter or name for name, a in operation.args.items()]
        assert wanted == ["self", *given_], do
    stand_in: Operations = FakeOperations()
    assert stand_in


def test_questions_are_answered_in_order_on_one_connection(path: Path) -> None:
    async def talk(operations: FakeOperations, connect: Any) -> None:
        client = await connect()
        client.writer.write(
            b'{"id": 1, "do": "peers", "args": {}}\n{"id": "two", "do": "status"}\n'
        )
        assert await client.read() == {"id": 1, "ok": True, "data": [PEER]}
        assert await client.read() == {"id": "two", "ok": True, "data": STATUS}

    served(path, talk)


@pytest.mark.parametrize(
    ("do", "args", "call"),
    [
        ("connections", {}, ("connections", (None, None))),
        ("connections", {"state": "held", "peer": "office"}, ("connections", ("held", "office"))),
        ("redirects", {}, ("redirects", ())),
        ("events", {}, ("events", (100, None, None, None))),
        ("events", {"limit": 1000, "before": 3, "level": "alert", "search": "x"},
         ("events", (1000, 3, "alert", "x"))),
        ("events", {"limit": None, "level": None}, ("events", (100, None, None, None))),
        ("moves", {"limit": 5}, ("moves", (5,))),
        ("config", {}, ("config", ())),
        ("peer.accept", {"peer": "office"}, ("peer_accept", ("office",))),
        ("peer.verify", {"peer": "abab"}, ("peer_verify", ("abab",))),
        ("peer.revoke", {"peer": "abab"}, ("peer_revoke", ("abab",))),
        ("peer.forget", {"peer": "abab"}, ("peer_forget", ("abab",))),
        ("peer.rename", {"peer": "a", "name": "Büro 2"}, ("peer_rename", ("a", "Büro 2"))),
        ("peer.dns", {"peer": "a", "dns_name": "a.example"}, ("peer_dns", ("a", "a.example"))),
        ("peer.dns", {"peer": "a", "dns_name": None}, ("peer_dns", ("a", None))),
        ("peer.export", {"peer": "a"}, ("peer_export", ("a",))),
        ("peer.introduce", {"name": "n"}, ("peer_introduce", ("n", None, None))),
        ("peer.introduce", {"name": "n", "address": "fd00::1", "port": 9},
         ("peer_introduce", ("n", ip_address("fd00::1"), 9))),
        ("peer.import", {"text": "t"}, ("peer_import", ("t", None))),
        ("connection.resend", {"conn": "efef"}, ("connection_resend", ("efef",))),
        ("connection.path", {"conn": "efef", "path": "divert"},
         ("connection_path", ("efef", "divert"))),
        ("connection.drop", {"conn": "efef"}, ("connection_drop", ("efef",))),
        ("move", {"to": "192.0.2.1"}, ("move", (ip_address("192.0.2.1"), None))),
        ("move", {"to": "192.0.2.1", "from": "192.0.2.2"},
         ("move", (ip_address("192.0.2.1"), ip_address("192.0.2.2")))),
    ],
)  # fmt: skip
def test_arguments_reach_the_engine_read_and_checked(
    path: Path, do: str, args: Json, call: tuple[str, tuple[Any, ...]]
) -> None:
    async def talk(operations: FakeOperations, connect: Any) -> None:
        assert (await (await connect()).ask(do, args))["ok"] is True
        assert operations.asked == [call]

    served(path, talk)


BAD = [
    (b"", "one JSON object"),
    (b"[]", "one JSON object"),
    (b"{", "one JSON object"),
    (b"\xff\xfe", "one JSON object"),
    (b"[" * 200_000, "one JSON object"),
    (b'{"id": NaN, "do": "status"}', "one JSON object"),
    (b'{"id": ' + b"9" * 5000 + b', "do": "status"}', "one JSON object"),
    (b'{"id": [], "do": "status"}', "'id'"),
    (b'{"id": true, "do": "status"}', "'id'"),
    (b'{"id": "' + b"x" * 100 + b'", "do": "status"}', "'id'"),
    (b'{"id": 1}', "names no operation"),
    (b'{"id": 1, "do": "__init__"}', "names no operation"),
    (b'{"id": 1, "do": ["status"]}', "names no operation"),
    (b'{"id": 1, "do": "status", "as": "root"}', "unknown: 'as'"),
    (b'{"id": 1, "do": "status", "args": []}', "not an object"),
    (b'{"id": 1, "do": "status", "args": {"x": 1}}', "takes no 'x'"),
    (b'{"id": 1, "do": "peer.accept"}', "peer is missing"),
    (b'{"id": 1, "do": "peer.accept", "args": {"peer": null}}', "peer must be"),
    (b'{"id": 1, "do": "peer.accept", "args": {"peer": "\\ud800"}}', "peer"),
    (b'{"id": 1, "do": "peer.rename", "args": {"peer": "a", "name": "a\\u001b[2J"}}', "printable"),
    (b'{"id": 1, "do": "peer.rename", "args": {"peer": "a", "name": " a"}}', "blank"),
    (b'{"id": 1, "do": "peer.rename", "args": {"peer": "a", "name": ""}}', "printable"),
    (b'{"id": 1, "do": "peer.dns", "args": {"peer": "a"}}', "dns_name is missing"),
    (b'{"id": 1, "do": "peer.dns", "args": {"peer": "a", "dns_name": "a b"}}', "host name"),
    (b'{"id": 1, "do": "peer.dns", "args": {"peer": "a", "dns_name": "-a"}}', "host name"),
    (b'{"id": 1, "do": "events", "args": {"limit": 0}}', "from 1 to 1000"),
    (b'{"id": 1, "do": "events", "args": {"limit": 1001}}', "from 1 to 1000"),
    (b'{"id": 1, "do": "events", "args": {"limit": true}}', "from 1 to 1000"),
    (b'{"id": 1, "do": "events", "args": {"level": "loud"}}', "one of debug"),
    (b'{"id": 1, "do": "connections", "args": {"state": []}}', "one of short"),
    (b'{"id": 1, "do": "move", "args": {"to": "home"}}', "IPv4 or IPv6"),
    (b'{"id": 1, "do": "move", "args": {"to": 1}}', "IPv4 or IPv6"),
    (b'{"id": 1, "do": "move"}', "to is missing"),
    (b'{"id": 1, "do": "connection.path", "args": {"conn": "a", "path": "tun"}}', "kernel, divert"),
    (b'{"id": 1, "do": "peer.introduce", "args": {"name": "a", "port": 0}}', "from 1 to 65535"),
    (b'{"id": 1, "do": "peer.import", "args": {"text": "' + b"x" * 70000 + b'"}}', "65536"),
]


@pytest.mark.parametrize(("line", "words"), BAD)
def test_a_bad_request_is_refused_and_the_connection_goes_on(
    path: Path, line: bytes, words: str
) -> None:
    async def talk(operations: FakeOperations, connect: Any) -> None:
        client = await connect()
        answer = await client.raw(line)
        assert answer["ok"] is False
        assert answer["error"]["code"] == "bad-request"
        assert words in answer["error"]["message"]
        assert (await client.ask("peers"))["ok"] is True
        assert operations.asked == [("peers", ())]

    served(path, talk)


def test_an_error_carries_the_id_of_its_request(path: Path) -> None:
    async def talk(operations: FakeOperations, connect: Any) -> None:
        client = await connect()
        assert (await client.ask("events", {"limit": 0}, id="q7"))["id"] == "q7"
        assert (await client.ask("nonsense", id=8))["id"] == 8

    served(path, talk)


def test_a_refusal_of_the_engines_is_passed_on(path: Path) -> None:
    async def talk(operations: FakeOperations, connect: Any) -> None:
        operations.fault = ControlError("not-found", "no peer \"x\": see 'redirectctl show peers'")
        answer = await (await connect()).ask("peer.accept", {"peer": "x"}, id=2)
        assert answer == {
            "id": 2,
            "ok": False,
            "error": {
                "code": "not-found",
                "message": "no peer \"x\": see 'redirectctl show peers'",
            },
        }

    served(path, talk)


@pytest.mark.parametrize("answer", [{1: object()}, object()])
def test_what_the_engine_can_not_answer_is_internal_and_no_secret(
    path: Path, answer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async def talk(operations: FakeOperations, connect: Any) -> None:
        client = await connect()
        operations.fault = RuntimeError("the root key is 1234")
        first = await client.ask("peer.export", {"peer": "a"})
        operations.fault, operations.answer = None, answer
        second = await client.ask("peers")
        for told in (first, second):
            assert told["error"]["code"] == "internal"
            assert "1234" not in json.dumps(told)

    served(path, talk)
    assert "peer.export failed" in caplog.text


def test_requests_that_change_something_are_logged_without_secrets(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def talk(operations: FakeOperations, connect: Any) -> None:
        client = await connect()
        await client.ask("peers")
        await client.ask("peer.revoke", {"peer": "office\nforged"})
        await client.ask("peer.import", {"text": "root key"})

    with caplog.at_level("INFO", "redirectd.control"):
        served(path, talk)
    assert [r.getMessage().strip() for r in caplog.records] == [
        "asked for peer.revoke 'office\\nforged'", "asked for peer.import",
    ]  # fmt: skip


# Bounds


def test_a_line_over_the_bound_is_told_and_closed(path: Path) -> None:
    async def talk(operations: FakeOperations, connect: Any) -> None:
        client = await connect()
        client.writer.write(b"x" * (control.REQUEST_MAX + 2))
        assert "1048576" in (await client.read())["error"]["message"]
        assert await client.closed()

    served(path, talk)


def test_a_request_of_nearly_the_bound_is_served(path: Path) -> None:
    async def talk(operations: FakeOperations, connect: Any) -> None:
        line = json.dumps({"id": 1, "do": "peers"}).encode()
        assert (await (await connect()).raw(line + b" " * 1_000_000))["ok"] is True

    served(path, talk)


def test_five_thousand_connections_fit_in_an_answer(path: Path) -> None:
    async def talk(operations: FakeOperations, connect: Any) -> None:
        operations.answer = [CONNECTION] * 5000
        client = await connect()
        assert len((await client.ask("connections"))["data"]) == 5000

    served(path, talk)


def test_an_answer_over_the_bound_is_refused(path: Path) -> None:
    async def talk(operations: FakeOperations, connect: Any) -> None:
        operations.answer = ["x" * control.ANSWER_MAX]
        answer = await (await connect()).ask("peers")
        assert answer["error"]["code"] == "refused"

    served(path, talk)


def test_the_client_after_the_64th_is_turned_away_until_one_leaves(path: Path) -> None:
    async def talk(operations: FakeOperations, connect: Any) -> None:
        clients = [await connect() for _ in range(control.CLIENTS_MAX)]
        for client in clients:
            assert (await client.ask("peers"))["ok"] is True
        late = await connect()
        assert (await late.read())["error"]["code"] == "refused"
        assert await late.closed()
        clients[0].writer.close()
        await clients[0].writer.wait_closed()
        while True:  # the server learns of the close when its loop next turns
            again = await connect()
            again.writer.write(b'{"id": 1, "do": "peers"}\n')
            if (await again.read())["ok"]:
                break

    served(path, talk)


def test_a_request_without_an_end_is_not_carried_out(path: Path) -> None:
    async def talk(operations: FakeOperations, connect: Any) -> None:
        client = await connect()
        client.writer.write(b'{"id": 1, "do": "peer.forget", "args": {"peer": "office"}}')
        client.writer.write_eof()
        assert await client.closed()
        assert operations.asked == []

    served(path, talk)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_a_request_or_a_control_error(line: bytes) -> None:
    with contextlib.suppress(ControlError):
        parse_request(line)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None)
@given(
    do=st.sampled_from(sorted(OPERATIONS)),
    args=st.dictionaries(
        st.sampled_from(sorted({a for o in OPERATIONS.values() for a in o.args})), _JSON
    ),
)
def test_any_arguments_are_read_or_refused(do: str, args: Json) -> None:
    line = json.dumps({"id": 1, "do": do, "args": args}).encode()
    with contextlib.suppress(ControlError):
        request = parse_request(line)
        assert request.method == OPERATIONS[do].method


# Monitors


def test_a_monitor_gets_every_event_from_then_on(path: Path) -> None:
    async def talk(operations: FakeOperations, connect: Any) -> None:
        operations.tell({"id": 0})
        client = await connect()
        assert await client.ask("monitor", id=5) == {"id": 5, "ok": True, "data": {}}
        await operations.subscribed.wait()
        for number in range(3):
            operations.tell({**EVENT, "id": number})
        for number in range(3):
            assert await client.read() == {"event": {**EVENT, "id": number}}
        assert await client.ask("monitor") == {"id": 1, "ok": True, "data": {}}
        assert len(operations.listeners) == 1

    served(path, talk)


def test_a_monitor_that_leaves_is_unsubscribed(path: Path) -> None:
    async def talk(operations: FakeOperations, connect: Any) -> None:
        client = await connect()
        await client.ask("monitor")
        await operations.subscribed.wait()
        client.writer.close()
        await client.writer.wait_closed()
        while operations.listeners:
            await asyncio.sleep(0)

    served(path, talk)


def test_a_monitor_that_reads_too_slowly_is_closed_and_others_go_on(path: Path) -> None:
    async def talk(operations: FakeOperations, connect: Any) -> None:
        slow, quick = await connect(), await connect()
        for client in (slow, quick):
            await client.ask("monitor")
        slow.reader._transport.pause_reading()
        while len(operations.listeners) < 2:
            await asyncio.sleep(0)
        told = 0
        while len(operations.listeners) == 2:
            operations.tell({**EVENT, "text": "x" * 4096})
            told += 1
            await quick.read()
            assert told < 100_000
        operations.tell(EVENT)
        assert await quick.read() == {"event": EVENT}

    served(path, talk)


def test_a_server_that_stops_closes_its_clients(path: Path) -> None:
    async def life() -> None:
        operations = FakeOperations()
        async with asyncio.timeout(20):
            async with serving(operations, path) as connect:
                client = await connect()
                await client.ask("monitor")
                reader = client.reader
                task = asyncio.create_task(reader.read())
                await asyncio.sleep(0)
            assert await task == b""
        assert operations.listeners == []

    asyncio.run(life())
