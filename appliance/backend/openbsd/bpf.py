"""bpf(4): copies of single segments from the external interface, by a filter in the kernel.

The program is assembled here (pure); the device is opened by root and handed over.  bpf
sees the wire: outbound packets after NAT, inbound ones before translation, so a flow that
was never moved shows its birth tuple.
"""

from __future__ import annotations

import array
import fcntl
import os
import struct
from collections.abc import Iterator, Sequence
from typing import Final

from ...rewrite.flow import Flow
from ..api import BackendError

# <net/bpf.h>; struct ifreq has 32 bytes, bpf_program 16, bpf_insn 8
BIOCGBLEN: Final = 0x40044266
BIOCSETF: Final = 0x80104267
BIOCGDLT: Final = 0x4004426A
BIOCSETIF: Final = 0x8020426C
BIOCIMMEDIATE: Final = 0x80044270
FIONBIO: Final = 0x8004667E

#: link header: DLT number -> its bytes before the IP header
LINK_HEADER: Final = {0: 4, 1: 14, 12: 4, 14: 0, 51: 8}  # NULL EN10MB LOOP RAW PPP_ETHER

#: flows observed at a time (the core binds at most 32 at once); a program may have 512
#: instructions (BPF_MAXINSNS), and a flow takes 14
FLOWS_MOST: Final = 32
SNAP: Final = 128

_INSN = struct.Struct("=HBBI")
LD_W, LD_H, LD_B = 0x20, 0x28, 0x30
LD_W_X, LD_H_X, LD_B_X = 0x40, 0x48, 0x50
LDX_MSH: Final = 0xB1  # X = 4 * (P[k] & 0xf): the length of an IPv4 header
JA, JEQ, JSET = 0x05, 0x15, 0x45
SUB_X, RSH, AND = 0x1C, 0x74, 0x54
ST, LDM, TAX, RET = 0x02, 0x60, 0x07, 0x06


class Program:
    """Instructions whose jumps lead to labels."""

    def __init__(self) -> None:
        self._code: list[tuple[int, int, str, str]] = []
        self._labels: dict[str, int] = {}

    def label(self, name: str) -> None:
        self._labels[name] = len(self._code)

    def add(self, code: int, k: int = 0, yes: str = "", no: str = "") -> None:
        self._code.append((code, k, yes, no))

    def assemble(self) -> bytes:
        """The program in bpf_insn's form, native byte order."""
        out = bytearray()
        for at, (code, k, yes, no) in enumerate(self._code):
            if code == JA:
                out += _INSN.pack(code, 0, 0, self._away(at, yes))
            else:
                out += _INSN.pack(code, self._away(at, yes), self._away(at, no), k)
        return bytes(out)

    def _away(self, at: int, label: str) -> int:
        return self._labels[label] - at - 1 if label else 0


def pure_ack_filter(flows: Sequence[Flow], link: int, snap: int = SNAP) -> bytes:
    """A program for TCP segments of ``flows``, either direction, that carry an ACK and
    neither payload nor SYN, FIN or RST; no flow: nothing at all.

    link: bytes of link header.  IPv4 with options is understood, IPv6 without extension
    headers (a pure ACK has none).  Of an IPv6 address the last 32 bits are compared; the
    reader compares the rest.
    """
    chosen = flows[:FLOWS_MOST]
    program = Program()
    program.add(LD_B, link)
    program.add(AND, 0xF0)
    program.add(JEQ, 0x40, yes="four")
    program.add(JA, yes="six")
    _pure4(program, link)
    _tuples(program, [f for f in chosen if f.version == 4], link, 4, snap)
    _pure6(program, link)
    _tuples(program, [f for f in chosen if f.version == 6], link, 6, snap)
    return program.assemble()


def _pure4(program: Program, link: int) -> None:
    program.label("four")
    program.add(LD_B, link + 9)
    program.add(JEQ, 6, no="drop4")  # TCP
    program.add(LD_H, link + 6)
    program.add(JSET, 0x3FFF, yes="drop4")  # no fragment
    program.add(LDX_MSH, link)
    program.add(LD_B_X, link + 13)
    program.add(JSET, 0x07, yes="drop4")  # FIN, SYN, RST
    program.add(JSET, 0x10, no="drop4")  # ACK
    program.add(LD_H, link + 2)
    program.add(SUB_X)  # total length without the IP header ...
    program.add(ST)
    program.add(LD_B_X, link + 12)
    program.add(AND, 0xF0)
    program.add(RSH, 2)
    program.add(TAX)
    program.add(LDM)
    program.add(SUB_X)  # ... is the TCP header's
    program.add(JEQ, 0, yes="flows4")
    program.label("drop4")
    program.add(RET, 0)
    program.label("flows4")
    program.add(LDX_MSH, link)


def _pure6(program: Program, link: int) -> None:
    program.label("six")
    program.add(LD_B, link)
    program.add(AND, 0xF0)
    program.add(JEQ, 0x60, no="drop6")
    program.add(LD_B, link + 6)
    program.add(JEQ, 6, no="drop6")
    program.add(LD_B, link + 53)
    program.add(JSET, 0x07, yes="drop6")
    program.add(JSET, 0x10, no="drop6")
    program.add(LD_B, link + 52)
    program.add(AND, 0xF0)
    program.add(RSH, 2)
    program.add(TAX)
    program.add(LD_H, link + 4)
    program.add(SUB_X)
    program.add(JEQ, 0, yes="flows6")
    program.label("drop6")
    program.add(RET, 0)
    program.label("flows6")


def _tuples(program: Program, flows: list[Flow], link: int, version: int, snap: int) -> None:
    """Each flow in both directions: addresses, then both ports as one word."""
    src_at, dst_at = (12, 16) if version == 4 else (20, 36)
    for number, packet in enumerate([p for flow in flows for p in (flow, flow.reversed())]):
        following = f"next{version}.{number}"
        src = int.from_bytes(packet.local.addr.packed[-4:])
        dst = int.from_bytes(packet.remote.addr.packed[-4:])
        program.add(LD_W, link + src_at)
        program.add(JEQ, src, no=following)
        program.add(LD_W, link + dst_at)
        program.add(JEQ, dst, no=following)
        program.add(*((LD_W_X, link) if version == 4 else (LD_W, link + 40)))
        program.add(JEQ, packet.local.port << 16 | packet.remote.port, no=following)
        program.add(RET, snap)
        program.label(following)
    program.add(RET, 0)


def captures(data: bytes) -> Iterator[bytes]:
    """The packets in what one read returned, link headers included.

    struct bpf_hdr: time (8), captured length 8, length 12, header length 16(2); each
    record is rounded up to 4 bytes.  What is cut or damaged ends the iteration.
    """
    at = 0
    while at + 18 <= len(data):
        caplen, _, header = struct.unpack_from("=IIH", data, at + 8)
        if header < 18 or at + header + caplen > len(data):
            return
        yield data[at + header : at + header + caplen]
        at += (header + caplen + 3) & ~3


class BpfDevice:
    """One /dev/bpf on one interface; only what passes the filter is copied."""

    def __init__(self, ifname: str) -> None:
        try:
            self._fd = os.open("/dev/bpf", os.O_RDWR | os.O_CLOEXEC)
        except OSError as fault:
            raise BackendError(f"/dev/bpf: {fault.strerror}; start redirectd as root") from None
        try:
            self.size = self._number(BIOCGBLEN)
            name = ifname.encode().ljust(32, b"\0")
            fcntl.ioctl(self._fd, BIOCSETIF, name)
            fcntl.ioctl(self._fd, BIOCIMMEDIATE, struct.pack("=I", 1))
            fcntl.ioctl(self._fd, FIONBIO, struct.pack("=i", 1))
            self.link = self._number(BIOCGDLT)
        except OSError as fault:
            os.close(self._fd)
            raise BackendError(
                f"bpf on {ifname}: {fault.strerror}; is the interface there and up?"
            ) from None

    def _number(self, request: int) -> int:
        return int(struct.unpack("=I", fcntl.ioctl(self._fd, request, bytes(4)))[0])

    def set_filter(self, program: bytes) -> None:
        """Replace the program; what the old one let through is thrown away."""
        code = array.array("B", program)
        address, _ = code.buffer_info()
        fcntl.ioctl(self._fd, BIOCSETF, struct.pack("=I4xQ", len(program) // 8, address))

    def fileno(self) -> int:
        return self._fd

    def read(self) -> bytes:
        """One buffer of packets, empty when there is none."""
        try:
            return os.read(self._fd, self.size)
        except (BlockingIOError, InterruptedError):
            return b""

    def close(self) -> None:
        os.close(self._fd)
