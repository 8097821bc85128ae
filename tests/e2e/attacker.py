"""What attackers have: a tap on the wire, packets under any source, a daemon turned wicked.

Tap       hears everything on one machine's cable
Forger    sends IP packets that say whatever it likes, from the middle of the network
Wicked    a peer with real keys and a real socket that says what it pleases
Flood     datagrams from thousands of sources, frame by frame onto a switch
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_address
from typing import Any, NamedTuple

import dpkt

from appliance.introduction import read_pair
from appliance.proc import udp
from appliance.protocol import commands as c
from appliance.protocol.contact import FirstContact
from appliance.protocol.core import Core
from appliance.protocol.frames import Frame, Kind, encode_frame
from appliance.protocol.inputs import Connection, LocalAddress, Paths, Segment
from appliance.protocol.links import Origin
from appliance.protocol.message import Type
from appliance.protocol.peer import Peer
from appliance.protocol.records import PeerRecord
from appliance.protocol.settings import CoreSettings, Rule, Rules
from appliance.rewrite.flow import Endpoint, Flow
from tests.lab import kernel
from tests.lab.daemon import Daemon
from tests.lab.host import Host
from tests.lab.net import Lab

PORT = 4787
ETH_ALL = 3
_EXPIRES = re.compile(r', "expires": \d+')
_numbers = itertools.count(1)
PATIENCE = 20.0  # seconds after which something awaited counts as never happening


class Datagram(NamedTuple):
    """UDP as it crossed the wire."""

    source: Endpoint
    target: Endpoint
    data: bytes

    @property
    def type(self) -> int:
        return self.data[3] if len(self.data) > 3 else 0

    def says(self, kind: Kind) -> bool:
        """Whether it is a session's packet that begins with such a frame."""
        return self.type == Type.DATA and len(self.data) > 32 and self.data[16] == kind


class TcpPacket(NamedTuple):
    source: Endpoint
    target: Endpoint
    seq: int
    ack: int
    flags: int
    length: int  # of the payload


Packet = Datagram | TcpPacket


def _parse(frame: bytes) -> Packet | None:
    """What is in an Ethernet frame; None: neither UDP nor TCP."""
    try:
        ip = dpkt.ethernet.Ethernet(frame).data
        if not isinstance(ip, dpkt.ip.IP | dpkt.ip6.IP6):
            return None
        inner = ip.data
        if not isinstance(inner, dpkt.udp.UDP | dpkt.tcp.TCP):
            return None
        source = Endpoint(ip_address(ip.src), inner.sport)
        target = Endpoint(ip_address(ip.dst), inner.dport)
        if isinstance(inner, dpkt.udp.UDP):
            return Datagram(source, target, bytes(inner.data))
        return TcpPacket(source, target, inner.seq, inner.ack, inner.flags, len(inner.data))
    except dpkt.Error:
        return None


class Tap:
    """Keeps what crosses a machine's cable, until the ``with`` ends."""

    def __init__(self, host: Host, dev: str | None = None) -> None:
        self.seen: list[Packet] = []
        self._news = threading.Condition()
        with kernel.entered(host.lab.core):
            # without a protocol it hears nothing before it is bound to one card (packet(7))
            self._sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
            self._sock.bind((host.interface(dev).port, ETH_ALL))
        self._end, self._stop = os.pipe()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Tap:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        os.write(self._stop, b"x")
        self._thread.join(5)
        self._sock.close()
        os.close(self._end)
        os.close(self._stop)

    def _run(self) -> None:
        while True:
            ready, _, _ = select.select([self._sock.fileno(), self._end], [], [])
            if self._end in ready:
                return
            packet = _parse(self._sock.recv(65535))
            if packet is not None:
                with self._news:
                    self.seen.append(packet)
                    self._news.notify_all()

    def datagrams(self, since: int = 0) -> list[Datagram]:
        """UDP between daemons, in order."""
        with self._news:
            found = [p for p in self.seen[since:] if isinstance(p, Datagram)]
        return [d for d in found if PORT in (d.source.port, d.target.port) and d.data[:2] == b"RD"]

    def tcp(self, since: int = 0) -> list[TcpPacket]:
        with self._news:
            return [p for p in self.seen[since:] if isinstance(p, TcpPacket)]

    def mark(self) -> int:
        """For ``since``."""
        with self._news:
            return len(self.seen)

    def wait(
        self, wanted: Callable[[Packet], bool], since: int = 0, timeout: float = PATIENCE
    ) -> Packet:
        """The first packet that is ``wanted``, come or still to come."""
        at = since
        deadline = time.monotonic() + timeout
        with self._news:
            while True:
                for packet in self.seen[at:]:
                    if wanted(packet):
                        return packet
                at = len(self.seen)
                assert self._news.wait(deadline - time.monotonic()), "nothing of it on the wire"

    def wait_change(self, source: str, since: int = 0) -> Datagram:
        """An Address Change Message from ``source``."""
        found = self.wait(
            lambda p: (
                isinstance(p, Datagram)
                and p.says(Kind.ADDRESS_CHANGE)
                and str(p.source.addr) == source
            ),
            since,
        )
        assert isinstance(found, Datagram)
        return found

    def wait_challenge(self, number: int) -> Datagram:
        """The challenge that answers the change of this number."""
        found = self.wait(
            lambda p: (
                isinstance(p, Datagram)
                and p.says(Kind.CHALLENGE)
                and p.data[23:31] == number.to_bytes(8, "big")
            )
        )
        assert isinstance(found, Datagram)
        return found


class Forger:
    """A router gone bad: sends packets under any source from the middle of the network."""

    def __init__(self, lab: Lab) -> None:
        with kernel.entered(lab.core):
            self._sock = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)

    def close(self) -> None:
        self._sock.close()

    def datagram(self, packet: Datagram) -> None:
        inner = dpkt.udp.UDP(sport=packet.source.port, dport=packet.target.port, data=packet.data)
        inner.ulen = len(inner)
        self._send(packet.source, packet.target, inner, dpkt.ip.IP_PROTO_UDP)

    def segment(
        self,
        source: Endpoint,
        target: Endpoint,
        flags: int,
        seq: int,
        ack: int = 0,
        data: bytes = b"",
    ) -> None:
        inner = dpkt.tcp.TCP(
            sport=source.port, dport=target.port, seq=seq % 2**32, ack=ack % 2**32,
            flags=flags, win=65535, data=data,
        )  # fmt: skip
        self._send(source, target, inner, dpkt.ip.IP_PROTO_TCP)

    def _send(self, source: Endpoint, target: Endpoint, inner: Any, protocol: int) -> None:
        packet = dpkt.ip.IP(src=source.addr.packed, dst=target.addr.packed, p=protocol, data=inner)
        packet.len = len(packet)
        self._sock.sendto(bytes(packet), (str(target.addr), 0))


# -- a daemon turned wicked


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
    ) -> None:
        """victim: who gets keys for us; without it we know nobody.  listen: our UDP port"""
        self.host = host
        self.addr = ip_address(host.address())
        self.heard: list[Heard] = []
        self.flows: tuple[Flow, ...] = ()
        peers: list[PeerRecord] = []
        if victim is not None:
            made = victim.ctl("peer.introduce", name=f"wicked-{next(_numbers)}")
            where = victim_addr or victim.host.address()
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
            self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self.sock.setsockopt(socket.IPPROTO_IP, udp.IP_PKTINFO, 1)
            self.sock.bind((str(self.addr), listen))
            self.sock.setblocking(False)
            self.sniffer = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_ALL))
            self.sniffer.setblocking(False)
        for kind, handler in list(self.core.links.handlers.items()):
            self.core.links.handlers[kind] = self._listening(handler)
        source = {ip_address(w): self.addr for r in peers for w in r.addresses}
        paths = Paths((LocalAddress(self.addr, "eth0", 24, True),), source)
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
                packet = _parse(self.sniffer.recv(65535))
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


# -- a flood


class Flood:
    """Puts datagrams for one machine on its switch, under any sources, at a steady rate.

    More of them are sent in turn until :meth:`stop`.
    """

    def __init__(self, sender: Host, target: Host, datagrams: Sequence[Datagram], rate: float):
        """rate: datagrams a second"""
        self._frames = list(_frames(sender, target, datagrams))
        self.rate = rate
        self.sent = 0
        self._stop = threading.Event()
        with sender.entered():
            self._sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
            self._sock.bind((sender.interface().name, 0x0800))
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.began = time.monotonic()

    def __enter__(self) -> Flood:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._sock.close()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(10)

    def _run(self) -> None:
        self.began = time.monotonic()
        batch = 50
        while not self._stop.is_set():
            for _ in range(batch):
                self._sock.send(self._frames[self.sent % len(self._frames)])
                self.sent += 1
            late = self.began + self.sent / self.rate - time.monotonic()
            if late > 0:
                self._stop.wait(late)


def _mac(host: Host) -> bytes:
    name = host.interface().name
    found = json.loads(host.run(["ip", "-j", "link", "show", name]).stdout)
    return bytes.fromhex(found[0]["address"].replace(":", ""))


def _frames(sender: Host, target: Host, datagrams: Iterable[Datagram]) -> Iterator[bytes]:
    head = _mac(target) + _mac(sender) + b"\x08\x00"
    for packet in datagrams:
        # no UDP checksum (RFC 768: zero means none), so that a flood is quickly made
        inner = struct.pack(
            "!HHHH", packet.source.port, packet.target.port, 8 + len(packet.data), 0
        )
        ip = bytearray(
            struct.pack(
                "!BBHHHBBH4s4s", 0x45, 0, 28 + len(packet.data), 0, 0, 64, 17, 0,
                packet.source.addr.packed, packet.target.addr.packed,
            )
        )  # fmt: skip
        total = sum(struct.unpack("!10H", ip))
        total = (total & 0xFFFF) + (total >> 16)
        ip[10:12] = struct.pack("!H", ~(total + (total >> 16)) & 0xFFFF)
        yield head + bytes(ip) + inner + packet.data


# -- looking at a machine


def waiting(host: Host) -> tuple[int, int]:
    """Bytes in the daemon's UDP socket, and datagrams that it has lost so far."""
    with host.entered():
        rows = open("/proc/thread-self/net/udp").read().splitlines()[1:]  # noqa: SIM115
    for row in rows:
        fields = row.split()
        if fields[1] == f"00000000:{PORT:04X}":
            return int(fields[4].partition(":")[2], 16), int(fields[-1])
    raise LookupError(f"no daemon listens on {host.name}")


def read(daemon: Daemon, timeout: float = PATIENCE) -> None:
    """Wait until the daemon has read every datagram that has reached it."""
    deadline = time.monotonic() + timeout
    while waiting(daemon.host)[0]:
        assert time.monotonic() < deadline, f"{daemon} does not read its datagrams"
        time.sleep(0.005)


def digested(daemon: Daemon) -> None:
    """Wait until the daemon has acted on everything that has reached it."""
    read(daemon)
    # the loop that read the last of them answers this later, and only when all commands
    # before it are carried out
    made = daemon.ctl("peer.introduce", name="nobody")
    daemon.ctl("peer.forget", peer=made["peer"]["peer_id"])


def rules(host: Host, port: int) -> list[str]:
    """The elements of our tables that name this TCP port: what the kernel does with packets
    of one connection."""
    found = []
    for family in ("ip", "ip6"):
        text = host.run(["nft", "-j", "list", "table", family, "redirectd"], check=False).stdout
        for item in json.loads(text)["nftables"] if text else []:
            kept = item.get("map") or item.get("set")
            if kept and kept["name"] not in ("alive", "doomed"):
                elements = (json.dumps(element) for element in kept.get("elem", ()))
                found += [
                    f"{family} {kept['name']} {_EXPIRES.sub('', text)}"
                    for text in elements
                    if re.search(rf" {port}\b", text)
                ]
    return sorted(found)
