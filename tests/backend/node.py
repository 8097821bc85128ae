"""One machine of the lab with the Linux backend on it, driven by hand."""

from __future__ import annotations

import contextlib
import select
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_interface

from appliance.backend import linux
from appliance.protocol.inputs import Connection, Segment
from appliance.rewrite.flow import Endpoint, Flow
from appliance.rewrite.redirect import Entry
from tests.lab.host import Host

PATIENCE = 5.0  # seconds until an awaited event counts as missing


@dataclass
class Seen:
    """What the backend reported (ConnectionHandler and TapHandler)."""

    opened_: list[Connection] = field(default_factory=list)
    closed_: list[Flow] = field(default_factory=list)
    lost: list[Flow] = field(default_factory=list)
    known: list[Connection] | None = None
    segments: list[Segment] = field(default_factory=list)
    resets: list[Flow] = field(default_factory=list)
    silences: list[Flow] = field(default_factory=list)

    def opened(self, connection: Connection) -> None:
        self.opened_.append(connection)

    def closed(self, birth: Flow) -> None:
        self.closed_.append(birth)

    def nat_lost(self, birth: Flow) -> None:
        self.lost.append(birth)

    def all_known(self, connections: Sequence[Connection]) -> None:
        self.known = list(connections)

    def segment(self, seen: Segment) -> None:
        self.segments.append(seen)

    def reset_withheld(self, wire: Flow) -> None:
        self.resets.append(wire)

    def silence(self, birth: Flow) -> None:
        self.silences.append(birth)


class Node:
    """Both halves of the backend in one process, on ``host``."""

    def __init__(
        self,
        host: Host,
        clock: Callable[[], float] | None = None,
        **settings: tuple[str, ...],
    ) -> None:
        self.machine = host
        self.seen = Seen()
        self.settings = linux.settings_of(**settings)
        with host.entered():
            self.table, self.host, self.sockets = linux.open_backend(self.settings)
            self.tap, self.connections, self.watcher = linux.engine_side(
                self.settings, self.sockets, self.seen, self.seen, clock or linux.steady_clock()
            )
            self.table.replace_all([])

    def close(self) -> None:
        with self.machine.entered():
            self.host.close()
            self.table.close(keep=False)
            self.connections.close()
            self.watcher.close()
            self.sockets.close()

    def pump(self, until: Callable[[Seen], object], enter: bool = True) -> None:
        """Read what comes until ``until`` holds; ``enter``: in the machine's namespace."""
        deadline = time.monotonic() + PATIENCE
        while not until(self.seen):
            left = deadline - time.monotonic()
            assert left > 0, f"nothing more came: {self.seen}"
            self.pump_once(left, enter)

    def pump_once(self, timeout: float, enter: bool = True) -> None:
        """Wait for something to read, at most ``timeout`` seconds, and read it."""
        readers = (self.tap, self.connections, self.watcher)
        ready, _, _ = select.select(readers, [], [], timeout)
        with self.machine.entered() if enter else contextlib.nullcontext():
            for reader in ready:
                reader.read()

    def await_address(self, cidr: str) -> None:
        """Until the watcher reports it as usable."""
        addr = ip_interface(cidr).ip
        self.pump(lambda _: any(a.addr == addr and a.usable for a in self.watcher.addresses()))

    def apply(self, *entries: Entry) -> None:
        with self.machine.entered():
            self.table.apply(entries)
            self.tap.update(entries)

    def reinject(self, *entries: Entry, wake: bool = True) -> int:
        """As the command of that name does it."""
        with self.machine.entered():
            sent = self.tap.reinject(entries)
            for each in entries if wake else ():
                self.tap.prompt(each.inside, each.local)
            return sent


@contextlib.contextmanager
def node(
    host: Host, clock: Callable[[], float] | None = None, **settings: tuple[str, ...]
) -> Iterator[Node]:
    made = Node(host, clock, **settings)
    try:
        yield made
    finally:
        made.close()


@dataclass
class Stream:
    """A TCP connection between two machines, both ends in this process."""

    near: socket.socket
    far: socket.socket

    @property
    def flow(self) -> Flow:
        """As the near end sees it."""
        return _flow(self.near)

    @property
    def far_flow(self) -> Flow:
        return _flow(self.far)

    def say(self, text: bytes, timeout: float = PATIENCE) -> float:
        """Near sends, far must get it; seconds that took."""
        return _pass_on(self.near, self.far, text, timeout)

    def answer(self, text: bytes, timeout: float = PATIENCE) -> float:
        return _pass_on(self.far, self.near, text, timeout)

    def close(self) -> None:
        self.near.close()
        self.far.close()


def _flow(sock: socket.socket) -> Flow:
    near, far = sock.getsockname(), sock.getpeername()
    return Flow.of(near[0], near[1], far[0], far[1])


def _pass_on(source: socket.socket, sink: socket.socket, text: bytes, timeout: float) -> float:
    begin = time.monotonic()
    source.sendall(text)
    return receive(sink, text, begin + timeout) - begin


def receive(sink: socket.socket, text: bytes, deadline: float) -> float:
    """Wait for exactly ``text``; when it was complete."""
    got = b""
    while len(got) < len(text):
        sink.settimeout(max(0.001, deadline - time.monotonic()))
        part = sink.recv(len(text) - len(got))
        assert part, "the connection ended"
        got += part
    assert got == text
    return time.monotonic()


def connect(near: Host, far: Host, version: int = 4, port: int = 0, to: str = "") -> Stream:
    """A new connection from ``near`` to ``far`` (or to ``to``, where a gateway forwards)."""
    family = socket.AF_INET6 if version == 6 else socket.AF_INET
    with far.entered():
        server = socket.create_server(("::" if version == 6 else "0.0.0.0", port), family=family)
    with near.entered():
        client = socket.socket(family)
        client.settimeout(PATIENCE)
        client.connect((to or far.address(version), server.getsockname()[1]))
    server.settimeout(PATIENCE)
    accepted, _ = server.accept()
    server.close()
    for end in (client, accepted):
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return Stream(client, accepted)


def entry(
    number: int,
    birth: Flow,
    wires: Sequence[Flow],
    out: Flow | None,
    *,
    inside: Flow | None = None,
    inside_opened: bool = True,
    stale: Sequence[Flow] = (),
) -> Entry:
    return Entry(
        conn_id=f"{number:032x}",
        birth=birth,
        inside=inside or birth,
        local=inside is None,
        inside_opened=inside_opened,
        wires=tuple(wires),
        wire_out=out,
        stale=tuple(stale),
    )


def at(flow: Flow, addr: str, port: int | None = None) -> Flow:
    """``flow`` with another local end."""
    return flow.with_local(ip_address(addr), port)


def there(flow: Flow, addr: str, port: int | None = None) -> Flow:
    """``flow`` with another remote end."""
    return flow.with_remote(ip_address(addr), port)


__all__ = ["Endpoint", "Node", "Seen", "Stream", "at", "connect", "entry", "node", "there"]
