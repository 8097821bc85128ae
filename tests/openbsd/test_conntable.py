"""The engine's connection table: prompts, dumps, and what the handler is told."""

from __future__ import annotations

import os
import select
import socket

import pytest

from appliance.backend.openbsd.conntable import LEAST, MOST, Known, PfConnections
from appliance.backend.openbsd.statetable import messages
from appliance.protocol.inputs import Connection
from appliance.rewrite.flow import Flow
from appliance.rewrite.redirect import Entry

from . import fixtures
from .test_connections import BIRTH, GATEWAY, INSIDE, RECORDED, redirected


class Handler:
    def __init__(self) -> None:
        self.told: list[tuple[str, object]] = []

    def opened(self, connection: Connection) -> None:
        self.told.append(("opened", connection.birth))

    def closed(self, birth: Flow) -> None:
        self.told.append(("closed", birth))

    def nat_lost(self, birth: Flow) -> None:
        self.told.append(("lost", birth))

    def all_known(self, connections: list[Connection]) -> None:
        self.told.append(("known", [c.birth for c in connections]))

    def take(self) -> list[tuple[str, object]]:
        told, self.told = self.told, []
        return told


class Pflog:
    """A pipe in place of bpf on pflog1."""

    def __init__(self) -> None:
        self._in, self._out = os.pipe()
        os.set_blocking(self._in, False)

    def fileno(self) -> int:
        return self._in

    def read(self) -> bytes:
        try:
            return os.read(self._in, 4096)
        except BlockingIOError:
            return b""

    def prompt(self) -> None:
        os.write(self._out, b"a packet")


class Setup:
    def __init__(self, rebooted: bool = False, prompts: bool = True) -> None:
        self.parent, engine = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        engine.setblocking(False)
        self.pflog = Pflog()
        self.known, self.handler, self.now = Known(), Handler(), 100.0
        self.table = PfConnections(
            engine, self.pflog if prompts else None, GATEWAY, self.known, self.handler,
            lambda: self.now, rebooted,
        )  # fmt: skip

    def readable(self) -> bool:
        return bool(select.select([self.table.fileno()], [], [], 0)[0])

    def dump(self, data: bytes) -> list[tuple[str, object]]:
        for message in messages(1, "records", data):
            self.parent.send(message)
        assert self.readable()
        self.table.read()
        return self.handler.take()


@pytest.fixture
def setup() -> Setup:
    return Setup()


def test_a_prompt_wakes_the_engine_and_asks_for_one_dump(setup: Setup) -> None:
    assert not setup.readable()
    setup.pflog.prompt()
    setup.pflog.prompt()
    assert setup.readable()
    setup.table.read()
    assert not setup.readable()
    assert not setup.table.overran()  # the last dump was asked for just now
    setup.now = setup.table.next_timer() or 0.0
    assert setup.now == 100.0 + LEAST
    assert setup.table.overran()
    assert not setup.table.overran()


def test_without_prompts_dumps_are_timed(setup: Setup) -> None:
    alone = Setup(prompts=False)
    for one in (setup, alone):
        assert one.table.next_timer() == 100.0 + MOST
        one.now += MOST
        assert one.table.overran()


def test_many_states_make_dumps_rarer(setup: Setup) -> None:
    setup.table.take([RECORDED[0]] * 5000)
    assert setup.table.next_timer() == 100.0 + MOST + 10.0


def test_a_dump_opens_and_a_second_one_is_quiet(setup: Setup) -> None:
    assert setup.dump(fixtures.records()) == [("opened", BIRTH), ("known", [BIRTH])]
    assert setup.dump(fixtures.records()) == [("known", [BIRTH])]
    assert setup.table.numbers(INSIDE) == (RECORDED[1].dst.seqlo, RECORDED[1].src.seqlo)
    assert setup.table.numbers(BIRTH) is None


def test_a_state_that_was_flushed_is_lost_nat(setup: Setup) -> None:
    setup.dump(fixtures.records())
    assert setup.dump(b"") == [("lost", BIRTH), ("known", [])]


def test_a_redirected_connection_outlives_its_state(setup: Setup) -> None:
    setup.dump(fixtures.records())
    setup.known.update([redirected()])
    assert setup.dump(b"") == [("known", [BIRTH])]


def test_a_bound_one_that_never_moved_does_not(setup: Setup) -> None:
    setup.dump(fixtures.records())
    setup.known.update([Entry("ab" * 16, BIRTH, INSIDE, False, True, (BIRTH,), BIRTH)])
    assert setup.dump(b"") == [("lost", BIRTH), ("known", [])]


@pytest.mark.parametrize(("local", "known"), [(True, []), (False, [BIRTH])])
def test_after_a_reboot_our_own_sockets_are_gone(local: bool, known: list[Flow]) -> None:
    setup = Setup(rebooted=True)
    setup.known.update([redirected(local)])
    assert setup.dump(b"") == [("known", known)]
    assert setup.dump(b"") == [("known", [BIRTH])]


def test_forgotten_entries_are_known_no_longer() -> None:
    known = Known()
    known.update([redirected()])
    known.forget([redirected().conn_id, "unknown"])
    assert known.by_inside == {}


def test_connections_left_alone_are_kept_with_their_reason(setup: Setup) -> None:
    record = bytearray(fixtures.records()[264:528])
    record[104 + 16 : 104 + 20] = (5).to_bytes(4)  # seqdiff of the source
    assert setup.dump(bytes(record)) == [("known", [])]
    assert "modulate" in setup.table.left_alone[BIRTH]


def test_a_damaged_dump_is_skipped(setup: Setup) -> None:
    setup.parent.send(b"\0")
    setup.table.read()
    assert setup.handler.take() == []


def test_a_parent_that_is_gone_ends_the_reading(setup: Setup) -> None:
    setup.parent.close()
    setup.table.read()
    assert setup.handler.take() == []
