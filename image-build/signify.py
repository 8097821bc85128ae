"""signify(1) signatures: checking what OpenBSD signed (Ed25519).

File formats (signify(1), "FILE FORMATS" in its source): a line "untrusted comment: ...",
a line of base64, and, when the message is embedded, the message.  Decoded, a public key
is "Ed" + 8 bytes of key number + 32 bytes; a signature "Ed" + the same number + 64 bytes.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

_COMMENT = b"untrusted comment: "
_ALGORITHM = b"Ed"
_COMMENT_MAX = 1024
_LINE = re.compile(r"SHA256 \(([A-Za-z0-9][A-Za-z0-9._+-]{0,200})\) = ([0-9a-f]{64})")
MESSAGE_MAX = 1 << 20


class SignatureError(Exception):
    """The signature is missing, wrong, or somebody else's."""


@dataclass(frozen=True, slots=True)
class PublicKey:
    number: bytes
    key: bytes
    name: str


def _blob(data: bytes, length: int, what: str) -> tuple[bytes, bytes]:
    """(decoded blob, what follows its line)"""
    comment, newline, rest = data.partition(b"\n")
    if not newline or not comment.startswith(_COMMENT) or len(comment) > _COMMENT_MAX:
        raise SignatureError(f"{what} does not begin with an untrusted comment")
    line, newline, rest = rest.partition(b"\n")
    try:
        blob = base64.b64decode(line, validate=True)
    except (binascii.Error, ValueError):
        raise SignatureError(f"{what} has no base64 in its second line") from None
    if not newline or len(blob) != length or not blob.startswith(_ALGORITHM):
        raise SignatureError(f"{what} is no Ed25519 {what.rpartition(' ')[2]} of signify")
    return blob, rest


def parse_public_key(data: bytes, name: str = "the key") -> PublicKey:
    blob, rest = _blob(data, 2 + 8 + 32, "the public key")
    if rest:
        raise SignatureError(f"{name} has more than one key in it")
    return PublicKey(blob[2:10], blob[10:], name)


def read_public_key(path: Path) -> PublicKey:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise SignatureError(
            f"{path} is missing: put the release's public key there (image-build/keys/README.md)"
        ) from None
    return parse_public_key(data, path.name)


def verify(key: PublicKey, signature: bytes, message: bytes) -> None:
    """``signature`` is a .sig file without a message; raises SignatureError."""
    blob, _ = _blob(signature, 2 + 8 + 64, "the signature")
    if not hmac.compare_digest(blob[2:10], key.number):
        raise SignatureError(f"signed with another key than {key.name}")
    try:
        Ed25519PublicKey.from_public_bytes(key.key).verify(blob[10:], message)
    except InvalidSignature:
        raise SignatureError(f"the signature is wrong (checked with {key.name})") from None


def verify_embedded(key: PublicKey, data: bytes) -> bytes:
    """The message inside a .sig file, once its signature is proved."""
    if len(data) > MESSAGE_MAX:
        raise SignatureError(f"the signed file is larger than {MESSAGE_MAX} bytes")
    _, message = _blob(data, 2 + 8 + 64, "the signature")
    verify(key, data, message)
    return message


def parse_checksums(message: bytes) -> dict[str, str]:
    """File name -> SHA-256, from a list as cksum(1) and ``sha256`` write it."""
    found: dict[str, str] = {}
    for line in message.decode("ascii", errors="replace").splitlines():
        match = _LINE.fullmatch(line)
        if match is None:
            raise SignatureError(f"not a line of checksums: {line[:80]!r}")
        if match[1] in found:
            raise SignatureError(f"{match[1]} stands twice in the list of checksums")
        found[match[1]] = match[2]
    return found


def check_file(path: Path, checksums: Mapping[str, str]) -> None:
    """SignatureError unless ``path`` is as its line in the list says."""
    wanted = checksums.get(path.name)
    if wanted is None:
        raise SignatureError(f"{path.name} is not in the signed list")
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise SignatureError(f"{path} is missing") from None
    if not hmac.compare_digest(found, wanted):
        raise SignatureError(f"{path.name} is not what was signed: it was changed or is damaged")
