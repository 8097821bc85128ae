"""One TCP stream by each path ÷ plain TCP, bursts interleaved.

Two namespaces joined by veth, the connection redirected at both ends.  "near" means
that only the sender's end is on the divert path and the far one on the kernel path, as
with a correspondent that prefers it; "both" that both are.  Packet workers are
processes of their own; sender, receiver and workers share the machine's cores.
"""

from __future__ import annotations

import argparse
import os
import select
import signal
import socket
import statistics
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

from appliance.backend.linux.divert_worker import DivertWorker
from appliance.backend.linux.nfqueue import NfQueue
from appliance.backend.linux.nft import NftTable
from appliance.rewrite.flow import Flow
from appliance.rewrite.redirect import DataPath, Entry
from appliance.rewrite.rewriter import Rewriter
from pfconf.nft import Settings
from tests.lab.kernel import entered

from .common import Result
from .rewrite import FAR, NEAR, namespaces

HERE, THERE, MOVED = "10.99.0.2", "10.99.0.1", "10.99.0.3"
BURST = 0.5
GOAL = 0.25


@dataclass(frozen=True)
class Kind:
    """``paths``: of the near and of the far end; None: no redirect at all."""

    name: str
    paths: tuple[DataPath, DataPath] | None
    gso: bool = True


KINDS = (
    Kind("plain TCP", None),
    Kind("kernel", ("kernel", "kernel")),
    Kind("divert near", ("divert", "kernel")),
    Kind("divert both", ("divert", "divert")),
    Kind("divert near, no super-packets", ("divert", "kernel"), gso=False),
    Kind("divert both, no super-packets", ("divert", "divert"), gso=False),
)


class Stream:
    """A connection of one kind, ready for bursts."""

    def __init__(self, number: int, kind: Kind) -> None:
        self.kind = kind
        self._workers: list[int] = []
        with entered(FAR):
            listener = socket.create_server((THERE, 7000 + number))
        with entered(NEAR):
            self._client = socket.create_connection(
                (THERE, 7000 + number), source_address=(HERE, 0)
            )
        self._server, _ = listener.accept()
        listener.close()
        self._server.settimeout(20)
        if kind.paths is not None:
            port: int = self._client.getsockname()[1]
            birth = Flow.of(HERE, port, THERE, 7000 + number)
            wire = Flow.of(MOVED, port, THERE, 7000 + number)
            near = Entry(f"{number:032x}", birth, birth, True, True, (wire,), wire)
            far = replace(near, birth=birth.reversed(), inside=birth.reversed(),
                          wires=(wire.reversed(),), wire_out=wire.reversed())  # fmt: skip
            for netns, entry, path in ((FAR, far, kind.paths[1]), (NEAR, near, kind.paths[0])):
                self._redirect(netns, replace(entry, path=path), number)

    def _redirect(self, netns: str, entry: Entry, number: int) -> None:
        with entered(netns):
            table = NftTable(Settings(table=f"bench{number}", group=100 + number, queue=number))
            table.open()
            table.apply([entry])
            if entry.path == "kernel":
                return
            queue = NfQueue(number, gso=self.kind.gso)
        worker = os.fork()
        if worker:
            queue.close()
            self._workers.append(worker)
            return
        loop = DivertWorker(queue, Rewriter())
        loop.apply([entry])
        while True:
            select.select([loop], [], [])
            loop.read()

    def burst(self, seconds: float) -> float:
        """Gbit/s as the receiver saw them."""
        chunk, total = bytes(1 << 20), [0]

        def receive() -> None:
            view = memoryview(bytearray(1 << 20))
            while True:
                size = self._server.recv_into(view)
                total[0] += size
                if view[size - 1]:
                    return

        receiver = threading.Thread(target=receive)
        begin = time.monotonic()
        receiver.start()
        while time.monotonic() < begin + seconds:
            self._client.sendall(chunk)
        self._client.sendall(b"\1")
        receiver.join()
        return total[0] * 8 / (time.monotonic() - begin) / 1e9

    def close(self) -> None:
        self._client.close()
        self._server.close()
        for worker in self._workers:
            os.kill(worker, signal.SIGKILL)
            os.waitpid(worker, 0)


def measure(rounds: int) -> dict[str, list[float]]:
    """Gbit/s of each kind and round."""
    found: dict[str, list[float]] = {kind.name: [] for kind in KINDS}
    with namespaces():
        subprocess.run(
            ["ip", "-n", NEAR, "addr", "add", f"{MOVED}/24", "dev", "v0"], check=True
        )  # fmt: skip
        streams: list[Stream] = []
        try:
            for number, kind in enumerate(KINDS, 1):
                streams.append(Stream(number, kind))
            for count in range(rounds + 1):
                for stream in streams:
                    speed = stream.burst(BURST)
                    if count:  # the first round warms up
                        found[stream.kind.name].append(speed)
        finally:
            for stream in streams:
                stream.close()
    return found


def run(n: int) -> Iterator[Result]:
    """For the report of all benchmarks."""
    found = measure(max(5, n // 2))
    plain = found["plain TCP"]
    for kind in KINDS[1:]:
        ratios = [a / b for a, b in zip(found[kind.name], plain, strict=True)]
        ratio = statistics.median(ratios)
        wanted = kind.name == "divert near"
        speed = statistics.median(found[kind.name])
        yield Result(
            "stream", f"{kind.name}: {speed:.2f} Gbit/s ÷ plain TCP", f"{ratio:.3f}",
            f"≥ {GOAL}" if wanted else "", ratio >= GOAL if wanted else None, ratios,
        )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10)
    for result in run(2 * parser.parse_args().rounds):
        print(f"{result.what:<60}{result.value:>8}  {result.limit}")


if __name__ == "__main__":
    main()
