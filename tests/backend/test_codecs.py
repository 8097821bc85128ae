"""Every parser of bytes: round trips, and random bytes never raise."""

from __future__ import annotations

import struct
import sys
from ipaddress import IPv4Address, IPv6Address

from hypothesis import given
from hypothesis import strategies as st

from appliance.backend import segment
from appliance.backend.linux import ctnetlink, nfnl, routes, sockdiag
from appliance.backend.linux import netlink as nl
from appliance.rewrite.checksum import transport
from appliance.rewrite.flow import Endpoint, Flow
from appliance.rewrite.headers import locate
from pfconf import nftmap

ports = st.integers(0, 65535)
numbers = st.integers(0, 2**32 - 1)


def ends(version: int) -> st.SearchStrategy[Endpoint]:
    if version == 4:
        addrs = st.integers(0, 2**32 - 1).map(IPv4Address)
    else:
        addrs = st.integers(0, 2**128 - 1).map(IPv6Address)
    return st.builds(Endpoint, addrs, ports)


def some_flows(version: int) -> st.SearchStrategy[Flow]:
    return st.builds(Flow, ends(version), ends(version))


flows = st.sampled_from([4, 6]).flatmap(some_flows)


@given(st.lists(st.tuples(st.integers(16, 65535), st.binary(max_size=200), numbers)))
def test_messages_survive_a_round_trip(rows: list[tuple[int, bytes, int]]) -> None:
    data = b"".join(nl.message(kind, 5, seq, body) for kind, body, seq in rows)
    found = [(part.kind, bytes(part.payload), part.seq) for part in nl.parse(data)]
    assert found == rows
    assert len(data) % 4 == 0


@given(st.dictionaries(st.integers(1, nl.NLA_TYPE_MASK), st.binary(max_size=99)))
def test_attributes_survive_a_round_trip(values: dict[int, bytes]) -> None:
    data = b"".join(nl.attribute(kind, value) for kind, value in values.items())
    found = nl.attributes(memoryview(data))
    assert {kind: bytes(value) for kind, value in found.items()} == values


@given(st.binary(max_size=400))
def test_random_bytes_raise_in_no_parser(data: bytes) -> None:
    view = memoryview(data)
    for part in nl.parse(data):
        assert part.error is None or part.kind == nl.NLMSG_ERROR
    nl.attributes(view)
    for parse in (
        ctnetlink.parse, sockdiag.parse, routes.parse_link, routes.parse_address,
        routes.parse_route,
    ):  # fmt: skip
        parse(view)
    segment.parse_tcp(data)
    segment.parse_too_big(data)


@given(some_flows(4), st.binary(max_size=300), st.data())
def test_a_broken_packet_raises_nowhere(flow: Flow, payload: bytes, data: st.DataObject) -> None:
    raw = bytearray(segment.build_tcp(flow, 1, 2, segment.ACK, payload=payload))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, min(60, len(raw) - 1)))] = data.draw(st.integers(0, 255))
    cut = bytes(raw[: data.draw(st.integers(0, len(raw)))])
    seen = segment.parse_tcp(cut)
    if seen is not None:
        list(segment.retarget(seen, flow, 1500))
    error = segment.icmp_too_big(flow.remote.addr, flow.local.addr, 1400, cut)
    found = segment.parse_too_big(error)
    if found is not None:
        segment.retarget_too_big(found, flow)


def checksum_is_right(raw: bytes) -> bool:
    at = locate(raw, 0, len(raw))
    assert at is not None
    return transport(raw, 0, at) == int.from_bytes(raw[at.l4 + 16 : at.l4 + 18], "big")


@given(st.sampled_from([4, 6]), st.data(), numbers, numbers, st.binary(max_size=5000))
def test_a_segment_on_another_wire_flow_is_whole_and_right(
    version: int, data: st.DataObject, seq: int, ack: int, payload: bytes
) -> None:
    flow, wire = data.draw(some_flows(version)), data.draw(some_flows(version))
    mtu = data.draw(st.sampled_from([576, 1280, 1500]))
    raw = segment.build_tcp(flow, seq, ack, segment.ACK | segment.PSH | segment.FIN, 9, payload)
    assert checksum_is_right(raw)
    seen = segment.parse_tcp(raw)
    assert seen is not None
    assert (seen.packet, seen.seq, seen.ack, seen.length) == (flow, seq, ack, len(payload))
    got = b""
    pieces = [segment.parse_tcp(piece) for piece in segment.retarget(seen, wire, mtu)]
    for number, piece in enumerate(pieces):
        assert piece is not None
        assert len(piece.raw) <= mtu
        assert checksum_is_right(piece.raw)
        assert piece.packet == wire
        assert piece.seq == (seq + len(got)) % 2**32
        assert bool(piece.flags & segment.FIN) is (number == len(pieces) - 1)
        got += piece.raw[piece.data :]
    assert got == payload


def test_a_copy_that_was_cut_short_does_not_end_the_connection() -> None:
    flow = Flow.of("192.0.2.1", 1, "192.0.2.2", 2)
    raw = segment.build_tcp(flow, 1, 1, segment.ACK | segment.FIN, payload=bytes(900))
    seen = segment.parse_tcp(raw[:500])
    assert seen is not None
    assert not seen.whole
    (piece,) = segment.retarget(seen, flow, 1500)
    again = segment.parse_tcp(piece)
    assert again is not None
    assert not again.flags & segment.FIN


@given(st.sampled_from([4, 6]), st.data(), st.integers(0, 70_000))
def test_a_path_error_is_told_in_terms_of_the_inside_or_not_believed(
    version: int, data: st.DataObject, mtu: int
) -> None:
    wire, inside = data.draw(some_flows(version)), data.draw(some_flows(version))
    router = data.draw(ends(version)).addr
    packet = segment.build_tcp(wire, 77, 1, segment.ACK, payload=bytes(64))
    told = mtu & 0xFFFF if version == 4 else mtu
    error = segment.parse_too_big(segment.icmp_too_big(router, wire.local.addr, told, packet))
    assert error is not None
    assert (error.packet, error.seq, error.mtu, error.router) == (wire, 77, told, router)
    passed_on = segment.retarget_too_big(error, inside)
    least = segment.IPV4_LEAST_MTU if version == 4 else segment.IPV6_LEAST_MTU
    assert (passed_on is not None) is (least <= told <= 0xFFFF)
    if passed_on is not None:
        again = segment.parse_too_big(passed_on)
        assert again is not None
        assert (again.packet, again.seq, again.mtu) == (inside, 77, told)


@given(flows, flows.flatmap(lambda f: st.just(f)), numbers)
def test_a_tracking_entry_is_read_as_it_was_written(flow: Flow, other: Flow, mark: int) -> None:
    target = other.local if other.version == flow.version else None
    payload = ctnetlink.established(flow, seconds=9, source_to=target, mark=mark)
    found = ctnetlink.parse(memoryview(payload))
    assert found is not None
    assert (found.orig, found.reply) == (flow, flow.reversed())
    assert (found.state, found.mark, found.started) == (ctnetlink.ESTABLISHED, mark, None)
    named = nl.attributes(memoryview(ctnetlink.by_tuple(flow)), 4)
    assert len(named) == 1


@given(flows, st.integers(0, 255))
def test_a_socket_is_read_as_the_kernel_writes_it(flow: Flow, state: int) -> None:
    family = 2 if flow.version == 4 else 10
    ident = struct.pack(
        "!HH16s16s", flow.local.port, flow.remote.port,
        flow.local.addr.packed.ljust(16, b"\0"), flow.remote.addr.packed.ljust(16, b"\0"),
    )  # fmt: skip
    payload = bytes([family, state, 0, 0]) + ident + bytes(12 + 20)
    found = sockdiag.parse(memoryview(payload))
    if flow.remote.port == 0:
        assert found is None
    elif flow.version == 4:
        assert found == sockdiag.TcpSocket(flow, state)


def test_an_ipv4_connection_of_an_ipv6_socket_is_ipv4() -> None:
    mapped = [IPv6Address(f"::ffff:192.0.2.{n}").packed for n in (1, 2)]
    payload = bytes([10, 1, 0, 0]) + struct.pack("!HH16s16s", 22, 5, *mapped) + bytes(32)
    found = sockdiag.parse(memoryview(payload))
    assert found is not None
    assert found.flow == Flow.of("192.0.2.1", 22, "192.0.2.2", 5)


@given(flows)
def test_a_packet_tuple_survives_packing(flow: Flow) -> None:
    raw = nftmap.pack(*flow)
    assert nftmap.unpack(raw) == flow
    assert nftmap.version_of(raw) == flow.version


@given(
    st.sampled_from([4, 6]).flatmap(
        lambda version: st.lists(
            st.tuples(some_flows(version), st.sampled_from(["drop", "in_s", b"", b"\0\x16"])),
            max_size=50,
        )
    ),
    st.integers(1, 40),
)
def test_elements_are_cut_into_messages_without_loss(
    rows: list[tuple[Flow, str | bytes]], times: int
) -> None:
    made = [nfnl.element(nftmap.pack(*flow), value) for flow, value in rows] * times
    found: list[bytes] = []
    for _, _, payload in nfnl.set_messages(nfnl.NFT_MSG_NEWSETELEM, "t", 2, "in_go", made):
        assert len(payload) < 65536
        elements = nl.attributes(memoryview(payload), 4)[3]
        at = 0
        while at < len(elements):
            length = int.from_bytes(elements[at : at + 2], sys.byteorder)
            found.append(bytes(elements[at : at + length + (-length & 3)]))
            at += length + (-length & 3)
    assert found == made
