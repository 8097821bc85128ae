"""An Ethernet switch in this process, for guests that have no bridge and no root.

      guest A          guest B         host's namespace        Python
      stream           stream              tap                  peer
        |                |                  |                     |
    ====+================+==================+=====================+====  Wire

QEMU speaks to a port over a Unix socket (``-netdev stream``): each frame follows its
length as a 32-bit big-endian number.  A tap device joins a network namespace (that takes
root); a :class:`Peer` is code here that answers frames, a DHCP server for example.

Every frame goes to every other port.  A port that can't keep up loses frames, as on a
real wire; nothing waits for it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import selectors
import socket
import struct
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol

FRAME_MAX = 65_550  # QEMU's own limit lies above it
_QUEUE_MAX = 4 << 20  # bytes that wait for a slow guest
_TUNSETIFF = 0x400454CA
_IFF_TAP_NO_PI = 0x0002 | 0x1000


class Peer(Protocol):
    """Code on the wire."""

    def frame(self, data: bytes) -> Iterable[bytes]:
        """A frame (without FCS) came; return those to send.  Runs in the wire's thread."""


class _Port(ABC):
    """One end; ``fd`` is what the wire's thread watches."""

    def __init__(self, name: str, fd: int) -> None:
        self.name = name
        self.fd = fd
        self.frames = 0

    @abstractmethod
    def read(self) -> list[bytes]: ...

    @abstractmethod
    def send(self, frame: bytes) -> None: ...

    @abstractmethod
    def flush(self) -> None:
        """Write on, the descriptor takes more."""

    @abstractmethod
    def waiting(self) -> bool:
        """Whether something is left to :meth:`flush`."""

    @abstractmethod
    def close(self) -> None: ...


class _Gone(Exception):
    """The other end of the port hung up."""


class _Tap(_Port):
    def read(self) -> list[bytes]:
        frames: list[bytes] = []
        with contextlib.suppress(BlockingIOError):
            while len(frames) < 64:
                frames.append(os.read(self.fd, FRAME_MAX))
        return frames

    def send(self, frame: bytes) -> None:
        # EIO: the interface is down; EAGAIN: its queue is full.  A wire drops.
        with contextlib.suppress(OSError):
            os.write(self.fd, frame)

    def flush(self) -> None:
        """Nothing is ever kept back."""

    def waiting(self) -> bool:
        return False

    def close(self) -> None:
        os.close(self.fd)


class _Stream(_Port):
    """A guest's end of ``-netdev stream``."""

    def __init__(self, name: str, connection: socket.socket) -> None:
        super().__init__(name, connection.fileno())
        connection.setblocking(False)
        self._connection = connection
        self._in = bytearray()
        self._out = bytearray()

    def read(self) -> list[bytes]:
        try:
            data = self._connection.recv(1 << 18)
        except BlockingIOError:
            return []
        except OSError as error:
            raise _Gone from error
        if not data:
            raise _Gone
        self._in += data
        return list(self._cut())

    def _cut(self) -> Iterable[bytes]:
        while len(self._in) >= 4:
            (length,) = struct.unpack_from("!I", self._in)
            if length > FRAME_MAX:
                raise _Gone  # out of step; there is no way to find the next frame
            if len(self._in) < 4 + length:
                return
            yield bytes(self._in[4 : 4 + length])
            del self._in[: 4 + length]

    def send(self, frame: bytes) -> None:
        if len(self._out) < _QUEUE_MAX:
            self._out += struct.pack("!I", len(frame)) + frame
            self.flush()

    def flush(self) -> None:
        try:
            while self._out:
                del self._out[: self._connection.send(self._out)]
        except BlockingIOError:
            pass
        except OSError as error:
            raise _Gone from error

    def waiting(self) -> bool:
        return bool(self._out)

    def close(self) -> None:
        self._connection.close()


class Wire:
    """A switch; ``with Wire(dir, "wan") as wan:``.

    ``path`` is the Unix socket for :class:`qemu.Guest`.
    """

    def __init__(self, directory: Path, name: str) -> None:
        self.name = name
        self.path = directory / f"{name}.wire"
        self._lock = threading.Lock()
        self._ports: list[_Port] = []
        self._peers: list[Peer] = []
        self._taps: list[Callable[[bytes], None]] = []
        self._selector = selectors.DefaultSelector()
        self._door = socket.socket(socket.AF_UNIX)
        self._door.bind(str(self.path))
        self._door.listen(8)
        self._door.setblocking(False)
        self._wake_out, self._wake_in = socket.socketpair()
        self._wake_out.setblocking(False)
        self._selector.register(self._door, selectors.EVENT_READ)
        self._selector.register(self._wake_out, selectors.EVENT_READ)
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name=f"wire {name}", daemon=True)
        self._thread.start()

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._stopping:
            return
        self._stopping = True
        self._wake_in.send(b"x")
        self._thread.join()
        for port in self._ports:
            port.close()
        self._selector.close()
        for end in (self._door, self._wake_out, self._wake_in):
            end.close()
        self.path.unlink(missing_ok=True)

    # -- plugging in -----------------------------------------------------------------

    def add_tap(self, device: str) -> None:
        """Make a tap device in the calling thread's namespace and plug it in; it goes
        away with the wire.  Takes CAP_NET_ADMIN there."""
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", device.encode(), _IFF_TAP_NO_PI))
        except BaseException:
            os.close(fd)
            raise
        self._add(_Tap(device, fd))

    def add_peer(self, peer: Peer) -> None:
        with self._lock:
            self._peers.append(peer)

    def watch(self, see: Callable[[bytes], None]) -> None:
        """``see`` is shown each frame, in the wire's thread."""
        with self._lock:
            self._taps.append(see)

    def send(self, frame: bytes) -> None:
        """Put a frame on the wire, as if from one more port."""
        with self._lock:
            self._flood(frame, None)

    def counts(self) -> dict[str, int]:
        """Frames that came in, by port."""
        with self._lock:
            return {port.name: port.frames for port in self._ports}

    # -- the wire's thread -----------------------------------------------------------

    def _add(self, port: _Port) -> None:
        with self._lock:
            self._ports.append(port)
            self._selector.register(port.fd, selectors.EVENT_READ, port)
        self._wake_in.send(b"x")

    def _remove(self, port: _Port) -> None:
        self._ports.remove(port)
        self._selector.unregister(port.fd)
        port.close()

    def _run(self) -> None:
        while not self._stopping:
            for key, events in self._selector.select():
                if key.fileobj is self._wake_out:
                    self._wake_out.recv(4096)
                elif key.fileobj is self._door:
                    connection, _ = self._door.accept()
                    self._add(_Stream(f"guest{len(self._ports)}", connection))
                else:
                    with self._lock:
                        self._serve(key.data, events)

    def _serve(self, port: _Port, events: int) -> None:
        if port not in self._ports:
            return
        try:
            if events & selectors.EVENT_WRITE:
                port.flush()
            frames = port.read() if events & selectors.EVENT_READ else []
        except _Gone:
            self._remove(port)
            return
        port.frames += len(frames)
        for frame in frames:
            self._flood(frame, port)
        for each in self._ports:
            want = selectors.EVENT_READ | (selectors.EVENT_WRITE if each.waiting() else 0)
            if self._selector.get_key(each.fd).events != want:
                self._selector.modify(each.fd, want, each)

    def _flood(self, frame: bytes, source: _Port | None) -> None:
        for see in self._taps:
            see(frame)
        for port in list(self._ports):
            if port is not source:
                try:
                    port.send(frame)
                except _Gone:
                    self._remove(port)
        for peer in self._peers:
            for answer in peer.frame(frame):
                for port in list(self._ports):
                    with contextlib.suppress(_Gone):
                        port.send(answer)
