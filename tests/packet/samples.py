"""Packets and filters of all kinds."""

from __future__ import annotations

import dpkt
from hypothesis import strategies as st

from appliance.rewrite.flow import Endpoint
from tests.rewrite.packets import datagram, tcp
from tests.rewrite.test_exceptional import ATOMIC, DEST, HOP, error, extended, fragments

A, B = Endpoint.parse("10.0.0.1:40000"), Endpoint.parse("192.0.2.9:22")
A6, B6 = Endpoint.parse("[2001:db8::1]:40000"), Endpoint.parse("[2001:db8:9::9]:22")


def udp(source: Endpoint, target: Endpoint, payload: bytes) -> bytes:
    segment = dpkt.udp.UDP(sport=source.port, dport=target.port, data=payload)
    segment.ulen = len(segment)
    if source.addr.version == 4:
        return datagram(source, target, segment, 17)
    pseudo = source.addr.packed + target.addr.packed + len(segment).to_bytes(4, "big")
    segment.sum = dpkt.in_cksum(pseudo + b"\0\0\0\x11" + bytes(segment))
    return datagram(source, target, bytes(segment), 17)


PACKETS: dict[str, bytes] = {
    "tcp": tcp(A, B, b"hello world", flags=dpkt.tcp.TH_SYN),
    "tcp with options": tcp(A, B, b"hi", options=b"\1" * 8, tcp_options=b"\1" * 12),
    "tcp without payload": tcp(B, A, flags=dpkt.tcp.TH_RST | dpkt.tcp.TH_ACK),
    "udp": udp(Endpoint.parse("1.2.3.4:53"), Endpoint.parse("5.6.7.8:5353"), b"abc"),
    "udp6": udp(A6, B6, b"abcd"),
    "tcp6": tcp(A6, B6, b"hello"),
    "tcp6 extended": extended(tcp(A6, B6, b"hello"), [HOP, DEST]),
    "tcp6 atomic fragment": extended(tcp(A6, B6, b"hello"), [ATOMIC]),
    "icmp": error(A, B, tcp(B, A, b"x"), 3, 4),
    "icmp echo": error(A, B, b"ping", 8, 0),
    "icmpv6": error(A6, B6, tcp(B6, A6, b"x"), 2),
    "other protocol": datagram(A, B, b"x" * 30, 132),
    "first fragment": fragments(tcp(A, B, b"x" * 60), 32)[0],
    "later fragment": fragments(tcp(A, B, b"x" * 60), 32)[1],
    "first fragment6": fragments(tcp(A6, B6, b"x" * 60), 32)[0],
    "later fragment6": fragments(tcp(A6, B6, b"x" * 60), 32)[1],
}

_FLAGS = ["Urg", "Ack", "Psh", "Rst", "Syn", "Fin"]
_NUMBERS = {
    "ip.HdrLength": 15, "ip.TOS": 255, "ip.Length": 65535, "ip.Id": 65535, "ip.FragOff": 8191,
    "ip.TTL": 255, "ip.Protocol": 255, "ip.Checksum": 65535, "ipv6.TrafficClass": 255,
    "ipv6.FlowLabel": 0xFFFFF, "ipv6.Length": 65535, "ipv6.NextHdr": 255, "ipv6.HopLimit": 255,
    "icmp.Type": 255, "icmp.Code": 255, "icmp.Checksum": 65535, "icmp.Body": 0xFFFFFFFF,
    "icmpv6.Type": 255, "icmpv6.Code": 255, "icmpv6.Checksum": 65535,
    "tcp.SrcPort": 65535, "tcp.DstPort": 65535, "tcp.SeqNum": 0xFFFFFFFF,
    "tcp.AckNum": 0xFFFFFFFF, "tcp.HdrLength": 15, "tcp.Window": 65535, "tcp.Checksum": 65535,
    "tcp.UrgPtr": 65535, "tcp.PayloadLength": 65535, "udp.SrcPort": 65535,
    "udp.DstPort": 65535, "udp.Length": 65535, "udp.Checksum": 65535, "udp.PayloadLength": 65535,
    "length": 65535, "protocol": 255, "localPort": 65535, "remotePort": 65535, "ifIdx": 9,
    "subIfIdx": 9,
}  # fmt: skip
_TYPICAL = [1, 2, 3, 4, 5, 6, 7, 8, 17, 20, 22, 51, 53, 58, 61, 64, 512, 5353, 40000]
_ADDRESSES = ["10.0.0.1", "192.0.2.9", "1.2.3.4", "9.255.255.255", "2001:db8::1", "2001:db8:9::9"]
_OPS = st.sampled_from(["==", "=", "!=", "<", "<=", ">", ">="])


@st.composite
def _numeric(draw: st.DrawFn) -> str:
    """Compared with a number inside the field's range: outside of it WinDivert's
    compiler takes tests for always true or false that its manual says fail."""
    name = draw(st.sampled_from(sorted(_NUMBERS)))
    top = _NUMBERS[name] - 1
    value = draw(st.one_of(st.sampled_from(_TYPICAL), st.integers(1, top)))
    return f"{name} {draw(_OPS)} {min(value, top)}"


@st.composite
def _indexed(draw: st.DrawFn) -> str:
    prefix, size = draw(st.sampled_from([("packet", 0), ("tcp.Payload", 0), ("udp.Payload", 0)]))
    bits, size = draw(st.sampled_from([("", 1), ("16", 2), ("32", 4)]))
    index = draw(st.integers(0, 30))
    form = draw(st.sampled_from(["{}", "{}b", "-{}", "-{}b"]))
    if form.startswith("-"):
        index += size
    value = draw(st.one_of(st.sampled_from([0x45, 0x68, 0x78]), st.integers(1, 254)))
    return f"{prefix}{bits}[{form.format(index)}] {draw(_OPS)} {value}"


tests = st.one_of(
    _numeric(),
    _indexed(),
    st.sampled_from(
        [
            "tcp",
            "udp",
            "icmp",
            "icmpv6",
            "ip",
            "ipv6",
            "inbound",
            "outbound",
            "fragment",
            "loopback",
            "impostor",
            "true",
            "false",
            "zero",
            "ip.DF",
            "ip.MF",
            "event",
        ]
        + [f"tcp.{flag}" for flag in _FLAGS]
        + ["protocol == TCP", "protocol != UDP", "tcp == FALSE", "inbound == TRUE"]
    ),
    st.builds(
        "{} {} {}".format,
        st.sampled_from(["ip.SrcAddr", "ip.DstAddr"]),
        _OPS,
        st.sampled_from(_ADDRESSES[:4]),
    ),
    st.builds(
        "{} {} {}".format,
        st.sampled_from(["ipv6.SrcAddr", "ipv6.DstAddr"]),
        _OPS,
        st.sampled_from(_ADDRESSES[4:]),
    ),
    st.builds(
        "{} {} {}".format,
        st.sampled_from(["localAddr", "remoteAddr"]),
        _OPS,
        st.sampled_from(_ADDRESSES),
    ),
)
negatable = st.builds("{}{}".format, st.sampled_from(["", "", "not ", "!", "!!"]), tests)
filters = st.recursive(
    negatable,
    lambda inner: st.one_of(
        st.builds("{} and {}".format, inner, inner),
        st.builds("{} && {}".format, inner, inner),
        st.builds("({} or {})".format, inner, inner),
        st.builds("({} || {})".format, inner, inner),
        st.builds("({}? {}: {})".format, inner, inner, inner),
    ),
    max_leaves=6,
)
