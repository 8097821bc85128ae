"""A network of hosts in memory: cores, packet paths and TCP ends, under a fake clock.

    host --- net (delay, loss, duplicates, order) --- host

Every host executes the commands of its core one by one, as the engine does, keeps the
records as the keystore does, and moves TCP packets by its entries as the kernel does.
The net knows who has which address.  A packet of a protected connection that reaches
a TCP stack unmatched is a violation (design: "or it answers RST").
"""

from __future__ import annotations

import random
from collections.abc import Callable
from ipaddress import ip_address

from appliance.protocol.commands import (
    Abort,
    Apply,
    Command,
    ForgetPeer,
    Guard,
    Log,
    Observe,
    Park,
    Prompt,
    Reinject,
    Release,
    ReservePorts,
    Resolve,
    RestoreNat,
    SaveBindings,
    SavePeer,
    Send,
    Unpark,
)
from appliance.protocol.contact import FirstContact
from appliance.protocol.core import Core
from appliance.protocol.inputs import Connection, LocalAddress, Paths, Segment
from appliance.protocol.records import BindingRecord, PeerRecord
from appliance.protocol.settings import CoreSettings
from appliance.rewrite.flow import Address, Endpoint, Flow
from appliance.rewrite.redirect import Entry

from .net import PORT, RTO, End, Net, Tcp, Udp


class Host:
    def __init__(
        self,
        net: Net,
        name: str,
        *addresses: str,
        settings: CoreSettings | None = None,
        first_contact: FirstContact | None = None,
    ) -> None:
        self.net, self.name = net, name
        self.settings = settings or CoreSettings()
        self.first_contact = first_contact
        self.random = random.Random(f"{name}{net.random.random()}")
        self.host_id = self.random.randbytes(16).hex()
        self.addresses: dict[Address, LocalAddress] = {}
        self.disk_peers: dict[str, PeerRecord] = {}
        self.disk_bindings: dict[str, BindingRecord] = {}
        self.kernel: dict[str, Entry] = {}
        self.behind: set[Address] = set()
        self.parked: set[Address] = set()
        self.reserved: dict[str, Flow] = {}
        self.taken_ports: set[Endpoint] = set()
        self.observed: tuple[Flow, ...] = ()
        self.guarded: set[str] = set()
        self.ends: dict[Flow, End] = {}
        self.held: dict[str, list[tuple[int, int, int | None]]] = {}
        self.logs: list[Log] = []
        self.done: list[Command] = []
        self.resolver: dict[str, list[Endpoint]] = {}
        self.crash_in: int | None = None
        self.restart_after = 0.5
        self.crashes = 0
        self.core: Core | None = None
        self.quiet: Callable[[Command], None] = lambda command: None
        for text in addresses:
            self.addresses[ip_address(text)] = self._local(text)
        net.hosts.append(self)
        self.start()

    @staticmethod
    def _local(text: str, usable: bool = True, inside: bool = False) -> LocalAddress:
        addr = ip_address(text)
        return LocalAddress(addr, "eth0", 24 if addr.version == 4 else 64, usable, inside)

    # life of the daemon

    def start(self) -> None:
        self.core = Core(
            self.settings, list(self.disk_peers.values()), list(self.disk_bindings.values()),
            self.host_id, rng=self.random.randbytes, now=self.net.now,
            first_contact=self.first_contact,
        )  # fmt: skip
        self.observed = ()
        self.paths()
        self.core and self.core.connections_known(
            [e.connection for e in self.ends.values()], self.net.now
        )
        self.drain()

    def stop(self) -> None:
        """As kill -9 does: what is on disk and in the kernel stays."""
        self.core = None

    def next_timer(self) -> float | None:
        return self.core.next_timer() if self.core else None

    def tick(self) -> None:
        assert self.core
        self.core.handle_timer(self.net.now)
        self.drain()

    def drain(self) -> None:
        while self.core is not None and (commands := self.core.poll()):
            for command in commands:
                if self.crash_in is not None:
                    if self.crash_in == 0:
                        self.crash_in = None
                        self.crashes += 1
                        self.stop()
                        self.net.at(self.net.now + self.restart_after, self.start)
                        return
                    if not isinstance(command, Log):
                        self.crash_in -= 1
                self.execute(command)
                self.done.append(command)
                self.quiet(command)

    # commands

    def execute(self, command: Command) -> None:
        core, now = self.core, self.net.now
        assert core
        match command:
            case Send(data, remote, source):
                addr = source or self.source_for(remote.addr)
                if addr is not None and addr in self.addresses and self.addresses[addr].usable:
                    self.net.carry(Udp(Endpoint(addr, PORT), remote, data))
            case SavePeer(peer):
                self.disk_peers[peer.peer_id] = peer
            case ForgetPeer(peer_id):
                del self.disk_peers[peer_id]
            case SaveBindings(bindings):
                for record in bindings:
                    self.disk_bindings[record.entry.conn_id] = record
            case Apply(entries):
                for entry in entries:
                    on_disk = self.disk_bindings[entry.conn_id].entry
                    assert on_disk == entry or entry.wire_out is None, "kernel before disk"
                    self.kernel[entry.conn_id] = entry
                    assert not set(entry.wires) & set(entry.stale)
            case Release(conn_ids):
                for conn_id in conn_ids:
                    self.kernel.pop(conn_id, None)
                    self.disk_bindings.pop(conn_id, None)
                    self.reserved.pop(conn_id, None)
                    self.held.pop(conn_id, None)
            case RestoreNat():
                pass
            case Park(addr):
                self.parked.add(addr)
            case Unpark(addr):
                self.parked.discard(addr)
            case ReservePorts(wanted):
                got = {i: self._reserve(i, flow) for i, flow in wanted.items()}
                self.net.at(now + 0.001, lambda: self._reserved(got))
            case Observe(flows):
                self.observed = flows
            case Prompt(inside, _):
                end = self.end_inside(inside)
                if end is not None and not end.reset:
                    self.tcp_out(end, end.seq, end.ack, None)
            case Reinject(conn_ids):
                self._reinject(conn_ids)
            case Guard(conn_ids):
                self.guarded = set(conn_ids)
            case Abort(inside, _):
                end = self.end_inside(inside)
                if end is not None:
                    end.reset = True
                    self.net.at(now + 0.001, lambda: self.close(end.connection.birth))
            case Resolve(peer_id, name):
                found = self.resolver.get(name, [])
                self.net.at(now + 0.02, lambda: self._resolved(peer_id, found))
            case Log():
                self.logs.append(command)

    def _reserve(self, conn_id: str, flow: Flow) -> Flow | None:
        local = flow.local
        others = {f.local for i, f in self.reserved.items() if i != conn_id}
        while local in self.taken_ports or local in others:
            local = Endpoint(local.addr, 50000 + self.random.randrange(10000))
        self.reserved[conn_id] = Flow(local, flow.remote)
        return self.reserved[conn_id]

    def _reserved(self, got: dict[str, Flow | None]) -> None:
        if self.core:
            self.core.ports_reserved(got, self.net.now)
            self.drain()

    def _resolved(self, peer_id: str, found: list[Endpoint]) -> None:
        if self.core:
            self.core.resolved(peer_id, found, self.net.now)
            self.drain()

    def _reinject(self, conn_ids: tuple[str, ...]) -> None:
        for conn_id in conn_ids:
            entry = self.kernel[conn_id]
            end = self.ends.get(entry.birth)
            held = self.held.pop(conn_id, [])
            if end is not None and entry.wire_out is not None:
                for data in end.unacked[:1]:
                    held.append((data, end.ack, data))
                for seq, ack, value in held:
                    self.net.carry(Tcp(entry.wire_out, seq, ack, value))

    # addresses

    def source_for(self, remote: Address) -> Address | None:
        usable = [a for a in self.addresses.values() if a.usable and not a.inside]
        return next((a.addr for a in reversed(usable) if a.addr.version == remote.version), None)

    def paths(self) -> None:
        if self.core is None:
            return
        far = self.core.far_addresses() | {a for h in self.net.hosts for a in h.addresses}
        source = {a: s for a in far if (s := self.source_for(a)) is not None}
        self.core.paths_changed(Paths(tuple(self.addresses.values()), source), self.net.now)
        self.drain()

    def readdress(self, *texts: str | Address) -> None:
        """From now on exactly these addresses (routing prefers the last)."""
        old = self.addresses
        self.addresses = {}
        for text in texts:
            addr = ip_address(text)
            self.addresses[addr] = old.get(addr) or self._local(str(text))
        self.paths()

    def address(self, text: str, **changes: bool) -> None:
        """Add an address, or change whether it is usable or inside."""
        self.addresses[ip_address(text)] = self._local(text, **changes)
        self.paths()

    # packets

    def udp_in(self, packet: Udp) -> None:
        if packet.target.port != PORT or self.core is None:
            return
        self.core.receive_datagram(packet.data, packet.source, packet.target.addr, self.net.now)
        self.drain()

    def end_inside(self, inside: Flow) -> End | None:
        return next((e for e in self.ends.values() if e.connection.inside == inside), None)

    def entry_of(self, birth: Flow) -> Entry | None:
        return next((e for e in self.kernel.values() if e.birth == birth), None)

    def say(self, birth: Flow, value: int | None = None) -> int:
        """Our end sends a segment of data."""
        end = self.ends[birth]
        end.seq += 1
        end.unacked.append(end.seq)
        self.tcp_out(end, end.seq, end.ack, end.seq)
        if len(end.unacked) == 1:
            self.net.at(self.net.now + RTO, lambda: self._retransmit(end))
        return end.seq

    def _retransmit(self, end: End) -> None:
        """As TCP does, without its back-off."""
        if end.reset or not end.unacked or end.connection.birth not in self.ends:
            return
        for value in list(end.unacked):
            self.tcp_out(end, value, end.ack, value)
        self.net.at(self.net.now + RTO, lambda: self._retransmit(end))

    def tcp_out(self, end: End, seq: int, ack: int, data: int | None) -> None:
        birth = end.connection.birth
        entry = self.entry_of(birth)
        wire: Flow | None = birth if entry is None else entry.wire_out
        if data is None and birth in self.observed:
            self._seen(birth, "out", seq, ack)
        if wire is None:
            assert entry is not None
            self.held.setdefault(entry.conn_id, []).append((seq, ack, data))
        elif wire.local.addr in self.addresses or wire.local.addr in self.behind:
            self.net.carry(Tcp(wire, seq, ack, data))

    def _seen(self, birth: Flow, direction: str, seq: int, ack: int) -> None:
        segment = Segment(birth, direction, seq, ack)  # type: ignore[arg-type]
        self.net.at(self.net.now, lambda: self._tell(segment))

    def _tell(self, segment: Segment) -> None:
        if self.core is not None:
            self.core.segment_seen(segment, self.net.now)
            self.drain()

    def tcp_in(self, packet: Tcp) -> None:
        wire = packet.flow.reversed()
        entry = next((e for e in self.kernel.values() if wire in e.wires), None)
        if any(wire in e.stale for e in self.kernel.values()):
            return
        if entry is not None and packet.rst:
            if self.core:
                self.core.reset_withheld(wire, self.net.now)
                self.drain()
            return
        birth = wire if entry is None else entry.birth
        end = self.ends.get(birth)
        if end is None or end.reset:
            stray = self.net.owner(packet.flow.local.addr)
            if stray is not None and not packet.rst:
                if not self.net.plain_ports & {wire.local.port, wire.remote.port}:
                    fault = f"{self.name}: {wire} reached the stack unmatched"
                    self.net.violations.append(fault)
                self.net.carry(Tcp(wire, packet.ack, 0, None, rst=True))
            return
        if entry is None and self.entry_of(birth) is not None:
            self.net.violations.append(f"{self.name}: {wire} came past its redirect")
        if packet.rst:
            end.reset = True
            self.close(birth)
            return
        if packet.data is None and birth in self.observed:
            self._seen(birth, "in", packet.seq, packet.ack)
        end.unacked = [d for d in end.unacked if d > packet.ack]
        if packet.data is not None:
            if packet.data == end.ack + 1:
                end.ack = packet.data
                end.received.append(packet.data)
            self.tcp_out(end, end.seq, end.ack, None)

    # connections

    def connect(
        self, local: str, lport: int, other: Host, remote: str, rport: int, age: float | None = 20.0
    ) -> Flow:
        """A connection to another host's socket; both cores hear of it; our birth flow."""
        flow = Flow.of(local, lport, remote, rport)
        since = None if age is None else self.net.now - age
        seq, ack = self.random.randrange(10**6), self.random.randrange(10**6)
        for host, birth, opened in ((other, flow.reversed(), False), (self, flow, True)):
            c = Connection(birth, birth, True, opened, since)
            numbers = (seq, ack) if opened else (ack, seq)
            host.ends[birth] = End(c, *numbers)
            if host.core:
                host.core.connection_opened(c, self.net.now)
                host.drain()
        return flow

    def close(self, birth: Flow) -> None:
        """Our end ended."""
        self.ends.pop(birth, None)
        if self.core:
            self.core.connection_closed(birth, self.net.now)
            self.drain()

    def sees(self, kind: str) -> list[Log]:
        return [log for log in self.logs if log.kind == kind]


def introduce(a: Host, b: Host) -> None:
    """Keys by hand: a makes them, b imports them; each knows where the other is."""
    assert a.core
    assert b.core
    addr_a, addr_b = (next(reversed(h.addresses)) for h in (a, b))
    _, theirs = a.core.introduce(b.name, Endpoint(addr_b, PORT), a.net.now)
    a.drain()
    from dataclasses import replace

    record = replace(theirs, name=a.name, addresses=(str(addr_a),), port=PORT)
    b.core.add_peer(record, b.net.now)
    b.drain()


def bound(host: Host, birth: Flow) -> bool:
    return host.entry_of(birth) is not None


def talk(a: Host, birth: Flow, b: Host, count: int = 1) -> None:
    """Each end says something that the other end must receive."""
    for _ in range(count):
        for host, flow, other in ((a, birth, b), (b, birth.reversed(), a)):
            value = host.say(flow)
            host.net.run_until(
                lambda other=other, flow=flow, value=value: (
                    value in other.ends[flow.reversed()].received
                ),
                limit=5,
            )
