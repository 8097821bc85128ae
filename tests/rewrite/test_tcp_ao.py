"""Segments protected at one end and verified at the other; judged by dpkt and tshark."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import dpkt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.rewrite.flow import Flow
from appliance.rewrite.tcp_ao import OPTION_SIZE, Algorithm
from appliance.rewrite.tcp_ao_flow import REFUSED, MasterKey, Protected, Refusal, extended
from tests.rewrite.packets import recomputed, tcp

BIRTH = Flow.of("10.0.0.1", 40000, "192.0.2.7", 22)
BIRTH6 = Flow.of("fd00::1", 40000, "2001:db8::7", 22)
TIMES = b"\1\1\x08\x0a" + bytes(range(8))
ROOM = 64


def key(send: int, receive: int, algorithm: Algorithm, cover: bool = True) -> MasterKey:
    return MasterKey(send, receive, algorithm, b"secret %d" % min(send, receive), cover)


def pair(
    birth: Flow = BIRTH,
    algorithm: Algorithm = Algorithm.HMAC_SHA1,
    cover: bool = True,
    newest: int = 1,
) -> tuple[Protected, Protected]:
    near = Protected(birth, 11, 22, key(1, 2, algorithm, cover), newest, newest)
    far = Protected(birth.reversed(), 22, 11, key(2, 1, algorithm, cover), newest, newest)
    return near, far


def protect(by: Protected, packet: bytes, room: int = ROOM) -> bytes | None:
    buf = bytearray(room) + packet
    offset = by.protect(buf, room, len(packet))
    return None if offset == REFUSED else bytes(buf[offset:])


def verify(by: Protected, packet: bytes) -> bytes | None:
    buf = bytearray(packet)
    offset = by.verify(buf, 0, len(buf))
    if offset == REFUSED:
        assert bytes(buf) == packet
        return None
    return bytes(buf[offset:])


PROTECTED = st.tuples(
    st.sampled_from((BIRTH, BIRTH6)),
    st.sampled_from(Algorithm),
    st.booleans(),
    st.binary(max_size=1500),
    st.sampled_from((b"", TIMES)),
    st.sampled_from((0x10, 0x18, 0x11, 0x14, 0x04)),
    st.integers(0, 2**31 - 1),
)


@given(PROTECTED)
def test_verifying_undoes_protecting(case: tuple[Flow, Algorithm, bool, bytes, bytes, int, int]) -> None:  # noqa: E501
    birth, algorithm, cover, payload, options, flags, seq = case
    near, far = pair(birth, algorithm, cover)
    packet = tcp(*birth, payload, flags=flags, tcp_options=options, seq=seq)
    sent = protect(near, packet)
    assert sent is not None
    assert len(sent) == len(packet) + OPTION_SIZE
    assert recomputed(sent) == sent
    assert verify(far, sent) == packet


@settings(max_examples=40)
@given(PROTECTED, st.data())
def test_a_flipped_bit_is_refused(
    case: tuple[Flow, Algorithm, bool, bytes, bytes, int, int], data: st.DataObject
) -> None:
    birth, algorithm, _, payload, options, flags, seq = case
    near, far = pair(birth, algorithm)
    sent = protect(near, tcp(*birth, payload, flags=flags, tcp_options=options, seq=seq))
    assert sent is not None
    tcp_at = 20 if birth is BIRTH else 40
    bit = data.draw(st.integers((tcp_at + 4) * 8, len(sent) * 8 - 1))
    damaged = bytearray(sent)
    damaged[bit // 8] ^= 1 << bit % 8
    got = verify(far, bytes(damaged))
    if bit // 16 * 2 == tcp_at + 16:
        # The MAC leaves the checksum out; it stays wrong, so that the end refuses it.
        assert got is not None
        assert recomputed(got) != got
    else:
        assert got is None


@pytest.mark.parametrize("algorithm", Algorithm)
def test_a_connection_past_4_gib_and_what_is_replayed_from_before(algorithm: Algorithm) -> None:
    start = 2**32 - 5000
    near, far = pair(algorithm=algorithm, newest=start)
    first = None
    for at in range(start, start + 2**32 + 10000, 2**29):
        sent = protect(near, tcp(*BIRTH, b"data", seq=at % 2**32))
        first = first or sent
        assert sent is not None
        assert verify(far, sent) is not None
    assert (near.sent, near.sent >> 32) == (far.received, 1)
    late = protect(near, tcp(*BIRTH, b"again", seq=(near.sent - 2**29) % 2**32))
    assert late is not None
    assert verify(far, late) is not None
    assert first is not None
    # A whole turn of the sequence numbers later it stands for other bytes.
    for at in range(near.sent, start + 2**33, 2**29):
        sent = protect(near, tcp(*BIRTH, b"data", seq=at % 2**32))
        assert sent is not None
        assert verify(far, sent) is not None
    assert verify(far, first) is None
    assert far.refused == {Refusal.FORGED: 1}


@given(st.integers(0, 2**40), st.integers(-(2**31), 2**31 - 1))
def test_the_extension_is_the_nearest(newest: int, distance: int) -> None:
    number = newest + distance
    if number >= 0:
        assert extended(number % 2**32, newest) == number


def test_keys_change_without_a_gap() -> None:
    near, far = pair()
    near.add(key(3, 4, Algorithm.AES_CMAC))
    far.add(key(4, 3, Algorithm.AES_CMAC))
    under_way = protect(near, tcp(*BIRTH, b"old"))
    far.want(3)
    asking = protect(far, tcp(*BIRTH.reversed(), b"x"))
    assert asking is not None
    assert verify(near, asking) is not None
    assert near.key_ids == (3, 2)
    new = protect(near, tcp(*BIRTH, b"new"))
    assert new is not None
    assert under_way is not None
    assert verify(far, new) is not None
    assert verify(far, under_way) is not None
    near.want(4)
    answer = protect(near, tcp(*BIRTH, b"newer"))
    assert answer is not None
    assert verify(far, answer) is not None
    assert far.key_ids == (4, 3)
    far.retire(1)
    near.retire(2)
    assert verify(far, under_way) is None
    assert far.refused == {Refusal.UNKNOWN_KEY: 1}
    with pytest.raises(ValueError, match="in use"):
        far.retire(3)


def test_a_forged_segment_changes_no_key_and_no_window() -> None:
    near, far = pair()
    far.add(key(4, 3, Algorithm.AES_CMAC))
    sent = protect(near, tcp(*BIRTH, b"x", seq=900))
    assert sent is not None
    forged = bytearray(sent)
    forged[43] = 4  # RNextKeyID
    assert verify(far, bytes(forged)) is None
    assert (far.key_ids, far.received) == ((2, 1), 1)


def sack(blocks: int) -> bytes:
    return b"\1\1" + bytes((5, 2 + 8 * blocks)) + bytes(range(8 * blocks))


@pytest.mark.parametrize(("before", "blocks", "kept"), [(TIMES, 3, 1), (b"", 4, 2), (TIMES, 1, 1)])
def test_sack_blocks_make_room_first_ones_stay(before: bytes, blocks: int, kept: int) -> None:
    near, far = pair()
    packet = tcp(*BIRTH, tcp_options=before + sack(blocks))
    sent = protect(near, packet)
    assert sent is not None
    assert recomputed(sent) == sent
    got = verify(far, sent)
    assert got is not None
    assert recomputed(got) == got
    listed = dict(dpkt.tcp.parse_opts(dpkt.ip.IP(got).data.opts))
    assert listed[5] == bytes(range(8 * kept))
    assert listed.get(8) == (TIMES[4:] if before else None)


@pytest.mark.parametrize(
    ("packet", "why"),
    [
        (tcp(*BIRTH, tcp_options=b"\xfd\x28" + bytes(38)), Refusal.NO_ROOM),
        (tcp(*BIRTH, tcp_options=b"\x13\x12" + bytes(16) + b"\1\1"), Refusal.NO_ROOM),
        (tcp(*BIRTH, tcp_options=b"\x08\x01\1\1"), Refusal.NO_ROOM),
        (tcp(*BIRTH, flags=2), Refusal.SYN),
        (tcp(*BIRTH)[:30], Refusal.BROKEN),
    ],
)
def test_what_cannot_be_protected_is_refused_and_counted(packet: bytes, why: Refusal) -> None:
    near, _ = pair()
    assert protect(near, packet) is None
    assert near.refused == {why: 1}


def test_without_room_in_front_nothing_is_overwritten() -> None:
    near, _ = pair()
    assert protect(near, tcp(*BIRTH, b"x"), OPTION_SIZE - 1) is None
    assert protect(near, tcp(*BIRTH, b"x"), OPTION_SIZE) is not None


def test_an_unsigned_segment_is_refused() -> None:
    _, far = pair()
    for flags in (0x10, 0x14, 0x11):
        assert verify(far, tcp(*BIRTH, flags=flags)) is None
    assert far.refused == {Refusal.UNSIGNED: 3}


@given(st.binary(max_size=120), st.binary(min_size=40, max_size=40), st.booleans())
def test_malformed_options_never_raise(noise: bytes, options: bytes, partial: bool) -> None:
    for raw in (noise, tcp(*BIRTH, b"x", tcp_options=options)):
        near, far = pair()
        for work in (far.verify, near.protect):
            buf = bytearray(ROOM) + raw
            offset = work(buf, ROOM, len(raw), partial)
            assert offset == REFUSED or 0 <= offset <= ROOM + 40


@pytest.mark.skipif(shutil.which("tshark") is None, reason="no tshark")
@pytest.mark.parametrize("birth", [BIRTH, BIRTH6])
def test_tshark_decodes_our_segments_as_tcp_ao(birth: Flow, tmp_path: Path) -> None:
    near, _ = pair(birth)
    capture = tmp_path / "signed.pcap"
    with capture.open("wb") as file:
        writer = dpkt.pcap.Writer(file, linktype=101)  # raw IP
        for options in (b"", TIMES, TIMES + sack(3)):
            sent = protect(near, tcp(*birth, b"payload", tcp_options=options))
            assert sent is not None
            writer.writepkt(sent, 0)
    done = subprocess.run(
        ["tshark", "-r", str(capture), "-T", "json", "-o", "tcp.check_checksum:TRUE"],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    shown = [frame["_source"]["layers"]["tcp"] for frame in json.loads(done.stdout)]
    assert len(shown) == 3
    for segment in shown:
        assert segment["tcp.checksum.status"] == "1"
        text = json.dumps(segment)
        assert '"tcp.options.ao.keyid": "1"' in text
        assert '"tcp.options.ao.rnextkeyid": "2"' in text
        assert "Malformed" not in text
