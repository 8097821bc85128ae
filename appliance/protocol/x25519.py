"""First contact with the library ``cryptography``; the only module that needs it."""

from __future__ import annotations

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305


class X25519Contact:
    """Implements :class:`appliance.protocol.contact.FirstContact`."""

    def generate(self) -> tuple[bytes, bytes]:
        secret = X25519PrivateKey.generate()
        return secret.private_bytes_raw(), secret.public_key().public_bytes_raw()

    def shared(self, secret: bytes, public: bytes) -> bytes:
        # the library itself refuses an all-zero result with ValueError (RFC 7748, 6.1)
        ours = X25519PrivateKey.from_private_bytes(secret)
        return ours.exchange(X25519PublicKey.from_public_bytes(public))

    def seal(self, key: bytes, nonce: bytes, data: bytes, aad: bytes) -> bytes:
        return ChaCha20Poly1305(key).encrypt(nonce, data, aad)

    def open(self, key: bytes, nonce: bytes, data: bytes, aad: bytes) -> bytes | None:
        try:
            return ChaCha20Poly1305(key).decrypt(nonce, data, aad)
        except InvalidTag:
            return None
