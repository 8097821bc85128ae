"""NFQUEUE against the kernel: batches, changed packets, kept ones, bounds, super-packets."""

from __future__ import annotations

import os
import select
import socket
import subprocess
import threading
import time
from collections.abc import Iterator

import pytest

from appliance.backend.api import BackendError
from appliance.backend.linux import queue_rules
from appliance.backend.linux.nfqueue import Answer, Hook, Info, NfQueue
from appliance.rewrite import checksum
from tests.lab.kernel import entered

NEAR, FAR = f"rd-packet-q{os.getpid()}", f"rd-packet-p{os.getpid()}"
HERE, THERE = "10.96.0.1", "10.96.0.2"
TABLE = "redirectd_test"
OUT = " chain out {\n  type filter hook output priority 310\n  udp dport 9000 jump to_queue\n }\n"


@pytest.fixture(scope="module")
def network() -> Iterator[None]:
    try:
        for line in (
            f"netns add {NEAR}",
            f"netns add {FAR}",
            f"link add v0 netns {NEAR} type veth peer name v1 netns {FAR}",
            f"-n {NEAR} addr add {HERE}/24 dev v0",
            f"-n {FAR} addr add {THERE}/24 dev v1",
            f"-n {NEAR} link set v0 up",
            f"-n {FAR} link set v1 up",
        ):
            subprocess.run(["ip", *line.split()], check=True)
        yield
    finally:
        for name in (NEAR, FAR):
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


@pytest.fixture
def near(network: None) -> Iterator[None]:
    with entered(NEAR):
        yield
        queue_rules.remove(TABLE)


@pytest.fixture
def sockets(near: None) -> Iterator[tuple[socket.socket, socket.socket]]:
    """(sender here, receiver there)"""
    with entered(FAR):
        receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    receiver.bind((THERE, 9000))
    receiver.settimeout(5)
    with receiver, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        yield sender, receiver


def accept(buffer: bytearray, offset: int, length: int, hook: int, info: int) -> int:
    return Answer.ACCEPT


def wait(queue: NfQueue) -> None:
    assert select.select([queue], [], [], 5)[0], "no packet was queued"


def send(sender: socket.socket, *words: bytes) -> None:
    for word in words:
        sender.sendto(word, (THERE, 9000))


def nothing_more(receiver: socket.socket) -> bool:
    return not select.select([receiver], [], [], 0.05)[0]


def test_batch_is_answered_packet_by_packet(
    sockets: tuple[socket.socket, socket.socket],
) -> None:
    sender, receiver = sockets
    with NfQueue(9, slots=4, gso=False) as queue:
        queue_rules.install(TABLE, 9, OUT, {"to_queue": False})
        send(sender, *[b"%d" % number for number in range(10)])
        seen: list[tuple[int, int]] = []

        def decide(buffer: bytearray, offset: int, length: int, hook: int, info: int) -> int:
            seen.append((hook, queue.current_id()))
            digit = buffer[offset + 28] - 48
            if digit % 3 == 1:
                return Answer.DROP
            if digit % 3 == 2:
                buffer[offset + 28] = 65 + digit
                checksum.finish(buffer, offset, length)
                return Answer.ACCEPT_CHANGED
            return Answer.ACCEPT

        wait(queue)
        assert queue.dispatch(decide) == 10
        assert [receiver.recv(9) for _ in range(7)] == [b"0", b"C", b"3", b"F", b"6", b"I", b"9"]
        assert seen == [(Hook.OUTPUT, number) for number in range(1, 11)]
        assert queue.dispatch(decide) == 0
        assert (queue.errors, queue.malformed) == (0, 0)


def test_limit_stops_at_a_batch(sockets: tuple[socket.socket, socket.socket]) -> None:
    sender, receiver = sockets
    with NfQueue(9, slots=4) as queue:
        queue_rules.install(TABLE, 9, OUT, {"to_queue": False})
        send(sender, *[b"x"] * 10)
        wait(queue)
        assert [queue.dispatch(accept, limit=5) for _ in range(2)] == [8, 2]
        assert [receiver.recv(9) for _ in range(10)] == [b"x"] * 10


def test_kept_packets_wait_for_their_verdict(
    sockets: tuple[socket.socket, socket.socket],
) -> None:
    sender, receiver = sockets
    with NfQueue(9, copy=64, gso=False) as queue:
        queue_rules.install(TABLE, 9, OUT, {"to_queue": False})
        send(sender, b"first", b"second", b"third", b"x" * 1000)
        kept: list[int] = []

        def keep(buffer: bytearray, offset: int, length: int, hook: int, info: int) -> int:
            kept.append(queue.current_id())
            assert bool(info & Info.TRUNCATED) == (length == 64)
            return Answer.KEEP

        wait(queue)
        assert queue.dispatch(keep) == 4
        assert nothing_more(receiver)
        queue.verdict(kept[1], accept=False)
        queue.verdicts([kept[0], kept[3], kept[2]], accept=True)
        assert [receiver.recv(2000) for _ in range(3)] == [b"first", b"x" * 1000, b"third"]
        queue.verdict(kept[0], accept=True)
        wait(queue)
        assert queue.dispatch(accept) == 0
        assert queue.errors == 1


def test_packet_that_was_cut_can_not_go_on_changed(
    sockets: tuple[socket.socket, socket.socket],
) -> None:
    sender, receiver = sockets
    after = " chain after {\n  type filter hook output priority 320\n  udp dport 9000 counter\n }\n"
    with NfQueue(9, copy=64, gso=False) as queue:
        queue_rules.install(TABLE, 9, OUT + after, {"to_queue": False})
        send(sender, b"x" * 1000, b"short", b"y" * 1000)
        wait(queue)
        queue.dispatch(lambda *_: Answer.ACCEPT_CHANGED)
        assert receiver.recv(2000) == b"short"
        # The stumps were not even sent.
        left = subprocess.run(
            ["nft", "list", "chain", "inet", TABLE, "after"],
            check=True, capture_output=True, text=True,
        ).stdout  # fmt: skip
        assert "packets 1 " in left


def test_packets_may_grow_and_shrink_one_by_one(
    sockets: tuple[socket.socket, socket.socket],
) -> None:
    sender, receiver = sockets
    with NfQueue(9, gso=False) as queue:
        queue_rules.install(TABLE, 9, OUT, {"to_queue": False})
        send(sender, b"12345", b"12345")
        wait(queue)
        found = queue.receive(9)
        assert [q.hook for q in found] == [Hook.OUTPUT] * 2
        assert found[0].outdev == socket.if_nametoindex("v0")
        for queued, payload in zip(found, (b"1234567890", b"1"), strict=True):
            data = bytearray(queued.data[:28] + payload)
            data[2:4] = len(data).to_bytes(2, "big")
            data[24:26] = (len(data) - 20).to_bytes(2, "big")
            data[10:12] = checksum.header_checksum(data[:20]).to_bytes(2, "big")
            assert checksum.finish(data, 0, len(data))
            queue.verdict(queued.packet_id, accept=True, data=bytes(data))
        assert [receiver.recv(99), receiver.recv(99)] == [b"1234567890", b"1"]
        with pytest.raises(ValueError, match="65535 bytes"):
            queue.verdict(1, accept=True, data=bytes(65535))


@pytest.mark.parametrize(("fail_open", "passed"), [(True, 6), (False, 0)])
def test_full_queue_fails_as_it_was_told(
    sockets: tuple[socket.socket, socket.socket], fail_open: bool, passed: int
) -> None:
    sender, receiver = sockets
    with NfQueue(9, length=4, fail_open=fail_open) as queue:
        queue_rules.install(TABLE, 9, OUT, {"to_queue": False})
        send(sender, *[b"%d" % number for number in range(10)])
        first = [receiver.recv(9) for _ in range(passed)]
        assert first == [b"%d" % number for number in range(4, 4 + passed)]
        wait(queue)
        assert queue.dispatch(accept) == 4
        assert [receiver.recv(9) for _ in range(4)] == [b"0", b"1", b"2", b"3"]
        assert nothing_more(receiver)


@pytest.mark.parametrize("bypass", [True, False])
def test_without_a_listener_packets_pass_only_by_bypass(
    sockets: tuple[socket.socket, socket.socket], bypass: bool
) -> None:
    sender, receiver = sockets
    queue_rules.install(TABLE, 9, OUT, {"to_queue": bypass})
    if bypass:
        send(sender, b"free")
        assert receiver.recv(9) == b"free"
    else:
        send(sender, b"lost")
        assert nothing_more(receiver)


def test_closing_drops_what_waits_and_frees_the_number(
    sockets: tuple[socket.socket, socket.socket],
) -> None:
    sender, receiver = sockets
    with NfQueue(9):
        with pytest.raises(BackendError, match="NFQUEUE 9"):
            NfQueue(9)
        queue_rules.install(TABLE, 9, OUT, {"to_queue": False})
        send(sender, b"lost")
    with NfQueue(9) as again:
        send(sender, b"found")
        wait(again)
        assert again.dispatch(accept) == 1
        assert receiver.recv(9) == b"found"


def test_raising_in_the_middle_loses_no_earlier_answer(
    sockets: tuple[socket.socket, socket.socket],
) -> None:
    sender, receiver = sockets
    with NfQueue(9) as queue:
        queue_rules.install(TABLE, 9, OUT, {"to_queue": False})
        send(sender, b"one", b"two")
        asked: list[int] = []

        def decide(buffer: bytearray, offset: int, length: int, hook: int, info: int) -> int:
            asked.append(queue.current_id())
            if len(asked) == 2:
                raise RuntimeError("second")
            return Answer.ACCEPT

        wait(queue)
        with pytest.raises(RuntimeError, match="second"):
            queue.dispatch(decide)
        assert receiver.recv(9) == b"one"
        queue.verdict(asked[1], accept=True)
        assert receiver.recv(9) == b"two"


@pytest.mark.parametrize("gso", [True, False])
def test_tcp_stream_passes_through_unharmed(near: None, gso: bool) -> None:
    """Super-packets and single ones, put back with the bytes they came with."""
    body = (
        " chain out {\n  type filter hook output priority 310\n  tcp dport 9001 jump to_queue\n }\n"
        " chain in {\n  type filter hook prerouting priority -310\n"
        "  tcp sport 9001 jump to_queue\n }\n"
    )
    with NfQueue(9, gso=gso) as queue:
        queue_rules.install(TABLE, 9, body, {"to_queue": False})
        sizes: list[int] = []
        stop = threading.Event()

        def decide(buffer: bytearray, offset: int, length: int, hook: int, info: int) -> int:
            sizes.append(length)
            # What is put back counts as finished; in super-packets the kernel still does it.
            if info & Info.CSUM_NOT_READY and not (info & Info.GSO and hook == Hook.OUTPUT):
                checksum.finish(buffer, offset, length)
            return Answer.ACCEPT_CHANGED

        def work() -> None:
            while not stop.is_set():
                if select.select([queue], [], [], 0.05)[0]:
                    queue.dispatch(decide)

        with entered(FAR):
            listener = socket.create_server((THERE, 9001))
        data = os.urandom(1 << 20) * 4

        def serve() -> None:
            connection, _ = listener.accept()
            with connection, listener:
                connection.settimeout(10)
                connection.sendall(data)
                while connection.recv(1 << 16):
                    pass

        threads = [threading.Thread(target=work), threading.Thread(target=serve)]
        for thread in threads:
            thread.start()
        got = bytearray()
        begin = time.monotonic()
        with socket.create_connection((THERE, 9001), timeout=10) as client:
            client.settimeout(10)
            while len(got) < len(data):
                got += client.recv(1 << 20)
            client.sendall(data)
        threads[1].join(15)
        stop.set()
        threads[0].join()
        assert got == data
        assert (max(sizes) > 3000) == gso
        assert time.monotonic() - begin < 5, "the stream stalled"
