"""What the operator decides, as far as the protocol needs it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network
from typing import Literal

from ..rewrite.flow import Address
from ..rewrite.redirect import DataPath
from .inputs import Connection

Network = IPv4Network | IPv6Network
FirstContactPolicy = Literal["tofu", "ask", "strict"]


@dataclass(frozen=True, slots=True)
class Rule:
    """Holds for connections that fit all of what it names (None or empty: any).

    ports     either end's port
    prefix    holds the far end's address
    after     seconds until a connection counts as long-lived; None: it never does
    hold_max  seconds for which it is held at most; None: without end
    """

    after: float | None = 10.0
    path: DataPath = "kernel"
    ports: tuple[int, ...] = ()
    prefix: Network | None = None
    peer_id: str | None = None
    hold_max: float | None = None

    def fits(self, connection: Connection, peer_id: str | None) -> bool:
        birth = connection.birth
        return (
            (not self.ports or birth.remote.port in self.ports or birth.local.port in self.ports)
            and (self.prefix is None or _holds(self.prefix, birth.remote.addr))
            and (self.peer_id is None or self.peer_id == peer_id)
        )


def _holds(network: Network, addr: Address) -> bool:
    return addr.version == network.version and addr in network


@dataclass(frozen=True, slots=True)
class Rules:
    """The first rule that fits decides; callable as CoreSettings wants it."""

    rules: tuple[Rule, ...] = ()
    default: Rule = field(default_factory=Rule)

    def rule_for(self, connection: Connection, peer_id: str | None) -> Rule:
        return next((r for r in self.rules if r.fits(connection, peer_id)), self.default)

    def after(self, connection: Connection, peer_id: str | None) -> float | None:
        return self.rule_for(connection, peer_id).after

    def path(self, connection: Connection, peer_id: str) -> DataPath:
        return self.rule_for(connection, peer_id).path

    def hold_max(self, connection: Connection, peer_id: str) -> float | None:
        return self.rule_for(connection, peer_id).hold_max


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on what others can make us keep or do.

    peers            records in all; further first contacts are refused
    half_open        first contacts begun by others and not finished
    contacts         far addresses about which we remember whether they answer
    bindings         proofs in progress at once
    hello_rate       HELLOs and first contacts answered a second, for all senders
    handshake_rate   K1s answered a second without a cookie, for all senders
    challenge_rate   challenges a second to one peer (a victim may stand behind it)
    answer_rate      answers a second to where a peer says it is and has not proved it
    """

    peers: int = 1024
    half_open: int = 64
    contacts: int = 4096
    bindings: int = 32
    hello_rate: float = 50.0
    handshake_rate: float = 100.0
    challenge_rate: float = 20.0
    answer_rate: float = 50.0


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds.

    rekey         age at which a session is replaced
    idle          a session without bindings is dropped after this time
    silence       who does not answer HELLO is left alone for this time
    responder     the side whose end did not open a connection waits this long for an offer
    prepared      a prepared address is forgotten unless it is prepared again
    settle        packets from an old address that still lives are let in for this time
    linger        an ended connection keeps its redirect (last ACKs)
    """

    rekey: float = 3600.0
    idle: float = 600.0
    silence: float = 3600.0
    responder: float = 5.0
    prepared: float = 600.0
    settle: float = 3.0
    linger: float = 2.0


@dataclass(frozen=True, slots=True)
class CoreSettings:
    """port: UDP port of all daemons; ``long_lived_after`` gives seconds, None: never;
    ``hold_max``: for how many seconds nobody need answer a connection, None: without end."""

    port: int = 4787
    first_contact: FirstContactPolicy = "tofu"
    discover: Literal["any", "known"] | tuple[Network, ...] = "any"
    long_lived_after: Callable[[Connection, str | None], float | None] = field(
        default_factory=lambda: Rules().after
    )
    path_for: Callable[[Connection, str], DataPath] = field(default_factory=lambda: Rules().path)
    hold_max: Callable[[Connection, str], float | None] = field(
        default_factory=lambda: Rules().hold_max
    )
    limits: Limits = field(default_factory=Limits)
    timing: Timing = field(default_factory=Timing)

    def may_discover(self, addr: Address) -> bool:
        """Whether policy lets us ask, or answer, a host that we do not know."""
        if self.first_contact == "strict" or self.discover == "known":
            return False
        return self.discover == "any" or any(_holds(net, addr) for net in self.discover)
