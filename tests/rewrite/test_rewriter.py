"""Ordinary segments: every translation is right to the bit, by dpkt's arithmetic."""

from __future__ import annotations

import dataclasses

import dpkt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.rewrite import checksum
from appliance.rewrite.flow import Flow
from appliance.rewrite.rewriter import Rewriter
from appliance.rewrite.table import Verdict

from .packets import entry, flows, recomputed, sent, tcp, tuple_in

BIRTH = Flow.of("10.0.0.1", 40000, "192.0.2.9", 22)
WIRE = Flow.of("198.51.100.7", 40001, "192.0.2.9", 22)
BIRTH6 = Flow.of("2001:db8::1", 40000, "2001:db8:9::9", 22)
WIRE6 = Flow.of("2001:db8:7::7", 40001, "2001:db8:9::9", 22)

versions = st.sampled_from((4, 6))
pairs = versions.flatmap(lambda v: st.tuples(flows(v), flows(v)))
payloads = st.binary(max_size=64)
ip_options = st.sampled_from((b"", b"\x01" * 4, b"\x94\x04\0\0", b"\x01" * 40))
tcp_options = st.sampled_from((b"", b"\x01\x01\x08\x0a" + b"\x55" * 8, b"\x01" * 40))


def rewriter(*entries: object, **more: object) -> Rewriter:
    made = Rewriter(**more)  # type: ignore[arg-type]
    made.load(entries)  # type: ignore[arg-type]
    return made


def run(made: Rewriter, packet: bytes, inbound: bool, partial: bool = False) -> tuple[int, bytes]:
    """Verdict and bytes, with rubbish around the packet that must stay as it is."""
    buf = bytearray(b"\xa5" * 13 + packet + b"\x5a" * 11)
    verdict = made.rewrite(buf, 13, len(packet), inbound, partial)
    assert buf[:13] == b"\xa5" * 13
    assert buf[-11:] == b"\x5a" * 11
    return verdict, bytes(buf[13:-11])


@given(pairs, payloads, ip_options, tcp_options)
def test_outbound_segment_leaves_with_wire_tuple_and_right_checksums(
    pair: tuple[Flow, Flow], payload: bytes, options: bytes, more: bytes
) -> None:
    birth, wire = pair
    packet = tcp(birth.local, birth.remote, payload, options=options, tcp_options=more)
    assert packet == recomputed(packet)
    verdict, out = run(rewriter(entry(birth, wire)), packet, inbound=False)
    assert verdict == (Verdict.PASS if birth == wire else Verdict.REWRITTEN)
    assert tuple_in(out) == sent(wire)
    assert out == recomputed(out)
    assert out == tcp(wire.local, wire.remote, payload, options=options, tcp_options=more)


@given(pairs, payloads, ip_options)
def test_inbound_segment_arrives_with_birth_tuple_and_right_checksums(
    pair: tuple[Flow, Flow], payload: bytes, options: bytes
) -> None:
    birth, wire = pair
    packet = tcp(wire.remote, wire.local, payload, options=options)
    _, out = run(rewriter(entry(birth, wire)), packet, inbound=True)
    assert out == tcp(birth.remote, birth.local, payload, options=options)


@given(pairs, payloads, ip_options, tcp_options)
def test_what_one_end_sends_the_other_end_undoes(
    pair: tuple[Flow, Flow], payload: bytes, options: bytes, more: bytes
) -> None:
    birth, wire = pair
    packet = tcp(birth.local, birth.remote, payload, options=options, tcp_options=more)
    _, on_wire = run(rewriter(entry(birth, wire)), packet, inbound=False)
    far_end = rewriter(entry(birth.reversed(), wire.reversed()))
    _, back = run(far_end, on_wire, inbound=True)
    assert back == packet


@given(pairs, payloads, st.integers(0, 65535))
def test_wrong_checksum_stays_as_wrong_as_it_was(
    pair: tuple[Flow, Flow], payload: bytes, damage: int
) -> None:
    birth, wire = pair
    packet = bytearray(tcp(birth.local, birth.remote, payload))
    place = (20 if birth.version == 4 else 40) + 16
    right = int.from_bytes(packet[place : place + 2], "big")
    packet[place : place + 2] = (right ^ damage).to_bytes(2, "big")
    _, out = run(rewriter(entry(birth, wire)), bytes(packet), inbound=False)
    valid = out == recomputed(out)
    # 0x0000 and 0xffff are one checksum in two forms.
    alike = {right, right ^ damage} == {0, 0xFFFF}
    assert valid == (damage == 0) or alike


@given(pairs, payloads)
def test_unfinished_checksum_stays_finishable(pair: tuple[Flow, Flow], payload: bytes) -> None:
    birth, wire = pair
    want = tcp(wire.local, wire.remote, payload)
    packet = bytearray(tcp(birth.local, birth.remote, payload))
    place = (20 if birth.version == 4 else 40) + 16
    addresses = packet[12:20] if birth.version == 4 else packet[8:40]
    length = len(packet) - (20 if birth.version == 4 else 40)
    pseudo = bytes(addresses) + (6).to_bytes(2, "big") + length.to_bytes(2, "big")
    # What Linux leaves in the field of a CHECKSUM_PARTIAL packet: ~csum_tcpudp_magic().
    packet[place : place + 2] = (dpkt.in_cksum(pseudo) ^ 0xFFFF).to_bytes(2, "big")
    _, out = run(rewriter(entry(birth, wire)), bytes(packet), inbound=False, partial=True)
    finished = bytearray(out)
    assert checksum.finish(finished, 0, len(finished))
    assert bytes(finished) == want
    # And the way the kernel does it: the field is part of what is summed.
    start = 20 if birth.version == 4 else 40
    kernel = checksum.ones_sum(out[start:]) ^ 0xFFFF
    assert kernel == int.from_bytes(want[place : place + 2], "big")


@pytest.mark.parametrize(("birth", "wire"), [(BIRTH, WIRE), (BIRTH6, WIRE6)])
def test_unknown_tuple_passes_untouched(birth: Flow, wire: Flow) -> None:
    made = rewriter(entry(birth, wire))
    for flow, inbound in ((wire, False), (birth, True), (birth.reversed(), False)):
        source, target = (flow.remote, flow.local) if inbound else (flow.local, flow.remote)
        packet = tcp(source, target, b"x")
        assert run(made, packet, inbound) == (Verdict.PASS, packet)


@pytest.mark.parametrize(("birth", "wire"), [(BIRTH, WIRE), (BIRTH6, WIRE6)])
def test_every_open_wire_flow_is_let_in_and_the_newest_sent_on(birth: Flow, wire: Flow) -> None:
    made = rewriter(entry(birth, wire, birth))
    for flow in (wire, birth):
        _, out = run(made, tcp(flow.remote, flow.local, b"x"), inbound=True)
        assert out == tcp(birth.remote, birth.local, b"x")
    assert run(made, tcp(birth.remote, birth.local), inbound=True)[0] == Verdict.PASS
    assert tuple_in(run(made, tcp(birth.local, birth.remote), inbound=False)[1]) == sent(wire)


@pytest.mark.parametrize(("birth", "wire"), [(BIRTH, WIRE), (BIRTH6, WIRE6)])
def test_shut_connection_holds_what_it_sends_and_receives_on(birth: Flow, wire: Flow) -> None:
    made = rewriter(entry(birth, wire, wire_out=None))
    packet = tcp(birth.local, birth.remote, b"x")
    assert run(made, packet, inbound=False) == (Verdict.HOLD, packet)
    assert made.connection_of(packet, 0, len(packet), inbound=False) == "0" * 32
    assert run(made, tcp(wire.remote, wire.local), inbound=True)[0] == Verdict.REWRITTEN


@pytest.mark.parametrize(("birth", "wire"), [(BIRTH, WIRE), (BIRTH6, WIRE6)])
def test_stale_wire_flow_is_dropped(birth: Flow, wire: Flow) -> None:
    made = rewriter(entry(birth, wire, stale=(birth,)))
    for flags in (dpkt.tcp.TH_ACK, dpkt.tcp.TH_RST):
        packet = tcp(birth.remote, birth.local, flags=flags)
        assert run(made, packet, inbound=True) == (Verdict.DROP, packet)


def test_stale_flow_of_one_connection_may_live_in_another() -> None:
    old = entry(BIRTH, WIRE, stale=(Flow.of("198.51.100.8", 1, "192.0.2.9", 22),))
    new = entry(
        Flow.of("10.0.0.1", 50000, "192.0.2.9", 22), old.stale[0], conn_id="1" * 32
    )  # fmt: skip
    packet = tcp(old.stale[0].remote, old.stale[0].local)
    for order in ((old, new), (new, old)):
        made = rewriter(*order)
        assert run(made, packet, inbound=True)[0] == Verdict.REWRITTEN
        made.remove(["1" * 32])
        assert run(made, packet, inbound=True)[0] == Verdict.DROP
        made.remove(["0" * 32])
        assert run(made, packet, inbound=True)[0] == Verdict.PASS


@pytest.mark.parametrize(("birth", "wire"), [(BIRTH, WIRE), (BIRTH6, WIRE6)])
def test_reset_from_the_network_is_withheld_only_on_request(birth: Flow, wire: Flow) -> None:
    flags = dpkt.tcp.TH_RST | dpkt.tcp.TH_ACK
    for tuples in (wire, birth):
        packet = tcp(tuples.remote, tuples.local, flags=flags)
        careful = rewriter(entry(birth, tuples), withhold_resets=True)
        assert run(careful, packet, inbound=True) == (Verdict.RESET, packet)
        plain = rewriter(entry(birth, tuples))
        assert run(plain, packet, inbound=True)[0] in (Verdict.REWRITTEN, Verdict.PASS)
    careful = rewriter(entry(birth, wire), withhold_resets=True)
    ours = tcp(birth.local, birth.remote, flags=flags)
    assert run(careful, ours, inbound=False)[0] == Verdict.REWRITTEN


def test_gateway_on_pf_translates_between_inside_and_wire() -> None:
    inside = Flow.of("192.168.1.5", 33333, "192.0.2.9", 22)
    gateway = entry(BIRTH, WIRE, inside=inside, local=False)
    made = rewriter(gateway, near="inside")
    assert tuple_in(run(made, tcp(inside.local, inside.remote), False)[1]) == sent(WIRE)
    assert tuple_in(run(made, tcp(WIRE.remote, WIRE.local), True)[1]) == sent(inside.reversed())


def test_entries_replace_and_leave_one_by_one() -> None:
    made = rewriter(entry(BIRTH, BIRTH))
    packet = tcp(BIRTH.local, BIRTH.remote, b"x")
    assert run(made, packet, inbound=False)[0] == Verdict.PASS
    made.apply([entry(BIRTH, WIRE, BIRTH)])
    assert len(made) == 1
    assert run(made, packet, inbound=False)[0] == Verdict.REWRITTEN
    made.remove(["0" * 32, "f" * 32])
    assert len(made) == 0
    assert run(made, packet, inbound=False) == (Verdict.PASS, packet)
    assert run(made, tcp(WIRE.remote, WIRE.local), inbound=True)[0] == Verdict.PASS


def test_mixed_families_are_refused_and_change_nothing() -> None:
    made = rewriter(entry(BIRTH, WIRE))
    mixed = dataclasses.replace(entry(BIRTH, WIRE6), conn_id="1" * 32)
    with pytest.raises(ValueError, match="11 mixes"):
        made.apply([mixed])
    with pytest.raises(ValueError, match="mixes"):
        made.load([mixed])
    assert len(made) == 1
    assert run(made, tcp(BIRTH.local, BIRTH.remote), inbound=False)[0] == Verdict.REWRITTEN


def test_link_layer_padding_is_left_alone() -> None:
    packet = tcp(BIRTH.local, BIRTH.remote) + b"\xee" * 6
    verdict, out = run(rewriter(entry(BIRTH, WIRE)), packet, inbound=False)
    assert verdict == Verdict.REWRITTEN
    assert out == tcp(WIRE.local, WIRE.remote) + b"\xee" * 6
