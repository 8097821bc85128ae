"""What the unattended OpenBSD installation is told (pure).

The installer makes a plain build system on its own disk; ``make-card`` then writes the
card from there with OpenBSD's own fdisk, disklabel, newfs and installboot.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from release import Version

MIB = 1 << 20
SECTORS = 2048  # in a MiB


@dataclass(frozen=True, slots=True)
class Card:
    """MiB of each slot and of /cfg; the rest of the card stays free."""

    slot: int
    cfg: int

    @property
    def total(self) -> int:
        """MiB of the image, with one for MBR and label and one to spare."""
        return 1 + 2 * self.slot + self.cfg + 1


#: a 2 GB card has some 1900 MiB; a third stays free
CARDS = {"2G": Card(slot=576, cfg=96), "4G": Card(slot=1088, cfg=192)}

#: partitions of the card's label
SLOT_A, SLOT_B, CFG = "a", "d", "e"


def install_conf(version: Version, password_hash: str) -> str:
    """autoinstall(8)'s response file.  Each key matches a question by its words."""
    digits = version.digits
    answers = {
        "System hostname": "builder",
        "Password for root account": password_hash,
        "Change the default console to com0": "yes",
        "Which speed should com0 use": "115200",
        "Setup a user": "no",
        "Allow root ssh login": "no",
        "Start sshd(8) by default": "no",
        "Do you expect to run the X Window System": "no",
        "Do you want the X Window System to be started by xenodm(1)": "no",
        "What timezone": "UTC",
        "Which disk is the root disk": "sd0",
        "Encrypt the root disk with a (p)assphrase": "no",
        "Use (W)hole disk": "whole",
        "URL to autopartitioning template for disklabel": "http://10.0.2.2:@PORT@/disklabel",
        "Location of sets": "cd1",
        "Pathname to the sets": f"{version.text}/amd64",
        "Set name(s)": f"-all bsd* base{digits}.tgz comp{digits}.tgz man{digits}.tgz"
        f" site{digits}.tgz",
        "Directory does not contain SHA256.sig. Continue without verification": "no",
        # Our own set is not, and can't be, in OpenBSD's signed list.
        f"Checksum test for site{digits}.tgz failed. Continue anyway": "yes",
        f"Unverified sets: site{digits}.tgz. Continue without verification": "yes",
    }
    return "".join(f"{question} = {answer}\n" for question, answer in answers.items())


def build_disk_template() -> str:
    """disklabel(8) template of the build system: one file system."""
    return "/\t4G-*\t100%\n"


def card_label(card: Card) -> str:
    """disklabel(8) prototype (-R) of the card, after fdisk gave OpenBSD one partition.

    b stays free, as swap is looked for there.
    """
    start = 64
    lines = ["type: SCSI", "disk: card", "label: redirectd", "bytes/sector: 512",
             f"total sectors: {card.total * SECTORS}", f"boundstart: {start}",
             f"boundend: {card.total * SECTORS}", "", "16 partitions:",
             "#  size offset fstype [fsize bsize cpg]"]  # fmt: skip
    at = SECTORS
    for name, size in ((SLOT_A, card.slot), (SLOT_B, card.slot), (CFG, card.cfg)):
        lines.append(f"  {name}: {size * SECTORS} {at} 4.2BSD 2048 16384 1")
        at += size * SECTORS
    lines.insert(-3, f"  c: {card.total * SECTORS} 0 unused")
    return "\n".join(lines) + "\n"


def fstab(duid: str, slot: str) -> str:
    """fstab(5) of a slot.  GENERIC has no tmpfs: mfs, filled from /proto."""
    return "\n".join(
        [
            f"{duid}.{slot} / ffs ro,noatime,wxallowed 1 1",
            f"{duid}.{CFG} /cfg ffs rw,noatime,nodev,nosuid,noexec 1 2",
            "swap /tmp mfs rw,nodev,nosuid,noexec,-s=32m 0 0",
            "swap /var mfs rw,nodev,nosuid,-s=64m,-P=/proto/var 0 0",
            "swap /dev mfs rw,nosuid,noexec,-P=/proto/dev,-s=8m,-i=128 0 0",
            "",
        ]
    )


def boot_conf(slot: str) -> str:
    """boot.conf(8) on slot A's partition, which the boot blocks read.

    A kernel of slot B that can't be loaded leaves the loader with its own default: slot A.
    """
    lines = ["stty com0 115200", "set tty com0", "set timeout 3"]
    if slot == "b":
        lines.append(f"boot hd0{SLOT_B}:/bsd")
    return "\n".join(lines) + "\n"


def index(files: Mapping[str, int]) -> str:
    """index.txt, by which the installer knows the sets: ``ls -l`` form, name -> size."""
    return "".join(
        f"-rw-r--r--  1 0  0  {size} Jan  1 00:00:00 2026 {name}\n"
        for name, size in sorted(files.items())
    )
