"""A cable with a delay: copies frames between two interfaces (this kernel, like many,
has no netem).

    relay.py LEFT RIGHT          inside the namespace that has both interfaces

Settings arrive as JSON lines on stdin, each answered by ``ok``; the end of stdin ends
the relay, so that it never outlives its owner.  Frames pass as the kernel made them,
super-packets and unfinished checksums included (PACKET_VNET_HDR), so one core copies
some Gbit/s and the delay stays exact: it hangs on one timerfd, and the process asks
for real-time scheduling.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import random
import select
import socket
import struct
import sys
import time
from collections import deque

_SOL_PACKET = 263
_PACKET_VNET_HDR = 15
_PACKET_IGNORE_OUTGOING = 23
_SO_RCVBUFFORCE = 33
_SO_SNDBUFFORCE = 32
_ETH_P_ALL = 3
_TFD_NONBLOCK = 0o4000
_TFD_TIMER_ABSTIME = 1
_BURST = 256
_QUEUE_FRAMES = 20000  # a bound on memory; a longer queue drops, as a router's does
_PR_SET_TIMERSLACK = 29


class Timer:
    """timerfd(2) on the monotonic clock (Python 3.11 has none of its own)."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self.fd: int = self._libc.timerfd_create(time.CLOCK_MONOTONIC, _TFD_NONBLOCK)
        if self.fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        self._libc.prctl(_PR_SET_TIMERSLACK, 1, 0, 0, 0)
        self._at = 0

    def set(self, at_ns: int) -> None:
        """Become readable at ``at_ns`` (0: never)."""
        if at_ns == self._at:
            return
        self._at = at_ns
        spec = struct.pack("qqqq", 0, 0, at_ns // 10**9, at_ns % 10**9)
        if self._libc.timerfd_settime(self.fd, _TFD_TIMER_ABSTIME, spec, None) != 0:
            raise OSError(ctypes.get_errno(), "timerfd_settime")

    def clear(self) -> None:
        self._at = 0
        with contextlib.suppress(BlockingIOError):
            os.read(self.fd, 8)


class Direction:
    """Frames that entered at ``source`` and leave at ``sink`` after the delay."""

    def __init__(self, source: socket.socket, sink: socket.socket) -> None:
        self.source = source
        self.sink = sink
        self.queue: deque[tuple[int, bytes]] = deque()

    def take(self, settings: Settings) -> None:
        """Read what has arrived (at most a burst, so that the other side gets its turn)."""
        now = time.monotonic_ns()
        due = now + settings.delay_ns
        if self.queue:
            due = max(due, self.queue[-1][0])  # a cable does not reorder
        recv = self.source.recv
        for _ in range(_BURST):
            try:
                frame = recv(70000)
            except BlockingIOError:
                return
            except OSError:
                return  # the interface is down
            if settings.blackout or len(self.queue) >= _QUEUE_FRAMES:
                continue
            if settings.loss and settings.rng.random() < settings.loss:
                continue
            self.queue.append((due, frame))

    def release(self, now: int) -> None:
        queue = self.queue
        while queue and queue[0][0] <= now:
            # A full or absent interface loses the frame, as a real one would.
            with contextlib.suppress(OSError):
                self.sink.send(queue[0][1])
            queue.popleft()


class Settings:
    def __init__(self) -> None:
        self.delay_ns = 0
        self.loss = 0.0
        self.blackout = False
        self.rng = random.Random(1)

    def change(self, values: dict[str, float]) -> None:
        for name, value in values.items():
            if name == "rtt_ms":
                self.delay_ns = int(value * 500_000)
            elif name == "loss":
                self.loss = float(value)
            elif name == "blackout":
                self.blackout = bool(value)
            elif name == "seed":
                self.rng = random.Random(value)
            else:
                raise ValueError(f"unknown setting {name}")


def open_side(ifname: str) -> socket.socket:
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
    sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 64 << 20)
    sock.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, 64 << 20)
    sock.setsockopt(_SOL_PACKET, _PACKET_VNET_HDR, 1)
    sock.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
    sock.bind((ifname, _ETH_P_ALL))
    return sock


def main() -> None:
    left, right = (open_side(name) for name in sys.argv[1:3])
    with contextlib.suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(10))
    there, back = Direction(left, right), Direction(right, left)
    settings = Settings()
    timer = Timer()
    poll = select.epoll()
    for fd in (0, left.fileno(), right.fileno(), timer.fd):
        poll.register(fd, select.EPOLLIN)
    commands = b""
    while True:
        for fd, _ in poll.poll():
            if fd == left.fileno():
                there.take(settings)
            elif fd == right.fileno():
                back.take(settings)
            elif fd == timer.fd:
                timer.clear()
            else:
                piece = os.read(0, 4096)
                if not piece:
                    return
                *lines, commands = (commands + piece).split(b"\n")
                for line in lines:
                    settings.change(json.loads(line))
                    os.write(1, b"ok\n")
        now = time.monotonic_ns()
        there.release(now)
        back.release(now)
        timer.set(min((d.queue[0][0] for d in (there, back) if d.queue), default=0))


if __name__ == "__main__":
    main()
