"""Whole pf.conf files: golden examples, and what passes through them."""

from __future__ import annotations

import re
from ipaddress import ip_address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.config_reading import ConfigError
from appliance.rewrite.flow import Endpoint
from pfconf.__main__ import parse_description
from pfconf.gateway import render_gateway
from pfconf.labels import FLUSH_LABEL
from pfconf.ruleset import check_ruleset

from .evaluator import Packet, Pf
from .pfparse import AnchorCall, PfSyntaxError, parse

EXAMPLES = Path(__file__).resolve().parents[2] / "pfconf" / "examples"
NAMES = ["minimal", "everything"]
IFS = {
    "pppoe0": ["203.0.113.5/32", "2001:db8:ffff::5/64"],
    "em1": ["192.168.1.1/24", "2001:db8:1:1::1/64"],
    "em2": ["192.168.20.1/24"],
    "em3": ["192.168.30.1/24", "2001:db8:1:30::1/64"],
    "wg0": ["10.20.0.1/24"],
}
LAN_HOST = Endpoint.parse("192.168.1.5:40000")
GUEST = Endpoint.parse("192.168.20.7:40000")
SERVER = Endpoint.parse("192.168.30.10:8443")
FAR = Endpoint.parse("198.51.100.9:443")


def example(name: str) -> str:
    path = EXAMPLES / f"{name}.toml"
    return render_gateway(parse_description(path.read_text(), path))


@pytest.fixture
def pf() -> Pf:
    return Pf.of(example("everything"), IFS)


@pytest.fixture
def small() -> Pf:
    return Pf.of(example("minimal"), {"em0": ["203.0.113.5/24"], "em1": ["192.168.1.1/24"]})


def at(text: str) -> Endpoint:
    return Endpoint.parse(text)


@pytest.mark.parametrize("name", NAMES)
def test_example_in_the_repository_is_what_is_rendered(name: str) -> None:
    assert example(name) == (EXAMPLES / f"{name}.pf.conf").read_text()


@pytest.mark.parametrize("name", NAMES)
def test_rendered_ruleset_passes_redirectds_own_check(name: str) -> None:
    assert check_ruleset(example(name)) == []


@pytest.mark.parametrize("name", NAMES)
def test_rendered_lines_are_ascii_short_and_in_the_subset(name: str) -> None:
    text = example(name)
    assert text.isascii()
    assert all(len(line) <= 100 for line in text.splitlines())
    assert len(parse(text).rules) > 10


@pytest.mark.parametrize("name", NAMES)
def test_redirect_anchor_stands_before_nat_and_reservations_after_it(name: str) -> None:
    rules = parse(example(name)).rules
    calls = {r.name: n for n, r in enumerate(rules) if isinstance(r, AnchorCall)}
    nat = [n for n, r in enumerate(rules) if not isinstance(r, AnchorCall) and r.nat_to]
    assert calls["redirect/*"] < min(nat) <= max(nat) < calls["redirect-reserved"]


@pytest.mark.parametrize("name", NAMES)
def test_every_section_has_a_title_and_every_table_is_used(name: str) -> None:
    text = example(name)
    assert text.count("# --- ") >= 10
    for table in re.findall(r"^table <(\w+)>", text, re.MULTILINE):
        assert text.count(f"<{table}>") >= 2, table


def test_lan_reaches_the_internet_behind_the_outer_address(pf: Pf) -> None:
    out = pf.forward("em1", "pppoe0", Packet(LAN_HOST, FAR, flags="S"))
    assert out.passed
    assert out.packet.source.addr == ip_address("203.0.113.5")
    back = pf.forward("pppoe0", "em1", out.packet.answer())
    assert back.passed
    assert back.packet.dest == LAN_HOST


def test_new_tcp_states_prompt_redirectd_and_nothing_else_does(pf: Pf) -> None:
    assert "pflog1" in pf.test("out", "pppoe0", Packet(LAN_HOST, FAR, flags="S")).logged
    assert "pflog1" not in pf.test("out", "pppoe0", Packet(LAN_HOST, FAR, "udp")).logged
    scan = pf.test("in", "pppoe0", Packet(FAR, at("203.0.113.5:22"), flags="S"))
    assert scan.logged == ("pflog0",)


def test_udp_states_carry_the_label_that_is_flushed_and_tcp_states_do_not(pf: Pf) -> None:
    pf.test("out", "pppoe0", Packet(LAN_HOST, FAR, "udp"))
    pf.test("out", "pppoe0", Packet(LAN_HOST, FAR, flags="S"))
    assert [s.label for s in pf.states] == [FLUSH_LABEL, None]
    assert pf.kill_label(FLUSH_LABEL) == 1


@pytest.mark.parametrize("port", [22, 53, 80, 4788, 8443])
def test_nothing_of_ours_answers_on_the_outside(pf: Pf, port: int) -> None:
    for proto in ("tcp", "udp"):
        there = Endpoint(ip_address("203.0.113.5"), port)
        assert not pf.test("in", "pppoe0", Packet(FAR, there, proto, "S")).passed


@pytest.mark.parametrize(("proto", "port"), [("udp", 4787), ("udp", 51820)])
def test_what_must_answer_on_the_outside_does(pf: Pf, proto: str, port: int) -> None:
    there = Endpoint(ip_address("203.0.113.5"), port)
    assert pf.test("in", "pppoe0", Packet(FAR, there, proto)).passed


def test_redirect_port_is_closed_for_others_than_those_named(pf: Pf) -> None:
    stranger = at("192.0.2.77:4787")
    assert not pf.test("in", "pppoe0", Packet(stranger, at("203.0.113.5:4787"), "udp")).passed


def test_ike_is_for_the_named_far_end_alone(pf: Pf) -> None:
    ours = at("203.0.113.5:500")
    assert pf.test("in", "pppoe0", Packet(at("203.0.113.9:500"), ours, "udp")).passed
    assert not pf.test("in", "pppoe0", Packet(FAR, ours, "udp")).passed


@pytest.mark.parametrize("port", [22, 4788])
def test_administration_is_for_the_lan_alone(pf: Pf, port: int) -> None:
    def syn(came: str, who: str, to: str) -> bool:
        there = Endpoint(ip_address(to), port)
        return pf.test("in", came, Packet(at(who), there, flags="S")).passed

    assert syn("em1", "192.168.1.5:4000", "192.168.1.1")
    assert not syn("em1", "192.168.1.5:4000", "203.0.113.5")
    assert not syn("em1", "192.168.1.5:4000", "192.168.30.1")
    assert not syn("em2", "192.168.20.5:4000", "192.168.20.1")
    assert not syn("em2", "192.168.20.5:4000", "192.168.1.1")
    assert not syn("em3", "192.168.30.5:4000", "192.168.30.1")
    assert not syn("wg0", "10.20.0.5:4000", "192.168.1.1")
    assert not syn("enc0", "10.30.0.5:4000", "192.168.1.1")


def test_guests_reach_the_internet_and_nothing_inside(pf: Pf) -> None:
    assert pf.forward("em2", "pppoe0", Packet(GUEST, FAR, flags="S")).passed
    for inside in ("192.168.1.5:22", "192.168.30.10:80", "10.20.0.5:22", "10.30.0.1:22"):
        verdict = pf.test("in", "em2", Packet(GUEST, at(inside), flags="S"))
        assert not verdict.passed
        assert verdict.returns


def test_lan_reaches_the_dmz_and_the_dmz_not_the_lan(pf: Pf) -> None:
    assert pf.forward("em1", "em3", Packet(LAN_HOST, SERVER, flags="S")).passed
    assert not pf.test("in", "em3", Packet(at("192.168.30.10:9"), LAN_HOST, flags="S")).passed


def test_port_forward_leads_to_its_server_and_back(pf: Pf) -> None:
    there = pf.forward("pppoe0", "em3", Packet(FAR, at("203.0.113.5:443"), flags="S"))
    assert there.passed
    assert there.packet.dest == SERVER
    back = pf.forward("em3", "pppoe0", there.packet.answer())
    assert back.packet.source == at("203.0.113.5:443")


def test_forwarded_range_keeps_its_ports_and_its_sources(pf: Pf) -> None:
    allowed = Packet(at("198.51.100.9:9"), at("203.0.113.5:6005"), "udp")
    assert pf.forward("pppoe0", "em3", allowed).packet.dest == at("192.168.30.11:6005")
    other = Packet(at("192.0.2.9:9"), at("203.0.113.5:6005"), "udp")
    assert not pf.test("in", "pppoe0", other).passed


def test_vpn_clients_reach_lan_hosts_and_names(pf: Pf) -> None:
    client = at("10.20.0.5:4000")
    assert pf.forward("wg0", "em1", Packet(client, LAN_HOST, flags="S")).passed
    assert pf.test("in", "wg0", Packet(client, at("10.20.0.1:53"), "udp")).passed
    assert not pf.test("in", "wg0", Packet(client, SERVER, flags="S")).passed


def test_ipsec_networks_reach_the_lan_in_both_directions(pf: Pf) -> None:
    far = at("10.30.0.9:4000")
    assert pf.forward("enc0", "em1", Packet(far, LAN_HOST, flags="S")).passed
    assert pf.forward("em1", "enc0", Packet(LAN_HOST, far, flags="S")).passed
    assert not pf.test("in", "enc0", Packet(at("10.31.0.9:4000"), LAN_HOST, flags="S")).passed


@pytest.mark.parametrize("source", ["192.168.1.5:4000", "10.0.0.1:4000", "127.0.0.1:4000"])
def test_impossible_sources_are_dropped_outside(pf: Pf, source: str) -> None:
    packet = Packet(at(source), at("203.0.113.5:443"), flags="S")
    assert not pf.test("in", "pppoe0", packet).passed


def test_a_guest_can_not_pretend_to_be_of_the_lan(pf: Pf) -> None:
    assert not pf.test("in", "em2", Packet(LAN_HOST, FAR, flags="S")).passed


def test_private_addresses_never_leave(pf: Pf) -> None:
    assert not pf.test("out", "pppoe0", Packet(LAN_HOST, at("10.99.0.1:80"), flags="S")).passed


def test_ipv6_passes_out_and_nothing_new_comes_in(pf: Pf) -> None:
    host, far = at("[2001:db8:1:1::5]:4000"), at("[2001:db8:aaaa::1]:443")
    out = pf.forward("em1", "pppoe0", Packet(host, far, flags="S"))
    assert out.passed
    assert out.packet.source == host
    assert pf.forward("pppoe0", "em1", out.packet.answer()).passed
    assert not pf.test("in", "pppoe0", Packet(far, at("[2001:db8:1:1::5]:22"), flags="S")).passed


def test_minimal_gateway_serves_its_lan_and_drops_ipv6(small: Pf) -> None:
    out = small.forward("em1", "em0", Packet(LAN_HOST, FAR, flags="S"))
    assert out.packet.source.addr == ip_address("203.0.113.5")
    assert small.test("in", "em1", Packet(LAN_HOST, at("192.168.1.1:53"), "udp")).passed
    six = Packet(at("[2001:db8::5]:4000"), at("[2001:db8:1::1]:443"), flags="S")
    assert not small.test("in", "em1", six).passed


def test_guest_without_internet_and_dhcpv6_and_options_render() -> None:
    text = """
        [external]
        interface = "em0"
        address = "203.0.113.5/24"
        ipv6 = true
        ping = false
        private-uplink = true
        [[network]]
        name = "lan"
        interface = "em1"
        address = "10.1.0.1/24"
        internet = false
        [redirect]
        enabled = false
        [admin]
        ssh = false
        web = 8080
        [filter]
        antispoof = false
        martians = false
        [wireguard]
        address = "10.2.0.1/24"
        internet = false
        [ipsec]
        networks = "10.3.0.0/16"
    """
    rendered = render_gateway(parse_description(text, Path("x")))
    assert "nat-to" not in rendered
    assert "anchor" not in rendered
    assert "pflog" not in rendered
    assert "--- NAT" not in rendered
    assert "echoreq" in rendered
    assert "martians" not in rendered
    parse(rendered)


def test_administration_can_be_switched_off() -> None:
    text = (EXAMPLES / "minimal.toml").read_text()
    without_ssh = parse_description(text + "\n[admin]\nssh = false\n", Path("x"))
    assert "port { 4788 }" in render_gateway(without_ssh)
    without = parse_description(text + '\n[admin]\nssh = false\nweb = "off"\n', Path("x"))
    assert "the console remains" in render_gateway(without)


@pytest.mark.parametrize(
    ("external", "redirect", "clamps"),
    [
        ("", "", []),
        ("", "integrity = true", ["1440"]),
        ("ipv6 = true", "integrity = true", ["1440", "1420"]),
        ("mtu = 1492", "", ["1452"]),
        ("", "max-mss = 1300", ["1300"]),
    ],
)
def test_mss_is_clamped_when_something_needs_room(
    external: str, redirect: str, clamps: list[str]
) -> None:
    text = (EXAMPLES / "minimal.toml").read_text()
    text = text.replace('interface = "em0"', f'interface = "em0"\n{external}')
    made = parse_description(f"{text}\n[redirect]\n{redirect}\n", Path("x"))
    assert re.findall(r"max-mss (\d+)", render_gateway(made)) == clamps


FIELDS = ["interface", "name", "address", "to", "kind", "from"]


@given(st.sampled_from(FIELDS), st.text(max_size=40))
def test_no_text_from_a_user_becomes_a_rule(field: str, value: str) -> None:
    """Either it is refused, or the rules are those that harmless values give."""
    quoted = value.replace("\\", "\\\\").replace('"', '\\"')
    quoted = "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in quoted)
    network = {
        "name": '"lan"',
        "interface": '"em1"',
        "address": '"192.168.1.1/24"',
        "kind": '"lan"',
    }
    network |= {field: f'"{quoted}"'} if field in network else {}
    more = f'to = ["{quoted}"]\n' if field == "to" else ""
    more += f'[redirect]\nfrom = ["{quoted}"]\n' if field == "from" else ""
    body = "".join(f"{k} = {v}\n" for k, v in network.items())
    text = f'[external]\ninterface = "em0"\n[[network]]\n{body}{more}'
    try:
        rendered = render_gateway(parse_description(text, Path("x")))
        rules = parse(rendered).rules
    except ConfigError:
        return
    harmless = parse(example("minimal")).rules
    assert len(rules) == len(harmless)


@pytest.mark.parametrize(
    "rule",
    [
        "pass out on em0 no state nat-to 10.0.0.1",
        "pass on em0 nat-to 10.0.0.1",
        "pass in on em0 wibble",
        "pass in on $nowhere",
        "match in scrub (reassemble tcp)",
    ],
)
def test_evaluator_refuses_what_pfctl_refuses(rule: str) -> None:
    with pytest.raises(PfSyntaxError):
        parse(rule)
