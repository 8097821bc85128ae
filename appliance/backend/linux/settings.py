"""What the Linux backend is told."""

from __future__ import annotations

from dataclasses import dataclass, field

from pfconf import nft


@dataclass(frozen=True, slots=True)
class Settings:
    """Names, numbers and the roles of interfaces.

    rules    names and numbers in the nftables rules
    inside   interfaces (names) or prefixes of the LAN side; empty: those that hold
             private IPv4 addresses only, while another one has the default route
    outside  interfaces that are never taken for the LAN side
    ignore   interfaces that are left out altogether
    """

    rules: nft.Settings = field(default_factory=nft.Settings)
    inside: tuple[str, ...] = ()
    outside: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
