"""TCP-AO (RFC 5925): algorithms and traffic keys (RFC 5926), the option in a segment.

The MAC covers addresses and ports that the caller names, not those in the packet: a
connection keeps its birth tuple however it crosses the network.  With the packet's own
tuple and real ISNs this is plain RFC 5925; RFC 9235's vectors pass that way.

A header grows towards the front of the buffer, so that the payload never moves.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from enum import Enum
from typing import Final, NamedTuple

from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.cmac import CMAC

from .checksum import Buffer, fold, ones_sum, update
from .flow import Endpoint
from .headers import TCP, WHOLE, Located, locate

KIND: Final = 29
MD5: Final = 19  # RFC 2385; never together with TCP-AO (RFC 5925 2.2)
SACK: Final = 5
MAC_SIZE: Final = 12
OPTION_SIZE: Final = 4 + MAC_SIZE
_MOST: Final = 40  # bytes of options, RFC 9293 3.1

Mac = Callable[[Buffer, Buffer], bytes]


class Algorithm(Enum):
    """The two pairs of KDF and MAC that RFC 5926 demands."""

    HMAC_SHA1 = "hmac-sha-1-96"
    AES_CMAC = "aes-128-cmac-96"


def _cmac(key: bytes, data: bytes) -> bytes:
    made = CMAC(AES(key))
    made.update(data)
    return made.finalize()


def traffic_key(
    algorithm: Algorithm, master: bytes, source: Endpoint, target: Endpoint, ours: int, theirs: int
) -> bytes:
    """RFC 5926 3.1.1 over RFC 5925 5.2's context.

    ``ours`` and ``theirs`` stand where the ISNs of source and target do (a SYN without
    ACK: 0 for the target's).
    """
    context = b"".join((
        source.addr.packed, target.addr.packed,
        source.port.to_bytes(2, "big"), target.port.to_bytes(2, "big"),
        ours.to_bytes(4, "big"), theirs.to_bytes(4, "big"),
    ))  # fmt: skip
    if algorithm is Algorithm.HMAC_SHA1:
        return hmac.digest(master, b"\x01TCP-AO" + context + (160).to_bytes(2, "big"), "sha1")
    # RFC 5926 3.1.1.2: a master key of another size is first made one of 128 bits.
    key = master if len(master) == 16 else _cmac(bytes(16), master)
    return _cmac(key, b"\x01TCP-AO" + context + (128).to_bytes(2, "big"))


def mac_of(algorithm: Algorithm, key: bytes) -> Mac:
    """A MAC over two pieces, as 12 bytes; the key is expanded once."""
    if algorithm is Algorithm.HMAC_SHA1:
        # RFC 2104 with both halves kept: a third less time than hmac's own copy.  RFC 5925
        # names SHA-1, and HMAC does not need it to resist collisions.
        block = key.ljust(64, b"\0")
        inner = hashlib.sha1(bytes(b ^ 0x36 for b in block))  # noqa: S324
        outer = hashlib.sha1(bytes(b ^ 0x5C for b in block))  # noqa: S324

        def hmac_sha1(head: Buffer, body: Buffer) -> bytes:
            first, second = inner.copy(), outer.copy()
            first.update(head)
            first.update(body)
            second.update(first.digest())
            return second.digest()[:MAC_SIZE]

        return hmac_sha1
    keyed = CMAC(AES(key))

    def aes_cmac(head: Buffer, body: Buffer) -> bytes:
        made = keyed.copy()
        made.update(bytes(head))
        made.update(bytes(body))
        return made.finalize()[:MAC_SIZE]

    return aes_cmac


class Place(NamedTuple):
    """Where TCP-AO stands: index of the option, its KeyID and RNextKeyID."""

    at: int
    key_id: int
    next_id: int


def segment(buf: Buffer, offset: int, length: int) -> Located | None:
    """A whole TCP segment with a header that does not contradict itself; else None."""
    at = locate(buf, offset, length)
    if at is None or at.proto != TCP or at.fragment != WHOLE or at.truncated:
        return None
    if at.end - at.l4 < 20 or not 20 <= (buf[at.l4 + 12] >> 4) * 4 <= at.end - at.l4:
        return None
    return at


def options(buf: Buffer, at: Located) -> list[tuple[int, int, int]] | None:
    """(kind, index, size) of each option but NOP; None: broken (RFC 9293 3.1)."""
    here, end = at.l4 + 20, at.l4 + (buf[at.l4 + 12] >> 4) * 4
    found = []
    while here < end and buf[here]:
        if buf[here] == 1:
            here += 1
            continue
        if here + 2 > end or buf[here + 1] < 2 or here + buf[here + 1] > end:
            return None
        found.append((buf[here], here, buf[here + 1]))
        here += buf[here + 1]
    return found


def find(buf: Buffer, at: Located) -> Place | None:
    """The TCP-AO option: exactly one, of our size, and no MD5 option beside it."""
    listed = options(buf, at)
    signed = [option for option in listed or () if option[0] in (KIND, MD5)]
    if len(signed) != 1 or signed[0][0] != KIND or signed[0][2] != OPTION_SIZE:
        return None
    here = signed[0][1]
    return Place(here, buf[here + 2], buf[here + 3])


def compute(
    mac: Mac,
    buf: bytearray,
    at: Located,
    place: int,
    sne: int,
    source: Endpoint,
    target: Endpoint,
    cover_options: bool = True,
) -> bytes:
    """The MAC of a segment with the option at ``place`` (RFC 5925 5.1).

    Checksum and MAC count as 0; without ``cover_options`` all other options are left out.
    """
    size = at.end - at.l4
    tail = b"\0\6" + size.to_bytes(2, "big") if at.version == 4 else (
        size.to_bytes(4, "big") + b"\0\0\0\6"
    )  # fmt: skip
    header = at.l4 + (buf[at.l4 + 12] >> 4) * 4
    head = bytearray().join((
        sne.to_bytes(4, "big"), source.addr.packed, target.addr.packed, tail,
        source.port.to_bytes(2, "big"), target.port.to_bytes(2, "big"),
        buf[at.l4 + 4 : at.l4 + 16], b"\0\0", buf[at.l4 + 18 : at.l4 + 20],
    ))  # fmt: skip
    if cover_options:
        head += buf[at.l4 + 20 : place + 4]
        head += bytes(MAC_SIZE)
        head += buf[place + OPTION_SIZE : header]
    else:
        head += buf[place : place + 4] + bytes(MAC_SIZE)
    return mac(head, memoryview(buf)[header : at.end])


def _resized(
    buf: bytearray, offset: int, at: Located, replacement: bytes, partial: bool
) -> tuple[int, Located]:
    """Put other options in place of all of them; the header moves, the payload does not.

    Lengths and checksums follow by difference, so that a segment that was damaged before
    stays damaged and its receiver sees it.
    """
    end_of_header = at.l4 + (buf[at.l4 + 12] >> 4) * 4
    old = ones_sum(memoryview(buf)[at.l4 : end_of_header])
    old_size = at.end - at.l4
    fixed = bytes(buf[offset : at.l4 + 20])
    growth = 20 + len(replacement) - (end_of_header - at.l4)
    start = offset - growth
    buf[start:end_of_header] = fixed + replacement
    at = at._replace(l4=at.l4 - growth)
    buf[at.l4 + 12] = (20 + len(replacement)) // 4 << 4 | buf[at.l4 + 12] & 15
    check = int.from_bytes(buf[at.l4 + 16 : at.l4 + 18], "big")
    lengths = (old_size ^ 0xFFFF) + at.end - at.l4
    if partial:
        check = fold(check + lengths)
    else:
        now = ones_sum(memoryview(buf)[at.l4 : end_of_header])
        check = update(check, fold((old ^ 0xFFFF) + now + lengths))
    buf[at.l4 + 16 : at.l4 + 18] = check.to_bytes(2, "big")
    field = start + (2 if at.version == 4 else 4)
    before = int.from_bytes(buf[field : field + 2], "big")
    buf[field : field + 2] = (before + growth).to_bytes(2, "big")
    if at.version == 4:
        check = int.from_bytes(buf[start + 10 : start + 12], "big")
        check = update(check, fold((before ^ 0xFFFF) + before + growth))
        buf[start + 10 : start + 12] = check.to_bytes(2, "big")
    return start, at


def insert(
    buf: bytearray, offset: int, at: Located, key_id: int, next_id: int, partial: bool
) -> tuple[int, Located] | None:
    """Make room for the option, first among them, its MAC 0; new offset and places.

    SACK blocks are given up from the last one on where the header is full: the first tells
    what came last (RFC 2018 4).  None, and nothing changed: no room in the header or in
    front of it, broken options, or the end signs its segments itself.
    """
    listed = options(buf, at)
    if listed is None or any(kind in (KIND, MD5) for kind, _, _ in listed):
        return None
    header = at.l4 + (buf[at.l4 + 12] >> 4) * 4
    kept = bytes(buf[at.l4 + 20 : header])
    if len(kept) + OPTION_SIZE > _MOST:
        rest = bytearray()
        for kind, here, size in listed:
            if kind != SACK:
                rest += bytes(buf[here : here + size])
        # Blocks of 8 bytes behind two NOPs, kind and size; 4 bytes alone say nothing.
        rest += b"\1" * (-len(rest) % 4)
        for kind, here, size in listed:
            room = (_MOST - OPTION_SIZE - len(rest) - 4) // 8 * 8
            if kind == SACK and room >= 8 and size >= 10:
                blocks = min(room, (size - 2) // 8 * 8)
                rest += bytes((1, 1, SACK, 2 + blocks)) + buf[here + 2 : here + 2 + blocks]
        if len(rest) + OPTION_SIZE > _MOST:
            return None
        kept = bytes(rest)
    growth = len(kept) + OPTION_SIZE - (header - at.l4 - 20)
    if offset < growth or at.end - offset + growth > 0xFFFF:
        return None
    option = bytes((KIND, OPTION_SIZE, key_id, next_id)) + bytes(MAC_SIZE)
    return _resized(buf, offset, at, option + kept, partial)


def seal(buf: bytearray, at: Located, place: int, mac: bytes, partial: bool) -> None:
    """Write the MAC over the zeros that :func:`insert` left; the checksum follows."""
    buf[place + 4 : place + OPTION_SIZE] = mac
    if not partial:
        check = int.from_bytes(buf[at.l4 + 16 : at.l4 + 18], "big")
        buf[at.l4 + 16 : at.l4 + 18] = update(check, ones_sum(mac)).to_bytes(2, "big")


def remove(buf: bytearray, offset: int, at: Located, place: int, partial: bool) -> int:
    """Take the option out; the new offset."""
    header = at.l4 + (buf[at.l4 + 12] >> 4) * 4
    rest = bytes(buf[at.l4 + 20 : place] + buf[place + OPTION_SIZE : header])
    return _resized(buf, offset, at, rest, partial)[0]
