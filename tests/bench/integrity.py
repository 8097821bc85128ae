"""What a MAC adds to the divert path's loop, for a segment of 1,448 bytes.

The loop is that of :mod:`.rewrite`.  Protecting is timed on a packet of its own in this
process, turn by turn; the candidates beside RFC 5926's two compute the MAC alone.
"""

from __future__ import annotations

import hashlib
import statistics
import time
from collections.abc import Callable, Iterator

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from appliance.rewrite.tcp_ao import Algorithm, mac_of
from appliance.rewrite.tcp_ao_flow import MasterKey, Protected

from . import rewrite
from .common import Result

PACKETS = 5000
ROOM = 64
HEAD = bytes(52)  # pseudo-header and TCP header, as the MAC covers them


def jobs() -> dict[str, Callable[[], object]]:
    """What takes turns: protecting a segment whole, then MACs alone."""
    data = rewrite.segment()
    body = memoryview(data)[40:]
    gmac = AESGCM(bytes(16))
    blake = hashlib.blake2s(digest_size=12, key=bytes(32))

    def protecting(algorithm: Algorithm) -> Callable[[], object]:
        flow = Protected(rewrite.WIRE.reversed(), 1, 2, MasterKey(1, 2, algorithm, bytes(16)), 1, 1)
        head, buf = data[:40], bytearray(ROOM) + data

        def protect() -> None:
            buf[ROOM : ROOM + 40] = head
            if flow.protect(buf, ROOM, len(data)) != ROOM - 16:
                raise SystemExit("not protected")

        return protect

    def gmac_alone() -> bytes:
        return gmac.encrypt(bytes(12), b"", HEAD + body)[:12]

    def blake_alone() -> bytes:
        made = blake.copy()
        made.update(HEAD)
        made.update(body)
        return made.digest()

    made: dict[str, Callable[[], object]] = {}
    for algorithm in Algorithm:
        made[f"protect, {algorithm.value}"] = protecting(algorithm)
    for algorithm in Algorithm:
        mac = mac_of(algorithm, bytes(16))
        made[f"MAC alone, {algorithm.value}"] = lambda mac=mac: mac(HEAD, body)  # type: ignore[misc]
    return made | {"MAC alone, GMAC": gmac_alone, "MAC alone, BLAKE2s": blake_alone}


def run(n: int) -> Iterator[Result]:
    """For the report of all benchmarks."""
    loop = statistics.median(rewrite.measure(1024, max(5, n // 2))["whole"])
    made = jobs()
    costs: dict[str, list[float]] = {name: [] for name in made}
    for number in range(max(5, n) + 1):
        for name, job in made.items():
            begin = time.process_time()
            for _ in range(PACKETS):
                job()
            if number:  # the first round warms up
                costs[name].append((time.process_time() - begin) / PACKETS * 1e6)
    for name, values in costs.items():
        ratio = 1 + statistics.median(values) / loop
        goal = name.startswith("protect")
        yield Result(
            "integrity", f"{name}: {statistics.median(values):.2f} µs; loop with ÷ without",
            f"{ratio:.2f}", "≤ 1.5" if goal else "", ratio <= 1.5 if goal else None, values,
        )  # fmt: skip
