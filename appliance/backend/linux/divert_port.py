"""The port of :class:`appliance.packet.divert.Divert` on Linux: NFQUEUE behind nft rules.

WinDivert's inbound and outbound are the hooks input and output; a loopback packet is
seen once, outbound, as WinDivert has it.  With FRAGMENTS inbound packets are taken
before conntrack puts fragments together.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Sequence

from ...packet import filter_kernel
from ...packet.consts import Direction, Flag, Layer
from ...packet.filter import Filter
from ...packet.packet import Packet
from ...packet.port import UnsupportedError, is_local
from ..api import BackendError
from . import queue_rules
from .nfqueue import Hook, Info, NfQueue
from .nftrun import run_nft

# Priorities of netfilter run the other way; this much before mangle (-150), so that a
# handle of priority 0 sees packets after conntrack and before other people's rules.
_MIDDLE = -160
_BEFORE_DEFRAGMENTATION = -450

# Packets that we inject carry this mark plus the queue's number: our own rules leave
# them alone, those of other handles show them as impostors.
_MARK = 0x5D000000
_MARK_MASK = 0xFFFF0000
_QUEUES = range(0x5D00, 0x5E00)
_IPV6_HDRINCL = 36


class LinuxPort:
    """See :class:`appliance.packet.port.PacketPort`; needs CAP_NET_ADMIN and CAP_NET_RAW."""

    def __init__(
        self, chosen: Filter, layer: Layer, priority: int, flags: Flag, interface: str | None
    ) -> None:
        if interface is not None:
            raise UnsupportedError("an interface is chosen by the filter: ifIdx == N")
        self._filter = chosen
        self._layer = layer
        self._priority = priority
        self._flags = flags
        self._queue: NfQueue | None = None
        self._table = ""
        self._raw: dict[int, socket.socket] = {}
        self._wake: tuple[int, int] | None = None

    def open(self) -> None:
        if Flag.SEND_ONLY in self._flags:
            self._open_sockets(_MARK)
            self._wake = os.pipe()  # never readable
            return
        body, exact = self._chains(_MARK)
        if Flag.DROP in self._flags and not exact:
            raise UnsupportedError(
                "the kernel can't decide this filter alone, as DROP needs; open without DROP "
                "and don't send what is received"
            )
        queue = self._bind()
        try:
            mark = _MARK | queue.number
            self._table = f"redirectd_divert_{queue.number}"
            body, _ = self._chains(mark)
            self._open_sockets(mark)
            if Flag.DROP in self._flags:
                run_nft(f"table inet {self._table}\ndelete table inet {self._table}\n")
                run_nft(
                    f"table inet {self._table} {{\n chain to_queue {{\n  drop\n }}\n{body}\n}}\n"
                )
            else:
                # A handle that was not closed must not take the network down with it.
                queue_rules.install(self._table, queue.number, body, {"to_queue": True})
        except BaseException:
            queue.close()
            self._close_sockets()
            raise
        self._queue = queue

    def _bind(self) -> NfQueue:
        for number in _QUEUES:
            try:
                # Without super-packets the kernel finishes checksums and lengths.
                return NfQueue(number, gso=False)
            except BackendError as fault:
                # EPERM is a missing capability, or another process that has the queue:
                # only the next number tells.
                last = fault
        raise last

    def _open_sockets(self, mark: int) -> None:
        for version, family in ((4, socket.AF_INET), (6, socket.AF_INET6)):
            raw = socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_RAW)
            self._raw[version] = raw
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
            if version == 6:
                raw.setsockopt(socket.IPPROTO_IPV6, _IPV6_HDRINCL, 1)

    def _close_sockets(self) -> None:
        for raw in self._raw.values():
            raw.close()
        self._raw.clear()

    def _chains(self, mark: int) -> tuple[str, bool]:
        """Chains that jump to the queue, and whether they say all that the filter says."""
        priority = _MIDDLE - self._priority
        early = Flag.FRAGMENTS in self._flags
        hooks: list[tuple[str, int, bool | None, str]]
        if self._layer is Layer.NETWORK_FORWARD:
            hooks = [("forward", priority, None, "")]
        else:
            hooks = [("output", priority, True, ""), ("input", priority, False, "iifname != lo ")]
            if early:
                local = "iifname != lo fib daddr type local "
                hooks[1] = ("prerouting", _BEFORE_DEFRAGMENTATION, False, local)
        text, exact = [], not early
        for hook, order, outbound, also in hooks:
            selected = filter_kernel.nft(self._filter.node, outbound)
            exact = exact and selected.exact
            rules = "".join(f"  {also}{term} jump to_queue\n" for term in selected.terms)
            text.append(
                f" chain {hook} {{\n  type filter hook {hook} priority {order}\n"
                f"  meta mark {mark} return\n{rules} }}\n"
            )
        return "".join(text), exact

    def close(self) -> None:
        if self._queue is not None:
            queue_rules.remove(self._table)
            self._queue.close()
        if self._wake is not None:
            for end in self._wake:
                os.close(end)
        self._close_sockets()

    def fileno(self) -> int:
        if self._queue is not None:
            return self._queue.fileno()
        if self._wake is not None:
            return self._wake[0]
        raise RuntimeError("not open")

    def receive(self, limit: int) -> Sequence[Packet]:
        if self._queue is None:
            return ()
        found = []
        for queued in self._queue.receive(limit):
            outbound = queued.hook in (Hook.OUTPUT, Hook.POSTROUTING, Hook.FORWARD)
            packet = Packet(
                queued.data,
                interface=queued.outdev if queued.hook == Hook.OUTPUT else queued.indev,
                direction=Direction.OUTBOUND if outbound else Direction.INBOUND,
                loopback=queued.hook == Hook.OUTPUT and queued.outdev == self._loopback(),
                impostor=queued.mark & _MARK_MASK == _MARK,
                layer=self._layer,
                token=queued.packet_id,
            )
            if queued.info & Info.TRUNCATED:
                self.drop(packet)
            else:
                found.append(packet)
        return found

    @staticmethod
    def _loopback() -> int:
        return socket.if_nametoindex("lo")

    def release(self, packet: Packet) -> None:
        if self._queue is not None and packet.token is not None:
            self._queue.verdict(packet.token, True, bytes(packet.raw))

    def drop(self, packet: Packet) -> None:
        if self._queue is not None and packet.token is not None:
            self._queue.verdict(packet.token, False)

    def inject(self, packet: Packet) -> None:
        """Inbound packets are injected too when their destination is an address of ours:
        the kernel hands them over through the loopback interface."""
        target = packet.dst_addr
        if target is None:
            raise OSError(errno.EINVAL, "not an IP packet")
        if packet.is_inbound and not is_local(target):
            raise UnsupportedError(
                f"an inbound packet to {target} can't be injected: no address of this machine"
            )
        version = 6 if ":" in target else 4
        self._raw[version].sendto(packet.raw, (target, 0))
