"""What is fuzzed: name -> (function of bytes that must not raise, seeds)."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable, Sequence

from appliance.backend.linux import netlink
from appliance.backend.linux.nfqueue import Answer, NfQueue
from appliance.packet import filter_kernel
from appliance.packet.capture import decode
from appliance.packet.filter import Facts, check_filter, compile_filter
from appliance.packet.packet import Packet
from appliance.rewrite.rewriter import Rewriter
from appliance.rewrite.table import Verdict
from appliance.rewrite.tcp_ao_flow import REFUSED
from tests.packet.samples import PACKETS
from tests.rewrite.packets import entry
from tests.rewrite.test_exceptional import SEEDS
from tests.rewrite.test_rewriter import BIRTH, BIRTH6, WIRE, WIRE6
from tests.rewrite.test_tcp_ao import pair

Target = Callable[[bytes], None]


def _rewriter(mirror: bool) -> Rewriter:
    made = Rewriter(withhold_resets=True)
    pairs = ((BIRTH, WIRE), (BIRTH6, WIRE6))
    made.load(
        entry(birth.reversed(), wire.reversed(), conn_id=f"{i:032x}")
        if mirror
        else entry(birth, wire, conn_id=f"{i:032x}", stale=(birth,))
        for i, (birth, wire) in enumerate(pairs)
    )
    return made


_NEAR, _FAR = _rewriter(mirror=False), _rewriter(mirror=True)


def rewriter(data: bytes) -> None:
    """The first byte chooses direction and kind of checksum, the rest is a packet."""
    choice, raw = data[0] if data else 0, bytearray(data[1:])
    inbound, partial = bool(choice & 1), bool(choice & 2)
    verdict = _NEAR.rewrite(raw, 0, len(raw), inbound, partial)
    if verdict is not Verdict.REWRITTEN:
        assert bytes(raw) == data[1:]
        return
    assert len(raw) == len(data) - 1
    back = _FAR.rewrite(raw, 0, len(raw), not inbound, partial)
    # What came back differs at most in the form of a zero checksum (RFC 1624, 3).
    if back is Verdict.REWRITTEN:
        differing = [i for i in range(len(raw)) if raw[i] != data[1 + i]]
        assert len(differing) <= 8


def packet(data: bytes) -> None:
    shown = Packet(data)
    repr(shown)
    assert shown.is_checksum_valid in (True, False)
    for header in (shown.ip, shown.tcp, shown.udp, shown.icmp):
        for name in dir(header) if header is not None else ():
            getattr(header, name)
    shown.recalculate_checksums()
    with contextlib.suppress(ValueError):
        shown.payload = b"x" * (len(data) % 7)
    assert len(bytes(shown.raw)) <= len(data) + 7


def filters(data: bytes) -> None:
    text = data.decode("latin-1")
    valid, position, message = check_filter(text)
    assert valid == (not message)
    assert 0 <= position <= len(text) + 1
    if valid:
        compiled = compile_filter(text)
        for raw in PACKETS.values():
            compiled.matches(Facts(raw))
        filter_kernel.nft(compiled.node, True)
        filter_kernel.pcap(compiled.node)


_COMPILED = [
    compile_filter(text)
    for text in (
        "tcp.Payload32[-4b] > 5 or udp.Payload[3] == 1 or packet16[7] < 9",
        "(fragment? ip.FragOff > 3 or ipv6.FlowLabel == 0: localPort != 5) and not icmp.Body",
        "random16 < 9 or tcp.HdrLength > 5 and remoteAddr > 10.0.0.1",
    )
]


def matching(data: bytes) -> None:
    for compiled in _COMPILED:
        assert compiled.matches(Facts(data)) in (True, False)


def frames(data: bytes) -> None:
    link = (1, 113, 276, 0, 108, 12)[data[0] % 6] if data else 1
    decode(link, data[1:])


class _OfflineQueue(NfQueue):
    """The reading half of an NFQUEUE, without a socket."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self._prepare(1, 2048, 1)

    def _send(self, pieces: list[memoryview]) -> None:
        self.sent += [bytes(piece) for piece in pieces]

    def give(self, data: bytes) -> int:
        data = data[: len(self._buffer)]
        self._buffer[: len(data)] = data
        self._headers[0].length = len(data)
        return self._answer(self._decide, 1)

    @staticmethod
    def _decide(buffer: bytearray, offset: int, length: int, hook: int, info: int) -> int:
        assert 0 <= length <= len(buffer) - offset
        return Answer(buffer[offset] & 3) if length else Answer.DROP


def _queued(payload: bytes, *more: bytes) -> bytes:
    head = netlink.attribute(1, struct.pack(">IHB", 9, 0x800, 3))
    body = b"\2\0\0\1" + head + b"".join(more) + struct.pack("=HH", len(payload) + 4, 10) + payload
    return struct.pack("=IHHII", 16 + len(body), 0x300, 0, 0, 0) + body


_OFFLINE = _OfflineQueue()


def nfqueue(data: bytes) -> None:
    _OFFLINE.give(_QUEUED[0])  # a shape that it knows
    _OFFLINE.give(data)
    for verdict in _OFFLINE.sent:
        assert verdict[4:6] == b"\1\3"
    _OFFLINE.sent.clear()
    for part in netlink.parse(data):
        netlink.attributes(part.payload)


_QUEUED = [
    _queued(b"\1" * 40, netlink.attribute(5, b"\0\0\0\2")),
    _queued(b"\0" * 9, netlink.attribute(14, b"\0\0\0\3"), netlink.attribute(13, b"\0\0\1\1")),
    struct.pack("=IHHIIi", 20, 2, 0, 0, 0, -2),
    # No packet header in front of the payload.
    struct.pack("=IHHII", 64, 0x300, 0, 0, 0)
    + b"\2\0\0\1"
    + struct.pack("=HH", 44, 10)
    + b"\1" * 40,
]

def tcp_ao(data: bytes) -> None:
    """The first byte chooses the kind of checksum, the rest is a packet."""
    near, far = pair()
    raw = data[1:]
    partial = bool(data and data[0] & 1)
    buf = bytearray(64) + raw
    assert far.verify(buf, 64, len(raw), partial) == REFUSED
    assert buf[64:] == raw
    offset = near.protect(buf, 64, len(raw), partial)
    if offset == REFUSED:
        assert buf[64:] == raw
        return
    assert far.verify(buf, offset, len(buf) - offset, partial) != REFUSED


TARGETS: dict[str, tuple[Target, Sequence[bytes]]] = {
    "rewriter": (rewriter, [bytes((i,)) + seed for i in (0, 1) for seed in SEEDS]),
    "packet": (packet, list(PACKETS.values())),
    "filters": (
        filters,
        [
            b"inbound and tcp.DstPort == 80 and ip.SrcAddr == 10.0.0.1",
            b"(tcp? tcp.Payload16[-2b] > 0x1F: !icmpv6) or localAddr == fe80::1 && not true",
        ],
    ),
    "matching": (matching, list(PACKETS.values())),
    "frames": (frames, [b"\1" + bytes(16) + PACKETS["tcp"]]),
    "nfqueue": (nfqueue, _QUEUED),
    "tcp_ao": (tcp_ao, [bytes((i,)) + seed for i in (0, 1) for seed in SEEDS]),
}
