"""The checks of :mod:`tests.openbsd.selftest`, in the order in which they are run."""

from __future__ import annotations

import os
import resource
import signal
import socket
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from appliance.backend.openbsd import observe, preflight, sandbox, statetable
from appliance.backend.openbsd.bpf import LINK_HEADER, BpfDevice
from appliance.backend.openbsd.connections import find
from appliance.backend.openbsd.conntable import Known
from appliance.backend.openbsd.divert import DivertSocket, DivertWorker
from appliance.backend.openbsd.pfctl import Pfctl
from appliance.backend.openbsd.settings import Settings
from appliance.backend.openbsd.sysctl import DIVERT, Sysctls
from appliance.backend.openbsd.system import IFCONFIG, PFCTL, SYSCTL, TCPDROP
from appliance.backend.openbsd.tap import PfTap
from appliance.backend.openbsd.watcher import RouteWatcher
from appliance.protocol.inputs import Segment
from appliance.rewrite.flow import Flow
from appliance.rewrite.rewriter import Rewriter

from .selftest_lab import (
    B_NEW,
    B_OLD,
    EXT_IF,
    LAN_IF,
    PORT,
    A,
    CheckError,
    Lab,
    need,
)
from .selftest_moves import (
    ID,
    check_both_moved,
    check_changed_port,
    check_gateway,
    check_guard,
    check_host,
    check_ipv6,
    check_kill,
    check_restart,
    ends,
    until,
)

GOLDEN = Path(__file__).resolve().parent.parent / "pfconf" / "golden" / "anchor"
EXAMPLES = Path(__file__).resolve().parents[2] / "pfconf" / "examples"


# -- reading


def check_preflight(lab: Lab) -> None:
    preflight.check(Pfctl())
    lab.run(PFCTL, "-d")
    try:
        preflight.check(Pfctl())
    except Exception as fault:
        need("pf is off" in str(fault), str(fault))
    else:
        raise CheckError("pf is off and nothing was said")
    finally:
        lab.run(PFCTL, "-e")


def check_watcher(lab: Lab) -> None:
    watcher = RouteWatcher(Settings())
    name = "vether719"

    def news(condition: Callable[[], bool], what: str) -> None:
        until(lambda: _after(watcher.read, condition), what)

    def held(addr: str) -> Callable[[], bool]:
        return lambda: _held(watcher, addr)

    lab.run(IFCONFIG, name, "create")
    try:
        for addr in ("198.18.77.2", "198.18.77.9"):
            lab.run(IFCONFIG, name, "inet", f"{addr}/24")
            news(held(addr), f"news of {addr}")
        need(not _held(watcher, "198.18.77.2"), "the replaced address is still there")
        lab.run(IFCONFIG, name, "inet6", "fd07:77::2/64")
        news(lambda: _usable(watcher, "fd07:77::2"), "a usable fd07:77::2")
        lab.run(IFCONFIG, name, "down")
        news(lambda: not _usable(watcher, "198.18.77.9"), "the link's loss")
    finally:
        lab.run(IFCONFIG, name, "destroy")
    news(lambda: not _held(watcher, "198.18.77.9"), "the interface's end")
    need(watcher.source_for(A) == B_OLD, f"source towards A: {watcher.source_for(A)}")
    watcher.close()


def _after(act: Callable[[], object], condition: Callable[[], bool]) -> bool:
    act()
    return condition()


def _held(watcher: RouteWatcher, addr: str) -> bool:
    return any(str(a.addr) == addr for a in watcher.addresses())


def _usable(watcher: RouteWatcher, addr: str) -> bool:
    return any(str(a.addr) == addr and a.usable for a in watcher.addresses())


def check_states(lab: Lab) -> None:
    with ends(lab) as (_, connection):
        ours, theirs = statetable.open_channel()
        source = statetable.StateSource(statetable.open_pf(), Pfctl(), ours)
        why = source.check()
        need(why is None, f"records and text differ: {why}")
        source.send()
        assembler = statetable.Assembler()
        states = None
        while states is None:
            states = assembler.take(theirs.recv(65536))
        watcher = RouteWatcher(Settings(inside=(LAN_IF,)))
        found = find(states, watcher.picture, time.time())
        need(connection.birth in found, f"{connection.birth} is not among {list(found)}")
        one = found[connection.birth]
        need(one.connection.inside == connection.inside, f"inside: {one.connection.inside}")
        need(one.numbers is not None, "no sequence numbers")


def check_syntax(lab: Lab) -> None:
    """Everything that pfconf renders is accepted by this pfctl."""
    for path in sorted(GOLDEN.glob("*.pf")):
        text = (
            path.read_text()
            .replace(" on ext ", f" on {EXT_IF} ")
            .replace(" on lan ", f" on {LAN_IF} ")
        )
        lab.run(PFCTL, "-n", "-a", "redirect/selftest", "-f", "-", stdin=text)
    names = [f"vether71{n}" for n in range(5)]
    for number, name in enumerate(names):
        lab.run(IFCONFIG, name, "create")
        lab.run(IFCONFIG, name, "inet", f"198.18.10{number}.1/24")
        lab.run(IFCONFIG, name, "inet6", f"fd07:10{number}::1/64")
    try:
        for path in sorted(EXAMPLES.glob("*.pf.conf")):
            lab.run(PFCTL, "-n", "-f", "-", stdin=with_interfaces(path.read_text(), names))
    finally:
        for name in names:
            lab.run(IFCONFIG, name, "destroy")


def with_interfaces(text: str, names: list[str]) -> str:
    """The macros of an example led to interfaces that exist here."""
    mine = iter(names)
    lines = []
    for line in text.splitlines(keepends=True):
        name, sep, _ = line.partition(' = "')
        lines.append(f'{name}{sep}{next(mine)}"\n' if sep and name.endswith("_if") else line)
    return "".join(lines)


# -- divert, bpf


def check_hold(lab: Lab) -> None:
    """What a shut connection sends waits in the divert socket, and leaves at once."""
    with ends(lab) as (both, connection), ExitStack() as stack:
        sock = DivertSocket(4, 701)
        stack.callback(sock.close)
        tap = PfTap(
            [], LINK_HEADER, {4: sock}, Silent(), Known(), lambda addr: addr in (B_OLD, B_NEW),
            lambda version: B_NEW, time.monotonic,
        )  # fmt: skip
        lab.readdress(B_NEW)
        here = both.b.birth.with_local(B_NEW)
        shut = replace(both.b, wires=(here, both.b.birth), wire_out=None)
        both.table_b.apply([shut])
        tap.update([shut])
        connection.client.send(b"held")
        until(lambda: _after(tap.read, lambda: bool(tap.held())), "a held segment")
        both.table_a.apply([replace(both.a, wires=(here.reversed(),), wire_out=here.reversed())])
        opened = replace(shut, wires=(here,), wire_out=here)
        both.table_b.apply([opened])
        tap.update([opened])
        need(tap.reinject([opened]) == 1, "nothing was sent again")
        connection.server.settimeout(2.0)
        got = connection.server.recv(100)
        need(got == b"held", f"{got!r} arrived")
        connection.server.setblocking(False)
        connection.exchange()


class Silent:
    """A TapHandler that keeps what it is told."""

    def __init__(self) -> None:
        self.seen: list[Segment] = []

    def segment(self, seen: Segment) -> None:
        self.seen.append(seen)

    def reset_withheld(self, wire: Flow) -> None: ...


def check_observe_and_prompt(lab: Lab) -> None:
    with ends(lab) as (_, connection), ExitStack() as stack:
        sock, device, handler = DivertSocket(4, 701), BpfDevice(EXT_IF), Silent()
        stack.callback(sock.close)
        stack.callback(device.close)
        observe([device], [connection.birth])
        tap = PfTap(
            [device], LINK_HEADER, {4: sock}, handler, Known(), lambda addr: addr == B_OLD,
            lambda version: B_OLD, time.monotonic,
        )  # fmt: skip
        connection.exchange()
        until(lambda: _after(tap.read, lambda: len(handler.seen) >= 2), "observed segments")
        need({s.flow for s in handler.seen} == {connection.birth}, "segments of other flows")
        need({s.direction for s in handler.seen} == {"in", "out"}, "one direction alone")
        handler.seen.clear()
        states = statetable.StateSource(statetable.open_pf(), Pfctl(), socket.socket()).states()
        watcher = RouteWatcher(Settings(inside=(LAN_IF,)))
        found = find(states, watcher.picture, time.time())[connection.birth]
        tap.numbers = lambda inside: found.numbers
        tap.prompt(connection.inside, False)
        until(
            lambda: _after(tap.read, lambda: any(s.direction == "out" for s in handler.seen)),
            "the ACK that was asked for",
        )


def check_divert(lab: Lab) -> None:
    """The user-space rewriter carries the connection on B's side."""
    lab_sysctls = Sysctls()
    lab_sysctls.set()
    try:
        with ends(lab) as (both, connection):
            rewriter = Rewriter(near="inside")
            sock = DivertSocket(4, 700)
            worker = DivertWorker(sock, rewriter, lambda addr: addr == B_NEW, lambda version: B_NEW)
            stop = threading.Event()
            thread = threading.Thread(target=_pump, args=(worker, stop))
            here = both.b.birth.with_local(B_NEW)
            entry = replace(both.b, wires=(here,), wire_out=here, path="divert")
            rewriter.load([entry])
            thread.start()
            try:
                lab.readdress(B_NEW)
                both.table_b.apply([entry])
                there = here.reversed()
                both.table_a.apply([replace(both.a, wires=(there,), wire_out=there)])
                connection.exchange("client")
                connection.exchange("server", 1_000_000)
                need(worker.counters.rewritten > 0, "no packet came by")
                need(worker.counters.broken == 0, f"{worker.counters.broken} broken packets")
            finally:
                stop.set()
                thread.join()
                sock.close()
    finally:
        lab_sysctls.restore()


def _pump(worker: DivertWorker, stop: threading.Event) -> None:
    while not stop.is_set():
        if worker.read() == 0:
            time.sleep(0.001)


# -- the rest


def check_reservation(lab: Lab) -> None:
    """A new connection from a reserved tuple gets no state."""
    with ends(lab) as (both, connection):
        wire = connection.birth.with_local(B_OLD, 50099)
        both.table_b.reserve({ID: wire})
        with socket.socket() as other:
            other.bind((str(B_OLD), 50099))
            other.settimeout(2.0)
            try:
                other.connect((str(A), PORT))
            except ConnectionRefusedError:
                raise CheckError("the SYN reached A") from None
            except OSError:
                return  # no route to the host, or silence
        raise CheckError("the connection was made")


def check_abort(lab: Lab) -> None:
    with ends(lab, local=True) as (_, connection):
        flow = connection.inside
        local, remote = flow
        lab.run(TCPDROP, str(local.addr), str(local.port), str(remote.addr), str(remote.port))
        try:
            connection.client.recv(1)
        except ConnectionError:
            return
        raise CheckError("the connection lives on")


def check_sysctl(lab: Lab) -> None:
    (name,) = DIVERT
    before = lab.run(SYSCTL, "-n", name).strip()
    sysctls = Sysctls()
    sysctls.set()
    need(lab.run(SYSCTL, "-n", name).strip() == "0", f"{name} was not set")
    sysctls.restore()
    need(lab.run(SYSCTL, "-n", name).strip() == before, f"{name} was not put back")


def check_sandbox(lab: Lab) -> None:
    """A packet worker may receive and send, and open nothing."""
    need(_in_child(lambda: None) == 0, "an empty child did not end well")
    need(_in_child(lambda: _locked(lambda: None)) == 0, "the promises were refused")
    status = _in_child(lambda: _locked(lambda: Path("/etc/hosts").read_text()))
    need(status == -signal.SIGABRT, f"opening a file ended with {status}, not SIGABRT")


def _locked(act: Callable[[], object]) -> None:
    need(sandbox.enter("packets", "/nonexistent", "/nonexistent"), "no pledge here")
    act()


def _in_child(act: Callable[[], object]) -> int:
    pid = os.fork()
    if pid == 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        try:
            act()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


CHECKS: tuple[tuple[str, Callable[[Lab], None]], ...] = (
    ("preflight tells pf on from pf off", check_preflight),
    ("watcher follows ifconfig", check_watcher),
    ("state table: records, text and connection agree", check_states),
    ("pfctl accepts everything that pfconf renders", check_syntax),
    ("gateway moves three times and back, either side first", check_gateway),
    ("gateway moves to a changed port", check_changed_port),
    ("host moves (divert-to)", check_host),
    ("host moves, IPv6", check_ipv6),
    ("both ends moved", check_both_moved),
    ("tuples of the past are guarded", check_guard),
    ("restart with rules left in the kernel", check_restart),
    ("states die by label, and the rules make them anew", check_kill),
    ("held segment leaves at once (divert)", check_hold),
    ("observed ACKs and the prompt (bpf, divert)", check_observe_and_prompt),
    ("divert path: user space translates", check_divert),
    ("reserved port is kept off new connections", check_reservation),
    ("own connection is ended (tcpdrop)", check_abort),
    ("kernel variables are set and put back", check_sysctl),
    ("pledge holds", check_sandbox),
)
