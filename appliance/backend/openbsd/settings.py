"""What the OpenBSD backend is told."""

from __future__ import annotations

from dataclasses import dataclass

#: picked-up states show ESTABLISHED:CLOSED and would expire after 30 s: "tcp.opening 86400
#: gives it a day", so that a state that is gone tells of a connection that is gone
KEEP_A_DAY = ("tcp.opening 86400",)


@dataclass(frozen=True, slots=True)
class Settings:
    """Names, numbers and the roles of interfaces.

    anchor    the anchor that the main ruleset calls as ``anchor/*``
    reserved  the anchor after its NAT rule; keeps reserved ports free
    pflog     interface that ``match out log (to pflog1)`` writes to
    divert_port, hold_port   divert(4) ports: the packet workers', the held packets'
    inside    interfaces (names) or prefixes of the LAN side; empty: those that hold
              private addresses only, while another one has the default route
    outside   interfaces towards the network
    ignore    interfaces that are left out altogether
    divert    connections may take the divert path
    """

    anchor: str = "redirect"
    reserved: str = "redirect-reserved"
    pflog: str = "pflog1"
    divert_port: int = 700
    hold_port: int = 701
    inside: tuple[str, ...] = ()
    outside: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    divert: bool = True
