"""One protected connection: keys in use, sequence number extension, refusals counted."""

from __future__ import annotations

import hmac
from collections import Counter
from dataclasses import dataclass
from enum import Enum
from typing import Final

from . import tcp_ao
from .flow import Flow
from .tcp_ao import MAC_SIZE, Algorithm, Mac

REFUSED: Final = -1
_RST, _SYN = 4, 2
_SPACE: Final = 1 << 32


class Refusal(Enum):
    """Why a segment goes no further."""

    BROKEN = "no whole segment, or options that contradict themselves"
    NO_ROOM = "no room for the option"
    SYN = "a SYN within a connection"
    UNSIGNED = "no TCP-AO option"
    UNKNOWN_KEY = "unknown KeyID"
    FORGED = "the MAC does not match"


@dataclass(frozen=True, slots=True, repr=False)
class MasterKey:
    """A master key tuple (RFC 5925 3.1); the two IDs are swapped at the far end."""

    send_id: int
    receive_id: int
    algorithm: Algorithm
    secret: bytes
    cover_options: bool = True


@dataclass(frozen=True, slots=True, repr=False)
class _Keyed:
    master: MasterKey
    out: Mac
    into: Mac


def extended(number: int, newest: int) -> int:
    """The 64-bit sequence number nearest to ``newest`` that ends in ``number``.

    What RFC 5925 6.2 means by SNE; a window is below 2^30 (RFC 7323 2.3), so nothing that
    TCP accepts lies half the space away.
    """
    ahead = (number - newest) % _SPACE
    found = newest + ahead - (_SPACE if ahead >= _SPACE // 2 else 0)
    return found if found >= 0 else found + _SPACE


class Protected:
    """Protects what our end sends, verifies what it gets.

    birth           the connection as both daemons agreed on it, seen from our side
    ours, theirs    values agreed in place of ISNs, that of each side's direction
    sent, received  the newest sequence numbers of both directions, extended to 64 bits

    Segments are changed in place.  The methods answer the packet's new offset (its end
    stays), or REFUSED; then nothing has changed and the segment must not go on.
    """

    def __init__(
        self, birth: Flow, ours: int, theirs: int, key: MasterKey, sent: int, received: int
    ) -> None:
        self._birth, self._ours, self._theirs = birth, ours, theirs
        self.sent, self.received = sent, received
        self.refused: Counter[Refusal] = Counter()
        self._by_send: dict[int, _Keyed] = {}
        self._by_receive: dict[int, _Keyed] = {}
        self.add(key)
        self._current = self._by_send[key.send_id]
        self._wanted = self._current

    @property
    def key_ids(self) -> tuple[int, int]:
        """KeyID of what we send, and the one we ask the far end for."""
        return self._current.master.send_id, self._wanted.master.receive_id

    def add(self, key: MasterKey) -> None:
        """Know one more key; ValueError when one of its IDs is taken."""
        if key.send_id in self._by_send or key.receive_id in self._by_receive:
            raise ValueError(f"KeyID {key.send_id} or {key.receive_id} is in use")
        local, remote = self._birth
        out = tcp_ao.traffic_key(key.algorithm, key.secret, local, remote, self._ours, self._theirs)
        into = tcp_ao.traffic_key(
            key.algorithm, key.secret, remote, local, self._theirs, self._ours
        )
        made = _Keyed(key, tcp_ao.mac_of(key.algorithm, out), tcp_ao.mac_of(key.algorithm, into))
        self._by_send[key.send_id] = self._by_receive[key.receive_id] = made

    def want(self, receive_id: int) -> None:
        """Ask the far end, by RNextKeyID, to send with this key; KeyError: unknown."""
        self._wanted = self._by_receive[receive_id]

    def retire(self, receive_id: int) -> None:
        """Forget a key; ValueError while it is in use, KeyError: unknown."""
        keyed = self._by_receive[receive_id]
        if keyed in (self._current, self._wanted):
            raise ValueError(f"key {receive_id} is in use")
        del self._by_receive[receive_id], self._by_send[keyed.master.send_id]

    def protect(self, buf: bytearray, offset: int, length: int, partial: bool = False) -> int:
        """Give a segment of our end the option; 16 bytes in front of it are overwritten."""
        at = tcp_ao.segment(buf, offset, length)
        if at is None:
            return self._refuse(Refusal.BROKEN)
        flags = buf[at.l4 + 13]
        if flags & _SYN:
            return self._refuse(Refusal.SYN)
        keyed, wanted = self._current, self._wanted.master.receive_id
        made = tcp_ao.insert(buf, offset, at, keyed.master.send_id, wanted, partial)
        if made is None:
            return self._refuse(Refusal.NO_ROOM)
        offset, at = made
        number = extended(int.from_bytes(buf[at.l4 + 4 : at.l4 + 8], "big"), self.sent)
        if number > self.sent and not flags & _RST:
            self.sent = number
        place = at.l4 + 20
        local, remote = self._birth
        mac = tcp_ao.compute(
            keyed.out, buf, at, place, number >> 32 & 0xFFFFFFFF, local, remote,
            keyed.master.cover_options,
        )  # fmt: skip
        tcp_ao.seal(buf, at, place, mac, partial)
        return offset

    def verify(self, buf: bytearray, offset: int, length: int, partial: bool = False) -> int:
        """Check a segment for our end and take the option out."""
        at = tcp_ao.segment(buf, offset, length)
        if at is None or tcp_ao.options(buf, at) is None:
            return self._refuse(Refusal.BROKEN)
        flags = buf[at.l4 + 13]
        if flags & _SYN:
            return self._refuse(Refusal.SYN)
        place = tcp_ao.find(buf, at)
        if place is None:
            return self._refuse(Refusal.UNSIGNED)
        keyed = self._by_receive.get(place.key_id)
        if keyed is None:
            return self._refuse(Refusal.UNKNOWN_KEY)
        number = extended(int.from_bytes(buf[at.l4 + 4 : at.l4 + 8], "big"), self.received)
        local, remote = self._birth
        mac = tcp_ao.compute(
            keyed.into, buf, at, place.at, number >> 32 & 0xFFFFFFFF, remote, local,
            keyed.master.cover_options,
        )  # fmt: skip
        if not hmac.compare_digest(mac, bytes(buf[place.at + 4 : place.at + 4 + MAC_SIZE])):
            return self._refuse(Refusal.FORGED)
        # Only what is genuine moves the window or changes the key (RFC 5925 7.5).
        if number > self.received and not flags & _RST:
            self.received = number
        if place.next_id != self._current.master.send_id:
            self._current = self._by_send.get(place.next_id, self._current)
        return tcp_ao.remove(buf, offset, at, place.at, partial)

    def _refuse(self, why: Refusal) -> int:
        self.refused[why] += 1
        return REFUSED
