"""The key schedule: HKDF (RFC 5869) with SHA-256, and what is derived from what.

root                    fixed, pairwise; from first contact or from introduction
 |- peer id, handles, keys of K1, fingerprint (introduced pairs)
 |- chain 0
root + chain + nonces   -> session secret -> keys of a session
chain + nonces          -> the next chain (the ratchet)
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass

HASH_SIZE = 32
_PREFIX = b"redirectd 1 "


def hkdf_extract(salt: bytes, ikm: bytes) -> bytes:
    """RFC 5869, 2.2; an empty salt stands for zeros."""
    return hmac.digest(salt or bytes(HASH_SIZE), ikm, hashlib.sha256)


def hkdf_expand(prk: bytes, info: bytes, length: int) -> bytes:
    """RFC 5869, 2.3; ``length`` up to 255 * 32 bytes, ValueError beyond."""
    if not 0 < length <= 255 * HASH_SIZE:
        raise ValueError(f"HKDF gives 1 to {255 * HASH_SIZE} bytes, not {length}")
    out = block = b""
    counter = 1
    while len(out) < length:
        block = hmac.digest(prk, block + info + bytes((counter,)), hashlib.sha256)
        out += block
        counter += 1
    return out[:length]


def derive(secret: bytes, label: str, length: int = 32, context: bytes = b"") -> bytes:
    """A key of its own for ``label`` from a uniformly random ``secret``."""
    return hkdf_expand(secret, _PREFIX + label.encode() + b"\0" + context, length)


def mac(key: bytes, *parts: bytes, size: int = 16) -> bytes:
    """HMAC-SHA-256 over the parts, cut to ``size`` bytes (RFC 2104, 5)."""
    return hmac.digest(key, b"".join(parts), hashlib.sha256)[:size]


def same(a: bytes, b: bytes) -> bool:
    """Equality in constant time."""
    return hmac.compare_digest(a, b)


@dataclass(frozen=True, slots=True, repr=False)
class PairKeys:
    """What a pair's root gives, seen from one side.

    out_handle, in_handle  8 bytes that name the pair in a K1 that we, or they, send
    out_k1, in_k1          keys of the MAC in such a K1
    binding                key of the tags that prove a connection
    """

    peer_id: str
    out_handle: bytes
    in_handle: bytes
    out_k1: bytes
    in_k1: bytes
    binding: bytes

    @classmethod
    def of(cls, root: bytes, initiator: bool) -> PairKeys:
        handles = derive(root, "handle A", 8), derive(root, "handle B", 8)
        k1 = derive(root, "K1 A"), derive(root, "K1 B")
        ours, theirs = (0, 1) if initiator else (1, 0)
        return cls(
            peer_id(root), handles[ours], handles[theirs], k1[ours], k1[theirs],
            derive(root, "binding"),
        )  # fmt: skip


def peer_id(root: bytes) -> str:
    """32 hex digits, equal at both ends."""
    return derive(root, "peer id", 16).hex()


def first_chain(root: bytes) -> bytes:
    return derive(root, "chain")


def before_first_chain(root: bytes) -> bytes:
    """Stands for the chain before the first one; equal at both ends."""
    return derive(root, "chain before the first")


def fingerprint(material: bytes) -> str:
    """Eight groups of five digits (132 bits), to be compared aloud."""
    number = int.from_bytes(hashlib.sha256(_PREFIX + b"fingerprint\0" + material).digest(), "big")
    groups = []
    for _ in range(8):
        number, group = divmod(number, 100_000)
        groups.append(f"{group:05d}")
    return " ".join(groups)


@dataclass(frozen=True, slots=True, repr=False)
class ContactKeys:
    """What a first contact gives both ends."""

    seal_first: bytes
    seal_second: bytes
    root: bytes
    transcript: bytes

    @classmethod
    def of(cls, shared: bytes, nonce: bytes, public_i: bytes, public_r: bytes) -> ContactKeys:
        transcript = hashlib.sha256(_PREFIX + b"contact\0" + nonce + public_i + public_r).digest()
        prk = hkdf_extract(transcript, shared)
        return cls(
            derive(prk, "seal initiator"), derive(prk, "seal responder"), derive(prk, "root"),
            transcript,
        )  # fmt: skip


@dataclass(frozen=True, slots=True, repr=False)
class SessionKeys:
    """What a known-peer exchange gives; *i* is who sent K1, *r* who answered.

    mask_i, mask_r  one-time masks over the host IDs that the two sides tell each other
    """

    k2: bytes
    k3: bytes
    to_r: bytes
    to_i: bytes
    mask_i: bytes
    mask_r: bytes
    next_chain: bytes

    @classmethod
    def of(
        cls, root: bytes, chain: bytes, nonce_i: bytes, nonce_r: bytes, transcript: bytes
    ) -> SessionKeys:
        """``transcript``: hash over what both sent before the MACs."""
        nonces = nonce_i + nonce_r
        prk = hkdf_extract(nonces, root + chain)
        ratchet = hkdf_extract(nonces, chain)
        return cls(
            derive(prk, "K2", context=transcript),
            derive(prk, "K3", context=transcript),
            derive(prk, "data to responder", context=transcript),
            derive(prk, "data to initiator", context=transcript),
            derive(prk, "mask initiator", 16, transcript),
            derive(prk, "mask responder", 16, transcript),
            derive(ratchet, "ratchet"),
        )


def resync_chain(root: bytes, nonce_i: bytes, nonce_r: bytes) -> bytes:
    """Stands in for the chain when the two sides have none in common."""
    return derive(hkdf_extract(nonce_i + nonce_r, root), "resync")
