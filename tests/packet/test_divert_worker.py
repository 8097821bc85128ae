"""The worker's decisions, with a queue made of lists."""

from __future__ import annotations

from ipaddress import ip_address
from typing import cast

import dpkt
import pytest

from appliance.backend.linux.divert_worker import DivertWorker
from appliance.backend.linux.nfqueue import Answer, Decide, Hook, Info, NfQueue
from appliance.rewrite.flow import Endpoint, Flow
from appliance.rewrite.rewriter import Rewriter
from tests.rewrite.packets import entry, tcp
from tests.rewrite.test_rewriter import BIRTH, WIRE

IN, OUT = Hook.PREROUTING, Hook.OUTPUT


class Lists:
    """What a worker uses of an NfQueue."""

    length = 4096

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
            self.answers.append((self._id, answer, bytes(buffer[7:-5])))
        return len(waiting)


@pytest.fixture
def queue() -> Lists:
    return Lists()


@pytest.fixture
def worker(queue: Lists) -> DivertWorker:
    made = DivertWorker(cast(NfQueue, queue), Rewriter())
    made.load([entry(BIRTH, WIRE)])
    return made


def out(number: int = 0, flow: Flow = BIRTH) -> bytes:
    return tcp(flow.local, flow.remote, b"%d" % number, seq=number)


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


def test_only_open_connections_pass(worker: DivertWorker, queue: Lists) -> None:
    """A segment of a connection that was let go, or shut, must not go on untranslated."""
    stranger = tcp(BIRTH.remote, WIRE.remote)
    stale = tcp(BIRTH.remote, BIRTH.local)
    plain = tcp(WIRE.remote, WIRE.local)
    worker.apply([entry(BIRTH, WIRE, stale=(BIRTH,))])
    assert handle(worker, queue, (stranger, IN, 0), (stale, IN, 0)) == [Answer.DROP] * 2
    worker.apply([entry(BIRTH, BIRTH)])
    here = tcp(BIRTH.remote, BIRTH.local)
    assert handle(worker, queue, (here, IN, 0), (plain, IN, 0)) == [Answer.ACCEPT, Answer.DROP]
    worker.apply([entry(BIRTH, WIRE, wire_out=None)])
    assert handle(worker, queue, (out(), OUT, 0)) == [Answer.DROP]


def test_what_was_queued_before_is_handled_before(worker: DivertWorker, queue: Lists) -> None:
    queue.waiting += [(out(n), OUT, 0) for n in range(300)]
    worker.drain()
    worker.remove(["0" * 32, "unknown"])
    assert [answer for _, answer, _ in queue.answers] == [Answer.ACCEPT_CHANGED] * 300


@pytest.mark.parametrize("inside", [BIRTH, Flow.of("192.168.7.20", 40000, "192.0.2.9", 22)])
def test_what_is_forwarded_has_its_destination_already(
    worker: DivertWorker, queue: Lists, inside: Flow
) -> None:
    """And for a moment still the one before."""
    moved = Flow(WIRE.local, Endpoint(ip_address("192.0.2.77"), BIRTH.remote.port))
    worker.load([entry(BIRTH, moved, WIRE, local=False, inside=inside)])
    for far in (BIRTH.remote, moved.remote):
        packet = tcp(BIRTH.local, far, b"x")
        assert handle(worker, queue, (packet, Hook.POSTROUTING, 0)) == [Answer.ACCEPT_CHANGED]
        assert queue.answers[-1][2] == tcp(moved.local, moved.remote, b"x")
    worker.remove(["0" * 32])
    assert handle(worker, queue, (packet, Hook.POSTROUTING, 0)) == [Answer.DROP]
