"""Ports, parking, lost NAT states, the end of connections; preflight and sysctls."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path

import pytest

from appliance.backend.api import BackendError
from appliance.backend.openbsd import preflight, system
from appliance.backend.openbsd.divert import Diverted, Name
from appliance.backend.openbsd.host import (
    FIRST_PORT,
    LAST_PORT,
    PfHost,
    choose_port,
    tcpdrop_words,
)
from appliance.backend.openbsd.pfctl import Pfctl
from appliance.backend.openbsd.pfstates import PfState
from appliance.backend.openbsd.sysctl import Sysctls
from appliance.backend.openbsd.table import PfTable
from appliance.backend.segment import ACK, RST, parse_tcp
from appliance.rewrite.flow import Endpoint, Flow
from appliance.rewrite.redirect import Entry
from pfconf.anchor import Layout

from ..pfconf.evaluator import Pf
from . import fixtures
from .fakepf import FakePfctl
from .test_connections import BIRTH, GATEWAY, INSIDE, RECORDED

LOOP = Flow.of("127.0.0.1", 0, "127.0.0.9", 5000)
ID = "ab" * 16


class Source:
    def __init__(self, states: list[PfState]) -> None:
        self.listed, self.sent = states, 0

    def states(self) -> list[PfState]:
        return self.listed

    def send(self) -> None:
        self.sent += 1


class Divert:
    version = 4

    def __init__(self) -> None:
        self.sent: list[tuple[bytes, Name]] = []
        self.full = False

    def fileno(self) -> int:
        return 0

    def receive(self) -> Diverted | None:
        return None

    def send(self, packet: bytes | bytearray, name: Name) -> bool:
        self.sent.append((bytes(packet), name))
        return not self.full


class Programs:
    """A Runner that notes what it was asked to run."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.answers: dict[str, str] = {}
        self.fail: str | None = None

    def __call__(self, argv: Sequence[str], stdin: str) -> str:
        line = " ".join(argv)
        self.said.append(line)
        if self.fail is not None and self.fail in line:
            raise BackendError(f"{line}: refused by the test")
        return self.answers.get(line, "")


class Setup:
    def __init__(
        self, states: list[PfState] | None = None, parks: bool = True, record: Path | None = None
    ) -> None:
        self.fake = FakePfctl(Pf.of("pass", {"em0": ["10.9.0.2/24"]}))
        self.table = PfTable(Pfctl(self.fake), Layout("em0"))
        self.source, self.divert, self.run = Source(states or []), Divert(), Programs()
        self.sysctls = Sysctls(self.run)
        self.host = PfHost(
            self.table,
            self.source,
            {4: self.divert},
            GATEWAY,
            lambda version: ip_address("10.9.0.2") if version == 4 else None,
            self.sysctls,
            parks,
            self.run,
            record or Path("/nonexistent/parked"),
        )


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def test_wanted_port_is_reserved_by_socket_and_guard() -> None:
    setup, port = Setup(), free_port()
    flow = LOOP.with_local(LOOP.local.addr, port)
    assert setup.host.reserve({ID: flow}) == {ID: flow}
    with socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind(("127.0.0.1", port))
    assert len(setup.fake.pf.anchors["redirect-reserved"].rules) == 1
    setup.host.release([ID])
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))
    assert setup.fake.pf.anchors["redirect-reserved"].rules == []


def test_port_that_a_program_has_gives_way_to_another() -> None:
    setup = Setup()
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        flow = LOOP.with_local(LOOP.local.addr, other.getsockname()[1])
        got = setup.host.reserve({ID: flow})[ID]
        assert got is not None
        assert got != flow
        assert got.remote == flow.remote
    setup.host.close()


def test_port_that_a_state_has_gives_way_to_another() -> None:
    setup = Setup(RECORDED)
    got = setup.host.reserve({ID: BIRTH})[ID]
    assert got is not None
    assert got.local == BIRTH.local._replace(port=BIRTH.local.port + 1)
    assert setup.host.reserve({ID: got})[ID] == got  # once more is no conflict with itself
    assert setup.host.reserve({"cd" * 16: got})["cd" * 16] != got


def test_back_at_the_first_address_nothing_is_reserved() -> None:
    setup = Setup(RECORDED)
    setup.table.apply([Entry(ID, BIRTH, INSIDE, False, True, (BIRTH,), BIRTH)])
    assert setup.host.reserve({ID: BIRTH}) == {ID: BIRTH}


def test_the_search_for_a_port_ends() -> None:
    asked: list[Endpoint] = []

    def never(end: Endpoint) -> bool:
        asked.append(end)
        return False

    assert choose_port(BIRTH, set(), never) is None
    assert len({end.port for end in asked}) == len(asked)
    top = BIRTH.with_local(BIRTH.local.addr, LAST_PORT)
    found = choose_port(top, {top}, lambda end: True)
    assert found is not None
    assert found.local.port == FIRST_PORT
    low = BIRTH.with_local(BIRTH.local.addr, 22)
    found = choose_port(low, {low}, lambda end: True)
    assert found is not None
    assert found.local.port == FIRST_PORT


@pytest.mark.parametrize(
    ("addr", "up", "down"),
    [
        ("10.9.0.2", "inet 10.9.0.2/32 alias", "inet 10.9.0.2 -alias"),
        ("fd07::2", "inet6 fd07::2 prefixlen 128 alias", "inet6 fd07::2 -alias"),
    ],
)
def test_old_address_is_parked_on_lo0_for_the_divert_path(addr: str, up: str, down: str) -> None:
    setup, old = Setup(), ip_address(addr)
    setup.host.park(old)
    setup.host.park(old)
    setup.host.unpark(old)
    setup.host.unpark(old)
    assert setup.run.said == [f"/sbin/ifconfig lo0 {up}", f"/sbin/ifconfig lo0 {down}"]


def test_kernel_path_needs_no_parking() -> None:
    setup = Setup(parks=False)
    setup.host.park(ip_address("10.9.0.2"))
    assert setup.run.said == []


def test_closing_takes_back_what_was_parked_and_set() -> None:
    setup = Setup()
    setup.run.answers["/sbin/sysctl -n net.inet.tcp.tso"] = "1\n"
    setup.sysctls.set()
    setup.host.park(ip_address("10.9.0.2"))
    setup.run.said.clear()
    setup.host.close()
    assert setup.run.said == [
        "/sbin/ifconfig lo0 inet 10.9.0.2 -alias",
        "/sbin/sysctl net.inet.tcp.tso=1",
    ]


def test_after_a_restart_what_nobody_needs_is_let_go(tmp_path: Path) -> None:
    record = tmp_path / "parked"
    before = Setup(record=record)
    for addr in ("10.9.0.2", "10.9.0.3"):
        before.host.park(ip_address(addr))
    port = free_port()
    after = Setup(record=record)
    after.host.reserve({ID: LOOP.with_local(LOOP.local.addr, port), "cd" * 16: BIRTH})
    assert len(after.fake.pf.anchors["redirect-reserved"].rules) == 2
    entry = Entry("cd" * 16, BIRTH, BIRTH, True, True, (BIRTH,), BIRTH)
    after.host.adopt([entry])
    assert after.run.said == ["/sbin/ifconfig lo0", "/sbin/ifconfig lo0 inet 10.9.0.3 -alias"]
    assert record.read_text() == "10.9.0.2\n"
    assert len(after.fake.pf.anchors["redirect-reserved"].rules) == 1
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))
    after.host.close()
    assert record.read_text() == ""


def test_what_an_earlier_run_reserved_in_pf_is_emptied() -> None:
    setup = Setup()
    setup.fake.pf.load("redirect-reserved", "block drop out quick on em0\n")
    setup.host.adopt([])
    assert setup.fake.pf.anchors["redirect-reserved"].rules == []


def test_a_damaged_record_is_as_good_as_none(tmp_path: Path) -> None:
    record = tmp_path / "parked"
    record.write_text("no address\n")
    setup = Setup(record=record)
    setup.host.adopt([])
    assert setup.run.said == ["/sbin/ifconfig lo0"]


def test_lost_nat_is_restored_by_rules() -> None:
    setup = Setup()
    setup.host.restore_nat([Entry(ID, BIRTH, INSIDE, False, True, (BIRTH,), BIRTH)])
    assert len(setup.fake.pf.anchors["redirect/connections"].rules) == 4


def test_own_connection_is_dropped_by_tcpdrop_and_a_gone_one_is_no_fault() -> None:
    setup = Setup()
    setup.host.abort(BIRTH, local=True)
    assert setup.run.said == ["/usr/sbin/tcpdrop 10.9.0.2 50823 10.8.0.2 5000"]
    setup.run.fail = "tcpdrop"
    setup.host.abort(BIRTH, local=True)
    assert tcpdrop_words(Flow.of("fd07::1", 1, "fd07::2", 2)) == ["fd07::1", "1", "fd07::2", "2"]


def test_lan_host_gets_a_rst_with_the_number_it_expects() -> None:
    setup = Setup(RECORDED)
    setup.host.abort(INSIDE, local=False)
    ((raw, name),) = setup.divert.sent
    segment = parse_tcp(raw)
    assert segment is not None
    assert segment.packet == INSIDE.reversed()
    assert segment.flags == RST | ACK
    assert segment.seq == RECORDED[1].dst.seqlo
    assert name == ("10.9.0.2", 0)  # as input, by way of an address of ours


def test_abort_says_why_it_can_not() -> None:
    with pytest.raises(BackendError, match="no state"):
        Setup().host.abort(INSIDE, local=False)
    setup = Setup(RECORDED)
    setup.divert.full = True
    with pytest.raises(BackendError, match="not be sent"):
        setup.host.abort(INSIDE, local=False)


def test_dump_is_sent_to_the_engine() -> None:
    setup = Setup()
    setup.host.request_connections()
    assert setup.source.sent == 1


# -- preflight


def test_recorded_ruleset_lets_redirectd_start() -> None:
    info = fixtures.transcript("pfctl -si")
    verdict = preflight.judge(info, fixtures.transcript("pfctl -vvsr"))
    assert verdict.refusals == ()
    assert "redirect-reserved" in verdict.warnings[0]


@pytest.mark.parametrize(
    ("info", "rules", "told"),
    [
        ("Status: Disabled for 0 days\n", 'anchor "redirect/*"', "pf is off"),
        ("", "", "no status"),
        ("Status: Enabled\n", "pass all\n", "has no anchor"),
        ("Status: Enabled\n", 'match out on em0 nat-to 1.2.3.4\nanchor "redirect/*"\n', "after"),
    ],
)
def test_start_is_refused_with_the_remedy(info: str, rules: str, told: str) -> None:
    fake = FakePfctl(Pf.of("pass", {}), info=info, rules=rules)
    with pytest.raises(BackendError, match=told):
        preflight.check(Pfctl(fake))


def test_warnings_are_handed_back() -> None:
    fake = FakePfctl(Pf.of("pass", {}), rules='anchor "redirect/*"\npass modulate state\n')
    (warning,) = preflight.check(Pfctl(fake))
    assert "sequence numbers" in warning


# -- sysctls


def test_kernel_variable_is_set_and_put_back_once() -> None:
    run = Programs()
    run.answers["/sbin/sysctl -n net.inet.tcp.tso"] = "1\n"
    sysctls = Sysctls(run)
    sysctls.set()
    sysctls.restore()
    sysctls.restore()
    assert run.said == [
        "/sbin/sysctl -n net.inet.tcp.tso",
        "/sbin/sysctl net.inet.tcp.tso=0",
        "/sbin/sysctl net.inet.tcp.tso=1",
    ]


def test_variable_that_is_right_or_missing_is_left_alone() -> None:
    run = Programs()
    run.answers["/sbin/sysctl -n net.inet.tcp.tso"] = "0\n"
    Sysctls(run).set()
    assert len(run.said) == 1
    run.fail = "tso"
    Sysctls(run).set()


def test_variable_that_can_not_be_put_back_is_no_crash() -> None:
    run = Programs()
    run.answers["/sbin/sysctl -n net.inet.tcp.tso"] = "1\n"
    sysctls = Sysctls(run)
    sysctls.set()
    run.fail = "tso=1"
    sysctls.restore()


# -- programs


def test_programs_are_run_without_a_shell_and_their_output_is_given() -> None:
    assert system.run(["/bin/cat"], "$HOME; `id`\n") == "$HOME; `id`\n"


@pytest.mark.parametrize(
    ("argv", "told"),
    [(["/nowhere/pfctl"], "is not there"), (["/bin/false"], "exit status 1"), (["/"], "run")],
)
def test_programs_that_fail_are_named(argv: list[str], told: str) -> None:
    with pytest.raises(BackendError, match=told):
        system.run(argv)


def test_programs_that_hang_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system, "TIME_LIMIT", 0.05)
    with pytest.raises(BackendError, match="longer"):
        system.run(["/bin/sleep", "5"])


def test_recorded_refusals_show_the_rule_that_they_mean() -> None:
    rules = "pass out on em0 no state nat-to 10.0.0.1\n"
    said = fixtures.transcript("bad rule")
    text = system.failure(["/sbin/pfctl", "-f", "-"], 1, said, rules)
    assert "nat-to and rdr-to require keep state in 'pass out on em0 no state" in text
    assert system.failure(["x"], 1, "stdin:9: syntax error", rules) == "x: stdin:9: syntax error"


def test_killed_states_are_counted_as_pfctl_recorded_it() -> None:
    def say(argv: Sequence[str], stdin: str) -> str:
        return fixtures.transcript("kill").splitlines()[1]

    pfctl = Pfctl(say)
    assert pfctl.flush_label("x") == 2
    assert Pfctl(lambda argv, stdin: "").flush_label("x") == 0


def test_what_an_earlier_run_left_is_taken_over_or_let_go() -> None:
    setup, port = Setup(), free_port()
    flow = LOOP.with_local(LOOP.local.addr, port)
    setup.host.reserve({ID: flow})
    old = BIRTH.local.addr
    setup.run.answers["/sbin/ifconfig lo0"] = (
        f"lo0: flags=8049<UP,LOOPBACK,RUNNING,MULTICAST> mtu 32768\n"
        f"\tinet 127.0.0.1 netmask 0xff000000\n\tinet {old} netmask 0xffffffff\n"
    )
    setup.host.adopt([Entry("cd" * 16, BIRTH, BIRTH, True, True, (BIRTH,), BIRTH)])
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))
    setup.host.unpark(old)
    assert setup.run.said[-1] == f"/sbin/ifconfig lo0 inet {old} -alias"
