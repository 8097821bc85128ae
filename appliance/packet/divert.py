"""Handles that take packets out of the network stack, in the shape of pydivert's.

    with Divert("outbound and tcp.DstPort == 80") as handle:
        for packet in handle:
            packet.dst_addr = "192.0.2.7"
            handle.send(packet)

A packet that is received and not sent is gone.  What the kernel can select is
selected there; Python looks at the rest.
"""

from __future__ import annotations

import asyncio
import errno
import select
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from types import TracebackType
from typing import Self

from .consts import Flag, Layer, Param
from .filter import Filter, check_filter, compile_filter
from .packet import Packet
from .port import PacketPort, PortFactory, UnsupportedError, port_factory

PRIORITIES = range(-30000, 30001)
DEFAULT_BUFFER = 65575

# Received packets without an answer, at most; the oldest are dropped.  WinDivert
# queues as many, and takes 16 times as many as the largest.
QUEUE_LEN = 4096
_LIMITS = {Param.QUEUE_LEN: (32, 16384)}

_BATCH = 64


class Divert:
    """A handle.

    filter     which packets, in WinDivert's language; ValueError when it has a fault
    layer      NETWORK, or NETWORK_FORWARD for packets that only pass this machine
    priority   -30000 to 30000; higher ones see packets first
    flags      see :class:`.consts.Flag`
    interface  for SNIFF: listen there only
    port       makes the port; None: that of this system

    A handle belongs to one thread.
    """

    def __init__(
        self,
        filter: str = "true",
        layer: Layer = Layer.NETWORK,
        priority: int = 0,
        flags: Flag = Flag.DEFAULT,
        *,
        interface: str | None = None,
        port: PortFactory | None = None,
    ) -> None:
        self._text = filter.strip()
        self._layer = Layer(layer)
        self._priority = priority
        self._flags = Flag(flags)
        self._interface = interface
        self._factory = port
        self._port: PacketPort | None = None
        self._compiled: Filter | None = None
        self._waiting: dict[int, Packet] = {}
        self._ready: list[Packet] = []
        self._queue_len = QUEUE_LEN
        self._stats = {"received": 0, "sent": 0, "injected": 0, "passed": 0, "dropped": 0}

    def __repr__(self) -> str:
        state = "open" if self.is_open else "closed"
        return (
            f"<{type(self).__name__} {state} filter={self._text!r} layer={self._layer.name} "
            f"priority={self._priority} flags={self._flags!r}>"
        )

    @property
    def filter(self) -> str:
        return self._text

    @property
    def layer(self) -> Layer:
        return self._layer

    @property
    def priority(self) -> int:
        return self._priority

    @property
    def flags(self) -> Flag:
        return self._flags

    @property
    def is_open(self) -> bool:
        return self._port is not None

    @property
    def is_opened(self) -> bool:
        """The name of :attr:`is_open` in pydivert 2 and 3."""
        return self.is_open

    @staticmethod
    def check_filter(filter: str, layer: Layer = Layer.NETWORK) -> tuple[bool, int, str]:
        """(valid, position of the fault, what it is)."""
        return check_filter(filter.strip(), Layer(layer))

    @staticmethod
    def register() -> None:
        """Nothing to register: there is no driver."""

    @staticmethod
    def unregister() -> None:
        """Nothing to unregister."""

    @staticmethod
    def is_registered() -> bool:
        return True

    def open(self) -> Self:
        """Begin to divert.

        RuntimeError: it is open.  ValueError: filter or priority.  UnsupportedError
        (an OSError): this system can't do it.
        """
        if self.is_open:
            raise RuntimeError("Divert handle is already open.")
        if self._priority not in PRIORITIES:
            raise ValueError(f"priority {self._priority} is not in -30000..30000")
        if Flag.SEND_ONLY in self._flags and self._flags & (Flag.RECV_ONLY | Flag.SNIFF):
            raise ValueError("SEND_ONLY goes with neither RECV_ONLY nor SNIFF")
        if Flag.SNIFF in self._flags and Flag.DROP in self._flags:
            raise ValueError("SNIFF and DROP exclude each other")
        self._compiled = compile_filter(self._text, self._layer)
        if self._layer not in (Layer.NETWORK, Layer.NETWORK_FORWARD):
            raise UnsupportedError(
                f"Layer.{self._layer.name} exists on Windows only; here are NETWORK "
                "and NETWORK_FORWARD"
            )
        port = self._make_port(self._compiled)
        port.open()
        self._port = port
        return self

    def _make_port(self, compiled: Filter) -> PacketPort:
        if Flag.SNIFF in self._flags and self._factory is None:
            # Only here, so that diverting needs no pcap.
            from .capture import CapturePort

            return CapturePort(compiled, self._layer, self._interface)
        factory = self._factory or port_factory()
        return factory(compiled, self._layer, self._priority, self._flags, self._interface)

    def close(self) -> None:
        """End; packets that were received and not sent are gone.  RuntimeError: not open."""
        port = self._opened()
        self._port = None
        self._waiting.clear()
        self._ready.clear()
        port.close()

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        fault: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.is_open:
            self.close()

    async def __aenter__(self) -> Self:
        return self.open()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        fault: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.is_open:
            self.close()

    def _opened(self) -> PacketPort:
        if self._port is None:
            raise RuntimeError("Divert handle is not open")
        return self._port

    def fileno(self) -> int:
        """For select: readable when packets may wait."""
        return self._opened().fileno()

    # Receiving.

    def recv(self, bufsize: int = DEFAULT_BUFFER, timeout: float | None = None) -> Packet:
        """The next packet.

        bufsize  OSError EMSGSIZE when the packet is longer
        timeout  seconds; TimeoutError
        """
        return self.recv_batch(1, bufsize, timeout)[0]

    def recv_batch(
        self, count: int = 1, bufsize: int = DEFAULT_BUFFER, timeout: float | None = None
    ) -> list[Packet]:
        """One to ``count`` packets: waits for the first, takes what else is there."""
        port = self._opened()
        if Flag.SEND_ONLY in self._flags:
            raise OSError(errno.EBADF, "Handle is send-only")
        if Flag.DROP in self._flags:
            raise OSError(errno.EBADF, "Handle drops what matches: nothing is received")
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self._fill(port, count):
            left = None if deadline is None else deadline - time.monotonic()
            if (left is not None and left <= 0) or not select.select([port], [], [], left)[0]:
                raise TimeoutError(f"no packet within {timeout} s")
        taken, self._ready = self._ready[:count], self._ready[count:]
        self._stats["received"] += len(taken)
        for packet in taken:
            if len(packet.raw) > bufsize:
                raise OSError(errno.EMSGSIZE, f"a packet of {len(packet.raw)} bytes came")
        return taken

    def _fill(self, port: PacketPort, count: int) -> bool:
        """Take what the port has, and sort out what only the kernel let through."""
        compiled = self._compiled
        if compiled is None or len(self._ready) >= count:
            return bool(self._ready)
        for packet in port.receive(max(count, _BATCH)):
            if not compiled.matches(packet.facts()):
                port.release(packet)
                self._stats["passed"] += 1
                continue
            self._ready.append(packet)
            if packet.token is not None:
                self._waiting[packet.token] = packet
        while len(self._waiting) > self._queue_len:
            oldest = self._waiting.pop(next(iter(self._waiting)))
            port.drop(oldest)
            self._stats["dropped"] += 1
        return bool(self._ready)

    def __iter__(self) -> Iterator[Packet]:
        """Packets until the handle is closed."""
        while self.is_open:
            yield self.recv()

    async def recv_async(
        self, bufsize: int = DEFAULT_BUFFER, timeout: float | None = None
    ) -> Packet:
        return (await self.recv_batch_async(1, bufsize, timeout))[0]

    async def recv_batch_async(
        self, count: int = 1, bufsize: int = DEFAULT_BUFFER, timeout: float | None = None
    ) -> list[Packet]:
        """As :meth:`recv_batch`, while other tasks run."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(timeout):
            while True:
                try:
                    return self.recv_batch(count, bufsize, 0)
                except TimeoutError:
                    waiter: asyncio.Future[None] = loop.create_future()
                    number = self.fileno()
                    loop.add_reader(number, _wake, waiter)
                    try:
                        await waiter
                    finally:
                        loop.remove_reader(number)

    async def __aiter__(self) -> AsyncIterator[Packet]:
        while self.is_open:
            yield await self.recv_async()

    # Sending.

    def send(self, packet: Packet, recalculate_checksum: bool = True) -> int:
        """Let a received packet go on, or inject one; its length in bytes.

        A received packet goes on where it was taken out, once, in its own direction;
        the same packet a second time, or turned round, is injected.
        """
        port = self._opened()
        if self._flags & (Flag.RECV_ONLY | Flag.SNIFF):
            raise OSError(errno.EACCES, "Handle is recv-only")
        if recalculate_checksum:
            packet.recalculate_checksums()
        mine = packet.token is not None and self._waiting.get(packet.token) is packet
        if mine and packet.token is not None:
            del self._waiting[packet.token]
            port.release(packet)
            self._stats["sent"] += 1
        else:
            port.inject(packet)
            self._stats["injected"] += 1
        return len(packet.raw)

    def send_batch(self, packets: Iterable[Packet], recalculate_checksum: bool = True) -> int:
        """Send several; how many."""
        count = 0
        for packet in packets:
            self.send(packet, recalculate_checksum)
            count += 1
        return count

    async def send_async(self, packet: Packet, recalculate_checksum: bool = True) -> int:
        """As :meth:`send`, which never waits."""
        return self.send(packet, recalculate_checksum)

    async def send_batch_async(
        self, packets: Iterable[Packet], recalculate_checksum: bool = True
    ) -> int:
        return self.send_batch(packets, recalculate_checksum)

    # Limits and numbers.

    def get_param(self, name: Param) -> int:
        """QUEUE_LEN; UnsupportedError for the others."""
        if name not in _LIMITS:
            raise UnsupportedError(f"{Param(name).name} can't be limited here")
        return self._queue_len

    def set_param(self, name: Param, value: int) -> None:
        """QUEUE_LEN, 32 to 16384; ValueError, UnsupportedError."""
        if name not in _LIMITS:
            raise UnsupportedError(f"{Param(name).name} can't be limited here")
        low, high = _LIMITS[name]
        if not low <= value <= high:
            raise ValueError(f"{Param(name).name} is {low} to {high}, not {value}")
        self._queue_len = value

    def stats(self) -> dict[str, int]:
        """Packets received, sent on, injected, passed by Python's half of the filter,
        and dropped because too many were kept."""
        self._opened()
        return dict(self._stats)


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


WinDivert = Divert
