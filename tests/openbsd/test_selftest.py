"""The self-test's own helpers; the checks themselves need an OpenBSD kernel."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from appliance.backend.api import BackendError
from appliance.backend.openbsd.pfstates import parse_text
from appliance.rewrite.flow import Endpoint, Flow
from pfconf.ruleset import check_ruleset

from ..pfconf.pfparse import parse
from . import fixtures, selftest, selftest_lab
from .selftest_checks import CHECKS, EXAMPLES, with_interfaces
from .selftest_lab import (
    CheckError,
    Lab,
    endpoint,
    need,
    of_rdomain,
    runner_of_a,
    teardown_commands,
    topology,
    transfer,
)

ROOT = Path(__file__).resolve().parents[2]
RECORDED = Flow.of("10.8.0.2", 5000, "10.9.0.2", 50823)


def test_self_test_imports_nothing_but_the_standard_library() -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); import tests.openbsd.selftest;"
        "print(sorted(m for m in sys.modules if m.split('.')[0] in"
        " ('attr', 'attrs', 'cattrs', 'tomlkit', 'click', 'cryptography', 'dpkt', 'pytest')))"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


def test_elsewhere_it_says_what_it_needs(capsys: pytest.CaptureFixture[str]) -> None:
    assert selftest.main([]) == 2
    assert "needs an OpenBSD kernel" in capsys.readouterr().err
    assert selftest.obstacle("OpenBSD", 1000) is not None
    assert selftest.obstacle("OpenBSD", 0) is None


def test_checks_are_listed_and_chosen_by_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert selftest.main(["-l"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(CHECKS)
    assert selftest.main(["-l", "IPV6"]) == 0
    assert capsys.readouterr().out == "host moves, IPv6\n"
    assert selftest.main(["-x"]) == 2
    assert [name for name, _ in selftest.chosen(["divert", "ipv6"])] == [
        "host moves (divert-to)",
        "host moves, IPv6",
        "held segment leaves at once (divert)",
        "observed ACKs and the prompt (bpf, divert)",
        "divert path: user space translates",
    ]


class Programs:
    def __init__(self, fail: str = "", states: str = "") -> None:
        self.said: list[str] = []
        self.fail, self.states = fail, states

    def __call__(self, argv: Sequence[str], stdin: str) -> str:
        line = " ".join(argv)
        self.said.append(line)
        if self.fail and self.fail in line:
            raise BackendError(f"{line}: refused by the test")
        if argv[1:3] == ["-ss", "-vv"]:
            return self.states
        return "Status: Disabled\n" if "-si" in argv else "0\n"


def test_results_are_one_line_a_check_and_a_sum() -> None:
    lines: list[str] = []

    def fails(lab: Lab) -> None:
        need(False, "nothing arrived")

    def breaks(lab: Lab) -> None:
        raise KeyError("x")

    def works(lab: Lab) -> None:
        need(True, "no")

    checks = [("a", works), ("b", fails), ("c", breaks)]
    clock = iter(range(100))
    lab = Lab(Programs())
    assert selftest.run_checks(checks, lab, lines.append, lambda: next(clock), True) == 2
    assert lines[0] == "ok      a (1.0 s)"
    assert lines[1] == "FAILED  b: nothing arrived"
    assert any(line.startswith("FAILED  c: KeyError") for line in lines)


def test_a_signal_unwinds() -> None:
    with pytest.raises(KeyboardInterrupt):
        selftest.stopped(15, None)


def test_everything_that_was_made_is_taken_down_again_last_first() -> None:
    run = Programs()
    with Lab(run):
        built = len(run.said)
    undone = run.said[built:]
    made = {line.split()[1] for line in run.said[:built] if line.endswith(" create")}
    gone = {line.split()[1] for line in undone if line.endswith(" destroy")}
    assert made < gone
    assert gone - made == {"lo71", "lo73", "lo74"}
    assert undone[-2:] == [
        "/sbin/sysctl net.inet6.ip6.forwarding=0",
        "/sbin/sysctl net.inet.ip.forwarding=0",
    ]
    assert "/sbin/pfctl -d" in undone  # it was off before
    first_destroy = next(n for n, line in enumerate(undone) if line.endswith(" destroy"))
    assert undone.index("/sbin/pfctl -d") < first_destroy


def test_a_half_built_lab_is_taken_down_as_well() -> None:
    run = Programs(fail="patch")
    with pytest.raises(BackendError, match="patch"), Lab(run):
        raise AssertionError("not reached")
    assert sum(line.endswith(" destroy") for line in run.said) == len(teardown_commands())
    assert "/sbin/pfctl -f -" not in run.said


def test_trouble_while_putting_back_is_collected_and_does_not_stop_it() -> None:
    run = Programs(fail="destroy")
    lab = Lab(run)
    with lab:
        lab.later(lambda: (_ for _ in ()).throw(OSError("gone")))
    assert any("destroy" in trouble for trouble in lab.troubles)
    assert "gone" in lab.troubles
    assert run.said[-1] == "/sbin/sysctl net.inet.ip.forwarding=0"


def test_topology_gives_each_interface_its_rdomain_before_its_addresses() -> None:
    commands = [" ".join(command) for command in topology()]
    for name, rdomain, addresses, _ in selftest_lab.PAIRS:
        mine = [c for c in commands if f"/sbin/ifconfig {name} " in c]
        assert mine[0].endswith(" create")
        assert mine[-1].endswith(" up")
        where = [n for n, c in enumerate(mine) if addresses[0] in c]
        ranks = [n for n, c in enumerate(mine) if f"rdomain {rdomain}" in c]
        assert bool(ranks) == bool(rdomain)
        assert not ranks or ranks[0] < where[0]


def test_readdressing_sets_the_routes_again() -> None:
    run = Programs()
    lab = Lab(run)
    lab.readdress(selftest_lab.B_NEW)
    assert run.said[0] == "/sbin/ifconfig pair720 inet 198.18.9.77/24"
    assert run.said[2] == "/sbin/route -T 0 -n add 198.18.8.0/24 198.18.9.1"


def test_ruleset_of_the_lab_suits_redirectd() -> None:
    assert [f for f in check_ruleset(selftest_lab.RULESET) if f.fatal] == []
    assert len(parse(selftest_lab.RULESET).rules) == 5


def test_examples_are_led_to_interfaces_that_exist() -> None:
    names = [f"vether{n}" for n in range(5)]
    text = with_interfaces((EXAMPLES / "everything.pf.conf").read_text(), names)
    macros = {k: v for k, v in parse(text).macros.items() if k.endswith("_if")}
    assert list(macros.values()) == names
    assert "em1" not in text


def test_bytes_are_compared_and_a_stall_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = socket.socketpair()
    a.setblocking(False)
    b.setblocking(False)
    transfer(a, b, bytes(range(256)) * 4000)
    b.send(b"x")
    monkeypatch.setattr(selftest_lab, "PATIENCE", 0.05)
    silent, _kept = socket.socketpair()
    with pytest.raises(CheckError, match="stalled"):
        transfer(b, silent, b"never")
    a.recv(100)
    other, far = socket.socketpair()
    far.send(b"other")
    with pytest.raises(CheckError, match="other bytes"):
        transfer(a, other, b"these")
    far.close()
    with pytest.raises(CheckError, match="closed"):
        transfer(a, other, b"these")


def test_names_of_sockets_are_endpoints_without_their_scope() -> None:
    assert endpoint(("fe80::1%em0", 80, 0, 3)) == Endpoint.parse("[fe80::1]:80")


def test_kills_of_a_become_kills_by_id_of_its_rdomain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftest_lab, "A_RD", 4)
    states = list(parse_text(fixtures.states_text()))
    assert of_rdomain(states, 4, RECORDED) == ["6b03915200000015"]
    assert of_rdomain(states, 4, RECORDED.reversed()) == ["6b03915200000015"]
    assert of_rdomain(states, 0, RECORDED) == ["6b03915200000014"]
    run = Programs(states=fixtures.states_text())
    act = runner_of_a(run, lambda: RECORDED)
    assert act(["/sbin/pfctl", "-k", "label", "-k", "x"], "") == "killed 1 states\n"
    assert run.said[-1] == "/sbin/pfctl -k id -k 6b03915200000015"
    act(["/sbin/pfctl", "-a", "x", "-f", "-"], "pass")
    assert run.said[-1] == "/sbin/pfctl -a x -f -"
