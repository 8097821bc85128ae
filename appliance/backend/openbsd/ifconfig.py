"""What ``ifconfig`` prints, read into values.  Pure.

The route socket tells changes; this tells what there was before the first one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address

from ...rewrite.flow import Address

_HEAD = re.compile(r"(\S+): flags=([0-9a-f]+)<[^>]*>")
_INET = re.compile(r"\s+inet (\S+)(?: --> \S+)? netmask (0x[0-9a-f]{1,8})")
_INET6 = re.compile(r"\s+inet6 ([0-9a-fA-F:.]+)(?:%\S+)?(?: -> \S+)? prefixlen (\d+)(.*)")
_INDEX = re.compile(r"\s+index (\d+)")
_GROUPS = re.compile(r"\s+groups: (.*)")
_STATUS = re.compile(r"\s+status: (.*)")
IFF_UP, IFF_LOOPBACK = 0x1, 0x8


@dataclass(frozen=True, slots=True)
class IfAddress:
    """tentative: duplicate address detection goes on, or found one; deprecated: not for
    new connections (RFC 4862 5.5.4)."""

    addr: Address
    prefix_len: int
    tentative: bool = False
    deprecated: bool = False


@dataclass(slots=True)
class Interface:
    """link_up: what ``status`` says; without one (tunnels, loopback) it counts as up."""

    name: str
    flags: int
    index: int = 0
    link_up: bool = True
    groups: tuple[str, ...] = ()
    addresses: dict[Address, IfAddress] = field(default_factory=dict)

    @property
    def up(self) -> bool:
        return bool(self.flags & IFF_UP) and self.link_up

    @property
    def loopback(self) -> bool:
        return bool(self.flags & IFF_LOOPBACK)


def parse(text: str) -> list[Interface]:
    """All interfaces in ``ifconfig`` output; lines of unknown form are skipped."""
    return list(_interfaces(text))


def _interfaces(text: str) -> Iterator[Interface]:
    made: Interface | None = None
    for line in text.splitlines():
        if head := _HEAD.match(line):
            if made is not None:
                yield made
            made = Interface(head[1], int(head[2], 16))
        elif made is not None:
            _detail(made, line)
    if made is not None:
        yield made


def _detail(made: Interface, line: str) -> None:
    if found := _INET.match(line):
        mask = int(found[2], 16)
        _keep(made, found[1], mask.bit_count(), "")
    elif found := _INET6.match(line):
        _keep(made, found[1], int(found[2]), found[3])
    elif found := _INDEX.match(line):
        made.index = int(found[1])
    elif found := _GROUPS.match(line):
        made.groups = tuple(found[1].split())
    elif found := _STATUS.match(line):
        made.link_up = found[1].strip() not in ("no carrier", "down", "no network")


def _keep(made: Interface, text: str, prefix_len: int, words: str) -> None:
    try:
        addr: Address = IPv6Address(text) if ":" in text else IPv4Address(text)
    except ValueError:
        return
    if prefix_len > addr.max_prefixlen:
        return
    tentative = "tentative" in words or "duplicated" in words
    made.addresses[addr] = IfAddress(addr, prefix_len, tentative, "deprecated" in words)
