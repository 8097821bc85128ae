"""Facts about the surroundings that the protocol core is told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from ..rewrite.flow import Address, Flow


@dataclass(frozen=True, slots=True)
class LocalAddress:
    """One address of this machine.

    prefix_len  length of its on-link prefix
    usable      link up, not tentative, not deprecated
    inside      on the LAN side (never a source towards peers)
    """

    addr: Address
    ifname: str
    prefix_len: int
    usable: bool
    inside: bool = False


@dataclass(frozen=True, slots=True)
class Paths:
    """Which addresses this machine has, and which it would use towards whom.

    addresses  all of them, parked ones left out
    source     far address -> source address that the kernel's routes choose now;
               a far address without a route is missing
    """

    addresses: tuple[LocalAddress, ...]
    source: Mapping[Address, Address]


@dataclass(frozen=True, slots=True)
class Connection:
    """A TCP connection of our own or one that we forward.

    birth          as it crosses the network side of this machine
    inside         as our end sees it; equal to birth for our own sockets
    local          our own socket
    inside_opened  our end sent the SYN
    since          seconds since the epoch at which it was first seen; None when it
                   is older than our knowledge (then it counts as long-lived)
    """

    birth: Flow
    inside: Flow
    local: bool
    inside_opened: bool
    since: float | None


@dataclass(frozen=True, slots=True)
class Segment:
    """A TCP segment without payload, SYN, FIN or RST, seen on a birth flow.

    direction  "out": our end sent it, "in": the far end did
    """

    flow: Flow
    direction: Literal["in", "out"]
    seq: int
    ack: int
