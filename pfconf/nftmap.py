"""The packet path of entries as elements of nftables sets and maps.

An element says: a TCP packet with this tuple, seen at this hook, goes to that chain
(``*_go`` verdict maps) and gets that header field (one map a field).  Computing the
elements of an entry needs no history; :mod:`pfconf.nft` holds the chains.

Where a packet of one connection passes (birth B -> R, inside L -> R at a gateway)::

    inbound        wire --in (-310)--> birth --conntrack, the user's NAT--> inside
    outbound,      birth --conntrack, the user's rules--> birth --out (310)--> wire
      our socket
    outbound,      inside --via (-90): destination--> half way --routing, the user's
      forwarded      NAT--> source is B --post (310)--> wire

On the divert path a packet worker translates in the place of ``in``, ``out`` and ``post``:
their verdict is a queue, all else is the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from ipaddress import IPv4Address, IPv6Address
from itertools import combinations
from typing import Final, Literal

from appliance.rewrite.flow import Endpoint, Flow
from appliance.rewrite.redirect import Entry

Hook = Literal["in", "out", "via", "post"]

# Header fields in the order in which a chain writes them: each later map is looked up
# with the tuple that the earlier writes left (``ip saddr set <tuple> map @in_s``).
FIELDS: Final = ("s", "d", "sp", "dp")

# Which fields can differ at which hook: a forwarded packet gets its destination before
# routing and its source after the user's NAT.
HOOK_FIELDS: Final[Mapping[Hook, tuple[str, ...]]] = {
    "in": FIELDS,
    "out": FIELDS,
    "via": ("d", "dp"),
    "post": ("s", "sp"),
}

DROP: Final = "drop"
QUEUE: Final = "queue"  # in a chain's name: a packet worker translates
SAME: Final = "same"  # and does not change the addresses

# A packet tuple as the kernel keeps a concatenation: source address, port, destination
# address, port, each port in four bytes (16 bytes for IPv4, 40 for IPv6).
Packed = bytes
# What a map gives: a verdict (``drop`` or a chain's name), or the bytes of an address, a
# port, or both; an element of a set has no bytes.
Value = str | bytes
MEMBER: Final = b""

Key = tuple[str, Packed]  # set or map, packet tuple
Elements = dict[Key, Value]


def pack_end(end: Endpoint) -> bytes:
    """Address and port in the form of a concatenation: 8 bytes, or 20 for IPv6."""
    return end.addr.packed + end.port.to_bytes(2, "big") + b"\0\0"


def pack(source: Endpoint, destination: Endpoint) -> Packed:
    return pack_end(source) + pack_end(destination)


def unpack_end(raw: bytes) -> Endpoint:
    """The inverse of :func:`pack_end`."""
    addr = IPv4Address(raw[:4]) if len(raw) == 8 else IPv6Address(raw[:16])
    return Endpoint(addr, int.from_bytes(raw[-4:-2], "big"))


def unpack(raw: Packed) -> Flow:
    """The packet tuple as a flow whose ``local`` end is the source."""
    half = len(raw) // 2
    return Flow(unpack_end(raw[:half]), unpack_end(raw[half:]))


def version_of(raw: Packed) -> int:
    return 4 if len(raw) == 16 else 6


def _field_spans(half: int) -> dict[str, tuple[int, int, int]]:
    """Field -> (begin, end) in the packed tuple, and the length of its value."""
    addr = half - 4
    return {
        "s": (0, addr, addr),
        "d": (half, half + addr, addr),
        "sp": (addr, half, 2),
        "dp": (half + addr, 2 * half, 2),
    }


_SPANS: Final = {16: _field_spans(8), 40: _field_spans(20)}


def fields_between(before: Packed, after: Packed) -> tuple[str, ...]:
    """The header fields in which two packet tuples differ, in writing order."""
    if before == after:
        return ()
    spans = _SPANS[len(before)]
    return tuple(f for f, (i, j, _) in spans.items() if before[i:j] != after[i:j])


def chain_name(hook: Hook, fields: Iterable[str], observed: bool = False) -> str:
    """``in_s_dp``; ``in_same`` when nothing is rewritten; ``in_s_seen`` when observed."""
    return "_".join([hook, *(fields or [SAME]), *(["seen"] if observed else [])])


def queue_chains() -> Iterator[tuple[Hook, tuple[str, ...]]]:
    """Hook and fields of every chain that queues, for :func:`chain_name`."""
    yield "in", (QUEUE,)
    yield "out", (QUEUE,)
    yield "out", (QUEUE, SAME)
    yield "post", (QUEUE,)


def half_way(entry: Entry) -> Flow:
    """A forwarded packet of ours before routing: the user's DNAT is done, SNAT is not."""
    return Flow(entry.inside.local, entry.birth.remote)


class _Builder:
    """Collects the elements of one connection; the first value of a key counts.

    diverted  a packet worker translates, not we
    observed  copies of its small segments are wanted
    """

    def __init__(self, diverted: bool, observed: bool) -> None:
        self.elements: Elements = {}
        self._diverted, self._observed = diverted, observed

    def put(self, table: str, packet: Packed, value: Value = MEMBER) -> None:
        self.elements.setdefault((table, packet), value)

    def translate(self, hook: Hook, before: Packed, after: Packed) -> None:
        """``before`` becomes ``after`` at ``hook``, by the connection's path."""
        if self._diverted:
            stays = hook == "out" and not {"s", "d"} & set(fields_between(before, after))
            fields = (QUEUE, SAME) if stays else (QUEUE,)
            self.put(f"{hook}_go", before, chain_name(hook, fields, self._observed))
        else:
            self.rewrite(hook, before, after, self._observed)

    def sent(self, out: Packed) -> None:
        """``out`` is what leaves."""
        if self._diverted:
            self.put("sent", out)
        # A new connection of our own that took the wire tuple would answer for this one.
        self.put("out_go", out, "taken")

    def rewrite(self, hook: Hook, before: Packed, after: Packed, observed: bool = False) -> None:
        """``before`` becomes ``after`` at ``hook``: a verdict, and one element a field."""
        fields = fields_between(before, after)
        self.put(f"{hook}_go", before, chain_name(hook, fields, observed))
        at = before
        for field in fields:
            begin, end, length = _SPANS[len(at)][field]
            self.put(f"{hook}_{field}", at, after[begin : begin + length])
            at = at[:begin] + after[begin:end] + at[end:]


def entry_elements(entry: Entry, observed: bool = False) -> Elements:
    """All elements of one connection.

    ``observed``: copies of its small segments are wanted (see :func:`observed_elements`).
    """
    build = _Builder(entry.path == "divert", observed)
    local, remote = pack_end(entry.birth.local), pack_end(entry.birth.remote)
    inbound = remote + local
    for wire in entry.wires:
        build.translate("in", pack(wire.remote, wire.local), inbound)
    for wire in entry.stale:
        build.put("in_go", pack(wire.remote, wire.local), DROP)
    out = None if entry.wire_out is None else pack(*entry.wire_out)
    if entry.local:
        _own_out(build, local + remote, out)
        _nat(build, [local + remote, *([out] if out else [])], local, local, inbound)
    else:
        inside = pack_end(entry.inside.local)
        _forwarded_out(build, inside, local, remote, out)
        if inside != local:
            # Without its NAT state a packet would leave with a LAN address, come back
            # out of the door it entered, or reach our own stack, which answers RST.
            build.put("post_go", inside + remote, DROP)
            if out is not None:
                build.put("post_go", inside + out[len(local) :], DROP)
            build.put("post_go", inbound, DROP)
            build.put("guard", inbound)
        ends = [remote, *([out[len(local) :]] if out else [])]
        _nat(build, [inside + end for end in ends], inside, local, inbound)
    return build.elements


def _own_out(build: _Builder, birth: Packed, out: Packed | None) -> None:
    if out is None:
        build.put("out_go", birth, "held_own")
        return
    build.translate("out", birth, out)
    build.sent(out)


def _forwarded_out(
    build: _Builder, inside: bytes, local: bytes, remote: bytes, out: Packed | None
) -> None:
    if out is None:
        # Before routing: while the address is gone there may be no route at all.
        build.put("via_go", inside + remote, "held")
        return
    toward = out[len(local) :]
    if toward != remote:
        build.rewrite("via", inside + remote, inside + toward)
    build.translate("post", local + toward, out)
    build.sent(out)


def _nat(
    build: _Builder, packets: Iterable[Packed], inside: bytes, local: bytes, inbound: Packed
) -> None:
    """What a new conntrack entry must do, in place of the user's NAT rules.

    The kernel asks once a conntrack entry, at 99 and -101: just before the usual
    srcnat (100) and dstnat (-100).  For our own sockets the mapping is the identity.

    packets  the tuples that packets of our end may have at 99
    """
    for packet in packets:
        build.put("nat_s", packet, local)
    build.put("nat_d", inbound, inside)


def observed_elements(flow: Flow) -> Elements:
    """Copies of pure ACKs of a birth flow that no entry translates."""
    local, remote = pack_end(flow.local), pack_end(flow.remote)
    return {
        ("in_go", remote + local): "seen_in",
        ("out_go", local + remote): "seen_out",
        ("post_go", local + remote): "seen_out",
    }


def seen(value: Value) -> Value:
    """The verdict of the same chain with copies of small segments."""
    if isinstance(value, str) and value.startswith(("in_", "out_", "post_")):
        return f"{value}_seen"
    return value


def verdicts() -> list[str]:
    """Every verdict that an element can have, in a fixed order."""
    names = [DROP, "held", "held_own", "taken", "told_off", "seen_in", "seen_out"]
    for hook, fields in HOOK_FIELDS.items():
        for count in range(len(fields) + 1):
            for chosen in combinations(fields, count):
                names += [chain_name(hook, chosen), chain_name(hook, chosen, observed=True)]
    for hook, chosen in queue_chains():
        names += [chain_name(hook, chosen), chain_name(hook, chosen, observed=True)]
    return names
