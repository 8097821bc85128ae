"""ctnetlink: connection tracking entries as bytes, both ways.

Pure.  Numbers from linux/netfilter/nfnetlink_conntrack.h and nf_conntrack_common.h.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from ...rewrite.flow import Address, Endpoint, Flow
from . import netlink as nl
from .nfnl import NFNL_SUBSYS_CTNETLINK, NFPROTO, family_header

CT_NEW = NFNL_SUBSYS_CTNETLINK << 8 | 0
CT_GET = NFNL_SUBSYS_CTNETLINK << 8 | 1
CT_DELETE = NFNL_SUBSYS_CTNETLINK << 8 | 2

TCP = 6

# nf_conntrack_tcp.h
SYN_SENT, SYN_RECV, ESTABLISHED, FIN_WAIT, CLOSE_WAIT, LAST_ACK, TIME_WAIT, CLOSE = range(1, 9)

IPS_SEEN_REPLY = 1 << 1
IPS_ASSURED = 1 << 2
IPS_CONFIRMED = 1 << 3
IPS_FIXED_TIMEOUT = 1 << 10

_TUPLE_ORIG, _TUPLE_REPLY, _STATUS, _PROTOINFO, _NAT_SRC, _TIMEOUT, _MARK = 1, 2, 3, 4, 6, 7, 8
_MARK_MASK = 21
_NAT_DST, _TIMESTAMP = 13, 20
_TUPLE_IP, _TUPLE_PROTO = 1, 2
_V4_SRC, _V4_DST, _V6_SRC, _V6_DST = 1, 2, 3, 4
_PROTO_NUM, _SRC_PORT, _DST_PORT = 1, 2, 3
_PROTOINFO_TCP = 1
_TCP_STATE, _TCP_SCALE_ORIGINAL, _TCP_SCALE_REPLY = 1, 2, 3
_TCP_FLAGS_ORIGINAL, _TCP_FLAGS_REPLY = 4, 5
_TIMESTAMP_START = 1
_NAT_V4_MIN, _NAT_V4_MAX, _NAT_PROTO, _NAT_V6_MIN, _NAT_V6_MAX = 1, 2, 3, 4, 5
_PORT_MIN, _PORT_MAX = 1, 2

_TCP_FLAG_WINDOW_SCALE, _TCP_FLAG_BE_LIBERAL = 0x01, 0x08
_SCALE_MOST = 14  # RFC 7323 2.3


@dataclass(frozen=True, slots=True)
class Tracked:
    """One TCP entry, or an event about it.

    orig, reply  the tuples as packets in each direction carry them (``local``: source)
    state        TCP state (see above); None when the message does not say
    mark         the user's connection mark, or ours on a reservation
    started      seconds since the epoch; None unless nf_conntrack_timestamp is on
    """

    orig: Flow
    reply: Flow
    status: int
    state: int | None
    mark: int
    started: float | None


def parse(payload: memoryview) -> Tracked | None:
    """None for other protocols and for messages that are not whole."""
    if len(payload) < 4:
        return None
    found = nl.attributes(payload, 4)
    orig = _parse_tuple(found.get(_TUPLE_ORIG))
    reply = _parse_tuple(found.get(_TUPLE_REPLY))
    if orig is None or reply is None:
        return None
    state = None
    if (info := found.get(_PROTOINFO)) is not None:
        tcp = nl.attributes(info).get(_PROTOINFO_TCP)
        value = None if tcp is None else nl.attributes(tcp).get(_TCP_STATE)
        if value is not None and len(value) == 1:
            state = value[0]
    started = None
    if (stamp := found.get(_TIMESTAMP)) is not None:
        value = nl.attributes(stamp).get(_TIMESTAMP_START)
        if value is not None and len(value) == 8:
            started = int.from_bytes(value, "big") / 1e9
    return Tracked(
        orig,
        reply,
        nl.u32be(found.get(_STATUS)) or 0,
        state,
        nl.u32be(found.get(_MARK)) or 0,
        started,
    )


def _parse_tuple(value: memoryview | None) -> Flow | None:
    if value is None:
        return None
    parts = nl.attributes(value)
    ip, proto = parts.get(_TUPLE_IP), parts.get(_TUPLE_PROTO)
    if ip is None or proto is None:
        return None
    ports = nl.attributes(proto)
    number = ports.get(_PROTO_NUM)
    if number is None or len(number) != 1 or number[0] != TCP:
        return None
    sport, dport = nl.u16be(ports.get(_SRC_PORT)), nl.u16be(ports.get(_DST_PORT))
    ends = nl.attributes(ip)
    src: Address | None
    dst: Address | None
    if _V4_SRC in ends:
        src, dst = _v4(ends.get(_V4_SRC)), _v4(ends.get(_V4_DST))
    else:
        src, dst = _v6(ends.get(_V6_SRC)), _v6(ends.get(_V6_DST))
    if src is None or dst is None or sport is None or dport is None:
        return None
    return Flow(Endpoint(src, sport), Endpoint(dst, dport))


def _v4(value: memoryview | None) -> IPv4Address | None:
    return None if value is None or len(value) != 4 else IPv4Address(bytes(value))


def _v6(value: memoryview | None) -> IPv6Address | None:
    return None if value is None or len(value) != 16 else IPv6Address(bytes(value))


# A tuple always has the same attributes: nested IP (source, destination) and PROTO (number,
# two ports), each padded to four bytes.  A large move makes thousands.
_WHOLE_TUPLE = {
    version: (
        struct.Struct(f"=6H{size}s2H{size}s4HB3x2H2s2x2H2s2x"),
        2 * (4 + size),
        names,
    )
    for version, size, names in ((4, 4, (_V4_SRC, _V4_DST)), (6, 16, (_V6_SRC, _V6_DST)))
}
_PROTO_LENGTH = 4 + 3 * 8


def tuple_attribute(kind: int, packet: Flow) -> bytes:
    src, dst = packet
    whole, ends, names = _WHOLE_TUPLE[packet.version]
    end = ends // 2
    return whole.pack(
        whole.size, kind | nl.NLA_F_NESTED,
        4 + ends, _TUPLE_IP | nl.NLA_F_NESTED,
        end, names[0], src.addr.packed, end, names[1], dst.addr.packed,
        _PROTO_LENGTH, _TUPLE_PROTO | nl.NLA_F_NESTED, 5, _PROTO_NUM, TCP,
        6, _SRC_PORT, src.port.to_bytes(2, "big"), 6, _DST_PORT, dst.port.to_bytes(2, "big"),
    )  # fmt: skip


def _nat(kind: int, to: Endpoint) -> bytes:
    names = (_NAT_V4_MIN, _NAT_V4_MAX) if to.addr.version == 4 else (_NAT_V6_MIN, _NAT_V6_MAX)
    port = to.port.to_bytes(2, "big")
    return nl.nested(
        kind,
        nl.attribute(names[0], to.addr.packed),
        nl.attribute(names[1], to.addr.packed),
        nl.nested(_NAT_PROTO, nl.attribute(_PORT_MIN, port), nl.attribute(_PORT_MAX, port)),
    )


def by_tuple(packet: Flow, reply: bool = False) -> bytes:
    """Payload that names the entry whose original (or reply) tuple is ``packet``."""
    kind = _TUPLE_REPLY if reply else _TUPLE_ORIG
    return family_header(NFPROTO[packet.version]) + tuple_attribute(kind, packet)


def established(
    orig: Flow,
    *,
    seconds: int,
    source_to: Endpoint | None = None,
    destination_to: Endpoint | None = None,
    mark: int = 0,
    fixed: bool = False,
) -> bytes:
    """Payload of an entry for a connection that is under way.

    source_to, destination_to  what NAT makes of the original direction's ends
    seconds   until it ends without traffic (the kernel shortens what it can't count)
    fixed     traffic does not change that

    The kernel wants the reply tuple as it would be without NAT, and applies the mapping
    itself.  Windows are unknown in the middle of a connection, so both directions are
    checked liberally, and scales taken for the largest: what a segment outside the window
    acknowledges the kernel does not note, and then it would take no RST for the end.
    """
    status = IPS_CONFIRMED | IPS_ASSURED | IPS_SEEN_REPLY | (IPS_FIXED_TIMEOUT if fixed else 0)
    flags = _TCP_FLAG_BE_LIBERAL | _TCP_FLAG_WINDOW_SCALE
    liberal = bytes([flags, flags])
    parts = [
        tuple_attribute(_TUPLE_ORIG, orig),
        tuple_attribute(_TUPLE_REPLY, orig.reversed()),
        nl.attribute(_STATUS, struct.pack(">I", status)),
        nl.attribute(_TIMEOUT, struct.pack(">I", seconds)),
        nl.nested(
            _PROTOINFO,
            nl.nested(
                _PROTOINFO_TCP,
                nl.attribute(_TCP_STATE, bytes([ESTABLISHED])),
                nl.attribute(_TCP_SCALE_ORIGINAL, bytes([_SCALE_MOST])),
                nl.attribute(_TCP_SCALE_REPLY, bytes([_SCALE_MOST])),
                nl.attribute(_TCP_FLAGS_ORIGINAL, liberal),
                nl.attribute(_TCP_FLAGS_REPLY, liberal),
            ),
        ),
    ]
    if mark:
        parts.append(nl.attribute(_MARK, struct.pack(">I", mark)))
    if source_to is not None:
        parts.append(_nat(_NAT_SRC, source_to))
    if destination_to is not None:
        parts.append(_nat(_NAT_DST, destination_to))
    return family_header(NFPROTO[orig.version]) + b"".join(parts)


def dump_request(mark: int | None = None) -> bytes:
    """All entries, or those with this mark."""
    if mark is None:
        return family_header(0)
    value = struct.pack(">I", mark)
    mask = struct.pack(">I", 0xFFFFFFFF)
    return family_header(0) + nl.attribute(_MARK, value) + nl.attribute(_MARK_MASK, mask)
