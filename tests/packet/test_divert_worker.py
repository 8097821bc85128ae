"""The worker's decisions and bounds, with a queue made of lists."""

from __future__ import annotations

import dataclasses
from typing import cast

import dpkt
import pytest

from appliance.backend.linux import divert_worker
from appliance.backend.linux.divert_worker import MAX_NEWEST, DivertWorker
from appliance.backend.linux.nfqueue import Answer, Decide, Hook, Info, NfQueue
from appliance.rewrite.flow import Flow
from appliance.rewrite.redirect import Entry
from appliance.rewrite.rewriter import Rewriter
from tests.rewrite.packets import entry, sent, tcp, tuple_in
from tests.rewrite.test_rewriter import BIRTH, WIRE

IN, OUT = Hook.PREROUTING, Hook.OUTPUT


class Lists:
    """What a worker uses of an NfQueue."""

    def __init__(self) -> None:
        self.waiting: list[tuple[bytes, int, int]] = []
        self.answers: list[tuple[int, int, bytes]] = []
        self._id = 0

    def dispatch(self, decide: Decide, limit: int = 256) -> int:
        waiting, self.waiting = self.waiting, []
        for data, hook, info in waiting:
            self._id += 1
            buffer = bytearray(b"\xee" * 7 + data + b"\xee" * 5)
            answer = decide(buffer, 7, len(data), hook, info)
            if answer != Answer.KEEP:
                self.answers.append((self._id, answer, bytes(buffer[7:-5])))
        return len(waiting)

    def current_id(self) -> int:
        return self._id

    def verdict(self, packet_id: int, accept: bool, data: bytes | None = None) -> None:
        self.answers.append(
            (packet_id, Answer.ACCEPT_CHANGED if accept else Answer.DROP, data or b"")
        )


@pytest.fixture
def queue() -> Lists:
    return Lists()


@pytest.fixture
def resets() -> list[str]:
    return []


@pytest.fixture
def worker(queue: Lists, resets: list[str]) -> DivertWorker:
    made = DivertWorker(
        cast(NfQueue, queue), Rewriter(withhold_resets=True), on_reset=resets.append
    )
    made.load([entry(BIRTH, WIRE)])
    return made


def out(number: int = 0, flow: Flow = BIRTH) -> bytes:
    return tcp(flow.local, flow.remote, b"%d" % number, seq=number)


def shut(flow: Flow = BIRTH, number: int = 0) -> Entry:
    return entry(flow, flow, conn_id=f"{number:032x}", wire_out=None)


def handle(worker: DivertWorker, queue: Lists, *packets: tuple[bytes, int, int]) -> list[int]:
    queue.waiting += packets
    begin = len(queue.answers)
    worker.read()
    return [answer for _, answer, _ in queue.answers[begin:]]


def unfinished(packet: bytes) -> bytes:
    raw = bytearray(packet)
    pseudo = bytes(raw[12:20]) + (6).to_bytes(2, "big") + (len(raw) - 20).to_bytes(2, "big")
    raw[36:38] = (dpkt.in_cksum(pseudo) ^ 0xFFFF).to_bytes(2, "big")
    return bytes(raw)


@pytest.mark.parametrize(
    ("hook", "info", "finished"),
    [
        (OUT, Info.CSUM_NOT_READY, True),
        (OUT, Info.CSUM_NOT_READY | Info.GSO, False),
        (Hook.POSTROUTING, Info.CSUM_NOT_READY | Info.GSO, False),
        (IN, Info.CSUM_NOT_READY | Info.GSO, True),
        (IN, Info.CSUM_NOT_READY, True),
        (IN, 0, None),
    ],
)
def test_checksums_are_finished_where_the_kernel_will_not(
    worker: DivertWorker, queue: Lists, hook: int, info: int, finished: bool | None
) -> None:
    inbound = hook == IN
    came = tcp(WIRE.remote, WIRE.local, b"x") if inbound else tcp(BIRTH.local, BIRTH.remote, b"x")
    want = tcp(BIRTH.remote, BIRTH.local, b"x") if inbound else tcp(WIRE.local, WIRE.remote, b"x")
    packet = came if finished is None else unfinished(came)
    assert handle(worker, queue, (packet, hook, int(info))) == [Answer.ACCEPT_CHANGED]
    assert queue.answers[0][2] == (unfinished(want) if finished is False else want)


def test_strangers_pass_and_stale_tuples_drop(worker: DivertWorker, queue: Lists) -> None:
    worker.apply([entry(BIRTH, WIRE, stale=(BIRTH,))])
    stranger = tcp(BIRTH.remote, WIRE.remote)
    stale = tcp(BIRTH.remote, BIRTH.local)
    assert handle(worker, queue, (stranger, IN, 0), (stale, IN, 0)) == [Answer.ACCEPT, Answer.DROP]


def test_resets_are_withheld_and_told(
    worker: DivertWorker, queue: Lists, resets: list[str]
) -> None:
    packet = tcp(WIRE.remote, WIRE.local, flags=dpkt.tcp.TH_RST)
    assert handle(worker, queue, (packet, IN, 0)) == [Answer.DROP]
    assert resets == ["0" * 32]


def test_held_packets_go_on_in_order_and_translated(worker: DivertWorker, queue: Lists) -> None:
    worker.apply([shut()])
    super_packet = unfinished(out(2))
    assert handle(
        worker, queue,
        (out(0), OUT, 0),
        (unfinished(out(1)), OUT, int(Info.CSUM_NOT_READY)),
        (super_packet, OUT, int(Info.CSUM_NOT_READY | Info.GSO)),
    ) == []  # fmt: skip
    assert worker.held() == {"0" * 32: 3}
    worker.apply([entry(BIRTH, WIRE)])
    assert worker.held() == {}
    assert [i for i, _, _ in queue.answers] == [1, 2, 3]
    wire = [tcp(WIRE.local, WIRE.remote, b"%d" % n, seq=n) for n in range(3)]
    assert [data for _, _, data in queue.answers] == [wire[0], wire[1], unfinished(wire[2])]
    assert tuple_in(queue.answers[0][2]) == sent(WIRE)


def test_first_and_newest_are_kept_of_a_connection(worker: DivertWorker, queue: Lists) -> None:
    worker.apply([shut()])
    count = 1 + MAX_NEWEST + 5
    handle(worker, queue, *[(out(n), OUT, 0) for n in range(count)])
    assert worker.held() == {"0" * 32: 1 + MAX_NEWEST}
    assert [i for i, answer, _ in queue.answers if answer == Answer.DROP] == [2, 3, 4, 5, 6]
    assert worker.dropped == 5
    worker.apply([entry(BIRTH, BIRTH)])
    kept = [data for _, answer, data in queue.answers if answer == Answer.ACCEPT_CHANGED]
    assert kept == [out(0)] + [out(n) for n in range(6, count)]


def test_all_that_is_held_together_is_bounded(
    worker: DivertWorker, queue: Lists, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(divert_worker, "MAX_HELD", 8)
    flows = [Flow.of("10.0.0.1", 1000 + n, "192.0.2.9", 22) for n in range(10)]
    worker.apply([shut(flow, n) for n, flow in enumerate(flows)])
    handle(worker, queue, *[(out(n, flows[0]), OUT, 0) for n in range(6)])
    handle(worker, queue, *[(out(0, flow), OUT, 0) for flow in flows[1:]])
    held = worker.held()
    assert sum(held.values()) == 8
    assert all(count == 1 for count in held.values()), "a first went before a newest"
    assert worker.dropped == 15 - 8
    worker.remove(held)
    assert worker.held() == {}
    assert len(queue.answers) == 15


def test_connections_that_vanish_or_stay_shut(worker: DivertWorker, queue: Lists) -> None:
    other = Flow.of("10.0.0.1", 9, "192.0.2.9", 22)
    worker.apply([shut(), shut(other, 1)])
    handle(worker, queue, (out(0), OUT, 0), (out(0, other), OUT, 0))
    worker.apply([dataclasses.replace(shut(), wires=(WIRE,))])
    assert sum(worker.held().values()) == 2
    worker.load([shut(other, 1)])
    assert worker.held() == {f"{1:032x}": 1}
    assert [(i, a) for i, a, _ in queue.answers] == [(1, Answer.DROP)]
    worker.remove([f"{1:032x}", "unknown"])
    assert [i for i, _, _ in queue.answers] == [1, 2]


def test_what_was_cut_is_not_held(worker: DivertWorker, queue: Lists) -> None:
    worker.apply([shut()])
    assert handle(worker, queue, (out(), OUT, int(Info.TRUNCATED))) == [Answer.DROP]
