"""The filter language: pydivert, which has WinDivert's own compiler, is the judge."""

from __future__ import annotations

import re

import pydivert
import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.packet.consts import Layer
from appliance.packet.filter import Facts, Filter, FilterError, check_filter, compile_filter
from appliance.packet.filter_fields import FIELDS, MACROS, SIZED

from .samples import PACKETS, filters

VALID = """
true  false  not true  !!tcp  (true)  ((tcp))  true == 1  zero == -5
tcp.DstPort = 80  tcp.DstPort==0x1F  tcp.DstPort == - 1  tcp.DstPort == 08  tcp.DstPort == 0x
ip.SrcAddr == 01.2.3.4  ip.SrcAddr == ::  ip.SrcAddr == ::1.2.3.4  ip == 1.2.3.4
(tcp? tcp.DstPort==80: udp)  (tcp ? udp : icmp) and ip  (tcp? (udp? true: false): icmp)
packet[65534]==0  packet[-65535]==1  packet[ 1 ]==1
packet [1]  packet[0x10]  packet[1 b]  !packet[1b]
tcp.Payload32[-4b]==1  event == PACKET  event == 7  random8 < 3  tcp.DstPort==80 and(udp)
tcp && udp || icmp  length == 340282366920938463463374607431768211455  localAddr == 5  fragment
"""
INVALID = """
foo  True  AND  tcp AND udp  tcp Not udp  tcp.dstport == 80
tcp.  tcp.X  .tcp  random64  tcp.Ns  ip.ECN
1  == 1  tcp ==  tcp == )  tcp == true  TRUE  true and TRUE
and  (  ()  tcp)  ((tcp)  tcp udp  tcp or or udp
!(tcp)  not (tcp and udp)  tcp? udp: icmp  (tcp? udp)
(tcp? udp: )  (tcp:true)  tcp?true:false  tcp and
tcp & udp  tcp &&& udp  tcp | udp  tcp # x  tcp,udp  tcp.DstPort == 80;  tcp.DstPort === 80
tcp.DstPort <> 80  tcp.DstPort => 80  tcp.DstPort =! 80  tcp.DstPort==80and udp  tcp.DstPort == 1e3
tcp.DstPort == 80 or 443  tcp.DstPort == tcp.SrcPort  80 == tcp.DstPort  tcp.DstPort == --1
ip.SrcAddr == 1.2.3  ip.SrcAddr == 1.2.3.4.5  ip.SrcAddr == 256.1.1.1  ip.SrcAddr == 1::2::3
ip.SrcAddr == 10.0.0.0/8  ip.SrcAddr in 10.0.0.0/8  ip.SrcAddr == [::1]  event == CONNECT
length == 340282366920938463463374607431768211456  packet  packet==1  packet[]==1  packet[1B]
packet[+1]  tcp.Payload  tcp.Payload8[1]  processId == 3  layer == NETWORK  priority == 0
"""
OUT_OF_BOUNDS = """packet[-0]  packet[65535]  packet16[32767]  packet16[65534b]  packet32[16383]
tcp.Payload32[-3b]  packet[-65536]"""


def _each(text: str) -> list[str]:
    """Filters stand two spaces apart."""
    return [part for part in re.split("  |\n", text) if part]


def _oracle(text: str, layer: Layer = Layer.NETWORK) -> tuple[bool, int, str]:
    # pydivert cuts spaces off before it counts.
    answer: tuple[bool, int, str] = pydivert.Divert.check_filter(text, pydivert.Layer(layer))
    return answer


@pytest.mark.parametrize("text", _each(VALID))
def test_valid_filters_are_taken(text: str) -> None:
    assert check_filter(text) == _oracle(text) == (True, 0, "")


@pytest.mark.parametrize("text", ["", *_each(INVALID)])
def test_faults_are_found_where_windivert_finds_them(text: str) -> None:
    assert check_filter(text) == _oracle(text)
    assert not check_filter(text)[0]


@pytest.mark.parametrize("text", _each(OUT_OF_BOUNDS))
def test_indices_out_of_bounds_are_refused(text: str) -> None:
    valid, _, message = check_filter(text)
    assert (valid, message) == (False, _oracle(text)[2])


@pytest.mark.parametrize("layer", list(Layer))
def test_fields_belong_to_layers(layer: Layer) -> None:
    for name in FIELDS:
        text = f"{name}[0]" if name in SIZED else name
        assert check_filter(text, layer) == _oracle(text, layer), text
    for name in MACROS:
        text = f"zero == {name}"
        assert check_filter(text, layer) == _oracle(text, layer), text


words = st.sampled_from(
    [
        "tcp",
        "udp",
        "ip.SrcAddr",
        "==",
        "10.0.0.1",
        "!=",
        "5",
        "and",
        "or",
        "not",
        "!",
        "(",
        ")",
        "?",
        ":",
        "true",
        "false",
        "zero",
        "packet",
        "[",
        "]",
        "-",
        "1",
        "1b",
        "tcp.DstPort",
        "<",
        "80",
        "::1",
        "foo",
        "&&",
        "||",
        "TCP",
        "FALSE",
    ]
)

NOTHING_ASKED = re.compile(r"(\(|not|!|packet|and|or|&&|\|\||[=<:?[-])\s*\?")


@given(st.lists(words, max_size=9).map(" ".join))
def test_word_salads_are_judged_alike(text: str) -> None:
    if NOTHING_ASKED.search(text):
        # WinDivert's parser takes nothing for a condition there, and may crash on it.
        assert not check_filter(text)[0]
        return
    mine, theirs = check_filter(text), _oracle(text)
    assert mine[0] == theirs[0]
    # Of a misplaced "1b" WinDivert gives a position that it never set, and one further
    # on for what is missing within two parentheses.
    if "out-of-bounds" not in theirs[2] and "1b" not in text and text.count("(") < 2:
        assert mine == theirs


@given(st.text(max_size=60))
def test_random_text_never_raises_anything_else(text: str) -> None:
    valid, position, message = check_filter(text)
    assert valid == (message == "")
    assert 0 <= position <= len(text) + 1


def test_size_and_depth_are_bounded() -> None:
    assert check_filter(" or ".join(["tcp"] * 256))[0]
    assert check_filter(" or ".join(["tcp"] * 257)) == (False, 0, "Filter expression too long")
    assert check_filter("(" * 100 + "tcp" + ")" * 100)[0]
    assert not check_filter("(" * 101 + "tcp" + ")" * 101)[0]
    assert check_filter(" " * 20000)[2] == "Filter expression too long"
    deep = Filter(" and ".join(["(tcp or ip)"] * 120))
    assert deep.matches(Facts(PACKETS["tcp"]))
    with pytest.raises(FilterError, match="parse error"):
        compile_filter("tcp and")


@given(filters, st.sampled_from(sorted(PACKETS)), st.booleans(), st.integers(1, 8))
def test_packets_are_matched_alike(text: str, name: str, outbound: bool, interface: int) -> None:
    raw = PACKETS[name]
    direction = pydivert.Direction.OUTBOUND if outbound else pydivert.Direction.INBOUND
    theirs = pydivert.Packet(raw, interface=(interface, 2), direction=direction)
    facts = Facts(raw, outbound=outbound, interface=(interface, 2))
    assert compile_filter(text).matches(facts) == theirs.matches(text)


@given(filters, st.binary(max_size=90), st.booleans())
def test_no_bytes_make_a_filter_raise(text: str, raw: bytes, outbound: bool) -> None:
    assert compile_filter(text).matches(Facts(raw, outbound=outbound)) in (True, False)


@pytest.mark.parametrize("raw", [b"", b"\x45", b"\x50" * 40, b"\x60" * 39])
def test_what_is_no_packet_matches_nothing(raw: bytes) -> None:
    assert not compile_filter("true").matches(Facts(raw))
