"""Stateless cookies: proof that a sender receives at the address it claims.

A cookie is HMAC-SHA-256 over address, port and the sender's nonce, keyed with a
secret that changes every ``LIFE`` seconds; the one before stays good for as long.
Nothing is stored for a sender (RFC 7296, 2.6 uses the same idea).
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable

from ..rewrite.flow import Endpoint

LIFE = 60.0
SIZE = 16


class CookieJar:
    __slots__ = ("_previous", "_rng", "_secret", "_since")

    def __init__(self, rng: Callable[[int], bytes], now: float) -> None:
        self._rng = rng
        self._secret = rng(32)
        self._previous = rng(32)
        self._since = now

    def _rotate(self, now: float) -> None:
        if now - self._since >= LIFE:
            stale = now - self._since >= 2 * LIFE
            self._previous = self._rng(32) if stale else self._secret
            self._secret = self._rng(32)
            self._since = now

    @staticmethod
    def _cookie(secret: bytes, sender: Endpoint, nonce: bytes) -> bytes:
        text = sender.addr.version.to_bytes(1, "big") + sender.packed() + nonce
        return hmac.digest(secret, text, hashlib.sha256)[:SIZE]

    def make(self, sender: Endpoint, nonce: bytes, now: float) -> bytes:
        self._rotate(now)
        return self._cookie(self._secret, sender, nonce)

    def good(self, cookie: bytes, sender: Endpoint, nonce: bytes, now: float) -> bool:
        self._rotate(now)
        return any(
            hmac.compare_digest(cookie, self._cookie(secret, sender, nonce))
            for secret in (self._secret, self._previous)
        )
