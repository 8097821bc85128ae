"""The divert path end to end: live TCP, rewritten by workers at both ends, moves."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import random
import select
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from ipaddress import ip_address

import pytest

from appliance.backend.linux.divert_worker import DivertWorker
from appliance.backend.linux.nfqueue import NfQueue
from appliance.backend.linux.nft import NftTable
from appliance.rewrite.flow import Flow
from appliance.rewrite.redirect import Entry
from appliance.rewrite.rewriter import Rewriter
from pfconf.nft import Settings
from tests.lab.kernel import entered

NEAR, FAR = f"rd-packet-m{os.getpid()}", f"rd-packet-c{os.getpid()}"
ADDRESSES = {4: ("10.95.0.{}", 24, 32), 6: ("fd95::{}", 64, 128)}


def ip(*lines: str) -> None:
    for line in lines:
        subprocess.run(["ip", *line.split()], check=True)


@pytest.fixture(params=[4, 6])
def version(request: pytest.FixtureRequest) -> Iterator[int]:
    """Namespaces in which NEAR has addresses .1 (to be lost), .3 and .4, FAR has .2."""
    number = int(request.param)
    text, size, _ = ADDRESSES[number]
    nodad = " nodad" if number == 6 else ""
    try:
        ip(
            f"netns add {NEAR}",
            f"netns add {FAR}",
            f"link add v0 netns {NEAR} type veth peer name v1 netns {FAR}",
            f"-n {FAR} addr add {text.format(2)}/{size} dev v1{nodad}",
            f"-n {FAR} link set v1 up",
            f"-n {NEAR} link set v0 up",
            f"-n {NEAR} link set lo up",
        )
        for last in (1, 3, 4):
            ip(f"-n {NEAR} addr add {text.format(last)}/{size} dev v0{nodad}")
        subprocess.run(
            ["ip", "netns", "exec", NEAR, "sysctl", "-qw", "net.ipv4.conf.all.arp_ignore=1",
             "net.ipv4.conf.v0.promote_secondaries=1"], check=True)  # fmt: skip
        yield number
    finally:
        for name in (NEAR, FAR):
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


class End:
    """One machine: table and worker in a namespace, and its entry of the connection."""

    def __init__(self, netns: str, gso: bool) -> None:
        self.netns = netns
        with entered(netns):
            self.queue = NfQueue(9, gso=gso)
            self.table = NftTable(Settings(queue=9))
            self.table.open()
            self.table.replace_all([])
        self.worker = DivertWorker(self.queue, Rewriter())
        self.entry: Entry | None = None

    def apply(self, entry: Entry) -> None:
        """The worker first: it drops what it does not know."""
        self.entry = entry
        with entered(self.netns):
            self.worker.apply([entry])
            self.table.apply([entry])

    def change(self, **fields: object) -> None:
        assert self.entry is not None
        self.apply(dataclasses.replace(self.entry, **fields))  # type: ignore[arg-type]


class Ends:
    """Both machines; one thread serves both queues and carries out changes."""

    def __init__(self, gso: bool) -> None:
        self.near, self.far = End(NEAR, gso), End(FAR, gso)
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._serve)
        self.failure: BaseException | None = None
        self._thread.start()

    def _serve(self) -> None:
        workers = (self.near.worker, self.far.worker)
        try:
            while not self._stop.is_set():
                for ready in select.select(workers, [], [], 0.05)[0]:
                    with self._lock:
                        ready.read()
        except BaseException as fault:
            self.failure = fault

    def do(self, end: End, **fields: object) -> None:
        with self._lock:
            end.change(**fields)

    def begin(self, birth: Flow) -> None:
        with self._lock:
            for end, flow in ((self.near, birth), (self.far, birth.reversed())):
                end.apply(
                    Entry("0" * 32, flow, flow, True, True, (flow,), flow, path="divert")
                )  # fmt: skip

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        for end in (self.near, self.far):
            end.queue.close()
        if self.failure is not None:
            raise self.failure


@pytest.fixture
def connection(version: int) -> Iterator[tuple[socket.socket, socket.socket, Flow]]:
    text = ADDRESSES[version][0]
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    with entered(FAR):
        listener = socket.create_server((text.format(2), 9001), family=family)
    with entered(NEAR):
        client = socket.create_connection(
            (text.format(2), 9001), timeout=10, source_address=(text.format(1), 0)
        )
    server, _ = listener.accept()
    listener.close()
    server.settimeout(10)
    with client, server:
        yield client, server, Flow.of(text.format(1), client.getsockname()[1], text.format(2), 9001)


class Pump:
    """A stream of random bytes that goes on until it is told to end."""

    def __init__(self, source: socket.socket, sink: socket.socket, rng: random.Random) -> None:
        self._source, self._sink = source, sink
        self._chunks = [rng.randbytes(rng.randrange(1, 200_000)) for _ in range(16)]
        self._end = threading.Event()
        self.sent, self.received = hashlib.sha256(), hashlib.sha256()
        self.sent_bytes = self.received_bytes = 0
        self._threads = [
            threading.Thread(target=self._send, daemon=True),
            threading.Thread(target=self._receive, daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def _send(self) -> None:
        number = 0
        while not self._end.is_set():
            chunk = self._chunks[number % len(self._chunks)]
            self._source.sendall(chunk)
            self.sent.update(chunk)
            self.sent_bytes += len(chunk)
            number += 1
        self._source.shutdown(socket.SHUT_WR)

    def _receive(self) -> None:
        while piece := self._sink.recv(1 << 18):
            self.received.update(piece)
            self.received_bytes += len(piece)

    def progress(self, wanted: int) -> None:
        """Wait until this many more bytes have arrived."""
        until, deadline = self.received_bytes + wanted, time.monotonic() + 10
        while self.received_bytes < until:
            assert time.monotonic() < deadline, "the stream stalled"
            time.sleep(0.001)

    def finish(self) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join(20)
        assert self.received_bytes == self.sent_bytes > 0
        assert self.received.digest() == self.sent.digest()


@pytest.mark.parametrize("gso", [True, False])
def test_connection_outlives_its_address_with_data_in_flight(
    version: int, connection: tuple[socket.socket, socket.socket, Flow], gso: bool
) -> None:
    client, server, birth = connection
    text, size, host = ADDRESSES[version]
    ends = Ends(gso)
    try:
        ends.begin(birth)
        rng = random.Random(version)
        pumps = [Pump(client, server, rng), Pump(server, client, rng)]
        old = birth
        for number, last in enumerate((3, 4, 3)):
            for pump in pumps:
                pump.progress(rng.randrange(1_000_000))
            new = Flow.of(text.format(last), birth.local.port + 1 + number, text.format(2), 9001)
            # The order of a move: in, in, out, out (docs/protocol.md).
            ends.do(ends.near, wires=(new, old))
            ends.do(ends.far, wires=(new.reversed(), old.reversed()))
            ends.do(ends.near, wire_out=new)
            ends.do(ends.far, wire_out=new.reversed())
            if number == 0:
                with entered(NEAR):
                    ip(f"addr del {text.format(1)}/{size} dev v0")
                    ip(f"route add local {text.format(1)}/{host} dev lo table local")
            old = new
        for pump in pumps:
            pump.progress(1_000_000)
        for pump in pumps:
            pump.finish()
        for end in (ends.near, ends.far):
            assert end.queue.malformed == 0
    finally:
        ends.close()


def test_without_a_worker_the_connection_is_shut_and_others_are_not(
    version: int, connection: tuple[socket.socket, socket.socket, Flow]
) -> None:
    client, server, birth = connection
    ends = Ends(gso=True)
    ends.begin(birth)
    ends.close()
    client.sendall(b"waits")
    assert not select.select([server], [], [], 0.1)[0]
    text, family = ADDRESSES[version][0], client.family
    with entered(FAR):
        listener = socket.create_server((text.format(2), 9002), family=family)
    with entered(NEAR), socket.create_connection((text.format(2), 9002), timeout=2):
        listener.close()
    with entered(NEAR):
        ends.near.table.remove(["0" * 32])
    with entered(FAR):
        ends.far.table.close(keep=False)
    assert server.recv(99) == b"waits"


def test_a_connection_changes_its_path_with_data_in_flight(
    version: int, connection: tuple[socket.socket, socket.socket, Flow]
) -> None:
    """Of each packet exactly one of the two translates: the stack would answer RST to
    others, and bytes that were lost would come again late."""
    client, server, birth = connection
    new = birth.with_local(ip_address(ADDRESSES[version][0].format(3)))
    ends = Ends(gso=True)
    try:
        ends.begin(birth)
        ends.do(ends.near, wires=(new, birth))
        ends.do(ends.far, wires=(new.reversed(), birth.reversed()), wire_out=new.reversed())
        ends.do(ends.near, wire_out=new)
        rng = random.Random(version)
        pumps = [Pump(client, server, rng), Pump(server, client, rng)]
        for number in range(40):
            for pump in pumps:
                pump.progress(rng.randrange(200_000))
            end = rng.choice((ends.near, ends.far))
            ends.do(end, path="kernel" if number % 2 else "divert")
        for pump in pumps:
            pump.progress(1_000_000)
            pump.finish()
    finally:
        ends.close()
