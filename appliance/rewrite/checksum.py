"""The Internet checksum (RFC 1071), in full and by difference (RFC 1624).

All sums are one's complement sums of big-endian 16-bit words.  Such a sum is the
value modulo 0xffff, and 65536 is 1 modulo 65535; hence the sum of a buffer is the
buffer read as one big integer, modulo 0xffff, which Python computes in C.

Zero has two forms.  A sum of words of which one is not 0 is never +0, so ``0``
stands for "all words are 0" alone and every other multiple of 0xffff is 0xffff.
"""

from __future__ import annotations

from typing import Final

from .headers import ICMP, ICMPV6, LATER, TCP, UDP, WHOLE, Located, locate

Buffer = bytes | bytearray | memoryview


# Bytes, even.  Dividing is what takes the time; of a super-packet pieces of this size
# are added first, which halves it.
_PIECE: Final = 2048


def ones_sum(data: Buffer) -> int:
    """Sum of ``data`` (an odd last byte is padded with 0), 0 to 0xffff."""
    size = len(data)
    value = at = 0
    if size > 2 * _PIECE:
        data = memoryview(data)
        while at + _PIECE <= size:
            value += int.from_bytes(data[at : at + _PIECE], "big")
            at += _PIECE
        data = data[at:]
    last = int.from_bytes(data, "big")
    value += last << 8 if size & 1 else last
    return value % 0xFFFF or (0xFFFF if value else 0)


def fold(total: int) -> int:
    """A sum of sums (not negative) folded to 16 bits by end-around carry."""
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def delta(old: bytes, new: bytes) -> int:
    """What replacing ``old`` by ``new`` adds to a sum: RFC 1624's ~m + m'.

    Both have the same even length and begin at an even place of what is summed.
    """
    return fold((ones_sum(old) ^ 0xFFFF) + ones_sum(new))


def update(check: int, change: int) -> int:
    """RFC 1624, eqn. 3: HC' = ~(~HC + ~m + m'), with ``change`` from :func:`delta`."""
    total = (check ^ 0xFFFF) + change
    return ((total + (total >> 16)) & 0xFFFF) ^ 0xFFFF


def update_partial(check: int, change: int) -> int:
    """The same for a checksum that the network card or the kernel will finish.

    Until then the field holds the sum of the pseudo-header, not its complement.
    """
    total = check + change
    return (total + (total >> 16)) & 0xFFFF


def pseudo_sum(buf: Buffer, offset: int, at: Located) -> int:
    """Sum of the pseudo-header (RFC 9293 3.1, RFC 8200 8.1) of a located packet."""
    addresses = buf[offset + 12 : offset + 20] if at.version == 4 else buf[offset + 8 : offset + 40]
    return fold(ones_sum(addresses) + at.proto + fold(at.end - at.l4))


def transport(buf: Buffer, offset: int, at: Located) -> int | None:
    """The checksum that TCP, UDP or ICMP of a whole packet should have.

    None: another protocol, a fragment, cut short, or a header without room for it.
    The packet's own checksum field counts as 0 and need not be 0.
    """
    place = checksum_place(at)
    if place is None or at.fragment != WHOLE or at.truncated:
        return None
    # A view: a super-packet need not be copied for this.
    total = ones_sum(memoryview(buf)[at.l4 : at.end]) + (
        int.from_bytes(buf[place : place + 2], "big") ^ 0xFFFF
    )
    if at.proto != ICMP:
        total += pseudo_sum(buf, offset, at)
    value = fold(total) ^ 0xFFFF
    # 0 would say "no checksum" (RFC 768); in the others +0 and -0 are alike and
    # a full computation gives +0 for both.
    if at.proto == UDP:
        return value or 0xFFFF
    return 0 if value == 0xFFFF else value


def checksum_place(at: Located) -> int | None:
    """Index of the transport checksum in the buffer; None when there is none."""
    if at.fragment == LATER:
        return None
    place = at.l4 + _PLACE.get((at.version, at.proto), at.end)
    return place if place + 2 <= at.end else None


_PLACE = {
    (4, TCP): 16,
    (6, TCP): 16,
    (4, UDP): 6,
    (6, UDP): 6,
    (4, ICMP): 2,
    (6, ICMPV6): 2,
}


def finish(buf: bytearray | memoryview, offset: int, length: int) -> bool:
    """Compute the transport checksum of a packet that carries only a partial one.

    False (and nothing changed): it is no whole TCP, UDP or ICMP packet.
    """
    at = locate(buf, offset, length)
    if at is None:
        return False
    place = checksum_place(at)
    value = transport(buf, offset, at)
    if place is None or value is None:
        return False
    buf[place : place + 2] = value.to_bytes(2, "big")
    return True


def header_checksum(header: Buffer) -> int:
    """The checksum that an IPv4 header should have; its own field counts as 0."""
    own = int.from_bytes(header[10:12], "big") ^ 0xFFFF
    value = fold(ones_sum(header) + own) ^ 0xFFFF
    return 0 if value == 0xFFFF else value
