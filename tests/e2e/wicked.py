"""A daemon turned wicked: a peer with real keys and a real socket that says what it pleases."""

from __future__ import annotations

import contextlib
import itertools
import os
import select
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from ipaddress import ip_address
from typing import Any

from appliance.introduction import read_pair
from appliance.proc import udp
from appliance.protocol import commands as c
from appliance.protocol.contact import FirstContact
from appliance.protocol.core import Core
from appliance.protocol.frames import Frame, encode_frame
from appliance.protocol.inputs import Connection, LocalAddress, Paths, Segment
from appliance.protocol.links import Origin
from appliance.protocol.peer import Peer
from appliance.protocol.records import PeerRecord
from appliance.protocol.settings import CoreSettings, Rule, Rules
from appliance.rewrite.flow import Endpoint, Flow
from tests.lab.daemon import Daemon
from tests.lab.host import Host

from .attacker import ETH_ALL, PATIENCE, PORT, TcpPacket, parse_packet

_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Heard:
    """What the victim said within the session."""

    number: int
    frame: Frame
    origin: Origin


class Wicked:
    """A peer with keys, a session and (if it opened one) a connection; it says what it pleases.

    The protocol core is the real one, so that whatever it does not do on its own behalf is
    right; the packet path is none.
    """

    def __init__(
        self,
        host: Host,
        victim: Daemon | None = None,
        *,
        victim_addr: str | None = None,
        contact: FirstContact | None = None,
        listen: int = PORT,
        version: int = 4,
    ) -> None:
        """victim: who gets keys for us; without it we know nobody.  listen: our UDP port"""
        self.host = host
        self.addr = ip_address(host.address(version))
        self.heard: list[Heard] = []
        self.flows: tuple[Flow, ...] = ()
        peers: list[PeerRecord] = []
        if victim is not None:
            made = victim.ctl("peer.introduce", name=f"wicked-{next(_numbers)}")
            where = victim_addr or victim.host.address(version)
            record = read_pair(made["text"]).record
            peers = [replace(record, name="victim", addresses=(where,), port=PORT)]
            self.peer_id = record.peer_id
        rules = Rules(default=Rule(after=0.0))
        self.core = Core(
            CoreSettings(port=PORT, long_lived_after=rules.after, path_for=rules.path),
            peers, [], os.urandom(16).hex(),
            rng=os.urandom, now=time.time(), first_contact=contact,
        )  # fmt: skip
        with host.entered():
            self.sock = udp_socket(version)
            self.sock.bind((str(self.addr), listen))
            self.sock.setblocking(False)
            self.sniffer = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_ALL))
            self.sniffer.setblocking(False)
        for kind, handler in list(self.core.links.handlers.items()):
            self.core.links.handlers[kind] = self._listening(handler)
        source = {ip_address(w): self.addr for r in peers for w in r.addresses}
        paths = Paths((LocalAddress(self.addr, "eth0", 24 if version == 4 else 64, True),), source)
        self.core.paths_changed(paths, time.time())
        self._drain()

    def _listening(self, handler: Callable[..., None]) -> Callable[..., None]:
        def hear(peer: Peer, number: int, frame: Frame, origin: Origin) -> None:
            self.heard.append(Heard(number, frame, origin))
            handler(peer, number, frame, origin)

        return hear

    def close(self) -> None:
        self.sock.close()
        self.sniffer.close()

    # -- life

    def pump(self, until: Callable[[], Any] = lambda: False, timeout: float = PATIENCE) -> bool:
        """Live as a daemon does until something is so; False: it never was."""
        deadline = time.monotonic() + timeout
        while not until():
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            due = self.core.next_timer()
            wait = min(left, 0.05, max(0.0, (due or 1e18) - time.time()))
            select.select([self.sock, self.sniffer], [], [], wait)
            for data, remote, local in udp.receive(self.sock):
                self.core.receive_datagram(data, remote, local, time.time())
            self._sniff()
            self.core.handle_timer(time.time())
            self._drain()
        return True

    def _sniff(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                packet = parse_packet(self.sniffer.recv(65535))
                if not isinstance(packet, TcpPacket) or packet.length or packet.flags & 7:
                    continue
                for flow in self.flows:
                    ours = (packet.source, packet.target) == tuple(flow)
                    if ours or (packet.target, packet.source) == tuple(flow):
                        seen = Segment(flow, "out" if ours else "in", packet.seq, packet.ack)
                        self.core.segment_seen(seen, time.time())

    def _drain(self) -> None:
        while commands := self.core.poll():
            for command in commands:
                if isinstance(command, c.Send):
                    udp.send([self.sock], command.data, command.remote, command.source)
                elif isinstance(command, c.Observe):
                    self.flows = command.flows
                elif isinstance(command, c.ReservePorts):
                    self.core.ports_reserved(dict(command.wanted), time.time())

    # -- what it does

    @property
    def peer(self) -> Peer:
        """The victim, as we know it."""
        return self.core.world.peers[self.peer_id]

    def befriend(self) -> None:
        """Bring a session up, as any peer may."""
        self.core.links.want_session(self.peer)
        self._drain()
        assert self.pump(lambda: self.peer.session is not None), "no session"

    def opened(self, flow: Flow) -> None:
        """A connection of ours (with the victim, or claimed to be)."""
        self.core.connection_opened(Connection(flow, flow, True, True, None), time.time())
        self._drain()

    def bind(self, flow: Flow) -> str:
        """Have a connection of ours bound, honestly; its ID."""
        self.opened(flow)
        assert self.pump(lambda: self.core.world.table.born(flow)), self.core.connections()
        binding = self.core.world.table.born(flow)
        assert binding is not None
        # so that our core never says anything about it again
        self.pump(lambda: not self.peer.requests, 5)
        return binding.conn_id

    def seal(self, *frames: Frame, number: int = 0) -> bytes:
        """A datagram of the session, with a counter of its own."""
        assert self.peer.session is not None
        return self.peer.session.seal(b"".join(encode_frame(number, f) for f in frames))

    def say(self, *frames: Frame, number: int = 0, to: str | None = None) -> bytes:
        """Say something to the victim over our own socket; what was sent."""
        data = self.seal(*frames, number=number)
        where = Endpoint(ip_address(to or self.peer.record.addresses[0]), PORT)
        udp.send([self.sock], data, where, None)
        return data

    def answers(self, *kinds: type[Frame]) -> list[Heard]:
        return [h for h in self.heard if isinstance(h.frame, kinds)]

    def hears(self, *kinds: type[Frame], timeout: float = PATIENCE) -> Heard:
        """The next frame of one of these kinds."""
        before = len(self.answers(*kinds))
        assert self.pump(lambda: len(self.answers(*kinds)) > before, timeout), f"no {kinds}"
        return self.answers(*kinds)[before]


def udp_socket(version: int) -> socket.socket:
    """Tells with each datagram which of our addresses it came to."""
    if version == 4:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.setsockopt(socket.IPPROTO_IP, udp.IP_PKTINFO, 1)
    else:
        sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
    return sock
