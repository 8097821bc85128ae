"""Anchor rules: golden files, and openbsd.md's own lines to the letter."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.rewrite.flow import Endpoint, Flow
from pfconf.anchor import Layout, anchor_text, entry_rules, reserved_text
from pfconf.kill import KillId, KillKey, KillLabel, birth_kills, kills, nat_key
from pfconf.rule import NEEDFRAG, Rule, interface_name, label_name

from . import roles

GOLDEN = Path(__file__).parent / "golden" / "anchor"

#: the rules of openbsd.md as they were tried, with LP, NP and "ap" filled in
TRIED = {
    "gateway-moved": [
        "pass out quick on ext inet proto tcp from 192.168.1.5 port LP to 10.8.0.2 port 5000 "
        "flags any keep state (sloppy) nat-to 10.9.0.77 port NP",
        "pass in quick on ext inet proto tcp from 10.8.0.2 port 5000 to 10.9.0.77 port NP "
        "flags any keep state (sloppy) rdr-to 192.168.1.5 port LP",
    ],
    "correspondent-host": [
        "pass in quick on ext inet proto tcp from 10.9.0.77 port NP to 10.8.0.2 port 5000 "
        "flags any keep state (sloppy) nat-to 10.9.0.2 port NP",
        "pass out quick on ext inet proto tcp from 10.8.0.2 port 5000 to 10.9.0.2 port NP "
        "flags any keep state (sloppy) rdr-to 10.9.0.77 port NP",
    ],
    "host-moved": [
        "pass out quick on ext inet proto tcp from 10.9.0.2 port NP to 10.8.0.2 port 5000 "
        "flags any keep state (sloppy) nat-to 10.9.0.77 port NP",
        "pass in quick on ext inet proto tcp from 10.8.0.2 port 5000 to 10.9.0.77 port NP "
        "flags any keep state (sloppy) rdr-to 10.9.0.2 port NP divert-to 127.0.0.1 port 9",
    ],
    "guard": ["block drop in quick on ext proto tcp from 10.8.0.2 port 5000 to 10.9.0.77 port NP"],
    "divert-gateway": [
        "pass out quick on ext inet proto tcp from 192.168.1.5 port LP to 10.8.0.2 port 5000 "
        "no state divert-packet port 700",
        "pass in quick on ext inet proto tcp from 10.8.0.2 port 5000 to 10.9.0.77 port NP "
        "no state divert-packet port 700",
        "pass in quick on ext inet proto icmp from any to 10.9.0.77 icmp-type unreach "
        "code needfrag no state divert-packet port 700",
    ],
    "divert-correspondent": [
        "pass in quick on ifnew inet proto tcp from 10.9.0.77 port NP to 10.8.0.2 port 5000 "
        "no state divert-packet port 700",
        "pass out quick on ifold inet proto tcp from 10.8.0.2 port 5000 to 10.9.0.2 port NP "
        "no state divert-packet port 700",
    ],
    "mss-clamp": ["match on ext inet proto tcp scrub (max-mss 1440)"],
    "old-address-udp": [
        "pass in quick on ext inet proto udp from any to 10.9.0.2 port 4000 "
        "divert-to 127.0.0.1 port 4000"
    ],
}


@pytest.mark.parametrize("role", sorted(roles.ROLES))
def test_role_renders_its_golden_file(role: str) -> None:
    assert roles.ROLES[role] == (GOLDEN / f"{role}.pf").read_text()


def test_every_golden_file_has_a_role() -> None:
    assert {path.stem for path in GOLDEN.glob("*.pf")} == set(roles.ROLES)


@pytest.mark.parametrize("role", sorted(TRIED))
def test_role_equals_the_tried_rules_to_the_letter(role: str) -> None:
    wanted = [r.replace("LP", str(roles.LP)).replace("NP", str(roles.NP)) for r in TRIED[role]]
    assert roles.ROLES[role].splitlines()[: len(wanted)] == wanted


def test_label_stands_last_as_it_was_tried() -> None:
    lines = roles.ROLES["gateway-moved-labelled"].splitlines()
    assert all(line.endswith(f' label "{roles.ID}"') for line in lines)


def test_kill_of_a_nat_state_names_the_key_before_nat() -> None:
    assert birth_kills(roles.GATEWAY)[0].argv() == (
        "-k", "key", "-k", f"tcp 192.168.1.5:{roles.LP} -> 10.8.0.2:5000",
    )  # fmt: skip
    assert nat_key(roles.LAN) == birth_kills(roles.GATEWAY)[0]


def test_kill_on_the_correspondent_names_the_old_address() -> None:
    assert birth_kills(roles.CORRESPONDENT)[0].argv() == (
        "-k", "key", "-k", f"tcp 10.9.0.2:{roles.NP} -> 10.8.0.2:5000",
    )  # fmt: skip


def test_kill_of_a_port_forward_takes_both_of_its_states() -> None:
    assert [k.argv()[3] for k in birth_kills(roles.FORWARD)] == [
        f"tcp 10.9.0.2:{roles.NP} -> 10.8.0.2:5000",
        f"tcp 10.9.0.2:{roles.NP} -> 172.16.0.9:80",
    ]


def test_kill_key_of_ipv6_has_its_own_form() -> None:
    assert birth_kills(roles.HOST6)[0].argv()[3] == f"tcp fd07::2[{roles.NP}] -> fd07::1[5000]"


def test_kills_end_with_what_our_own_rules_created() -> None:
    assert kills(roles.GATEWAY)[-1] == KillLabel(roles.ID)
    assert KillLabel(roles.ID).argv() == ("-k", "label", "-k", roles.ID)
    assert KillId("6b0391520000000a").argv() == ("-k", "id", "-k", "6b0391520000000a")


@pytest.mark.parametrize("bad", ["", "6b039152 -F all", "-F", "0x1", "6b03915200000000a0"])
def test_state_id_can_carry_nothing_else(bad: str) -> None:
    with pytest.raises(ValueError, match="state id"):
        KillId(bad).argv()


@pytest.mark.parametrize("bad", ["", "em0 to any", "em0\npass", "$ext", "em 0", "-F", "EM0!"])
def test_interface_name_can_carry_nothing_else(bad: str) -> None:
    with pytest.raises(ValueError, match="interface"):
        interface_name(bad)


@pytest.mark.parametrize("bad", ["", 'a"', "$if", "a b", "x" * 64, "a\nb"])
def test_label_can_carry_nothing_else(bad: str) -> None:
    with pytest.raises(ValueError, match="label"):
        label_name(bad)


def test_translation_without_state_is_refused_in_pfctls_words() -> None:
    here = Endpoint.parse("10.0.0.1:1")
    with pytest.raises(ValueError, match="nat-to and rdr-to require keep state"):
        Rule("pass", "out", state="none", nat_to=here)
    with pytest.raises(ValueError, match="direction"):
        Rule("pass", None, state="sloppy", rdr_to=here)


def test_rule_refuses_options_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="sloppy"):
        Rule("pass", "out", state_options=("no-sync",))
    with pytest.raises(ValueError, match="state option"):
        Rule("pass", "out", state="sloppy", state_options=("x) nat-to 1.2.3.4",))
    with pytest.raises(ValueError, match="between"):
        str(Rule("pass", "out", max_mss=1))
    with pytest.raises(ValueError, match="between"):
        str(Rule("pass", "out", divert_packet=0))


def test_rule_refuses_port_zero_and_scoped_addresses() -> None:
    with pytest.raises(ValueError, match="port 0"):
        str(Rule("pass", "out", source=Endpoint.parse("10.0.0.1:0")))
    with pytest.raises(ValueError, match="scope"):
        str(Rule("pass", "out", source=Endpoint.parse("[fe80::1%em0]:1").addr))


def test_remaining_parts_of_a_rule_stand_where_pf_wants_them() -> None:
    rule = Rule(
        "pass", "in", "ext", "inet", "icmp", received_on="lan", icmp=NEEDFRAG, state="plain"
    )  # fmt: skip
    assert str(rule) == (
        "pass in quick on ext inet proto icmp received-on lan "
        "icmp-type unreach code needfrag keep state"
    )


def test_state_options_stand_in_the_order_that_pf_accepted() -> None:
    options = ("no-sync", "if-bound", "tcp.opening 86400")
    assert str(Rule("pass", "out", state="sloppy", state_options=options)) == (
        "pass out quick flags any keep state (no-sync, if-bound, sloppy, tcp.opening 86400)"
    )


def test_reserved_tuples_get_one_guard_each() -> None:
    text = reserved_text([(roles.ID, roles.NEW), (roles.ID, roles.BOTH)], roles.EXT)
    assert text.count("flags S/SA") == 2


def test_anchor_text_keeps_the_order_of_its_entries() -> None:
    text = anchor_text([roles.GATEWAY, roles.HOST], roles.EXT)
    assert text == roles.ROLES["gateway-moved"] + roles.ROLES["host-moved"]


ports = st.integers(1, 65535)
flows4 = st.builds(
    lambda a, p, b, q: Flow(Endpoint(a, p), Endpoint(b, q)),
    st.ip_addresses(v=4), ports, st.ip_addresses(v=4), ports,
)  # fmt: skip


@given(flows4, flows4, flows4, st.booleans(), st.sampled_from(["kernel", "divert"]))
def test_each_rule_is_one_line_of_known_words(
    birth: Flow, inside: Flow, wire: Flow, local: bool, path: str
) -> None:
    made = roles.entry(birth, wire, birth if local else inside, local=local, path=path)
    for rule in entry_rules(made, Layout("ext", lan="lan")):
        text = str(rule)
        assert text.startswith(("pass ", "block drop "))
        assert "\n" not in text
        assert " quick on " in text
        assert ("no state" in text) != ("keep state (sloppy)" in text)


@given(flows4)
def test_kill_keys_are_four_words_of_one_argument(flow: Flow) -> None:
    argv = KillKey(flow.local, flow.remote).argv()
    assert argv[3].split() == ["tcp", str(flow.local), "->", str(flow.remote)]
