"""The vectors of docs/protocol.md, and the same once more without our own key schedule."""

from __future__ import annotations

import hashlib
import hmac
import json
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand

from appliance.protocol.keys import hkdf_expand, hkdf_extract
from appliance.protocol.message import parse

from .vectors import FILE, NONCE_I, NONCE_R, build

DATA: dict[str, Any] = json.loads(FILE.read_text())


def test_the_vectors_are_what_this_implementation_computes() -> None:
    assert build() == DATA


# RFC 5869, appendix A: (IKM, salt, info, L, PRK, OKM)
RFC_5869 = [
    (
        "0b" * 22, "000102030405060708090a0b0c", "f0f1f2f3f4f5f6f7f8f9", 42,
        "077709362c2e32df0ddc3f0dc47bba6390b6c73bb50f9c3122ec844ad7c2b3e5",
        "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865",
    ),
    (
        bytes(range(0x50)).hex(), bytes(range(0x60, 0xB0)).hex(), bytes(range(0xB0, 0x100)).hex(),
        82, "06a6b88c5853361a06104c9ceb35b45cef760014904671014a193f40c15fc244",
        "b11e398dc80327a1c8e7f78c596a49344f012eda2d4efad8a050cc4c19afa97c59045a99cac7827271cb41c6"
        "5e590e09da3275600c2f09b8367793a9aca3db71cc30c58179ec3e87c14c01d5c1f3434f1d87",
    ),
    (
        "0b" * 22, "", "", 42,
        "19ef24a32c717b167f33a91d6f648bdf96596776afdb6377ac434c1c293ccb04",
        "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("ikm", "salt", "info", "length", "prk", "okm"), RFC_5869)
def test_hkdf(ikm: str, salt: str, info: str, length: int, prk: str, okm: str) -> None:
    got = hkdf_extract(bytes.fromhex(salt), bytes.fromhex(ikm))
    assert got.hex() == prk
    assert hkdf_expand(got, bytes.fromhex(info), length).hex() == okm


def test_hkdf_gives_no_more_than_it_can() -> None:
    assert len(hkdf_expand(bytes(32), b"", 255 * 32)) == 255 * 32
    for length in (0, 255 * 32 + 1):
        with pytest.raises(ValueError, match="HKDF gives"):
            hkdf_expand(bytes(32), b"", length)


# A second key schedule, from the text of docs/protocol.md and a library's HKDF alone.


def derive(secret: bytes, label: str, length: int = 32, context: bytes = b"") -> bytes:
    info = b"redirectd 1 " + label.encode() + b"\0" + context
    return HKDFExpand(hashes.SHA256(), length, info).derive(secret)


def extract_then(salt: bytes, ikm: bytes, label: str, length: int, context: bytes) -> bytes:
    info = b"redirectd 1 " + label.encode() + b"\0" + context
    return HKDF(hashes.SHA256(), length, salt, info).derive(ikm)


def tag16(key: bytes, text: bytes) -> bytes:
    return hmac.new(key, text, hashlib.sha256).digest()[:16]


def test_pair_by_the_text() -> None:
    p = DATA["pair"]
    root = bytes.fromhex(p["root"])
    for name, label, length in (
        ("peer_id", "peer id", 16), ("chain", "chain", 32),
        ("chain_before", "chain before the first", 32), ("handle_A", "handle A", 8),
        ("handle_B", "handle B", 8), ("k1_A", "K1 A", 32), ("k1_B", "K1 B", 32),
        ("binding", "binding", 32),
    ):  # fmt: skip
        assert derive(root, label, length).hex() == p[name], name


@pytest.mark.parametrize("which", ["exchange", "resync"])
def test_exchange_by_the_text(which: str) -> None:
    e, p = DATA[which], DATA["pair"]
    root = bytes.fromhex(p["root"])
    k1, k2, k3 = (bytes.fromhex(e[k]) for k in ("k1", "k2", "k3"))
    zero = bytes(16)
    assert k1[-16:] == tag16(bytes.fromhex(p["k1_A"]), k1[:-16] + zero)
    chain_i = bytes.fromhex(e["chain_i"])
    assert k1[32:48] == tag16(chain_i, b"check of the chain\0" + NONCE_I)
    transcript = hashlib.sha256(k1[:-32] + zero + zero + k2[:-16] + zero).digest()
    nonces = NONCE_I + NONCE_R
    chain = chain_i
    if which == "resync":
        assert k2[28] == 2
        chain = extract_then(nonces, root, "resync", 32, b"")
    ikm = root + chain
    k2_key = extract_then(nonces, ikm, "K2", 32, transcript)
    assert k2[-16:] == tag16(k2_key, k2[:-16] + zero)
    k3_key = extract_then(nonces, ikm, "K3", 32, transcript)
    assert k3[-16:] == tag16(k3_key, k3[:-16] + zero)
    assert extract_then(nonces, chain, "ratchet", 32, b"").hex() == e["next_chain"]
    mask = extract_then(nonces, ikm, "mask initiator", 16, transcript)
    host = bytes(a ^ b for a, b in zip(mask, bytes.fromhex("a0" * 16), strict=True))
    assert host.hex() == e["masked_host_i"]
    for name, label in (
        ("ping_from_i", "data to responder"), ("second_ping_from_i", "data to responder"),
        ("pong_from_r", "data to initiator"),
    ):  # fmt: skip
        packet = bytes.fromhex(e[name])
        key = extract_then(nonces, ikm, label, 32, transcript)
        assert packet[-16:] == tag16(key, packet[:-16])


def test_first_contact_by_the_text() -> None:
    c = DATA["contact"]
    secret = X25519PrivateKey.from_private_bytes(bytes.fromhex(c["secret_r"]))
    contact1, contact2 = bytes.fromhex(c["contact_1"]), bytes.fromhex(c["contact_2"])
    public_i, public_r = contact1[36:68], contact2[20:52]
    shared = secret.exchange(X25519PublicKey.from_public_bytes(public_i))
    assert shared.hex() == c["shared"]
    text = b"redirectd 1 contact\0" + NONCE_I + public_i + public_r
    transcript = hashlib.sha256(text).digest()
    assert transcript.hex() == c["transcript"]
    for name, label, host in (
        ("contact_2", "seal responder", "host_id_r"), ("contact_3", "seal initiator", "host_id_i"),
    ):  # fmt: skip
        key = extract_then(transcript, shared, label, 32, b"")
        sealed = bytes.fromhex(c[name])[-32:]
        opened = ChaCha20Poly1305(key).decrypt(bytes(12), sealed, transcript)
        assert opened.hex() == c[host]
    root = extract_then(transcript, shared, "root", 32, b"")
    assert root.hex() == c["root"]
    final = bytes.fromhex(c["contact_4"])[-16:]
    assert final == tag16(root, b"contact 4\0" + transcript)
    ids = bytes.fromhex(c["host_id_i"] + c["host_id_r"])
    number = int.from_bytes(
        hashlib.sha256(b"redirectd 1 fingerprint\0" + transcript + ids).digest(), "big"
    )
    groups = [f"{number // 100000**n % 100000:05d}" for n in range(8)]
    assert c["fingerprint"] == " ".join(groups)


def test_every_datagram_in_the_vectors_parses() -> None:
    for part in ("contact", "exchange", "resync"):
        for name, text in DATA[part].items():
            if text.startswith("524401"):
                assert parse(bytes.fromhex(text)), name
