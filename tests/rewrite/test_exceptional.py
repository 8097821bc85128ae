"""The rare packets, rule by rule (see appliance/rewrite/exceptional.py)."""

from __future__ import annotations

import struct

import dpkt
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from appliance.rewrite.exceptional import MAX_REMEMBERED
from appliance.rewrite.flow import Endpoint, Flow
from appliance.rewrite.rewriter import Rewriter
from appliance.rewrite.table import Verdict

from .packets import datagram, entry, recomputed, sent, tcp, tuple_in
from .test_rewriter import BIRTH, BIRTH6, WIRE, WIRE6, pairs, payloads, rewriter, run

FAMILIES = pytest.mark.parametrize(("birth", "wire"), [(BIRTH, WIRE), (BIRTH6, WIRE6)])
ROUTER = {
    4: Endpoint.parse("203.0.113.1:0"),
    6: Endpoint.parse("[2001:db8:ffff::1]:0"),
}
ERRORS = [(4, 3, 4), (4, 3, 1), (4, 11, 0), (4, 12, 0), (6, 1, 0), (6, 2, 0), (6, 3, 0), (6, 4, 0)]


def error(
    source: Endpoint, target: Endpoint, embedded: bytes, kind: int, code: int = 0, extra: int = 1400
) -> bytes:
    """An ICMP error with right checksums."""
    body = struct.pack("!BBHI", kind, code, 0, extra) + embedded
    proto = 1 if source.addr.version == 4 else 58
    packet = bytearray(datagram(source, target, body, proto))
    at = 20 if proto == 1 else 40
    pseudo = b"" if proto == 1 else bytes(packet[8:40]) + struct.pack("!II", len(body), 58)
    packet[at + 2 : at + 4] = dpkt.in_cksum(pseudo + body).to_bytes(2, "big")
    return bytes(packet)


def embedded_in(packet: bytes) -> bytes:
    return packet[28:] if packet[0] >> 4 == 4 else packet[48:]


def extended(packet: bytes, headers: list[tuple[int, bytes]]) -> bytes:
    """An IPv6 packet with extension headers (number, bytes without the next header)."""
    proto, chain = packet[6], b""
    for number, rest in reversed(headers):
        chain = bytes((proto,)) + rest + chain
        proto = number
    out = bytearray(packet[:40] + chain + packet[40:])
    out[4:6] = (len(out) - 40).to_bytes(2, "big")
    out[6] = proto
    return bytes(out)


def fragments(packet: bytes, size: int, ident: int = 9) -> list[bytes]:
    """Cut a packet into fragments with ``size`` bytes of payload each."""
    out = []
    if packet[0] >> 4 == 4:
        body = packet[20:]
        for at in range(0, len(body), size):
            more = at + size < len(body)
            piece = bytearray(packet[:20] + body[at : at + size])
            piece[2:4] = len(piece).to_bytes(2, "big")
            piece[4:6] = ident.to_bytes(2, "big")
            piece[6:8] = (more << 13 | at // 8).to_bytes(2, "big")
            piece[10:12] = b"\0\0"
            piece[10:12] = dpkt.in_cksum(bytes(piece[:20])).to_bytes(2, "big")
            out.append(bytes(piece))
        return out
    body = packet[40:]
    for at in range(0, len(body), size):
        more = at + size < len(body)
        rest = b"\0" + (at | more).to_bytes(2, "big") + ident.to_bytes(4, "big")
        out.append(extended(packet[:40] + body[at : at + size], [(44, rest)]))
    return out


HOP = (0, b"\0" + b"\x01\x04\0\0\0\0")
DEST = (60, b"\x01" + b"\x01\x0c" + b"\0" * 12)
USED_ROUTING = (43, b"\0" + b"\x02\0" + b"\0" * 4)
ATOMIC = (44, b"\0" + b"\0\0" + b"\x12\x34\x56\x78")


@pytest.mark.parametrize("chain", [[HOP], [DEST], [HOP, DEST], [ATOMIC], [HOP, USED_ROUTING, DEST]])
def test_extension_headers_are_walked(chain: list[tuple[int, bytes]]) -> None:
    packet = extended(tcp(BIRTH6.local, BIRTH6.remote, b"x"), chain)
    verdict, out = run(rewriter(entry(BIRTH6, WIRE6)), packet, inbound=False)
    assert verdict == Verdict.REWRITTEN
    assert tuple_in(out) == sent(WIRE6)
    assert out == recomputed(out)
    assert out == extended(tcp(WIRE6.local, WIRE6.remote, b"x"), chain)


@pytest.mark.parametrize(
    "chain",
    [
        [(43, b"\0" + b"\x02\x01" + b"\0" * 4)],
        [(51, b"\x04" + b"\0" * 22)],
        [(50, b"\0" * 7)],
        [HOP] * 17,
        [ATOMIC, ATOMIC],
        [(0, b"\xff" + b"\0" * 6)],
    ],
)
def test_hidden_tuples_pass(chain: list[tuple[int, bytes]]) -> None:
    packet = extended(tcp(BIRTH6.local, BIRTH6.remote, b"x"), chain)
    assert run(rewriter(entry(BIRTH6, WIRE6)), packet, False) == (Verdict.PASS, packet)


@FAMILIES
def test_fragments_follow_the_first_one(birth: Flow, wire: Flow) -> None:
    payload = bytes(range(256)) * 4
    made = rewriter(entry(birth, wire))
    pieces = fragments(tcp(birth.local, birth.remote, payload), 256)
    assert len(pieces) > 3
    want = fragments(tcp(wire.local, wire.remote, payload), 256)
    for piece, wanted in zip(pieces, want, strict=True):
        assert run(made, piece, inbound=False) == (Verdict.REWRITTEN, wanted)


@FAMILIES
def test_fragments_of_others_pass_and_orphans_of_our_addresses_drop(
    birth: Flow, wire: Flow
) -> None:
    made = rewriter(entry(birth, wire))
    stranger = birth._replace(local=Endpoint(birth.local.addr, 1))
    first, later = fragments(tcp(stranger.local, stranger.remote, b"x" * 100), 64, ident=3)
    assert run(made, later, inbound=False) == (Verdict.DROP, later)
    assert run(made, first, inbound=False) == (Verdict.PASS, first)
    assert run(made, later, inbound=False) == (Verdict.PASS, later)
    far = birth._replace(remote=ROUTER[birth.version])
    for piece in reversed(fragments(tcp(far.local, far.remote, b"x" * 100), 64)):
        assert run(made, piece, inbound=False) == (Verdict.PASS, piece)


def test_tiny_first_fragment_of_ours_is_dropped_with_all_that_follow() -> None:
    made = rewriter(entry(BIRTH, WIRE))
    for piece in fragments(tcp(BIRTH.local, BIRTH.remote, b"x" * 20), 16):
        assert run(made, piece, inbound=False) == (Verdict.DROP, piece)
    other = Flow.of("10.0.0.1", 1, "192.0.2.9", 22)
    for piece in fragments(tcp(other.local, other.remote, b"x" * 20), 16):
        assert run(made, piece, inbound=False) == (Verdict.PASS, piece)


def test_fragments_of_a_shut_connection_are_held() -> None:
    made = rewriter(entry(BIRTH, WIRE, wire_out=None))
    for piece in fragments(tcp(BIRTH.local, BIRTH.remote, b"x" * 100), 64):
        assert run(made, piece, inbound=False) == (Verdict.HOLD, piece)


def test_memory_of_first_fragments_is_bounded_and_forgets_the_oldest() -> None:
    made = rewriter(entry(BIRTH, WIRE))
    sets = [
        fragments(tcp(BIRTH.local, BIRTH.remote, b"x" * 100), 64, ident=i)
        for i in range(MAX_REMEMBERED + 1)
    ]
    for pieces in sets:
        assert run(made, pieces[0], inbound=False)[0] == Verdict.REWRITTEN
    assert run(made, sets[0][1], inbound=False)[0] == Verdict.DROP
    assert run(made, sets[1][1], inbound=False)[0] == Verdict.REWRITTEN
    assert run(made, sets[-1][1], inbound=False)[0] == Verdict.REWRITTEN


def test_remembered_first_fragments_are_ours_alone_and_kept_by_use() -> None:
    made = rewriter(entry(BIRTH, WIRE))
    ours = [fragments(tcp(BIRTH.local, BIRTH.remote, b"x" * 100), 64, ident=i) for i in (1, 2)]
    for pieces in ours:
        run(made, pieces[0], inbound=False)
    stranger = Flow.of("10.0.0.1", 40000, "203.0.113.9", 22)
    for ident in range(2 * MAX_REMEMBERED):
        other = fragments(tcp(stranger.local, stranger.remote, b"x" * 100), 64, ident=ident)
        run(made, other[0], inbound=False)
    assert run(made, ours[0][1], inbound=False)[0] == Verdict.REWRITTEN
    # Identifications come round: what was seen again is the newest.
    run(made, ours[0][0], inbound=False)
    for ident in range(10, 8 + MAX_REMEMBERED + 1):
        more = fragments(tcp(BIRTH.local, BIRTH.remote, b"x" * 100), 64, ident=ident)
        run(made, more[0], inbound=False)
    assert run(made, ours[0][1], inbound=False)[0] == Verdict.REWRITTEN
    assert run(made, ours[1][1], inbound=False)[0] == Verdict.DROP


@FAMILIES
def test_cut_short_later_fragment_of_ours_is_dropped(birth: Flow, wire: Flow) -> None:
    made = rewriter(entry(birth, wire))
    first, later = fragments(tcp(birth.local, birth.remote, b"x" * 100), 64)
    assert run(made, first, inbound=False)[0] == Verdict.REWRITTEN
    assert run(made, later[:-1], inbound=False) == (Verdict.DROP, later[:-1])


@FAMILIES
def test_cut_short_segment_of_ours_is_dropped(birth: Flow, wire: Flow) -> None:
    made = rewriter(entry(birth, wire))
    packet = tcp(birth.local, birth.remote, b"hello")
    start = 20 if birth.version == 4 else 40
    for length in range(len(packet)):
        want = Verdict.PASS if length < start + 4 else Verdict.DROP
        assert run(made, packet[:length], inbound=False) == (want, packet[:length])


@pytest.mark.parametrize(("version", "kind", "code"), ERRORS)
@pytest.mark.parametrize("cut", [0, 8, 17, 18, 20, 60])
@pytest.mark.parametrize("far_end", [False, True])
def test_error_about_what_we_sent_reaches_our_end_translated(
    version: int, kind: int, code: int, cut: int, far_end: bool
) -> None:
    birth, wire = (BIRTH, WIRE) if version == 4 else (BIRTH6, WIRE6)
    header = 20 if version == 4 else 40
    source = wire.remote if far_end else ROUTER[version]
    on_wire = tcp(wire.local, wire.remote, b"y" * 60)
    inside = tcp(birth.local, birth.remote, b"y" * 60)
    packet = error(source, wire.local, on_wire[: header + cut], kind, code)
    verdict, out = run(rewriter(entry(birth, wire)), packet, inbound=True)
    if cut < 4:
        assert (verdict, out) == (Verdict.PASS, packet)
        return
    assert verdict == Verdict.REWRITTEN
    assert out == recomputed(out)
    want = bytearray(inside[: header + cut])
    if cut == 17:  # half a checksum can't be mended
        want[-1] = out[-1]
    assert embedded_in(out) == bytes(want)
    outer = (birth.remote if far_end else source).addr, birth.local.addr
    assert tuple(map(str, outer)) == tuple_in(out)[:2]


@given(pairs, payloads)
def test_error_that_our_end_sends_leaves_translated_and_is_undone_far_away(
    pair: tuple[Flow, Flow], payload: bytes
) -> None:
    birth, wire = pair
    kind = 3 if birth.version == 4 else 1
    received = tcp(birth.remote, birth.local, payload)
    packet = error(birth.local, birth.remote, received, kind)
    _, out = run(rewriter(entry(birth, wire)), packet, inbound=False)
    assert out == error(wire.local, wire.remote, tcp(wire.remote, wire.local, payload), kind)
    far = rewriter(entry(birth.reversed(), wire.reversed()))
    assert run(far, out, inbound=True)[1] == packet


@FAMILIES
def test_other_icmp_passes(birth: Flow, wire: Flow) -> None:
    made = rewriter(entry(birth, wire))
    router = ROUTER[birth.version]
    segment = tcp(wire.local, wire.remote, b"x" * 20)
    kinds = (0, 4, 5, 8) if birth.version == 4 else (128, 129, 134, 137)
    unknown = tcp(birth.local, birth.remote, b"x" * 20)
    kind = 3 if birth.version == 4 else 1
    late = fragments(tcp(wire.local, wire.remote, b"x" * 99), 64)[1]
    packets = [error(router, wire.local, segment, k) for k in kinds]
    packets += [error(router, wire.local, inner, kind) for inner in (unknown, late, b"", b"E" * 20)]
    for packet in packets:
        assert run(made, packet, inbound=True) == (Verdict.PASS, packet)


@FAMILIES
def test_false_errors_about_ours_are_dropped(birth: Flow, wire: Flow) -> None:
    kind = 3 if birth.version == 4 else 1
    router = ROUTER[birth.version]
    old = birth._replace(local=Endpoint(birth.local.addr, 9))
    made = rewriter(entry(birth, wire, stale=(old,)))
    ours = tcp(wire.local, wire.remote, b"x" * 20)
    good = error(router, wire.local, ours, kind)
    elsewhere = error(router, birth.local, ours, kind)
    stale = error(router, old.local, tcp(old.local, old.remote, b"x" * 20), kind)
    piece = fragments(good, 56)[0]
    for packet in (good[:-1], elsewhere, stale, piece):
        assert run(made, packet, inbound=True) == (Verdict.DROP, packet)
    shut = rewriter(entry(birth, wire, wire_out=None))
    mine = error(birth.local, birth.remote, tcp(birth.remote, birth.local), kind)
    assert run(shut, mine, inbound=False) == (Verdict.DROP, mine)


@FAMILIES
def test_reset_with_options_or_headers_is_withheld_too(birth: Flow, wire: Flow) -> None:
    for flow in (wire, birth):
        made = rewriter(entry(birth, flow), withhold_resets=True)
        packet = tcp(flow.remote, flow.local, flags=dpkt.tcp.TH_RST, options=b"")
        if flow.version == 6:
            packet = extended(packet, [DEST])
        else:
            packet = tcp(flow.remote, flow.local, flags=dpkt.tcp.TH_RST, options=b"\x01" * 4)
        assert run(made, packet, inbound=True) == (Verdict.RESET, packet)


def _busy_rewriter() -> Rewriter:
    return rewriter(
        entry(BIRTH, WIRE, BIRTH),
        entry(BIRTH6, WIRE6, conn_id="1" * 32, stale=(BIRTH6,)),
        withhold_resets=True,
    )


SEEDS = [
    tcp(BIRTH.local, BIRTH.remote, b"x" * 9),
    tcp(BIRTH6.local, BIRTH6.remote, b"x" * 9),
    extended(tcp(BIRTH6.local, BIRTH6.remote), [HOP, DEST]),
    error(ROUTER[4], WIRE.local, tcp(WIRE.local, WIRE.remote), 3),
    error(ROUTER[6], WIRE6.local, tcp(WIRE6.local, WIRE6.remote), 2),
    fragments(tcp(BIRTH.local, BIRTH.remote, b"x" * 99), 64)[1],
]


@given(st.binary(max_size=120), st.booleans(), st.booleans())
@example(b"", True, False)
def test_random_bytes_never_raise(data: bytes, inbound: bool, partial: bool) -> None:
    verdict, out = run(_busy_rewriter(), data, inbound, partial)
    assert verdict == Verdict.REWRITTEN or out == data


@given(
    st.sampled_from(SEEDS),
    st.lists(st.tuples(st.integers(0, 119), st.integers(0, 255)), max_size=6),
    st.integers(0, 120),
    st.booleans(),
    st.booleans(),
)
def test_damaged_packets_never_raise_and_keep_their_length(
    seed: bytes, damage: list[tuple[int, int]], cut: int, inbound: bool, partial: bool
) -> None:
    packet = bytearray(seed)
    for place, value in damage:
        packet[place % len(packet)] = value
    del packet[max(1, len(packet) - cut) :]
    before = bytes(packet)
    verdict, out = run(_busy_rewriter(), before, inbound, partial)
    assert len(out) == len(before)
    assert verdict == Verdict.REWRITTEN or out == before
