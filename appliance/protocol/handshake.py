"""The known-peer exchange (the paper's Fig. 3): K1, K2, K3; hashes and nonces only.

Stateless computations; links.py keeps what must be remembered between messages.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

from .keys import PairKeys, SessionKeys, mac, resync_chain, same
from .message import K1, K2, K3, NO_COOKIE, Chain, encode
from .records import PeerRecord

_CHECK, _CHECK_PREVIOUS = b"check of the chain\0", b"check of the chain before\0"
_ZERO = bytes(16)


def checks(record: PeerRecord, nonce: bytes) -> tuple[bytes, bytes]:
    """Values that tell, to those who have the same chains, which ones we have."""
    return mac(record.chain, _CHECK, nonce), mac(record.previous, _CHECK_PREVIOUS, nonce)


def _common(record: PeerRecord, theirs: tuple[bytes, bytes], nonce: bytes) -> list[Chain]:
    """Which of the other side's chains (current, previous) we have as well."""
    ours = (record.chain, record.previous)
    found = []
    for which, label, value in zip(
        (Chain.CURRENT, Chain.PREVIOUS), (_CHECK, _CHECK_PREVIOUS), theirs, strict=True
    ):
        # no early exit: how long this takes must not tell which chain matched
        hits = [same(mac(chain, label, nonce), value) for chain in ours]
        if any(hits):
            found.append(which)
    return found


def _matching(record: PeerRecord, k1: K1, which: Chain) -> bytes:
    label = _CHECK if which is Chain.CURRENT else _CHECK_PREVIOUS
    value = k1.check if which is Chain.CURRENT else k1.check_previous
    return next(c for c in (record.chain, record.previous) if same(mac(c, label, k1.nonce), value))


def _transcript(k1: K1, k2: K2) -> bytes:
    """Hash over what both said, without cookie and MACs."""
    bare = encode(replace(k1, cookie=NO_COOKIE, mac=_ZERO)) + encode(replace(k2, mac=_ZERO))
    return hashlib.sha256(bare).digest()


def make_k1(
    record: PeerRecord, pair: PairKeys, nonce: bytes, index: int, cookie: bytes = NO_COOKIE
) -> K1:
    check, previous = checks(record, nonce)
    k1 = K1(pair.out_handle, nonce, index, check, previous, cookie, _ZERO)
    return replace(k1, mac=mac(pair.out_k1, encode(k1)))


def k1_good(k1: K1, pair: PairKeys) -> bool:
    """Whether the peer made this K1, now or once (it may be a replay)."""
    return same(k1.mac, mac(pair.in_k1, encode(replace(k1, mac=_ZERO))))


@dataclass(frozen=True, slots=True, repr=False)
class Agreed:
    """What one side has after K2: the keys, and the chain that they came from.

    resync: that chain was made from the root, since the two sides had none in common
    """

    keys: SessionKeys
    used: bytes
    resync: bool

    def ratcheted(self, record: PeerRecord) -> PeerRecord:
        """The record to be on disk before the keys are used."""
        return replace(record, chain=self.keys.next_chain, previous=self.used)


def answer_k1(record: PeerRecord, k1: K1, nonce: bytes, index: int) -> tuple[K2, Agreed]:
    """The responder's part: K2, and what follows when K3 arrives."""
    common = _common(record, (k1.check, k1.check_previous), k1.nonce)
    check, previous = checks(record, nonce)
    which = common[0] if common else Chain.NONE
    k2 = K2(k1.index, nonce, index, which, check, previous, _ZERO)
    chain = _matching(record, k1, which) if common else resync_chain(record.root, k1.nonce, nonce)
    keys = SessionKeys.of(record.root, chain, k1.nonce, nonce, _transcript(k1, k2))
    k2 = replace(k2, mac=mac(keys.k2, encode(k2)))
    return k2, Agreed(keys, chain, not common)


def take_k2(record: PeerRecord, k1: K1, k2: K2) -> Agreed | None:
    """The initiator's part; None: forged, or a resynchronisation that is not due."""
    if k2.chain is Chain.NONE:
        if _common(record, (k2.check, k2.check_previous), k2.nonce):
            return None  # we do have a chain in common: the root alone must not do
        chain = resync_chain(record.root, k1.nonce, k2.nonce)
    else:
        chain = record.chain if k2.chain is Chain.CURRENT else record.previous
    bare = replace(k2, mac=_ZERO)
    keys = SessionKeys.of(record.root, chain, k1.nonce, k2.nonce, _transcript(k1, bare))
    if not same(k2.mac, mac(keys.k2, encode(bare))):
        return None
    return Agreed(keys, chain, k2.chain is Chain.NONE)


def make_k3(agreed: Agreed, to: int) -> K3:
    k3 = K3(to, _ZERO)
    return replace(k3, mac=mac(agreed.keys.k3, encode(k3)))


def k3_good(k3: K3, agreed: Agreed) -> bool:
    return same(k3.mac, mac(agreed.keys.k3, encode(replace(k3, mac=_ZERO))))
