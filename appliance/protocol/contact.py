"""What first contact needs from outside: public-key work and sealing."""

from __future__ import annotations

from typing import Protocol


class FirstContact(Protocol):
    """X25519 (RFC 7748) and ChaCha20-Poly1305 (RFC 8439); see x25519.py."""

    def generate(self) -> tuple[bytes, bytes]:
        """A secret and its public key, 32 bytes each."""

    def shared(self, secret: bytes, public: bytes) -> bytes:
        """32 bytes; ValueError for a public key of low order."""

    def seal(self, key: bytes, nonce: bytes, data: bytes, aad: bytes) -> bytes: ...

    def open(self, key: bytes, nonce: bytes, data: bytes, aad: bytes) -> bytes | None:
        """None: forged."""
