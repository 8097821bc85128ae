"""redirectd.toml: every fault is named with its line, and all of them at once."""

from __future__ import annotations

import os
import re
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
import tomlkit
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.config import Config, Policy, load, parse_config
from appliance.config_reading import ConfigError
from appliance.toml_lines import TomlError, parse

SHARE = Path(__file__).resolve().parent.parent / "appliance" / "share"
HERE = Path("/etc/redirectd.toml")

FULL = """\
port = 4000
state-dir = "/var/db/redirectd"
control-socket = "/var/run/redirectd.sock"
user = "_rd"
first-contact = "ask"
discover = ["192.0.2.0/24", "2001:db8::/32"]
long-lived-after = 30
table = "keep"
nflog-group = 99
nfqueue = 98
interfaces.inside = ["lan0"]
interfaces.outside = ["ext0", "ext1"]
interfaces.ignore = ["docker0"]

[[rule]]
port = 22
long-lived-after = 2.5
integrity = "require"

[[rule]]
ports = [80, "6000-6063"]
prefix = "203.0.113.0/24"
long-lived-after = "off"

[[rule]]
peer = "office"
path = "divert"
hold-max = 60

[limits]
peers = 5
half-open = 6
events = 700
event-days = 8
prune-days = 9

[web]
enabled = false
listen = ["192.168.1.1", "[fd00::1]:80"]
names = ["Gateway.lan"]
"""


def faults(text: str) -> list[str]:
    with pytest.raises(ConfigError) as raised:
        parse_config(text, HERE)
    return str(raised.value).split("\n")


def test_an_empty_file_gives_the_documented_defaults() -> None:
    config = parse_config("")
    assert config == Config()
    assert (config.port, config.user, config.first_contact) == (4787, "_redirectd", "tofu")
    assert (config.discover, config.long_lived_after, config.table) == ("any", 10.0, "redirectd")
    assert config.state_dir == Path("/var/lib/redirectd")


def test_every_key_is_read() -> None:
    config = parse_config(FULL, HERE)
    assert config.source == HERE
    assert config.discover == (ip_network("192.0.2.0/24"), ip_network("2001:db8::/32"))
    assert config.interfaces.outside == ("ext0", "ext1")
    assert config.limits.prune_days == 9
    assert config.rules[1].ports == ((80, 80), (6000, 6063))
    assert config.web.listen == ("192.168.1.1", "[fd00::1]:80")
    unset = Config().settings()
    assert all(value != unset.get(key) for key, value in config.settings().items())
    assert len(config.settings()) == 14


def test_the_settings_shown_are_again_a_file_that_says_the_same() -> None:
    config = parse_config(FULL, HERE)
    assert parse_config(tomlkit.dumps(config.settings()), HERE) == config
    assert parse_config(tomlkit.dumps(Config().settings()), HERE) == Config()


def test_all_faults_are_told_at_once_in_the_order_of_the_file() -> None:
    told = faults(
        "prot = 4787\n"
        "discover = 'everyone'\n"
        "\n"
        "[[rule]]\n"
        "port = 22\n"
        "integrity = 'always'\n"
        "\n"
        "[[rule]] # two faults in one list\n"
        "path = 'divert'\n"
        "prefix = ['10.0.0.1/8', 'here']\n"
        "\n"
        "[limits]\n"
        "peers = true\n"
        "max_events = 3\n"
    )
    assert told == [
        "/etc/redirectd.toml:1: prot: unknown key; did you mean 'port'?",
        "/etc/redirectd.toml:2: discover: 'everyone' is not possible; "
        'write "any", "known", or a list of prefixes',
        "/etc/redirectd.toml:6: rule[1].integrity: 'always' is not possible; "
        'write one of "off", "prefer", "require"',
        "/etc/redirectd.toml:10: rule[2].prefix: '10.0.0.1/8' has bits behind its prefix length; "
        "did you mean '10.0.0.0/8'?",
        "/etc/redirectd.toml:10: rule[2].prefix: 'here' is no prefix; "
        "write one, such as '192.0.2.0/24' or '2001:db8::/32'",
        "/etc/redirectd.toml:13: limits.peers: True is no whole number from 1 to 1000000; "
        "write one",
        "/etc/redirectd.toml:14: limits.max_events: unknown key; did you mean 'events'?",
    ]


@pytest.mark.parametrize(
    ("text", "line", "key", "words"),
    [
        ("port = 0", 1, "port", "from 1 to 65535"),
        ("port = 65536", 1, "port", "from 1 to 65535"),
        ("port = '22'", 1, "port", "whole number"),
        ("port = 22.0", 1, "port", "whole number"),
        ("state-dir = 'var'", 1, "state-dir", "begin it with '/'"),
        ("state_dir = '/var'", 1, "state_dir", "'state-dir'"),
        ("control-socket = '/" + "x" * 110 + "'", 1, "control-socket", "103 bytes"),
        ("user = 'a b'", 1, "user", "user name"),
        ("first-contact = 'TOFU'", 1, "first-contact", '"tofu"'),
        ("discover = ['10.0.0.0/33']", 1, "discover", "no prefix"),
        ("discover = [1]", 1, "discover", "no prefix"),
        ("long-lived-after = -1", 1, "long-lived-after", '"off"'),
        ("long-lived-after = nan", 1, "long-lived-after", '"off"'),
        ("long-lived-after = inf", 1, "long-lived-after", '"off"'),
        ("long-lived-after = 'never'", 1, "long-lived-after", '"off"'),
        ("table = 'a b; flush ruleset'", 1, "table", "nftables"),
        ("nflog-group = 70000", 1, "nflog-group", "65535"),
        ("interfaces = 3", 1, "interfaces", "not a table"),
        ("interfaces.inside = 'lan0'", 1, "interfaces.inside", "[brackets]"),
        ("interfaces.inside = ['a/b']", 1, "interfaces.inside", "interface name"),
        ("\n[interfaces]\ninside=['a']\nignore=['a']", 2, "interfaces", "both inside and ignore"),
        ("\nrule = 3", 2, "rule", "double brackets"),
        ("\nrule = [3]", 2, "rule[1]", "not a table"),
        ("[rule]\nport = 3", 1, "rule", "double brackets"),
        ("[[rule]]\nport = 3", 1, "rule[1]", "sets nothing"),
        ("[[rule]]\nport=3\nports=[3]\nhold-max=1", 1, "rule[1]", "both 'port' and 'ports'"),
        ("[[rule]]\nports=[]\nhold-max=1", 2, "rule[1].ports", "empty"),
        ("[[rule]]\nports=['9-8']\nhold-max=1", 2, "rule[1].ports", "range"),
        ("[[rule]]\nports=['1-2-3']\nhold-max=1", 2, "rule[1].ports", "range"),
        ("[[rule]]\npeer=''\nhold-max=1", 2, "rule[1].peer", "redirectctl peers"),
        ("[[rule]]\npath='kernel'\nintegrity='require'", 1, "rule[1]", "kernel path"),
        ("[limits]\nevents = 1", 2, "limits.events", "from 100"),
        ("[web]\nlisten = '0.0.0.0'", 2, "web.listen", "192.168.1.1:4788"),
        ("[web]\nlisten = '192.168.1.1:70000'", 2, "web.listen", "address and port"),
        ("[web]\nlisten = 'gateway'", 2, "web.listen", "no address"),
        ("[web]\nnames = ['a b']", 2, "web.names", "host name"),
        ("[web]\nenabled = 1", 2, "web.enabled", "true or false"),
        ("frobnicate = 1", 1, "frobnicate", "known here: control-socket, discover"),
        ("source = '/x'", 1, "source", "unknown key"),
    ],
)  # fmt: skip
def test_a_fault_is_named_with_line_key_and_remedy(
    text: str, line: int, key: str, words: str
) -> None:
    (told,) = faults(text)
    assert told.startswith(f"{HERE}:{line}: {key}: ")
    assert words in told


@pytest.mark.parametrize(
    ("text", "line"),
    [("a = 1\nb = = 2\n", 2), ("port = 1\n\nport = 2\n", 3), ("[limits\n", 1), ("x = 'a\n", 1)],
)
def test_what_is_not_toml_is_named_with_its_line(text: str, line: int) -> None:
    (told,) = faults(text)
    assert told.startswith(f"{HERE}:{line}: is not TOML: ")
    assert not re.search(r"at line \d", told)


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=200) | st.text("[]{}\"'=.,#\n\r ab1-_", max_size=60))
def test_the_parser_raises_nothing_but_its_own_error(text: str) -> None:
    try:
        parse_config(text, HERE)
    except ConfigError as error:
        assert str(error).startswith(str(HERE))  # noqa: PT017 -- both ways out are right


_WORDS = st.text("abcdefgh", min_size=1, max_size=6)
_VALUES = st.sampled_from(
    ["1", "'x'", '"""a\nb\n"""', "[1,\n 2,\n]", "{p = 1}", "[[1],\n\n[2]]", "1979-05-27"]
)
_GAPS = st.sampled_from(["", "\n", "# note\n", "\n  # note = 1\n\n"])
_PAIRS = st.dictionaries(_WORDS, st.tuples(_GAPS, _VALUES), max_size=4)


@settings(max_examples=150, deadline=None)
@given(top=_PAIRS, tables=st.dictionaries(_WORDS.map("t_".__add__), _PAIRS, max_size=4),
       many=st.lists(_PAIRS, max_size=4), dotted=st.booleans())  # fmt: skip
def test_lines_are_those_of_the_keys(
    top: dict[str, tuple[str, str]],
    tables: dict[str, dict[str, tuple[str, str]]],
    many: list[dict[str, tuple[str, str]]],
    dotted: bool,
) -> None:
    expected: dict[tuple[str | int, ...], int] = {}
    text = ""

    def write(pairs: dict[str, tuple[str, str]], path: tuple[str | int, ...], lead: str) -> None:
        nonlocal text
        for key, (gap, value) in pairs.items():
            text += gap
            expected[(*path, key)] = text.count("\n") + 1
            text += f"{lead}{key} = {value} # end\n"

    write(top, (), "")
    if dotted:
        write(top, ("m",), "m.")
    for name, pairs in tables.items():
        expected[(name,)] = text.count("\n") + 1
        text += f"[{name}]\n"
        write(pairs, (name,), "  ")
    for number, pairs in enumerate(many):
        expected[("rule", number)] = text.count("\n") + 1
        text += "[[rule]] # x\n"
        write(pairs, ("rule", number), "")
    document = parse(text)
    assert {path: document.line(path) for path in expected} == expected


def test_tables_that_stand_apart_get_no_wrong_line() -> None:
    document = parse("[[rule]]\nx = 1\n[web]\ny = 2\n[[rule.sub]]\nk = 3\n")
    assert document.line(("web", "y")) in (4, 1)
    assert document.line(("rule", 0, "x")) == 2


def test_nesting_without_end_is_refused() -> None:
    with pytest.raises(TomlError):
        parse("a = " + "[" * 5000)


# Rules


def policy(text: str, port: int, addr: str, *peer: str) -> Policy:
    return parse_config(text).rule_for(port, ip_address(addr), *peer)


def test_without_rules_the_general_settings_hold() -> None:
    assert policy("", 22, "192.0.2.1") == Policy(10.0, "kernel", "off", None)
    assert policy('long-lived-after = "off"', 22, "192.0.2.1").long_lived_after is None


def test_each_setting_comes_from_the_first_rule_that_has_it() -> None:
    text = (
        "[[rule]]\nport = 22\nlong-lived-after = 2\n"
        "[[rule]]\nprefix = '192.0.2.0/24'\nlong-lived-after = 3\nhold-max = 60\n"
        "[[rule]]\nhold-max = 'off'\npath = 'divert'\n"
    )
    assert policy(text, 22, "192.0.2.1") == Policy(2.0, "divert", "off", 60.0)
    assert policy(text, 80, "192.0.2.1") == Policy(3.0, "divert", "off", 60.0)
    assert policy(text, 80, "198.51.100.1") == Policy(10.0, "divert", "off", None)


@pytest.mark.parametrize(
    ("selector", "port", "addr", "peer_id", "name", "hit"),
    [
        ("ports = [22, '6000-6063']", 6063, "192.0.2.1", None, None, True),
        ("ports = [22, '6000-6063']", 6064, "192.0.2.1", None, None, False),
        ("ports = 22", 22, "192.0.2.1", None, None, True),
        ("prefix = '2001:db8::/32'", 22, "192.0.2.1", None, None, False),
        ("prefix = ['10.0.0.0/8', '2001:db8::/32']", 22, "2001:db8::1", None, None, True),
        ("peer = 'office'", 22, "192.0.2.1", "ab" * 16, "office", True),
        ("peer = 'abab'", 22, "192.0.2.1", "ab" * 16, "office", True),
        ("peer = 'aba'", 22, "192.0.2.1", "ab" * 16, "office", False),
        ("peer = 'office'", 22, "192.0.2.1", None, None, False),
        ("peer = 'off'", 22, "192.0.2.1", "ab" * 16, "office", False),
        ("port = 22\npeer = 'office'", 23, "192.0.2.1", "ab" * 16, "office", False),
    ],
)
def test_a_rule_takes_what_all_its_selectors_take(
    selector: str, port: int, addr: str, peer_id: str | None, name: str | None, hit: bool
) -> None:
    config = parse_config(f"[[rule]]\n{selector}\nlong-lived-after = 99\n")
    found = config.rule_for(port, ip_address(addr), peer_id, name)
    assert (found.long_lived_after == 99.0) is hit


def test_the_divert_path_is_refused_where_there_is_no_worker_and_integrity_everywhere() -> None:
    divert = parse_config("[[rule]]\npath = 'divert'\n")
    assert divert.diverts()
    assert divert.not_yet(can_divert=True) == []
    assert "rule 1" in divert.not_yet(can_divert=False)[0]
    mac = parse_config("[[rule]]\nport = 1\npath = 'kernel'\n[[rule]]\nintegrity = 'prefer'\n")
    assert not mac.diverts()
    for can in (True, False):
        assert ["rule 2" in fault for fault in mac.not_yet(can)] == [True]


def test_integrity_needs_the_divert_path() -> None:
    text = "[[rule]]\nintegrity = 'prefer'\n[[rule]]\npath = 'kernel'\n"
    assert policy(text, 22, "192.0.2.1").path == "divert"


# Files


def test_a_file_is_read_and_remembered(tmp_path: Path) -> None:
    path = tmp_path / "redirectd.toml"
    path.write_text("port = 5000\n")
    path.chmod(0o644)
    assert load(path).port == 5000
    assert load(path).source == path


@pytest.mark.parametrize("mode", [0o664, 0o646])
def test_a_file_that_others_can_change_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "redirectd.toml"
    path.write_text("")
    path.chmod(mode)
    with pytest.raises(ConfigError, match="chmod go-w"):
        load(path)


def test_another_users_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "redirectd.toml"
    path.write_text("")
    os.chown(path, 12345, -1)
    with pytest.raises(ConfigError, match="chown 0"):
        load(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere.*No such file.*-f"):
        load(tmp_path / "nowhere")


def test_a_file_that_is_no_text_or_far_too_large_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "redirectd.toml"
    path.write_bytes(b"# fine\nuser = '\xff'\n")
    with pytest.raises(ConfigError, match=r"toml:2: is not UTF-8"):
        load(path)
    path.write_bytes(b"#" * (2 << 20))
    with pytest.raises(ConfigError, match="larger than"):
        load(path)
