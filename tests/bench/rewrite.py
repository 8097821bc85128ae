"""What a packet of 1,448 bytes costs on the divert path, stage by stage.

    python -m tests.bench.rewrite [--packets N] [--rounds N]

Two network namespaces are joined by veth; full segments are sent through it and wait in
an NFQUEUE at prerouting; then this process empties the queue, and the CPU time (user and
system) that it takes is divided by their number.  The kinds of loop take turns in one
run, each burst is the same; the medians of all rounds are printed.  Needs root.

    receive      recvmmsg and verdicts without the packet (accepted as it was)
    bare         receive and verdict with the packet put back: what any loop that may
                 change packets has to do
    + parse      and the headers read with one struct
    whole        and the tuple looked up and rewritten: the packet worker's loop
    whole, dpkt  the same with dpkt's objects
"""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import statistics
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import dpkt

from appliance.backend.linux import nfqueue, queue_rules
from appliance.backend.linux.nfqueue import Answer, Hook
from appliance.rewrite.flow import Endpoint, Flow
from appliance.rewrite.redirect import Entry
from appliance.rewrite.rewriter import Rewriter
from appliance.rewrite.table import Verdict
from tests.lab.kernel import entered

from .common import Result

PAYLOAD = 1448 - 20 - 20
NEAR, FAR = f"rd-packet-n{os.getpid()}", f"rd-packet-f{os.getpid()}"
BIRTH = Flow.of("10.99.1.2", 40000, "10.99.0.1", 22)
WIRE = Flow.of("10.99.0.2", 40001, "10.99.0.1", 22)
CONNECTIONS = 1000


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


@contextlib.contextmanager
def namespaces() -> Iterator[None]:
    """NEAR and FAR, with 10.99.0.2 and 10.99.0.1 on the two ends of a veth pair."""
    ip("netns", "add", NEAR)
    try:
        ip("netns", "add", FAR)
        ip("link", "add", "v0", "netns", NEAR, "type", "veth", "peer", "name", "v1", "netns", FAR)
        for name, link, address in ((NEAR, "v0", "10.99.0.2/24"), (FAR, "v1", "10.99.0.1/24")):
            ip("-n", name, "addr", "add", address, "dev", link)
            ip("-n", name, "link", "set", link, "up")
        yield
    finally:
        for name in (NEAR, FAR):
            subprocess.run(["ip", "netns", "del", name], check=False)


def segment() -> bytes:
    data = dpkt.tcp.TCP(sport=22, dport=40001, seq=1, ack=1, flags=dpkt.tcp.TH_ACK, win=500,
                        data=os.urandom(PAYLOAD))  # fmt: skip
    packet = dpkt.ip.IP(src=WIRE.remote.addr.packed, dst=WIRE.local.addr.packed, p=6, ttl=64,
                        data=data)  # fmt: skip
    packet.len = len(packet)
    return bytes(packet)


def entries() -> list[Entry]:
    """The connection of the bench among many others."""
    found = []
    for i in range(CONNECTIONS):
        birth = BIRTH.with_local(BIRTH.local.addr, 40000 - i)
        wire = WIRE.with_local(WIRE.local.addr, 40001 - i)
        found.append(Entry(f"{i:032x}", birth, birth, True, True, wires=(wire,), wire_out=wire))
    return found


def loops() -> dict[str, nfqueue.Decide]:
    rewriter = Rewriter()
    rewriter.load(entries())
    rewrite = rewriter.rewrite
    read = struct.Struct("!2xH2xHxBH12s9xB2xH").unpack_from
    rewritten, changed, accept = Verdict.REWRITTEN, Answer.ACCEPT_CHANGED, Answer.ACCEPT
    prerouting = Hook.PREROUTING
    table = {(WIRE.remote.addr.packed, WIRE.local.addr.packed, 22, 40001): BIRTH}

    def receive(buf: bytearray, offset: int, length: int, hook: int, info: int) -> int:
        return accept

    def bare(buf: bytearray, offset: int, length: int, hook: int, info: int) -> int:
        return changed

    def parse(buf: bytearray, offset: int, length: int, hook: int, info: int) -> int:
        read(buf, offset)
        return changed

    def whole(buf: bytearray, offset: int, length: int, hook: int, info: int) -> int:
        if rewrite(buf, offset, length, hook == prerouting, bool(info & 1)) is not rewritten:
            raise SystemExit("not rewritten")
        return changed

    def dpkt_whole(buf: bytearray, offset: int, length: int, hook: int, info: int) -> int:
        packet = dpkt.ip.IP(bytes(buf[offset : offset + length]))
        segment = packet.data
        flow = table[packet.src, packet.dst, segment.sport, segment.dport]
        packet.dst, segment.dport = flow.local.addr.packed, flow.local.port
        packet.sum = segment.sum = 0
        buf[offset : offset + length] = bytes(packet)
        return changed

    return {"receive": receive, "bare": bare, "+ parse": parse, "whole": whole,
            "whole, dpkt": dpkt_whole}  # fmt: skip


def measure(packets: int, rounds: int) -> dict[str, list[float]]:
    """CPU µs a packet, for each kind of loop and round."""
    costs: dict[str, list[float]] = {name: [] for name in loops()}
    with namespaces():
        with entered(NEAR):
            queue_rules.install(
                "redirectd_bench",
                7,
                " chain in {\n  type filter hook prerouting priority -310\n"
                "  tcp sport 22 jump to_queue\n }\n"
                " chain out {\n  type filter hook prerouting priority -300\n"
                "  tcp sport 22 counter drop\n }\n",
                {"to_queue": False},
            )
            queue = nfqueue.NfQueue(7, length=packets, receive=packets * 8192)
        with entered(FAR):
            sender = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
        ip("-n", FAR, "neigh", "replace", "10.99.0.2", "dev", "v1", "lladdr", _mac())
        data = segment()
        target = (str(Endpoint.parse("10.99.0.2:0").addr), 0)
        for number in range(rounds + 1):
            for name, decide in loops().items():
                for _ in range(packets):
                    sender.sendto(data, target)
                time.sleep(0.01)  # the last ones are still on their way through the veth
                begin = time.process_time()
                count = queue.dispatch(decide, limit=packets * 2)
                spent = time.process_time() - begin
                if count != packets:
                    raise SystemExit(f"{count} of {packets} packets came")
                if number:  # the first round warms up
                    costs[name].append(spent / packets * 1e6)
        queue.close()
        sender.close()
    return costs


def _mac() -> str:
    shown = subprocess.run(
        ["ip", "-n", NEAR, "-o", "link", "show", "v0"], check=True, capture_output=True, text=True
    )
    return shown.stdout.split("link/ether ")[1].split()[0]


def report(costs: dict[str, list[float]], write: Callable[[str], object]) -> None:
    bare = statistics.median(costs["bare"])
    dpkt_cost = statistics.median(costs["whole, dpkt"])
    write(f"{'loop':<14}{'µs':>7}{'÷ bare':>8}{'p10..p90':>14}\n")
    for name, values in costs.items():
        middle = statistics.median(values)
        tenths = statistics.quantiles(values, n=10)
        spread = f"{tenths[0]:.2f}..{tenths[-1]:.2f}"
        write(f"{name:<14}{middle:>7.2f}{middle / bare:>8.2f}{spread:>14}\n")
    whole = statistics.median(costs["whole"])
    receive = statistics.median(costs["receive"])
    write(f"whole ÷ bare {whole / bare:.2f} (goal: at most 1.5); ")
    write(f"whole ÷ receive {whole / receive:.2f}; ")
    write(f"dpkt ÷ whole {dpkt_cost / whole:.2f} (goal: at least 4)\n")


def run(n: int) -> Iterator[Result]:
    """For the report of all benchmarks."""
    costs = measure(1024, max(5, n // 2))
    middle = {name: statistics.median(values) for name, values in costs.items()}
    bare, whole = middle["bare"], middle["whole"]
    for name, value in middle.items():
        limited = name == "whole"
        yield Result(
            "rewrite", f"{name}: {value:.2f} µs CPU a packet ÷ bare", f"{value / bare:.2f}",
            "≤ 1.5" if limited else "", value <= 1.5 * bare if limited else None, costs[name],
        )  # fmt: skip
    ratio = middle["whole, dpkt"] / whole
    yield Result("rewrite", "whole loop with dpkt ÷ ours", f"{ratio:.1f}", "≥ 4", ratio >= 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--packets", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=15)
    chosen = parser.parse_args()
    report(measure(chosen.packets, chosen.rounds), sys.stdout.write)


if __name__ == "__main__":
    main()
