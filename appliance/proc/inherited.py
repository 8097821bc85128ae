"""What the engine takes over from the parent by fork."""

from __future__ import annotations

import socket
from dataclasses import dataclass

from . import backends


@dataclass(frozen=True)
class Inherited:
    """Open sockets; the engine could not open most of them itself.

    link     the Unix socket to the parent (ipc.py)
    udp      the redirect port, one socket a family
    control  the listening control socket
    backend  what the operating system's part needs (netlink, raw sockets, ...)
    fresh    the configuration is new, its rules choose the paths of all connections again
    """

    link: socket.socket
    udp: list[socket.socket]
    control: socket.socket
    backend: backends.Sockets
    fresh: bool = True
