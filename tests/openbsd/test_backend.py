"""Both halves put together, the system's own parts replaced by stand-ins; and numbers of
ioctls against the macros that make them."""

from __future__ import annotations

import os
import socket
import struct
import sys
from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path

import pytest

from appliance import config as configuration
from appliance.backend import api, openbsd
from appliance.backend.api import BackendError
from appliance.backend.openbsd import bpf, statetable, watcher
from appliance.backend.openbsd.settings import Settings
from appliance.proc import backends
from appliance.protocol.inputs import Connection, Segment
from appliance.rewrite.flow import Flow
from appliance.rewrite.redirect import Entry

from ..pfconf.evaluator import Pf
from . import fixtures
from .fakepf import FakePfctl
from .test_connections import BIRTH, INSIDE
from .test_tap import Pipe

IFCONFIG = """\
em0: flags=8843<UP,BROADCAST,RUNNING,SIMPLEX,MULTICAST> mtu 1500
\tindex 1
\tgroups: egress
\tstatus: active
\tinet 10.9.0.2 netmask 0xffffff00 broadcast 10.9.0.255
em1: flags=8843<UP,BROADCAST,RUNNING,SIMPLEX,MULTICAST> mtu 1500
\tindex 2
\tstatus: active
\tinet 192.168.1.1 netmask 0xffffff00 broadcast 192.168.1.255
"""


class Bpf(Pipe):
    missing = ""

    def __init__(self, name: str) -> None:
        if name == self.missing:
            raise BackendError(f"bpf on {name}: not there")
        super().__init__()
        self.name, self.link, self.programs = name, 1, list[bytes]()
        os.set_blocking(self._in, False)

    def set_filter(self, program: bytes) -> None:
        if self.link == 12:
            raise OSError(22, "Invalid argument")
        self.programs.append(program)

    def read(self) -> bytes:
        return b""


class Divert(Pipe):
    def __init__(self, version: int, port: int) -> None:
        super().__init__()
        self.version, self.port = version, port
        self.sent: list[bytes] = []

    def receive(self) -> None:
        return None

    def send(self, packet: bytes, name: object) -> bool:
        self.sent.append(packet)
        return True


class Machine:
    def __init__(self) -> None:
        self.pfctl = FakePfctl(
            Pf.of('anchor "redirect/*"\nblock drop all\npass out on em0\n', {}),
            rules=fixtures.transcript("pfctl -vvsr"),
            states=fixtures.states_text(),
        )
        self.said: list[str] = []

    def run(self, argv: Sequence[str], stdin: str = "") -> str:
        self.said.append(" ".join(argv))
        if argv[0] == "/sbin/pfctl":
            return self.pfctl(argv, stdin)
        return IFCONFIG if list(argv) == ["/sbin/ifconfig"] else "1\n"


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    made = Machine()
    route, _kernel = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    route.setblocking(False)
    monkeypatch.setattr(openbsd, "run", made.run)
    for name in ("pfctl.Pfctl", "sysctl.Sysctls"):
        module, cls = name.split(".")
        original = getattr(getattr(openbsd, module), cls)
        monkeypatch.setattr(openbsd, cls, lambda original=original: original(made.run))
    monkeypatch.setattr(openbsd, "BpfDevice", Bpf)
    monkeypatch.setattr(openbsd, "DivertSocket", Divert)
    monkeypatch.setattr(openbsd, "BOOT_MARK", str(tmp_path / "booted"))
    monkeypatch.setattr(statetable, "open_pf", lambda: 3)
    monkeypatch.setattr(statetable, "read_records", lambda fd: fixtures.records())
    monkeypatch.setattr(watcher, "open_route_socket", lambda: route)
    monkeypatch.setattr(
        openbsd, "RouteWatcher", lambda s, _: watcher.RouteWatcher(s, lambda: IFCONFIG)
    )
    return made


class Handler:
    def __init__(self) -> None:
        self.known: list[list[Flow]] = []

    def opened(self, connection: Connection) -> None: ...
    def closed(self, birth: Flow) -> None: ...
    def nat_lost(self, birth: Flow) -> None: ...
    def all_known(self, connections: list[Connection]) -> None:
        self.known.append([c.birth for c in connections])

    def segment(self, seen: Segment) -> None: ...
    def reset_withheld(self, wire: Flow) -> None: ...


def test_both_halves_work_together(machine: Machine) -> None:
    table, host, sockets = openbsd.open_backend(Settings())
    table.open()
    handler = Handler()
    tap, connections, watched = openbsd.engine_side(Settings(), sockets, handler, handler)
    assert [str(a.addr) for a in watched.addresses()] == ["10.9.0.2", "192.168.1.1"]
    host.request_connections()
    connections.read()
    assert handler.known == [[BIRTH]]
    assert tap.numbers(INSIDE) is not None
    table.observe([BIRTH])
    (em0,) = sockets.taps
    assert isinstance(em0, Bpf)
    assert em0.name == "em0"
    assert len(em0.programs[-1]) > len(em0.programs[0])
    wire = BIRTH.with_local(ip_address("10.9.0.77"))
    entry = Entry("ab" * 16, BIRTH, INSIDE, False, True, (wire,), wire)
    table.apply([entry])
    rules = machine.pfctl.pf.anchors["redirect/connections"].rules
    assert [getattr(r, "interface", None) for r in rules] == ["em0", "em0", "em1", "em1"]
    tap.update([entry])
    tap.prompt(INSIDE, False)
    divert = sockets.divert[4]
    assert isinstance(divert, Divert)
    assert len(divert.sent) == 1
    assert divert.port == 701
    assert "/sbin/sysctl net.inet.tcp.tso=0" in machine.said
    host.close()
    assert "/sbin/sysctl net.inet.tcp.tso=1" in machine.said


def test_both_halves_are_what_the_processes_expect(machine: Machine) -> None:
    """mypy does not look at the branches of another platform: these lines show it."""
    table, host, sockets = openbsd.open_backend(Settings())
    handler = Handler()
    tap, connections, watched = openbsd.engine_side(Settings(), sockets, handler, handler)
    privileged = backends.Privileged(table, host, sockets)
    side = backends.EngineSide(tap, connections, watched)
    for protocol, made in (
        (api.RedirectTable, privileged.table),
        (api.Host, privileged.host),
        (api.SegmentTap, side.tap),
        (api.ConnectionTable, side.connections),
        (api.AddressWatcher, side.watcher),
    ):
        wanted = {name for name in vars(protocol) if not name.startswith("_")}
        assert {name for name in wanted if not callable(getattr(made, name, None))} == set()


def test_first_start_since_boot_is_noticed_once(machine: Machine) -> None:
    assert openbsd.open_backend(Settings())[2].rebooted
    assert not openbsd.open_backend(Settings())[2].rebooted


def test_missing_pflog_is_no_hindrance(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Bpf, "missing", "pflog1")
    _, _, sockets = openbsd.open_backend(Settings(divert=False))
    assert sockets.prompts is None
    assert not any("sysctl" in line for line in machine.said)


def test_several_outside_interfaces_are_all_tapped_and_none_is_named_in_rules(
    machine: Machine,
) -> None:
    table, _, sockets = openbsd.open_backend(Settings(outside=("em0", "em1")))
    assert len(sockets.taps) == 2
    wire = BIRTH.with_local(ip_address("10.9.0.77"))
    table.apply([Entry("ab" * 16, BIRTH, BIRTH, True, True, (wire,), wire)])
    rules = machine.pfctl.pf.anchors["redirect/connections"].rules
    assert [getattr(r, "interface", "?") for r in rules] == [None, None]


def test_records_of_another_layout_are_given_up_for_text(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statetable, "read_records", lambda fd: bytes(300))
    _, host, sockets = openbsd.open_backend(Settings())
    handler = Handler()
    _, connections, _ = openbsd.engine_side(Settings(), sockets, handler, handler)
    host.request_connections()
    connections.read()
    assert handler.known == [[BIRTH]]


def test_filters_that_can_not_be_set_are_named(machine: Machine) -> None:
    tap = Bpf("em0")
    tap.link = 12
    with pytest.raises(BackendError, match="refused"):
        openbsd.observe([tap], [])  # type: ignore[list-item]
    tap.link = 99
    with pytest.raises(BackendError, match="link type 99"):
        openbsd.observe([tap], [])  # type: ignore[list-item]


def test_settings_come_from_the_configuration(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = '[interfaces]\ninside = ["em1"]\noutside = ["em0"]\n'
    config = configuration.parse_config(text)
    monkeypatch.setattr(sys, "platform", "openbsd7")
    privileged = backends.open_privileged(config)
    handler = Handler()
    side = backends.engine_side(config, privileged.sockets, handler, handler)
    assert [a.inside for a in side.watcher.addresses()] == [False, True]


@pytest.mark.parametrize("name", ["em0 to any", "$ext"])
def test_outside_interface_must_be_one(name: str) -> None:
    with pytest.raises(BackendError, match=r"interfaces\.outside"):
        openbsd.settings_of(outside=[name])


def test_parents_picture_of_addresses_is_read_when_it_is_old() -> None:
    texts, now = [IFCONFIG, ""], [10.0]
    live = openbsd.LivePicture(Settings(), lambda: texts.pop(0), lambda: now[0])
    assert live.is_local(ip_address("10.9.0.2"))
    assert live.is_inside(ip_address("192.168.1.7"))
    assert live.spare(4) == ip_address("10.9.0.2")
    now[0] += 2
    assert not live.is_local(ip_address("10.9.0.2"))


# <sys/ioccom.h>: direction, length of the argument, group, number
IN, OUT, VOID = 0x80000000, 0x40000000, 0x20000000


def ioc(direction: int, group: str, number: int, size: int) -> int:
    return direction | (size & 0x1FFF) << 16 | ord(group) << 8 | number


def test_ioctl_numbers_are_those_of_the_headers() -> None:
    ifreq, bpf_program, in6_ifreq = 32, struct.calcsize("=I4xQ"), 16 + 272
    assert ioc(OUT, "B", 102, 4) == bpf.BIOCGBLEN
    assert ioc(IN, "B", 103, bpf_program) == bpf.BIOCSETF
    assert ioc(OUT, "B", 106, 4) == bpf.BIOCGDLT
    assert ioc(IN, "B", 108, ifreq) == bpf.BIOCSETIF
    assert ioc(IN, "B", 112, 4) == bpf.BIOCIMMEDIATE
    assert ioc(IN, "f", 126, 4) == bpf.FIONBIO
    assert ioc(IN | OUT, "i", 73, in6_ifreq) == watcher.SIOCGIFAFLAG_IN6
    assert ioc(IN | OUT, "D", 25, 16) == statetable.DIOCGETSTATES


def test_an_engine_that_missed_changes_makes_way_for_a_new_one() -> None:
    """It may run nothing any more, and its picture of the addresses is no longer true."""
    taken = openbsd.once(lambda: IFCONFIG)
    assert taken() == IFCONFIG
    with pytest.raises(SystemExit, match="overflowed"):
        taken()
