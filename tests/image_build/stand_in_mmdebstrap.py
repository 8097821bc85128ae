"""In place of mmdebstrap: writes the smallest tar file that the next stages accept."""

from __future__ import annotations

import io
import sys
import tarfile

target = next(word for word in sys.argv[1:] if word.endswith(".partial") and word[0] != "-")
with tarfile.open(target, "w") as tar:
    for name in (
        "boot/vmlinuz-1", "boot/initrd.img-1", "usr/lib/systemd/boot/efi/systemd-bootx64.efi",
    ):  # fmt: skip
        info = tarfile.TarInfo(f"./{name}")
        info.size = 1
        tar.addfile(info, io.BytesIO(b"x"))
