"""A release directory that is signed with a key of the test's own."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import tarfile
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from release import Version, needed

NUMBER = b"testkey!"


def set_archive(names: list[str]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for name in names:
            info = tarfile.TarInfo(f"./{name}")
            info.size = 4
            tar.addfile(info, io.BytesIO(b"data"))
    return gzip.compress(packed.getvalue(), mtime=0)


def make(folder: Path, keys: Path, version: str = "7.8") -> Version:
    """Write a release into ``folder`` and its public key into ``keys``."""
    wanted = Version(version)
    folder.mkdir(parents=True, exist_ok=True)
    keys.mkdir(parents=True, exist_ok=True)
    lines = []
    for name in needed(wanted):
        stem = name.removesuffix(f"{wanted.digits}.tgz")
        data = set_archive([f"usr/bin/from-{stem}"]) if name.endswith(".tgz") else name.encode()
        (folder / name).write_bytes(data)
        lines.append(f"SHA256 ({name}) = {hashlib.sha256(data).hexdigest()}\n")
    sign(folder, keys, "".join(lines).encode(), wanted)
    return wanted


def sign(folder: Path, keys: Path, message: bytes, version: Version) -> None:
    keys.mkdir(parents=True, exist_ok=True)
    private = Ed25519PrivateKey.generate()
    public = private.public_key().public_bytes_raw()
    (keys / f"openbsd-{version.digits}-base.pub").write_bytes(
        b"untrusted comment: test\n" + base64.b64encode(b"Ed" + NUMBER + public) + b"\n"
    )
    blob = base64.b64encode(b"Ed" + NUMBER + private.sign(message))
    (folder / "SHA256.sig").write_bytes(b"untrusted comment: test\n" + blob + b"\n" + message)
