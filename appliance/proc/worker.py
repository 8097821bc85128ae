"""The packet worker: a process that translates what the divert path brings.

It runs as `_redirectd` in a loop between two descriptors, the queue's and the parent's,
and reads nothing else.  On Linux it keeps CAP_NET_ADMIN, which the kernel wants for each
verdict, and no other capability.  The parent says of which connections it is (ipc.py).
"""

from __future__ import annotations

import logging
import os
import select
import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path

from ..backend.api import PacketWorker
from .ipc import EngineLink, Message, ProtocolError, entries_of, text_list

log = logging.getLogger("redirectd.worker")

NAME = "packet worker"  # in ps(1); at most 15 bytes count


def main(side: PacketWorker, link: EngineLink) -> None:
    """Until the parent is gone."""
    poll = select.poll()
    for fileno in (link.sock.fileno(), side.fileno()):
        poll.register(fileno, select.POLLIN)
    while True:
        ready = {fileno for fileno, _ in poll.poll()}
        if link.sock.fileno() in ready:
            try:
                _serve_one(side, link)
            except (EOFError, ConnectionError):
                return
        if side.fileno() in ready:
            side.read()


def _serve_one(side: PacketWorker, link: EngineLink) -> None:
    kind, body = link.receive()
    try:
        # What came before the rules changed is translated as it would have been then.
        match kind:
            case Message.WORKER_LOAD:
                side.drain()
                side.load(entries_of(body))
            case Message.WORKER_APPLY:
                side.apply(entries_of(body))
            case Message.WORKER_SHUT:
                side.drain()
                side.apply(entries_of(body))
            case Message.WORKER_REMOVE:
                side.drain()
                side.remove(text_list(body, "conn_ids"))
            case _:
                raise ProtocolError(f"{kind.name} is nothing for a packet worker")
    except (ProtocolError, ValueError, KeyError, TypeError) as fault:
        link.answer(Message.FAILED, {"why": f"{type(fault).__name__}: {fault}"})
    else:
        link.answer(Message.DONE, None)


def alone(link: socket.socket, side: PacketWorker) -> None:
    """In a new process: the name, and nothing of the parent's but what the work needs."""
    signal.set_wakeup_fd(-1)
    # Whoever stops the service signals every process of it; the parent must come first, so
    # that connections are handed over before their packets are dropped.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":
        with suppress(OSError):
            Path("/proc/self/comm").write_text(NAME)
    kept = sorted((link.fileno(), side.fileno()))
    for low, high in zip([2, *kept], [*kept, os.sysconf("SC_OPEN_MAX")], strict=True):
        os.closerange(low + 1, high)
