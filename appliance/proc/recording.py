"""Captures, the parent's half: a short-lived process that writes packets to a file.

    parent --- fork --- opens pcap as root, becomes the daemon's user for good,
                        writes STATE-DIR/captures/ID.pcap, ends

The filter is made of typed addresses and ports, never of text from outside.  The process
ends at its bounds, with its file (deleted: stopped), or with the parent.  While it runs, it
holds a lock (flock(2)) on its file: that is how the engine knows, whoever crashed meanwhile.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import socket
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..backend.api import BackendError
from ..rewrite.flow import Address, Endpoint, Flow
from . import privileges
from .ipc import text_list

if TYPE_CHECKING:
    from ..packet.capture import Tap

MAX_SECONDS = 300
MAX_BYTES = 16 << 20
MAX_RUNNING = 3
MAX_SCOPE = 32  # flows, and hosts: a filter stays small
FOLDER = "captures"

_LOOK = 0.2  # seconds between looks whether the file is still there
_GLOBAL_HEADER, _PACKET_HEADER = 24, 16  # bytes in a pcap file
_LINKTYPE_RAW = 101  # packets begin with the IP header, whatever they came over
_MESSAGE_MAX = 1 << 16


@dataclass(frozen=True, slots=True)
class Scope:
    """What is recorded: TCP segments of ``flows`` in both directions, all of ``hosts``."""

    flows: tuple[Flow, ...]
    hosts: tuple[Address, ...]

    @classmethod
    def from_json(cls, body: dict[str, Any]) -> Scope:
        """ValueError or ProtocolError when it is none."""
        flows = tuple(Flow.parse(f) for f in text_list(body, "flows"))
        hosts = tuple(ip_address(a) for a in text_list(body, "hosts"))
        return cls((), ()).plus(cls(flows, hosts))

    def to_json(self) -> dict[str, Any]:
        return {"flows": [str(f) for f in self.flows], "hosts": [str(a) for a in self.hosts]}

    def plus(self, other: Scope) -> Scope:
        """Both, without doubles; the newest ``MAX_SCOPE`` of each."""
        flows = tuple(dict.fromkeys(self.flows + other.flows))
        hosts = tuple(dict.fromkeys(self.hosts + other.hosts))
        return Scope(flows[-MAX_SCOPE:], hosts[-MAX_SCOPE:])

    def expression(self) -> str:
        """For pcap-filter(7); ValueError when it would take everything."""
        terms = [term for flow in self.flows for term in (_one_way(*flow), _one_way(*flow[::-1]))]
        terms += [f"host {_bare(addr)}" for addr in self.hosts]
        if not terms:
            raise ValueError("a capture of nothing in particular")
        return " or ".join(f"({term})" for term in terms)


def _bare(addr: Address) -> str:
    """Without the zone that an IPv6 address may carry, which is free text."""
    return str(type(addr)(int(addr)))


def _one_way(source: Endpoint, target: Endpoint) -> str:
    return (
        f"tcp and src host {_bare(source.addr)} and src port {source.port}"
        f" and dst host {_bare(target.addr)} and dst port {target.port}"
    )


@dataclass(frozen=True, slots=True)
class Order:
    """One capture; ``seconds`` and ``bytes`` (of the file) are bounds."""

    capture_id: str
    scope: Scope
    seconds: int
    bytes: int

    @classmethod
    def from_json(cls, body: dict[str, Any]) -> Order:
        """ValueError, KeyError or ProtocolError on anything that is none."""
        capture_id, seconds, most = body["id"], body["seconds"], body["bytes"]
        if not is_capture_id(capture_id):
            raise ValueError("not a capture's ID")
        if type(seconds) is not int or not 1 <= seconds <= MAX_SECONDS:
            raise ValueError("'seconds' is out of bounds")
        if type(most) is not int or not 1 <= most <= MAX_BYTES:
            raise ValueError("'bytes' is out of bounds")
        scope = Scope.from_json(body)
        scope.expression()
        return cls(capture_id, scope, seconds, most)

    def to_json(self) -> dict[str, Any]:
        bounds = {"seconds": self.seconds, "bytes": self.bytes}
        return {"id": self.capture_id, **self.scope.to_json(), **bounds}


def is_capture_id(text: object) -> bool:
    """16 lower-case hex digits: they become a file's name."""
    return isinstance(text, str) and len(text) == 16 and set(text) <= set("0123456789abcdef")


class Recordings:
    """The parent's captures; ``interfaces`` as :func:`.backends.capture_interfaces`.

    lock_up  called in the process that writes, once it has opened what it reads
    """

    def __init__(
        self,
        state_dir: Path,
        user: str,
        interfaces: Iterable[str | None],
        lock_up: Callable[[], None] = lambda: None,
    ) -> None:
        self._lock_up = lock_up
        self._folder = state_dir / FOLDER
        self._user = user
        self._interfaces = tuple(interfaces)
        self._running: dict[str, socket.socket] = {}

    def start(self, order: Order) -> None:
        """Forks, and waits for nothing: rules must not wait for a capture to open."""
        self._look()
        if len(self._running) >= MAX_RUNNING or order.capture_id in self._running:
            raise BackendError(f"{MAX_RUNNING} captures run already")
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        # forked twice, so that it is nobody's zombie and not among the parent's children
        pid = os.fork()
        if pid == 0:
            try:
                if os.fork() == 0:
                    ours.close()
                    self._record(order, theirs)
            finally:
                os._exit(0)
        theirs.close()
        os.waitpid(pid, 0)
        self._running[order.capture_id] = ours

    def widen(self, capture_id: str, scope: Scope) -> None:
        """The connection has moved: take its new flows as well.  No word if it is over."""
        self._look()
        if capture_id in self._running:
            try:
                self._running[capture_id].send(json.dumps(scope.to_json()).encode())
            except OSError as fault:
                raise BackendError(f"capture {capture_id}: {fault}") from None

    def close(self) -> None:
        """Ends them all: each notices that nobody holds the other end."""
        for sock in self._running.values():
            sock.close()
        self._running.clear()

    def _look(self) -> None:
        """Forget those that have ended: nobody holds the other end."""
        ended, _, _ = select.select(list(self._running.values()), [], [], 0)
        for capture_id, sock in list(self._running.items()):
            if sock in ended:
                sock.close()
                del self._running[capture_id]

    def _record(self, order: Order, lifeline: socket.socket) -> None:
        """The process; no log, whose descriptor is closed: what fails stands in a file."""
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        os.closerange(3, lifeline.fileno())
        os.closerange(lifeline.fileno() + 1, os.sysconf("SC_OPEN_MAX"))
        why = ""
        taps: list[Tap] = []
        try:
            from ..packet.capture import Tap  # heavy, and nobody else's matter

            taps = [Tap(name, order.scope.expression()) for name in self._interfaces]
        except Exception as fault:
            why = str(fault)
        privileges.drop(self._user)
        self._lock_up()
        os.umask(0o077)
        self._folder.mkdir(mode=0o700, exist_ok=True)
        if not why:
            try:
                write(order, taps, lifeline, self._folder)
            except OSError as fault:
                why = str(fault)
        if why:
            (self._folder / f"{order.capture_id}.failed").write_text(why[:500])


def write(order: Order, taps: list[Tap], lifeline: socket.socket, folder: Path) -> None:
    """Record until a bound is reached, the file is deleted, or the lifeline ends."""
    from dpkt import pcap as pcapfile

    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    fd = os.open(folder / f"{order.capture_id}.pcap", flags, 0o600)
    end = time.monotonic() + order.seconds
    scope, left = order.scope, order.bytes - _GLOBAL_HEADER
    # the lifeline goes first: whose file is closed takes up no room any more
    with os.fdopen(fd, "wb") as file, lifeline:
        fcntl.flock(fd, fcntl.LOCK_EX)
        writer = pcapfile.Writer(file, snaplen=65535, linktype=_LINKTYPE_RAW)
        while True:
            file.flush()  # what there is can be read already
            rest = end - time.monotonic()
            if rest <= 0 or os.fstat(fd).st_nlink == 0:
                return
            watched: list[socket.socket | Tap] = [lifeline, *taps]
            ready, _, _ = select.select(watched, [], [], min(rest, _LOOK))
            if lifeline in ready:
                message = lifeline.recv(_MESSAGE_MAX)
                if not message:
                    return
                scope = scope.plus(Scope.from_json(json.loads(message)))
                for tap in taps:
                    tap.narrow(scope.expression())
            for when, packet in (found for tap in taps if tap in ready for found in tap.read()):
                left -= _PACKET_HEADER + len(packet)
                if left < 0:
                    return
                writer.writepkt(packet, ts=when)
