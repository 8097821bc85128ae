"""What of a filter the kernel can select: nftables expressions, pcap expressions.

A selection never misses a packet that the filter matches; it may let others through,
which Python then sorts out.  The filter is brought into a few conjunctions, of which
each test that the kernel can't make is left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from .filter_grammar import COMPARE, And, Choice, Const, Node, Or, Test

MAX_TERMS: Final = 64
_MAPPED: Final = 0xFFFF << 32

Term = tuple[Test, ...]


@dataclass(frozen=True, slots=True)
class Selection:
    """``terms``: one expression for each conjunction; "" selects everything.

    exact  nothing else is selected, but for packets whose transport header is broken
    """

    terms: tuple[str, ...]
    exact: bool


# Fields that are numbers for both compilers: name -> (nft expression, largest value).
_NFT: Final = {
    "ip.HdrLength": ("ip hdrlength", 15),
    "ip.Length": ("ip length", 65535),
    "ip.Id": ("ip id", 65535),
    "ip.TTL": ("ip ttl", 255),
    "ip.Protocol": ("ip protocol", 255),
    "ipv6.Length": ("ip6 length", 65535),
    "ipv6.NextHdr": ("ip6 nexthdr", 255),
    "ipv6.HopLimit": ("ip6 hoplimit", 255),
    "tcp.SrcPort": ("tcp sport", 65535),
    "tcp.DstPort": ("tcp dport", 65535),
    "tcp.SeqNum": ("tcp sequence", 0xFFFFFFFF),
    "tcp.AckNum": ("tcp ackseq", 0xFFFFFFFF),
    "tcp.HdrLength": ("tcp doff", 15),
    "tcp.Window": ("tcp window", 65535),
    "tcp.UrgPtr": ("tcp urgptr", 65535),
    "udp.SrcPort": ("udp sport", 65535),
    "udp.DstPort": ("udp dport", 65535),
    "udp.Length": ("udp length", 65535),
    "icmp.Type": ("icmp type", 255),
    "icmp.Code": ("icmp code", 255),
    "icmpv6.Type": ("icmpv6 type", 255),
    "icmpv6.Code": ("icmpv6 code", 255),
    "length": ("meta length", 0xFFFFFFFF),
}
_PROTOCOLS: Final = {"tcp": 6, "udp": 17, "icmp": 1, "icmpv6": 58}
_FLAG_NAMES: Final = ("fin", "syn", "rst", "psh", "ack", "urg")
_FLAGS: Final = {f"tcp.{name.capitalize()}": name for name in _FLAG_NAMES}
_PORTS: Final = {"tcp.SrcPort": "tcp src port", "tcp.DstPort": "tcp dst port",
                 "udp.SrcPort": "udp src port", "udp.DstPort": "udp dst port"}  # fmt: skip
# pcap looks for TCP and UDP right behind the IPv6 header; others are let through.
_EXTENDED: Final = (
    "(ip6 and (ip6[6] = 0 or ip6[6] = 43 or ip6[6] = 44 or ip6[6] = 60 or ip6[6] > 134))"
)

_IMPOSSIBLE: Final = "impossible"


def nft(node: Node, outbound: bool | None) -> Selection:
    """For a chain of family inet that sees packets of one direction (None: forwarded)."""
    terms, exact = _terms(node, outbound)
    found: dict[str, None] = {}
    for term in terms:
        words: list[str] = []
        for test in term:
            text = _nft_test(test, outbound)
            if text is None:
                exact = False
            elif text not in words:
                words.append(text)
        if _IMPOSSIBLE not in words:
            found[" ".join(words)] = None
    return Selection(("",) if "" in found else tuple(found), exact)


def pcap(node: Node) -> str:
    """A pcap-filter(7) expression for both directions; "" selects everything."""
    terms, _ = _terms(node, None)
    found: dict[str, None] = {}
    for term in terms:
        words = list(dict.fromkeys(t for t in map(_pcap_test, term) if t is not None))
        if _IMPOSSIBLE not in words:
            found[" and ".join(words)] = None
    if "" in found:
        return ""
    # An empty filter would select everything; nothing is shorter than 0 bytes.
    return " or ".join(f"({term})" for term in found) or "less 0"


def _terms(node: Node, outbound: bool | None) -> tuple[list[Term], bool]:
    """Disjunctive form, and whether it says the same as ``node``."""
    match node:
        case Const(value):
            return ([()] if value else []), True
        case Test():
            return _constant(node, outbound)
        case Or(left, right):
            (first, a), (second, b) = _terms(left, outbound), _terms(right, outbound)
            found, exact = first + second, a and b
        case And(left, right):
            (first, a), (second, b) = _terms(left, outbound), _terms(right, outbound)
            if len(first) * len(second) > MAX_TERMS:
                return first, False
            found, exact = [x + y for x in first for y in second], a and b
        case Choice(test, then, otherwise):
            # A packet that fails the test may match the second branch; leaving the
            # test's negation out selects more, never less.
            chosen, _ = _terms(And(test, then), outbound)
            other, _ = _terms(otherwise, outbound)
            found, exact = chosen + other, False
    found = list(dict.fromkeys(found))
    return (found, exact) if len(found) <= MAX_TERMS else ([()], False)


def _constant(test: Test, outbound: bool | None) -> tuple[list[Term], bool]:
    """A test whose answer is known before any packet comes."""
    value: int | None = None
    if test.field in ("zero", "event"):
        value = 0
    elif outbound is not None and test.field in ("inbound", "outbound"):
        value = int((test.field == "outbound") == outbound)
    if value is None:
        return [(test,)], True
    return ([()] if COMPARE[test.op](value, test.value) else []), True


def _boolean(test: Test) -> bool | str | None:
    """Whether a field of 0 or 1 must be 1 or 0; None: either; or impossible."""
    zero, one = COMPARE[test.op](0, test.value), COMPARE[test.op](1, test.value)
    if zero == one:
        return None if one else _IMPOSSIBLE
    return one


def _number(expression: str, test: Test, low: int, high: int, text: str) -> str | None:
    """A comparison; one that no value or every value meets is none."""
    if low <= test.value <= high:
        return f"{expression} {test.op} {text}"
    # Beyond the range all values compare alike.
    return None if COMPARE[test.op](low, test.value) else _IMPOSSIBLE


def _nft_test(test: Test, outbound: bool | None) -> str | None:
    field, value = test.field, test.value
    if field in _NFT:
        expression, high = _NFT[field]
        if expression.startswith("icmp") and test.op not in ("==", "!="):
            return None
        return _number(expression, test, 0, high, str(value))
    if field in ("ip.SrcAddr", "ip.DstAddr"):
        end = "saddr" if field == "ip.SrcAddr" else "daddr"
        address = str(IPv4Address(value & 0xFFFFFFFF))
        return _number(f"ip {end}", test, _MAPPED, _MAPPED + 0xFFFFFFFF, address)
    if field in ("ipv6.SrcAddr", "ipv6.DstAddr"):
        end = "saddr" if field == "ipv6.SrcAddr" else "daddr"
        address = str(IPv6Address(max(0, value)))
        return _number(f"ip6 {end}", test, 0, (1 << 128) - 1, address)
    if field in ("localAddr", "remoteAddr") and outbound is not None and test.op == "==":
        end = "saddr" if (field == "localAddr") == outbound else "daddr"
        if value >> 32 == 0xFFFF:
            return f"ip {end} == {IPv4Address(value & 0xFFFFFFFF)}"
        return f"ip6 {end} == {IPv6Address(value)}" if value >= 0 else _IMPOSSIBLE
    if field in ("localPort", "remotePort") and outbound is not None:
        # Up to 255 it may be an ICMP type just as well.
        if test.op != "==" or not 255 < value <= 65535:
            return None
        return f"th {'sport' if (field == 'localPort') == outbound else 'dport'} {value}"
    if field == "ifIdx" and test.op in ("==", "!=") and value > 0:
        return f"meta {'oif' if outbound else 'iif'} {test.op} {value}"
    if field == "protocol" and test.op == "==" and value in _PROTOCOLS.values():
        return f"meta l4proto {value}"
    wanted = _boolean(test)
    if isinstance(wanted, str):
        return _IMPOSSIBLE if field in _BOOLEANS else None
    if wanted is None:
        return None
    if field in ("ip", "ipv6"):
        return f"meta nfproto {'ipv4' if (field == 'ip') == wanted else 'ipv6'}"
    if field in _PROTOCOLS and wanted:
        # Not the reverse: a later fragment of TCP is "not tcp".
        return f"meta l4proto {_PROTOCOLS[field]}"
    if field in _FLAGS:
        flag = _FLAGS[field]
        return f"tcp flags & {flag} {'==' if wanted else '!='} {flag}"
    if field == "loopback" and outbound is not None:
        return f"meta {'oifname' if outbound else 'iifname'} {'' if wanted else '!= '}lo"
    return None


_BOOLEANS: Final = frozenset(
    ("ip", "ipv6", "loopback", "fragment", "impostor", "inbound", "outbound", *_PROTOCOLS, *_FLAGS)
)


def _pcap_test(test: Test) -> str | None:
    field, value = test.field, test.value
    if field in _PORTS:
        if not 0 <= value <= 65535:
            return _number("", test, 0, 65535, "")
        if test.op != "==":
            return f"({field[:3]} or {_EXTENDED})"
        return f"({_PORTS[field]} {value} or {_EXTENDED})"
    if field in ("ip.SrcAddr", "ip.DstAddr"):
        if test.op != "==" or value >> 32 != 0xFFFF:
            return "ip"
        return (
            f"ip {'src' if field == 'ip.SrcAddr' else 'dst'} host {IPv4Address(value & 0xFFFFFFFF)}"
        )
    if field in ("ipv6.SrcAddr", "ipv6.DstAddr"):
        if test.op != "==" or value < 0:
            return "ip6"
        return f"ip6 {'src' if field == 'ipv6.SrcAddr' else 'dst'} host {IPv6Address(value)}"
    wanted = _boolean(test)
    if isinstance(wanted, str):
        return _IMPOSSIBLE if field in _BOOLEANS else None
    if field in ("ip", "ipv6") and wanted is not None:
        return "ip" if (field == "ip") == wanted else "ip6"
    if field in _FLAGS or field in ("tcp.SeqNum", "tcp.AckNum", "tcp.Window", "tcp.PayloadLength"):
        return f"(tcp or {_EXTENDED})"
    if wanted and field in ("tcp", "udp"):
        return f"({field} or {_EXTENDED})"
    if wanted and field == "icmp":
        return "icmp"
    if wanted and field == "icmpv6":
        return f"(icmp6 or {_EXTENDED})"
    return None
