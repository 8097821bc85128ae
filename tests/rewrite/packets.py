"""Packets made and judged by dpkt: the other opinion on every byte."""

from __future__ import annotations

import struct
from ipaddress import ip_address

import dpkt
from hypothesis import strategies as st

from appliance.rewrite.flow import Endpoint, Flow
from appliance.rewrite.redirect import Entry

V4 = st.ip_addresses(v=4)
V6 = st.ip_addresses(v=6)
PORT = st.integers(0, 65535)


def endpoints(version: int) -> st.SearchStrategy[Endpoint]:
    return st.builds(Endpoint, V4 if version == 4 else V6, PORT)


def flows(version: int) -> st.SearchStrategy[Flow]:
    return st.builds(Flow, endpoints(version), endpoints(version))


def entry(birth: Flow, *wires: Flow, **more: object) -> Entry:
    """A host's entry that sends on its newest wire flow."""
    fields: dict[str, object] = {
        "conn_id": "0" * 32,
        "birth": birth,
        "inside": birth,
        "local": True,
        "inside_opened": True,
        "wires": wires,
        "wire_out": wires[0],
    }
    fields.update(more)
    return Entry(**fields)  # type: ignore[arg-type]


def tcp(
    src: Endpoint,
    dst: Endpoint,
    payload: bytes = b"",
    *,
    flags: int = dpkt.tcp.TH_ACK,
    options: bytes = b"",
    tcp_options: bytes = b"",
    seq: int = 1,
    ident: int = 7,
) -> bytes:
    """A segment with right checksums; ``options``: IPv4 options, a multiple of 4 bytes."""
    segment = dpkt.tcp.TCP(
        sport=src.port, dport=dst.port, seq=seq, ack=2, flags=flags, win=512,
        opts=tcp_options, off=5 + len(tcp_options) // 4, data=payload,
    )  # fmt: skip
    return datagram(src, dst, segment, dpkt.ip.IP_PROTO_TCP, options=options, ident=ident)


def datagram(
    src: Endpoint,
    dst: Endpoint,
    data: bytes | dpkt.Packet,
    proto: int,
    *,
    options: bytes = b"",
    ident: int = 7,
) -> bytes:
    if src.addr.version == 4:
        packet = dpkt.ip.IP(
            src=src.addr.packed, dst=dst.addr.packed, p=proto, id=ident, ttl=61,
            opts=options, hl=5 + len(options) // 4, data=data,
        )  # fmt: skip
        packet.len = len(packet)
        return bytes(packet)
    packet = dpkt.ip6.IP6(
        src=src.addr.packed, dst=dst.addr.packed, nxt=proto, hlim=61, data=data, plen=len(data)
    )
    packet.extension_hdrs = {}
    packet.all_extension_headers = []
    packet.p = proto
    return bytes(packet)


def recomputed(packet: bytes) -> bytes:
    """The same packet with every checksum computed anew by dpkt from 0."""
    if packet[0] >> 4 == 4:
        ip = dpkt.ip.IP(packet)
        ip.sum = 0
        if not isinstance(ip.data, bytes):
            ip.data.sum = 0
        return bytes(ip)
    nxt, at = packet[6], 40
    while nxt in (0, 43, 60, 44):
        nxt, at = packet[at], at + (8 if nxt == 44 else 8 + packet[at + 1] * 8)
    place = at + (16 if nxt == 6 else 2)
    raw = bytearray(packet)
    raw[place : place + 2] = b"\0\0"
    pseudo = bytes(raw[8:40]) + struct.pack("!II", len(raw) - at, nxt)
    raw[place : place + 2] = dpkt.in_cksum(pseudo + bytes(raw[at:])).to_bytes(2, "big")
    return bytes(raw)


def tuple_in(packet: bytes) -> tuple[str, str, int, int]:
    """Addresses and ports, wherever options or extension headers put the ports."""
    if packet[0] >> 4 == 4:
        at = (packet[0] & 15) * 4
        src, dst = packet[12:16], packet[16:20]
    else:
        nxt, at = packet[6], 40
        while nxt in (0, 43, 60, 44):
            nxt, at = packet[at], at + (8 if nxt == 44 else 8 + packet[at + 1] * 8)
        src, dst = packet[8:24], packet[24:40]
    sport, dport = struct.unpack_from("!HH", packet, at)
    return str(ip_address(src)), str(ip_address(dst)), sport, dport


def sent(flow: Flow) -> tuple[str, str, int, int]:
    """The tuple that our end's packets on this flow carry."""
    return str(flow.local.addr), str(flow.remote.addr), flow.local.port, flow.remote.port
