"""Packet: what pydivert's Packet shows of the same bytes, ours shows too."""

from __future__ import annotations

import socket

import pydivert
import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.packet.consts import CalcChecksumsOption, Direction
from appliance.packet.header import TCPHeader
from appliance.packet.packet import Packet
from tests.rewrite.packets import recomputed

from .samples import PACKETS, A, B, filters, udp

SAMPLES = pytest.mark.parametrize("name", sorted(PACKETS))
ATTRIBUTES = {
    None: "interface direction is_inbound is_outbound is_loopback is_impostor is_sniffed timestamp "
    "address_family protocol src_addr dst_addr src_port dst_port layer event loopback impostor "
    "sniffed",
    "ipv4": "src_addr dst_addr hdr_len header_len packet_len tos flags frag_offset df mf rf evil "
    "reserved cksum protocol ident ttl dscp ecn diff_serv",
    "ipv6": "src_addr dst_addr header_len packet_len payload_len next_hdr hop_limit traffic_class "
    "flow_label dscp ecn",
    "ip": "src_addr dst_addr",
    "tcp": "src_port dst_port seq_num ack_num data_offset header_len payload payload_len "
    "control_bits reserved ns cwr ece urg ack psh rst syn fin window cksum urg_ptr",
    "udp": "src_port dst_port payload payload_len cksum header_len",
    "icmp": "type code cksum payload header_len",
    "icmpv4": "type code cksum payload",
    "icmpv6": "type code cksum payload",
}
WRITES = {
    "ipv4": {"src_addr": "9.8.7.6", "dst_addr": "6.7.8.9", "ttl": 3, "tos": 0xB9, "ident": 77,
             "df": True, "mf": True, "protocol": 99, "frag_offset": 0x123, "cksum": 5,
             "dscp": 0x2A, "ecn": 2},
    "ipv6": {"src_addr": "fe80::1", "dst_addr": "::2", "hop_limit": 3, "next_hdr": 59,
             "flow_label": 0xABCDE, "traffic_class": 0x5A, "dscp": 0x2A, "ecn": 2},
    "tcp": {"src_port": 1, "dst_port": 65535, "seq_num": 0xFFFFFFFF, "ack_num": 9, "syn": False,
            "fin": True, "rst": True, "psh": True, "urg": True, "ece": True, "cwr": True,
            "ns": True, "window": 7, "urg_ptr": 8, "cksum": 3, "payload": b"changed"},
    "udp": {"src_port": 1, "dst_port": 65535, "cksum": 3, "payload": b"changed"},
    "icmp": {"type": 8, "code": 1, "cksum": 3, "payload": b"changed"},
}  # fmt: skip


def twins(name: str, **more: object) -> tuple[Packet, pydivert.Packet]:
    raw = PACKETS[name]
    direction = Direction(int(more.pop("direction", 0)))  # type: ignore[call-overload]
    mine = Packet(raw, direction=direction, **more)  # type: ignore[arg-type]
    return mine, pydivert.Packet(raw, direction=pydivert.Direction(direction), **more)


@SAMPLES
@pytest.mark.parametrize("direction", list(Direction))
def test_every_attribute_reads_as_in_pydivert(name: str, direction: Direction) -> None:
    mine, theirs = twins(name, interface=(3, 1), direction=direction, loopback=True)
    assert bytes(mine.raw) == bytes(theirs.raw)
    for part, attributes in ATTRIBUTES.items():
        ours = mine if part is None else getattr(mine, part)
        other = theirs if part is None else getattr(theirs, part)
        assert (ours is None) == (other is None), part
        if ours is not None:
            for attribute in attributes.split():
                assert getattr(ours, attribute) == getattr(other, attribute), attribute
    assert mine.payload == theirs.payload
    if mine.tcp is not None:
        assert bytes(mine.tcp.raw) == bytes(theirs.tcp.raw)
    assert f"len={len(PACKETS[name])}" in repr(mine)


@SAMPLES
@pytest.mark.parametrize(("part", "attribute"), [(p, a) for p in WRITES for a in WRITES[p]])
def test_every_attribute_writes_as_in_pydivert(name: str, part: str, attribute: str) -> None:
    mine, theirs = twins(name)
    header, other = getattr(mine, part), getattr(theirs, part)
    if header is None:
        return
    value = WRITES[part][attribute]
    setattr(header, attribute, value)
    setattr(other, attribute, value)
    assert bytes(mine.raw) == bytes(theirs.raw)
    again = getattr(mine, part)
    assert again is None or getattr(again, attribute) == value


@SAMPLES
def test_addresses_and_ports_write_through_the_packet(name: str) -> None:
    mine, theirs = twins(name)
    address = "9.9.9.9" if mine.ipv4 is not None else "fd00::9"
    for packet in (mine, theirs):
        packet.src_addr = address
        packet.dst_addr = address
        if packet.src_port is not None:
            packet.src_port, packet.dst_port = 5, 6
    assert bytes(mine.raw) == bytes(theirs.raw)
    assert (mine.src_addr, mine.dst_addr) == (address, address)


@SAMPLES
def test_recalculated_checksums_are_pydiverts_and_dpkts(name: str) -> None:
    mine, theirs = twins(name)
    whole = mine.is_checksum_valid and "fragment" not in name
    for packet in (mine, theirs):
        if packet.payload:
            packet.payload = b"another payload"
        if packet.src_port is not None:
            packet.src_port = 4444
        if packet.ipv4 is not None:
            packet.ipv4.ttl = 9
        packet.recalculate_checksums()
    assert mine.is_checksum_valid
    if whole and name != "other protocol":
        assert bytes(mine.raw) == bytes(theirs.raw)
        if "udp" not in name:
            assert bytes(mine.raw) == recomputed(bytes(mine.raw))


@SAMPLES
def test_a_changed_byte_makes_a_checksum_wrong(name: str) -> None:
    packet = Packet(PACKETS[name])
    assert packet.is_checksum_valid
    place = (packet.protocol[1] or 0) + 1
    packet.raw[place] ^= 0x10
    fragment = "fragment" in name and "atomic" not in name
    assert packet.is_checksum_valid == (fragment or name == "other protocol")
    assert not packet.tcp_checksum
    assert not packet.udp_checksum
    assert not packet.icmp_checksum


def test_checksums_can_be_left_out_one_by_one() -> None:
    packet = Packet(PACKETS["tcp"])
    packet.src_addr = "1.1.1.1"
    everything = int(CalcChecksumsOption.NO_IP_CHECKSUM | CalcChecksumsOption.NO_TCP_CHECKSUM)
    assert packet.recalculate_checksums(everything) == 0
    assert (packet.ip_checksum, packet.tcp_checksum) == (False, False)
    assert packet.recalculate_checksums(int(CalcChecksumsOption.NO_TCP_CHECKSUM)) == 1
    assert (packet.ip_checksum, packet.tcp_checksum) == (True, False)
    assert packet.recalculate_checksums() == 1
    assert packet.is_checksum_valid


def test_udp_without_a_checksum_is_valid_on_ipv4() -> None:
    packet = Packet(udp(A, B, b"x"))
    assert packet.udp is not None
    packet.udp.cksum = 0
    assert packet.udp_checksum


@given(filters, st.sampled_from(sorted(PACKETS)), st.sampled_from(list(Direction)))
def test_matches_as_in_pydivert(text: str, name: str, direction: Direction) -> None:
    mine, theirs = twins(name, interface=(3, 1), direction=direction)
    assert mine.matches(text) == theirs.matches(text)


def test_matches_refuses_what_is_no_filter_or_no_packet() -> None:
    with pytest.raises(ValueError, match="bad token"):
        Packet(PACKETS["tcp"]).matches("nonsense")
    with pytest.raises(ValueError, match="not an IP packet"):
        Packet(b"").matches("true")


def test_values_that_do_not_fit_are_refused_and_change_nothing() -> None:
    packet = Packet(PACKETS["tcp"])
    assert packet.tcp is not None
    assert packet.ipv4 is not None
    for header, name, value in (
        (packet.tcp, "src_port", 65536),
        (packet.tcp, "src_port", -1),
        (packet.ipv4, "ttl", 256),
        (packet.ipv4, "frag_offset", 0x2000),
    ):
        with pytest.raises(ValueError, match=name):
            setattr(header, name, value)
    for address in ("::1", "x", ""):
        with pytest.raises(OSError, match="illegal IP address"):
            packet.src_addr = address
    with pytest.raises(ValueError, match="longer than"):
        packet.payload = b"x" * 65530
    assert bytes(packet.raw) == PACKETS["tcp"]


def test_missing_headers_read_as_none_and_refuse_writing() -> None:
    packet = Packet(b"\x50" * 40, interface=4)
    assert packet.interface == (4, 0)
    assert packet.protocol == (None, None)
    for name in ("address_family", "ip", "tcp", "udp", "icmp", "src_addr", "dst_port", "payload"):
        assert getattr(packet, name) is None
    for name, value in (("src_addr", "1.1.1.1"), ("src_port", 1), ("payload", b"")):
        with pytest.raises(ValueError, match=r"^no "):
            setattr(packet, name, value)
    assert packet.recalculate_checksums() == 0
    assert repr(packet) == "<Packet IP from=None to=None len=40>"


def test_direction_takes_numbers_and_booleans() -> None:
    packet = Packet(PACKETS["tcp"])
    packet.direction = 1  # type: ignore[assignment]
    assert packet.is_inbound
    packet.is_inbound = False
    assert packet.direction is Direction.OUTBOUND
    packet.is_outbound = False
    assert packet.direction is Direction.INBOUND


def test_structural_matching() -> None:
    match Packet(PACKETS["tcp"]):
        case Packet(tcp=TCPHeader(dst_port=22, syn=True), address_family=socket.AF_INET):
            pass
        case other:
            pytest.fail(repr(other))


def test_views_stay_true_while_a_packet_grows() -> None:
    packet = Packet(PACKETS["tcp"])
    view, header = packet.raw, packet.tcp
    assert header is not None
    packet.payload = b"x" * 900
    assert header.payload_len == 900
    assert bytes(view) == PACKETS["tcp"]
    packet.raw = PACKETS["udp"]
    assert packet.tcp is None
    assert packet.udp is not None


@given(st.binary(max_size=80))
def test_random_bytes_are_shown_without_raising(raw: bytes) -> None:
    packet = Packet(raw)
    repr(packet)
    assert packet.is_checksum_valid in (True, False)
    packet.recalculate_checksums()
    assert len(packet.raw) == len(raw)
    for part, attributes in ATTRIBUTES.items():
        header = packet if part is None else getattr(packet, part)
        if header is not None:
            for attribute in attributes.split():
                getattr(header, attribute)
    assert isinstance(packet.payload, bytes | None)
