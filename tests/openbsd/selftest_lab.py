"""Four hosts in one OpenBSD kernel, for :mod:`tests.openbsd.selftest`.

         L                    B                         R                  A
    rdomain 71            rdomain 0                 rdomain 73         rdomain 74
    198.18.1.5     198.18.1.1 | 198.18.9.2   198.18.9.1 | 198.18.8.1   198.18.8.2
    pair710 ======== pair711    pair720 ======== pair721  pair730 ======== pair740
                                fd07:9::2        fd07:9::1  fd07:8::1      fd07:8::2

B is the gateway that moves (NAT from L's network on pair720), R a router, A the
correspondent with a TCP server.  pf is one for all of them, so the interfaces of L and R
are skipped and each state tells its rdomain.  The addresses are those of RFC 2544, which
no network uses.  Whatever is changed is put back, the last change first.
"""

from __future__ import annotations

import os
import select
import socket
import time
from collections.abc import Callable, Sequence
from functools import partial
from ipaddress import ip_address
from pathlib import Path

from appliance.backend.api import BackendError
from appliance.backend.openbsd.pfstates import PfState, parse_text
from appliance.backend.openbsd.system import IFCONFIG, PFCTL, SYSCTL, Runner, run
from appliance.rewrite.flow import Endpoint, Flow

ROUTE = "/sbin/route"
SO_RTABLE = 0x1021
L_RD, B_RD, R_RD, A_RD = 71, 0, 73, 74
LAN_IF, EXT_IF, A_IF = "pair711", "pair720", "pair740"
L, A = ip_address("198.18.1.5"), ip_address("198.18.8.2")
B_OLD, B_NEW, B_THIRD = (ip_address(f"198.18.9.{n}") for n in (2, 77, 78))
A6 = ip_address("fd07:8::2")
B6_OLD, B6_NEW = ip_address("fd07:9::2"), ip_address("fd07:9::77")
PORT = 5000
#: seconds for data to arrive, retransmissions included
PATIENCE = 20.0

#: (interface, rdomain, addresses, peer that it is patched to)
PAIRS: Sequence[tuple[str, int, tuple[str, ...], str | None]] = (
    ("pair710", L_RD, ("198.18.1.5/24",), None),
    (LAN_IF, B_RD, ("198.18.1.1/24",), "pair710"),
    (EXT_IF, B_RD, ("198.18.9.2/24", "fd07:9::2/64"), None),
    ("pair721", R_RD, ("198.18.9.1/24", "fd07:9::1/64"), EXT_IF),
    ("pair730", R_RD, ("198.18.8.1/24", "fd07:8::1/64"), None),
    (A_IF, A_RD, ("198.18.8.2/24", "fd07:8::2/64"), "pair730"),
)
SYSCTLS = {"net.inet.ip.forwarding": "1", "net.inet6.ip6.forwarding": "1"}

RULESET = f"""\
set skip on {{ lo pair710 pair721 pair730 }}
anchor "redirect/*"
anchor "redirect-a/*"
match out on {EXT_IF} inet from 198.18.1.0/24 to any nat-to ({EXT_IF}:0)
anchor "redirect-reserved"
pass flags S/SA
"""


class CheckError(Exception):
    """A check did not find what it must; the text says what it found."""


def need(condition: bool, what: str) -> None:
    if not condition:
        raise CheckError(what)


def topology() -> list[list[str]]:
    """The commands that build it, each an argument list."""
    commands: list[list[str]] = []
    for name, rdomain, _, _ in PAIRS:
        commands.append([IFCONFIG, name, "create"])
        if rdomain:
            # an address would be lost when the interface changes its rdomain
            commands.append([IFCONFIG, name, "rdomain", str(rdomain)])
    for name, _, addresses, peer in PAIRS:
        if peer is not None:
            commands.append([IFCONFIG, name, "patch", peer])
        for address in addresses:
            commands.append([IFCONFIG, name, "inet6" if ":" in address else "inet", address])
        commands.append([IFCONFIG, name, "up"])
    return commands + [route(*words) for words in ROUTES]


ROUTES = (
    (L_RD, "default", "198.18.1.1"),
    (A_RD, "default", "198.18.8.1"),
    (A_RD, "-inet6", "default", "fd07:8::1"),
)
#: B's own, which go with its address and are set again after each change
B_ROUTES = (
    (B_RD, "198.18.8.0/24", "198.18.9.1"),
    (B_RD, "-inet6", "fd07:8::/64", "fd07:9::1"),
)


def route(rdomain: int, *words: str, verb: str = "add") -> list[str]:
    return [ROUTE, "-T", str(rdomain), "-n", verb, *words]


def teardown_commands() -> list[list[str]]:
    """The opposite of :func:`topology`; the loopbacks came with their rdomains."""
    names = [name for name, _, _, _ in PAIRS]
    loops = [f"lo{rd}" for rd in (L_RD, R_RD, A_RD)]
    return [[IFCONFIG, name, "destroy"] for name in [*names, *loops]]


class Lab:
    """Builds, and on leaving puts back; also when a check raises or a signal comes."""

    def __init__(self, runner: Runner = run) -> None:
        self._run = runner
        self._undo: list[Callable[[], object]] = []
        self.troubles: list[str] = []

    def __enter__(self) -> Lab:
        try:
            self._build()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def run(self, *argv: str, stdin: str = "") -> str:
        return self._run(list(argv), stdin)

    def attempt(self, *argv: str) -> None:
        """For what may be gone already."""
        try:
            self.run(*argv)
        except BackendError as fault:
            self.troubles.append(str(fault))

    def later(self, undo: Callable[[], object]) -> None:
        self._undo.append(undo)

    def close(self) -> None:
        while self._undo:
            undo = self._undo.pop()
            try:
                undo()
            except (BackendError, OSError) as fault:
                self.troubles.append(str(fault))

    def _build(self) -> None:
        for name, value in SYSCTLS.items():
            before = self.run(SYSCTL, "-n", name).strip()
            self.later(partial(self.attempt, SYSCTL, f"{name}={before}"))
            self.run(SYSCTL, f"{name}={value}")
        for command in reversed(teardown_commands()):
            self.later(partial(self.attempt, *command))
        for command in topology():
            self.run(*command)
        self.routes_of_b()
        self._pf()

    def _pf(self) -> None:
        if "Status: Enabled" not in self.run(PFCTL, "-si"):
            self.later(lambda: self.attempt(PFCTL, "-d"))
            self.run(PFCTL, "-e")
        if Path("/etc/pf.conf").exists():
            self.later(lambda: self.attempt(PFCTL, "-f", "/etc/pf.conf"))
        else:
            self.later(lambda: self.attempt(PFCTL, "-Fr"))
        self.later(self.empty_anchors)
        self.run(PFCTL, "-f", "-", stdin=RULESET)

    def empty_anchors(self) -> None:
        for anchor in ("redirect/connections", "redirect-a/connections", "redirect-reserved"):
            self.run(PFCTL, "-a", anchor, "-f", "-")

    def routes_of_b(self) -> None:
        for words in B_ROUTES:
            self.attempt(*route(*words, verb="delete"))
            self.run(*route(*words))

    def readdress(self, addr: object) -> None:
        """B's external address changes, and its routes with it."""
        if ip_address(str(addr)).version == 4:
            self.run(IFCONFIG, EXT_IF, "inet", f"{addr}/24")
        else:
            old = B6_OLD if addr != B6_OLD else B6_NEW
            self.attempt(IFCONFIG, EXT_IF, "inet6", str(old), "delete")
            self.run(IFCONFIG, EXT_IF, "inet6", f"{addr}/64")
            time.sleep(2.0)  # duplicate address detection: until then it can't be bound
        self.routes_of_b()


class Connection:
    """A real TCP connection between two of the hosts, both ends in this process."""

    def __init__(self, client_rd: int, server_rd: int, server: Endpoint) -> None:
        family = socket.AF_INET if server.addr.version == 4 else socket.AF_INET6
        self._open: list[socket.socket] = []
        listener = self._socket(family, server_rd)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((str(server.addr), server.port))
        listener.listen(1)
        listener.settimeout(PATIENCE)
        self.client = self._socket(family, client_rd)
        self.client.settimeout(PATIENCE)
        self.client.connect((str(server.addr), server.port))
        self.server, _ = listener.accept()
        self._open.append(self.server)
        listener.close()
        for end in (self.client, self.server):
            end.setblocking(False)

    def _socket(self, family: int, rdomain: int) -> socket.socket:
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, SO_RTABLE, rdomain)
        self._open.append(sock)
        return sock

    @property
    def inside(self) -> Flow:
        """As the client sees it."""
        return Flow(endpoint(self.client.getsockname()), endpoint(self.client.getpeername()))

    @property
    def birth(self) -> Flow:
        """As the server sees it, turned round: B's side is local."""
        return Flow(endpoint(self.server.getpeername()), endpoint(self.server.getsockname()))

    def exchange(self, first: str = "client", size: int = 20_000) -> None:
        """``size`` bytes each way, ``first`` speaking first; compared byte by byte."""
        a, b = (self.client, self.server) if first == "client" else (self.server, self.client)
        for source, sink in ((a, b), (b, a)):
            transfer(source, sink, os.urandom(size))

    def close(self) -> None:
        for sock in self._open:
            sock.close()

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def transfer(source: socket.socket, sink: socket.socket, data: bytes) -> None:
    """Send ``data`` and compare what arrives; CheckError when it stalls or differs."""
    sent, got = 0, bytearray()
    until = time.monotonic() + PATIENCE
    while len(got) < len(data):
        left = until - time.monotonic()
        need(left > 0, f"stalled: {sent} bytes sent, {len(got)} of {len(data)} arrived")
        writers = [source] if sent < len(data) else []
        readable, writable, _ = select.select([sink], writers, [], min(left, 1.0))
        if writable:
            sent += source.send(data[sent : sent + 65536])
        if readable:
            part = sink.recv(65536)
            need(bool(part), f"closed after {len(got)} bytes")
            got += part
    need(bytes(got) == data, "other bytes arrived than were sent")


def endpoint(name: tuple[object, ...]) -> Endpoint:
    return Endpoint(ip_address(str(name[0]).partition("%")[0]), int(str(name[1])))


def of_rdomain(states: Sequence[PfState], rdomain: int, flow: Flow) -> list[str]:
    """Ids of the TCP states in ``rdomain`` that belong to the connection ``flow``; either
    key may show it, either way round."""
    found = []
    for state in states:
        keys = [Flow(k.near, k.far) for k in (state.wire, state.stack)]
        mine = state.proto == "tcp" and state.wire.rdomain == rdomain
        if mine and any(k.canonical() == flow.canonical() for k in keys):
            found.append(state.state_id)
    return found


def runner_of_a(runner: Runner, flow: Callable[[], Flow]) -> Runner:
    """pfctl for A.  Kills name no rdomain, and A is not in rdomain 0 here: each becomes a
    kill by id of A's states of the connection."""

    def act(argv: Sequence[str], stdin: str) -> str:
        if list(argv[1:2]) != ["-k"]:
            return runner(argv, stdin)
        states = list(parse_text(runner([PFCTL, "-ss", "-vv"], "")))
        ids = of_rdomain(states, A_RD, flow())
        for state_id in ids:
            runner([PFCTL, "-k", "id", "-k", state_id], "")
        return f"killed {len(ids)} states\n"

    return act
