"""The protocol core: inputs in, commands out; no socket, clock, file or chance of its own.

Each input is worked off completely; ``poll`` then gives the commands in the order in
which they have to be executed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from ..rewrite.flow import Address, Endpoint, Flow
from .absence import Absence
from .announcer import Announcer
from .binder import Binder
from .commands import Command, ReservePorts
from .connections import Binding
from .contact import FirstContact
from .cookies import CookieJar
from .correspondent import FarMoves
from .discovery import Discovery
from .exchange import Exchange
from .inputs import Connection, Paths, Segment
from .links import Links
from .message import (
    K1,
    K2,
    K3,
    Contact1,
    Contact2,
    Contact3,
    Contact4,
    Cookie,
    Data,
    Hello,
    HelloAck,
    Unknown,
    parse,
)
from .mover import OurMoves
from .operator import Operator
from .parking import Parking
from .peer import Peer
from .records import BindingRecord, PeerRecord
from .settings import CoreSettings
from .status import Ends
from .tracker import Tracker
from .transitions import Conn
from .views import ConnectionView, PeerView, bound_view, known_view, peer_view
from .wire import MessageError
from .world import World

WHERE_AFTER = 1.0


class Core(Operator):
    """All peers and connections of one host.

    rng    gives so many random bytes
    now    seconds since the epoch, in every input; never runs backwards
    first_contact  None: only hosts that we know already
    """

    def __init__(
        self,
        settings: CoreSettings,
        peers: Iterable[PeerRecord],
        bindings: Iterable[BindingRecord],
        host_id: str,
        *,
        rng: Callable[[int], bytes],
        now: float,
        first_contact: FirstContact | None,
    ) -> None:
        self.world = world = World(settings, host_id, rng, now)
        self.links = Links(world)
        cookies = CookieJar(rng, now)
        self.exchange = Exchange(world, self.links, cookies)
        self.binder = Binder(world, self.links)
        self.announcer = Announcer(world, self.links)
        self.mover = OurMoves(world, self.announcer)
        self.far_moves = FarMoves(world, self.links)
        self.ends = Ends(world, self.links)
        self.parking = Parking(world)
        self.absence = Absence(world, self.links, self.binder.watching)
        self.tracker = Tracker(world, self.binder, self.mover, self.ends, self.parking)
        self.ends.expects = self.binder.witness.expects
        self.ends.give_up = self.binder.give_up
        self.ends.announce = self.mover.again
        self.ends.forget = self.binder.forget = self._unbound
        self.absence.ended = self.tracker.closed
        self.announcer.on_doubt = self.ends.check
        self.announcer.on_settled = self._settled
        self.discovery = Discovery(world, self.links, cookies, first_contact)
        self.binder.seek = self.discovery.seek
        self.binder.bound = self._bound_to
        self.discovery.found = self._find_with
        self.discovery.why = self._why_with
        self.ends.on_host = self._host_told
        self._started = False
        self._timers: Mapping[str, Callable[..., None]] = {
            "ask": self._with_peer(self.exchange.ask_timer),
            "rekey": self._with_peer(self.links.rekey_timer),
            "idle": self._with_peer(self.links.idle_timer),
            "older": self._with_peer(self.links.older_timer),
            "request": self._with_peer(self.links.request_timer),
            "where": self._with_peer(self.exchange.renew),
            "change": self._with_peer(self.announcer.timer),
            "prepare": self._with_peer(self.mover.prepare_timer),
            "prepare-soon": self._with_peer(self.mover.prepare),
            "prepared": self._with_peer(self.far_moves.prepared_timer),
            "settle": self._with_peer(self.far_moves.settle_timer),
            "reconsider": self.mover.reconsider,
            "contact": self.discovery.timer,
            "age": self.tracker.aged,
            "offer": self.binder.offer_timer,
            "again": self.binder.again_timer,
            "proposal": self.binder.proposer.proposal_timer,
            "prompt": self.binder.proposer.prompt_timer,
            "prove": self.binder.proposer.prove_timer,
            "watch": self.binder.witness.watch_timer,
            "linger": self.ends.linger_timer,
            "far-closed": self.ends.far_closed_timer,
            "heard": self._with_peer(self.absence.heard_timer),
            "silent": self._with_peer(self.absence.silent_timer),
            "hold-max": self.absence.hold_max_timer,
        }
        for record in peers:
            self.links.add(record)
        self.tracker.restore(bindings)
        for binding in world.table.all_bindings():
            if (peer := world.peers.get(binding.peer_id)) is not None:
                self.links.look_at(peer, [binding.out_remote, *binding.remotes])

    def _bound_to(self, peer: Peer, binding: Binding) -> None:
        self.parking.bound(binding)
        self.mover.prepare_soon(peer)

    def _unbound(self, binding: Binding) -> None:
        self.absence.unbound(binding)
        self.tracker.unbound(binding)

    def _settled(self, peer: Peer) -> None:
        """All our changes are known to the peer."""
        self.ends.check(peer)
        self.mover.prepare_soon(peer)

    def _find_with(self, addr: Address) -> None:
        """Perhaps there is a peer now for the connections with ``addr``."""
        for known in self.world.table.with_remote(addr):
            self.binder.find(known)

    def _why_with(self, addr: Address, why: str) -> None:
        for known in self.world.table.with_remote(addr):
            if known.state is Conn.LONG and not known.tried:
                known.why = why

    def _host_told(self, peer: Peer, host_id: str) -> None:
        """The peer told its host ID within a session."""
        before = peer.record.host_id
        if before == host_id:
            return
        if before:
            self.world.log(
                "alert", "host-id", f"{peer.name} has the right keys, but another host ID than"
                " before: were its keys copied to another machine?", peer,
            )  # fmt: skip
        self.links.save(peer, replace(peer.record, host_id=host_id))

    # inputs

    def _at(self, now: float) -> None:
        self.world.now = max(now, self.world.now)

    def receive_datagram(self, data: bytes, remote: Endpoint, local: Address, now: float) -> None:
        """A datagram that came from ``remote`` to our address ``local``."""
        self._at(now)
        try:
            message = parse(data)
        except MessageError as error:
            self.world.log_rarely("debug", "malformed", f"{remote}: {error}")
            return
        match message:
            case Data():
                self.links.take_data(message, remote, local, len(data))
            case K1():
                self.exchange.take_k1(message, remote, local)
            case K2():
                self.exchange.take_k2(message, remote, local)
            case K3():
                self.exchange.take_k3(message, remote)
            case Cookie():
                self.exchange.take_cookie(message)
            case Unknown():
                self.exchange.take_unknown(message, remote)
            case Hello():
                self.discovery.take_hello(message, remote, local)
            case HelloAck():
                self.discovery.take_hello_ack(message, remote)
            case Contact1():
                self.discovery.take_contact1(message, remote, local)
            case Contact2():
                self.discovery.take_contact2(message, remote)
            case Contact3():
                self.discovery.take_contact3(message, remote, local)
            case Contact4():
                self.discovery.take_contact4(message, remote)
        self._finish()

    def handle_timer(self, now: float) -> None:
        """Everything that is due."""
        self._at(now)
        while (key := self.world.timers.pop(self.world.now)) is not None:
            self._timers[str(key[0])](*key[1:])
        self._finish()

    def next_timer(self) -> float | None:
        """When ``handle_timer`` wants to be called; seconds since the epoch."""
        return self.world.timers.next()

    def _with_peer(self, handler: Callable[..., None]) -> Callable[..., None]:
        def call(peer_id: str, *rest: object) -> None:
            peer = self.world.peers.get(peer_id)
            if peer is not None:
                handler(peer, *rest)

        return call

    def paths_changed(self, paths: Paths, now: float) -> None:
        """Addresses or routes changed; also called once at the start."""
        self._at(now)
        world = self.world
        before = world.local
        world.paths = paths
        world.local = {a.addr: a for a in paths.addresses}
        self.mover.hold()
        self.tracker.addresses_lost(before.keys() - world.local.keys())
        self.parking.update()
        self.mover.reconsider()
        self._tell_where()
        if not self._started:
            self._started = True
            for peer in world.peers.values():
                if world.table.count_of(peer.peer_id):
                    self.links.want_session(peer)
        self._finish()

    def _tell_where(self) -> None:
        """A peer to whom nothing moves would go on looking for us at the old address."""
        for peer in self.world.peers.values():
            if peer.endpoint is None or not self.world.table.count_of(peer.peer_id):
                continue
            source = self.world.paths.source.get(peer.endpoint.addr)
            if source is not None and source != peer.source:
                if peer.source is not None:
                    self.world.timers.set(("where", peer.peer_id), self.world.now + WHERE_AFTER)
                peer.source = source

    def connection_opened(self, c: Connection, now: float) -> None:
        """A connection came into being, or was found; saying it again is harmless."""
        self._at(now)
        self.tracker.opened(c)
        self._finish()

    def connection_closed(self, birth: Flow, now: float) -> None:
        """Our end of a connection ended."""
        self._at(now)
        self.tracker.closed(birth)
        self._finish()

    def nat_lost(self, birth: Flow, now: float) -> None:
        """The kernel dropped the NAT state of a connection that had not ended."""
        self._at(now)
        self.tracker.nat_lost(birth)
        self._finish()

    def connections_known(self, all: Iterable[Connection], now: float) -> None:
        """A complete dump: what is missing in it has ended, or lost its NAT state."""
        self._at(now)
        self.tracker.all_known(list(all))
        self._finish()

    def segment_seen(self, s: Segment, now: float) -> None:
        """A pure acknowledgment on a flow that ``Observe`` named."""
        self._at(now)
        self.binder.watching.segment(s)
        self.absence.seen(s)
        self._finish()

    def reset_withheld(self, wire: Flow, now: float) -> None:
        """A RST came on a wire flow of a bound connection and was not let through."""
        self._at(now)
        binding = self.world.table.on_wire(wire) or self.world.table.born(wire)
        if binding is not None:
            self.ends.reset_withheld(binding)
        self._finish()

    def silence(self, birth: Flow, now: float) -> None:
        """Our end repeats a segment of an open connection, and nothing comes back."""
        self._at(now)
        binding = self.world.table.born(birth)
        if binding is not None:
            self.absence.silence(binding)
        self._finish()

    def ports_reserved(self, got: Mapping[str, Flow | None], now: float) -> None:
        """The answer to ``ReservePorts``."""
        self._at(now)
        self.mover.ports_reserved(got)
        self._finish()

    def resolved(self, peer_id: str, addresses: Sequence[Endpoint], now: float) -> None:
        """The answer to ``Resolve``."""
        self._at(now)
        peer = self.world.peers.get(peer_id)
        if peer is not None:
            peer.resolved = list(addresses[:8])
        self._finish()

    def command_failed(self, command: Command, why: str, now: float) -> None:
        """A command could not be executed."""
        self._at(now)
        name = type(command).__name__
        self.world.log("warning", "command-failed", f"{name}: {why}")
        if isinstance(command, ReservePorts):
            self.mover.ports_reserved(dict.fromkeys(command.wanted))
        self._finish()

    # outputs

    def _finish(self) -> None:
        """The end of every input."""
        self.ends.flush()
        self.binder.watching.flush()
        self.links.flush()

    def poll(self) -> list[Command]:
        """The commands since the last call, in order."""
        commands, self.world.commands = self.world.commands, []
        return commands

    def peers(self) -> list[PeerView]:
        return [peer_view(self.world, p) for p in self.world.peers.values()]

    def connections(self) -> list[ConnectionView]:
        table = self.world.table
        bound = [bound_view(self.world, b) for b in table.bindings.values()]
        return bound + [known_view(k) for k in table.known.values() if k.conn_id is None]

    def far_addresses(self) -> set[Address]:
        """The far addresses for which ``Paths.source`` is wanted."""
        found = {r.addr for b in self.world.table.bindings.values() for r in b.remotes}
        found |= {p.endpoint.addr for p in self.world.peers.values() if p.endpoint is not None}
        return found | {k.c.birth.remote.addr for k in self.world.table.known.values()}
