"""The filter of the segment tap, run by a real kernel: classic BPF is the same there."""

from __future__ import annotations

import array
import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.backend.openbsd.bpf import FLOWS_MOST, LINK_HEADER, SNAP, captures, pure_ack_filter
from appliance.backend.segment import ACK, FIN, PSH, RST, SYN, build_tcp
from appliance.rewrite.flow import Endpoint, Flow

SO_ATTACH_FILTER = 26
FOUR = Flow.of("10.9.0.2", 50000, "10.8.0.2", 5000)
SIX = Flow.of("fd07::2", 50000, "fd07::1", 5000)


@contextmanager
def filtered(program: bytes) -> Iterator[tuple[socket.socket, socket.socket]]:
    sender, receiver = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with sender, receiver:
        code = array.array("B", program)
        address, _ = code.buffer_info()
        fprog = struct.pack("@HP", len(program) // 8, address)
        receiver.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, fprog)
        receiver.setblocking(False)
        yield sender, receiver


def passes(flows: Sequence[Flow], packet: bytes, link: int = 14) -> bool:
    with filtered(pure_ack_filter(flows, link)) as (sender, receiver):
        sender.send(bytes(link) + packet)
        try:
            return len(receiver.recv(2048)) > 0
        except BlockingIOError:
            return False


@pytest.mark.parametrize("link", sorted(set(LINK_HEADER.values())))
@pytest.mark.parametrize("flow", [FOUR, SIX], ids=["IPv4", "IPv6"])
def test_pure_acks_of_an_observed_flow_pass_in_both_directions(flow: Flow, link: int) -> None:
    assert passes([flow], build_tcp(flow, 1, 2, ACK), link)
    assert passes([flow], build_tcp(flow.reversed(), 1, 2, ACK), link)


@pytest.mark.parametrize("flow", [FOUR, SIX], ids=["IPv4", "IPv6"])
@pytest.mark.parametrize("flags", [SYN, SYN | ACK, FIN | ACK, RST, RST | ACK, PSH, 0])
def test_other_flags_do_not_pass(flow: Flow, flags: int) -> None:
    assert not passes([flow], build_tcp(flow, 1, 2, flags))


@pytest.mark.parametrize("flow", [FOUR, SIX], ids=["IPv4", "IPv6"])
def test_payload_does_not_pass_and_options_do(flow: Flow) -> None:
    assert not passes([flow], build_tcp(flow, 1, 2, ACK, payload=b"x"))
    plain = bytearray(build_tcp(flow, 1, 2, ACK, payload=bytes(12)))
    start = 20 if flow.version == 4 else 40
    plain[start + 12] = 8 << 4  # 12 bytes of options instead of payload
    assert passes([flow], bytes(plain))


def test_ip_options_are_stepped_over_and_fragments_are_not_looked_at() -> None:
    packet = bytearray(build_tcp(FOUR, 1, 2, ACK))
    with_options = bytearray(packet[:20] + bytes(8) + packet[20:])
    with_options[0] = 0x47
    with_options[2:4] = len(with_options).to_bytes(2, "big")
    assert passes([FOUR], bytes(with_options))
    packet[6] = 0x20  # more fragments
    assert not passes([FOUR], bytes(packet))


@pytest.mark.parametrize("flow", [FOUR, SIX], ids=["IPv4", "IPv6"])
def test_other_flows_and_protocols_do_not_pass(flow: Flow) -> None:
    near = [
        Flow(flow.local._replace(port=1), flow.remote),
        Flow(flow.local, flow.remote._replace(port=1)),
        Flow(Endpoint(flow.local.addr + 1, flow.local.port), flow.remote),
        Flow(flow.local, Endpoint(flow.remote.addr + 1, flow.remote.port)),
    ]
    for other in near:
        assert not passes([flow], build_tcp(other, 1, 2, ACK))
    udp = bytearray(build_tcp(flow, 1, 2, ACK))
    udp[9 if flow.version == 4 else 6] = 17
    assert not passes([flow], bytes(udp))
    assert not passes([flow], b"\x00" * 60)


def test_nothing_observed_lets_nothing_pass() -> None:
    assert not passes([], build_tcp(FOUR, 1, 2, ACK))
    assert not passes([], build_tcp(SIX, 1, 2, ACK))


def test_as_many_flows_as_the_kernel_takes_are_all_found() -> None:
    flows = [FOUR.with_local(FOUR.local.addr, 40000 + n) for n in range(FLOWS_MOST + 5)]
    program = pure_ack_filter(flows, 14)
    assert len(program) // 8 <= 512  # BPF_MAXINSNS
    for flow in (flows[0], flows[FLOWS_MOST - 1]):
        assert passes(flows, build_tcp(flow.reversed(), 1, 2, ACK))
    assert not passes(flows, build_tcp(flows[FLOWS_MOST], 1, 2, ACK))
    mixed = [f for n in range(16) for f in (
        FOUR.with_local(FOUR.local.addr, 40000 + n), SIX.with_local(SIX.local.addr, 40000 + n)
    )]  # fmt: skip
    assert passes(mixed, build_tcp(mixed[-1], 1, 2, ACK))


def test_copies_are_cut_to_what_the_headers_need() -> None:
    packet = build_tcp(FOUR, 1, 2, ACK) + bytes(500)
    with filtered(pure_ack_filter([FOUR], 0)) as (sender, receiver):
        sender.send(packet)
        assert len(receiver.recv(2048)) == SNAP


@settings(max_examples=60)
@given(st.binary(max_size=120))
def test_any_frame_is_judged_without_a_fault(frame: bytes) -> None:
    assert passes([FOUR, SIX], frame) in (True, False)


def record(packet: bytes, header: int = 20) -> bytes:
    head = struct.pack("=IIIIH", 1, 2, len(packet), len(packet), header).ljust(header, b"\0")
    data = head + packet
    return data.ljust((len(data) + 3) & ~3, b"\0")


def test_captures_are_taken_apart() -> None:
    assert list(captures(record(b"abc") + record(b"defgh", 18))) == [b"abc", b"defgh"]


@given(st.binary(max_size=200))
def test_damaged_captures_end_the_iteration(data: bytes) -> None:
    assert sum(map(len, captures(data))) <= len(data)
    assert sum(map(len, captures(record(b"abc") + data[:17]))) >= 3
