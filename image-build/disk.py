"""A GPT disk image for PCs with BIOS or UEFI, made of plain files without root.

part  name     what it holds
1     esp      FAT: syslinux (BIOS) and systemd-boot (UEFI), kernels of both slots
2     root-a   squashfs: the system
3     root-b   the same for the next version
4     cfg      ext4: keys, database, settings; the only one that is written
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from stages import BuildError, Workshop

MIB = 1 << 20
ESP_TYPE = "C12A7328-F81F-11D2-BA4B-00A0C93EC93B"
ROOT_TYPE = "4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709"  # Linux root, x86-64
DATA_TYPE = "0FC63DAF-8483-4772-8E79-3D69D8477DE4"
_NAMES = uuid.UUID("5b4ea17c-3d3c-5f27-9f55-0c9b0e1b3a44")  # namespace of our identifiers


@dataclass(frozen=True, slots=True)
class Layout:
    """Sizes in MiB; partitions start at 1 MiB and end 1 MiB before the disk's end."""

    esp: int
    slot: int
    cfg: int

    @property
    def total(self) -> int:
        return 1 + self.esp + 2 * self.slot + self.cfg + 1

    def partitions(self) -> Iterator[tuple[str, str, int, int]]:
        """(name, type, start in MiB, size in MiB)"""
        start = 1
        for name, kind, size in (
            ("esp", ESP_TYPE, self.esp),
            ("root-a", ROOT_TYPE, self.slot),
            ("root-b", ROOT_TYPE, self.slot),
            ("cfg", DATA_TYPE, self.cfg),
        ):
            yield name, kind, start, size
            start += size


#: a 2 GB card has about 1900 MiB; a third of it stays free
SMALL = Layout(esp=112, slot=480, cfg=128)
#: a 4 GB card: larger slots, and more room for the event log
LARGE = Layout(esp=224, slot=1024, cfg=256)
LAYOUTS = {"2G": SMALL, "4G": LARGE}


def identifier(name: str) -> str:
    """The same UUID in every build: two builds of the same inputs are the same bytes."""
    return str(uuid.uuid5(_NAMES, name))


def partition_table(layout: Layout) -> str:
    """Input for sfdisk(8)."""
    lines = [
        "label: gpt",
        f"label-id: {identifier('disk')}",
        "unit: sectors",
        "first-lba: 2048",
    ]
    for name, kind, start, size in layout.partitions():
        # GPT attribute 2: gptmbr.bin boots the partition that has it.
        attributes = ', attrs="LegacyBIOSBootable"' if name == "esp" else ""
        lines.append(
            f"start={start * 2048}, size={size * 2048}, type={kind},"
            f" uuid={identifier(name)}, name={name}{attributes}"
        )
    return "\n".join(lines) + "\n"


def make_esp(
    shop: Workshop, image: Path, size: int, files: Mapping[str, Path | bytes], epoch: int
) -> None:
    """A FAT file system of ``size`` MiB with ``files`` and syslinux."""
    env = {"SOURCE_DATE_EPOCH": str(epoch), "MTOOLS_SKIP_CHECK": "1", "TZ": "UTC"}
    with image.open("wb") as file:
        file.truncate(size * MIB)
    shop.run(
        ["mkfs.vfat", "-F", "32", "-n", "BOOT", "-i", identifier("fat")[:8], "--invariant", image],
        env=env,
    )
    made: set[str] = set()
    scratch = image.with_name(f"{image.name}.file")
    try:
        for name, content in sorted(files.items()):
            parts = name.split("/")[:-1]
            for depth in range(1, len(parts) + 1):
                folder = "/".join(parts[:depth])
                if folder not in made:
                    shop.run(["mmd", "-i", image, f"::/{folder}"], env=env)
                    made.add(folder)
            if isinstance(content, bytes):
                scratch.write_bytes(content)
                source = scratch
            else:
                source = content
            shop.run(["mcopy", "-i", image, "-D", "o", source, f"::/{name}"], env=env)
    finally:
        scratch.unlink(missing_ok=True)
    shop.run(["syslinux", "--install", "--directory", "/syslinux", image], env=env)


def make_cfg(shop: Workshop, image: Path, size: int, tree: Path, epoch: int) -> None:
    """An ext4 file system of ``size`` MiB with the files of ``tree``, owned by root."""
    with image.open("wb") as file:
        file.truncate(size * MIB)
    shop.run(
        [
            "mkfs.ext4", "-q", "-F", "-L", "cfg", "-U", identifier("cfg-fs"), "-m", "1",
            # No lazy writes after the first mount; the journal is what makes a pulled
            # plug harmless, so it is there, but small.
            "-E", f"lazy_itable_init=0,lazy_journal_init=0,hash_seed={identifier('hash')},"
            "root_owner=0:0",
            "-J", "size=8", "-O", "metadata_csum,^has_journal" if size < 16 else "metadata_csum",
            "-d", tree, image,
        ],
        env={"E2FSPROGS_FAKE_TIME": str(epoch), "SOURCE_DATE_EPOCH": str(epoch)},
    )  # fmt: skip


def assemble(
    shop: Workshop, image: Path, layout: Layout, parts: Mapping[str, Path], mbr: bytes
) -> None:
    """Write partition table, boot code and ``parts`` (by name) into ``image``, sparse."""
    if len(mbr) > 440:
        raise BuildError(f"boot code of {len(mbr)} bytes does not fit before the disk signature")
    with image.open("wb") as file:
        file.truncate(layout.total * MIB)
    shop.run(["sfdisk", "--quiet", "--no-reread", "--no-tell-kernel", image],
             text=partition_table(layout))  # fmt: skip
    with image.open("r+b") as disk:
        for name, _, start, size in layout.partitions():
            source = parts.get(name)
            if source is None:
                continue
            length = source.stat().st_size
            if length > size * MIB:
                raise BuildError(
                    f"{name} is {length / MIB:.0f} MiB, its place in the image {size} MiB:"
                    " choose a larger --size"
                )
            copy_sparse(source, disk.fileno(), start * MIB)
        os.pwrite(disk.fileno(), mbr, 0)
        os.fsync(disk.fileno())


def copy_sparse(source: Path, target: int, offset: int) -> None:
    """Copy, leaving holes where ``source`` has nothing but zeros."""
    with source.open("rb") as file:
        while block := file.read(MIB):
            for start in range(0, len(block), 4096):
                piece = block[start : start + 4096]
                if piece.count(0) != len(piece):
                    os.pwrite(target, piece, offset + start)
            offset += len(block)
