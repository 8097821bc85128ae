"""The signature check against what signify(1) itself wrote, and against every damage."""

from __future__ import annotations

import base64

import pytest
import signify
from hypothesis import given
from hypothesis import strategies as st

# made with signify(1) 31: -G -n, then -S -e over one line of checksums, then -S
PUBLIC = (
    b"untrusted comment: redirectd test public key\n"
    b"RWQiYZGpnTFqDJWRYmmXQ6DxfE0m7x49mOf5yiluhaVrE+HmORBf3YW5\n"
)
LINE = b"SHA256 (base78.tgz) = " + b"7".zfill(64) + b"\n"
PLAIN = (
    b"untrusted comment: verify with k.pub\n"
    b"RWQiYZGpnTFqDE4rZxWYdva3+hH0l0CIOcS4BOlNfngJwDmAMP"
    b"KhdHtfVUeS72LPSlRu9dSqehutj9w7YwQTWIeXJiRm3zyIiAY=\n"
)
EMBEDDED = PLAIN + LINE

KEY = signify.parse_public_key(PUBLIC, "k.pub")


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def test_what_signify_signed_is_accepted() -> None:
    assert signify.verify_embedded(KEY, EMBEDDED) == LINE
    signify.verify(KEY, PLAIN, LINE)


def test_every_changed_byte_of_the_message_is_noticed() -> None:
    start = len(EMBEDDED) - len(LINE)
    for at in range(start, len(EMBEDDED)):
        with pytest.raises(signify.SignatureError, match="wrong"):
            signify.verify_embedded(KEY, flipped(EMBEDDED, at))


def test_every_changed_byte_of_the_signature_is_noticed() -> None:
    comment, line, rest = EMBEDDED.split(b"\n", 2)
    blob = base64.b64decode(line)
    for at in range(len(blob)):
        damaged = b"\n".join([comment, base64.b64encode(flipped(blob, at)), rest])
        with pytest.raises(signify.SignatureError):
            signify.verify_embedded(KEY, damaged)


def test_the_comment_is_not_trusted() -> None:
    other = EMBEDDED.replace(b"verify with k.pub", b"verify with nothing")
    assert signify.verify_embedded(KEY, other) == LINE


def test_another_key_is_named() -> None:
    blob = base64.b64decode(PUBLIC.split(b"\n")[1])
    other = b"untrusted comment: x\n" + base64.b64encode(b"Ed" + bytes(8) + blob[10:]) + b"\n"
    with pytest.raises(signify.SignatureError, match=r"another key than other\.pub"):
        signify.verify_embedded(signify.parse_public_key(other, "other.pub"), EMBEDDED)


@given(st.binary(max_size=400))
def test_nonsense_is_refused_and_nothing_else_happens(data: bytes) -> None:
    for read in (
        lambda: signify.verify_embedded(KEY, data),
        lambda: signify.parse_public_key(data),
        lambda: signify.verify(KEY, data, LINE),
    ):
        with pytest.raises(signify.SignatureError):
            read()


@given(st.binary(max_size=200))
def test_a_list_of_checksums_is_read_or_refused(data: bytes) -> None:
    try:
        found = signify.parse_checksums(data)
    except signify.SignatureError:
        return
    assert all(len(digest) == 64 and "/" not in name for name, digest in found.items())


@pytest.mark.parametrize(
    "line",
    [
        "SHA256 (../etc/passwd) = " + "0" * 64,
        "SHA256 (.hidden) = " + "0" * 64,
        "SHA256 (a/b) = " + "0" * 64,
        "SHA256 (base78.tgz) = " + "0" * 63,
        "MD5 (base78.tgz) = " + "0" * 32,
        "",
    ],
)
def test_a_list_names_plain_files_and_nothing_else(line: str) -> None:
    with pytest.raises(signify.SignatureError):
        signify.parse_checksums(line.encode() + b"\n")


def test_a_file_that_stands_twice_is_refused() -> None:
    with pytest.raises(signify.SignatureError, match="twice"):
        signify.parse_checksums(LINE + LINE)
