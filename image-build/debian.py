"""The Linux image: Debian packages, the redirectd tree, a read-only root and /cfg.

packages + tree -> root.tar -> squashfs, kernel, initrd
gateway.toml    -> cfg (ext4)
all of it       -> one disk image that starts on BIOS and UEFI
"""

from __future__ import annotations

import io
import os
import shutil
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import disk
import linux_files
import wheels
from stages import BuildError, Workshop, digest_of, finished, need_space

from appliance.config_reading import ConfigError
from pfconf.__main__ import parse_description

HERE = Path(__file__).resolve().parent
OVERLAY = HERE / "debian"
SUITE = "bookworm"
PYTHON = (3, 11)
MBR = Path("/usr/lib/SYSLINUX/gptmbr.bin")

#: runs on the appliance, beside the package
_CODE = [HERE / f"{name}.py" for name in ("gateway_apply", "linux_files", "firewall")]

_SHARED_UNITS = (HERE.parent / "appliance/share", HERE.parent / "webui/share")

Kernel = Literal["cloud", "generic"]
KERNELS = {"cloud": "linux-image-cloud-amd64", "generic": "linux-image-amd64"}
PACKAGES = (
    "systemd-sysv", "udev", "kmod",
    "nftables", "iproute2", "iputils-ping", "systemd-resolved", "chrony", "wireguard-tools",
    "openssh-server", "python3", "libpcap0.8",
    "initramfs-tools", "zstd", "e2fsprogs", "procps", "login", "passwd", "tzdata",
    "systemd-boot-efi",
)  # fmt: skip

#: what the initial RAM disk needs to reach the root file system
_BOOT_MODULES = (
    "squashfs", "ext4", "virtio_blk", "virtio_pci", "virtio_scsi", "nvme", "ahci", "ata_piix",
    "sd_mod", "usb_storage", "uas", "xhci_pci", "ehci_pci", "ohci_pci", "uhci_hcd",
    "mmc_block", "sdhci_pci", "sdhci_acpi", "hv_storvsc", "xen_blkfront",
)  # fmt: skip
#: kernel modules that a gateway has no use for
_UNUSED_MODULES = (
    "kernel/sound", "kernel/drivers/gpu", "kernel/drivers/media", "kernel/drivers/staging",
    "kernel/drivers/infiniband", "kernel/drivers/isdn", "kernel/drivers/iio",
    "kernel/drivers/comedi", "kernel/drivers/bluetooth", "kernel/net/bluetooth",
    "kernel/drivers/net/wireless", "kernel/net/mac80211", "kernel/net/wireless",
    "kernel/fs/ocfs2", "kernel/fs/gfs2", "kernel/fs/ceph", "kernel/fs/xfs", "kernel/fs/btrfs",
    "kernel/fs/jfs", "kernel/fs/nilfs2", "kernel/fs/reiserfs", "kernel/fs/f2fs", "kernel/fs/smb",
    "kernel/fs/cifs", "kernel/fs/nfs", "kernel/fs/nfsd", "kernel/drivers/md",
    "kernel/drivers/scsi/lpfc", "kernel/drivers/scsi/qla2xxx",
)  # fmt: skip
_COMMAND_LINE = (
    # eth0, eth1, ... in the order of the slots: names that a description can use
    "net.ifnames=0 console=tty0 console=ttyS0,115200 quiet loglevel=4 panic=10 "
    "systemd.firstboot=off systemd.condition-first-boot=no systemd.show_status=yes"
)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to build.

    config         text of gateway.toml
    root_password  crypt(3) hash for the console; None: nobody can log in there
    epoch          seconds since 1970 that every time stamp in the image gets
    """

    config: str
    source: Path
    output: Path
    kernel: Kernel
    layout: disk.Layout
    root_password: str | None
    mirror: str | None
    epoch: int
    settings: str = ""


@dataclass(frozen=True, slots=True)
class Built:
    image: Path
    size: int
    used: int


def check(wanted: Wanted) -> None:
    """Everything that can be known before the first slow step: the wish, then the means."""
    try:
        gateway = parse_description(wanted.config, wanted.source)
        linux_files.render(gateway, wanted.settings)
    except (ConfigError, linux_files.Unusable) as error:
        raise BuildError(str(error)) from None
    for name in (gateway.outside.interface, *(n.interface for n in gateway.networks)):
        if not name.startswith("eth"):
            raise BuildError(
                f"{wanted.source}: the Linux image calls its cards eth0, eth1, ...,"
                f" not {name!r}; use those names"
            )
    if wanted.root_password is not None and (
        ":" in wanted.root_password or not wanted.root_password.startswith("$")
    ):
        raise BuildError("the root password must be a crypt(3) hash: see mkpasswd(1)")
    wheels.need_python(PYTHON)
    if not MBR.exists():
        raise BuildError(f"{MBR} is missing: install the packages syslinux and syslinux-common")


def build(shop: Workshop, wanted: Wanted) -> Built:
    check(wanted)
    need_space(wanted.output.parent, wanted.layout.total * disk.MIB // 2)
    need_space(shop.directory, 2500 * disk.MIB)
    own = [Path(__file__), HERE / "wheels.py"]
    houses = [own[1], wheels.LOCK, wheels.BUILD_LOCK]
    wheelhouse = shop.stage("wheels", houses, lambda path: wheels.make_wheelhouse(shop, path))
    site = shop.stage(
        "redirectd",
        [*houses, wanted.epoch, *wheels.tree_inputs()],
        lambda path: wheels.make_site_packages(shop, wheelhouse, path, wanted.epoch),
    )
    tar = shop.stage(
        "packages",
        [own[0], wanted.kernel, wanted.mirror, wanted.epoch],
        lambda path: _make_packages(shop, wanted, path),
    )
    files = shop.stage("boot-files", [own[0], tar.name], lambda path: _boot_files(tar, path))
    squashfs = shop.stage(
        "root",
        [own[0], tar.name, site.name, OVERLAY, *_CODE, *_SHARED_UNITS],
        lambda path: _make_root(shop, tar, site, wanted.epoch, path),
    )
    with finished(wanted.output) as image:
        shop.say("image ...")
        _image(shop, wanted, files, squashfs, image)
        used = os.stat(image).st_blocks * 512
    shop.say("image: done")
    return Built(wanted.output, wanted.output.stat().st_size, used)


# -- root file system ---------------------------------------------------------------------


def _make_packages(shop: Workshop, wanted: Wanted, target: Path) -> None:
    before = target.with_name(f"{target.name}-before.tar.partial")
    scratch = target.with_name(f"{target.name}-tmp.partial")
    try:
        _write_tar(before, _early_files(), wanted.epoch)
        env = {"SOURCE_DATE_EPOCH": str(wanted.epoch)}
        if os.geteuid() == 0:
            scratch.mkdir(mode=0o755)
            env["TMPDIR"] = str(scratch.absolute())
        # Otherwise it works in a user namespace, whose root may not enter a home directory.
        shop.run(
            [
                "mmdebstrap", "--variant=essential", "--format=tar",
                '--aptopt=APT::Install-Recommends "false"',
                '--aptopt=Acquire::Languages "none"',
                "--dpkgopt=path-exclude=/usr/share/man/*",
                "--dpkgopt=path-exclude=/usr/share/info/*",
                "--dpkgopt=path-exclude=/usr/share/locale/*",
                "--dpkgopt=path-exclude=/usr/share/doc/*",
                "--dpkgopt=path-include=/usr/share/doc/*/copyright",
                f"--include={','.join([*PACKAGES, KERNELS[wanted.kernel]])}",
                f"--essential-hook=tar-in {before} /",
                f"--customize-hook={_HOOK}",
                SUITE, target, *([wanted.mirror] if wanted.mirror else []),
            ],
            env=env,
        )  # fmt: skip
    finally:
        before.unlink(missing_ok=True)
        shutil.rmtree(scratch, ignore_errors=True)


Entry = tuple[str, bytes | Path | None, int]  # name, content (None: a folder), mode


def _early_files() -> Iterator[Entry]:
    """In place before the kernel's package makes its initial RAM disk."""
    yield "etc/initramfs-tools/conf.d/gateway", b"MODULES=list\nCOMPRESS=zstd\nRESUME=none\n", 0o644
    modules = "".join(f"{name}\n" for name in _BOOT_MODULES).encode()
    yield "usr/share/initramfs-tools/modules.d/gateway", modules, 0o644
    # services must not start while packages are configured
    yield "usr/sbin/policy-rc.d", b"#!/bin/sh\nexit 101\n", 0o755


def _overlay(site: Path) -> Iterator[Entry]:
    for path in sorted(OVERLAY.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            if path.suffix == ".service":
                continue  # with the other units
            name = path.relative_to(OVERLAY).as_posix()
            mode = 0o755 if path.stat().st_mode & 0o100 else 0o644
            data = path.read_bytes().replace(b"@CFG@", disk.identifier("cfg").encode())
            yield name, data, mode
    for name, text in _units():
        yield f"usr/lib/systemd/system/{name}", text.encode(), 0o644
    for path in sorted(site.rglob("*")):
        if path.is_file():
            name = f"usr/lib/redirectd/site-packages/{path.relative_to(site).as_posix()}"
            yield name, path, 0o644
    for path in _CODE:
        yield f"usr/lib/redirectd/image/{path.name}", path, 0o644
    yield (
        "usr/lib/python3/dist-packages/redirectd.pth",
        b"/usr/lib/redirectd/site-packages\n/usr/lib/redirectd/image\n",
        0o644,
    )
    yield "cfg", None, 0o755


def _units() -> Iterator[tuple[str, str]]:
    """(name, text) of our own units: the image's, and those that every Linux gets."""
    for folder in (OVERLAY / "usr/lib/systemd/system", *_SHARED_UNITS):
        for path in sorted(folder.glob("*.service")):
            yield path.name, path.read_text().replace("/usr/local/sbin", "/usr/sbin")


def _links() -> Iterator[tuple[str, str]]:
    """What ``systemctl enable`` would make for the units of the overlay."""
    folder = "etc/systemd/system"
    for name, text in _units():
        for line in text.splitlines():
            if line.startswith("WantedBy="):
                yield (
                    f"{folder}/{line.removeprefix('WantedBy=')}.wants/{name}",
                    f"/usr/lib/systemd/system/{name}",
                )


def _write_tar(
    target: Path,
    entries: Iterator[Entry],
    epoch: int,
    base: Path | None = None,
    links: Iterable[tuple[str, str]] = (),
) -> None:
    """A tar file that depends on nothing but its entries; they replace those of ``base``."""
    new = list(entries)
    replaced = {name for name, _, _ in new}
    folders: set[str] = set()
    with tarfile.open(target, "w", format=tarfile.GNU_FORMAT) as tar:
        if base is not None:
            with tarfile.open(base) as old:
                for member in old:
                    name = member.name.removeprefix("./").rstrip("/")
                    if name.startswith("dev/"):
                        continue  # systemd mounts its own
                    folders.add(name) if member.isdir() else None
                    if name not in replaced:
                        member.mtime = min(member.mtime, epoch)
                        tar.addfile(member, old.extractfile(member) if member.isreg() else None)

        def folder(name: str) -> None:
            if name and name not in folders and (base is not None or name not in ("usr", "etc")):
                folder(name.rpartition("/")[0])
                folders.add(name)
                tar.addfile(_info(name, 0o755, epoch, tarfile.DIRTYPE))

        for name, content, mode in new:
            if content is None:
                folder(name)
                continue
            folder(name.rpartition("/")[0])
            data = content if isinstance(content, bytes) else content.read_bytes()
            info = _info(name, mode, epoch, tarfile.REGTYPE)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        for name, destination in links:
            folder(name.rpartition("/")[0])
            info = _info(name, 0o777, epoch, tarfile.SYMTYPE)
            info.linkname = destination
            tar.addfile(info)


def _info(name: str, mode: int, epoch: int, kind: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo(f"./{name}")
    info.mode, info.mtime, info.type = mode, epoch, kind
    info.uname = info.gname = "root"
    return info


_HOOK = """# Runs on the build host; $1 is the root file system.
set -eu
root=$1
in_root() { chroot "$root" "$@"; }
in_root useradd --system --user-group --no-create-home --home-dir /nonexistent \\
    --shell /usr/sbin/nologin _redirectd
in_root useradd --system --user-group --no-create-home --home-dir /nonexistent \\
    --shell /usr/sbin/nologin _redirectdweb
in_root systemctl --quiet enable systemd-networkd systemd-resolved chrony
# nothing is installed, rotated or indexed on a root that can't be written
in_root systemctl --quiet mask systemd-sysusers systemd-firstboot ssh.service ssh.socket \\
    nftables apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer \\
    e2scrub_reap fstrim.timer man-db.timer systemd-networkd-wait-online.service \\
    systemd-hwdb-update systemd-journal-catalog-update ldconfig.service systemd-update-done \\
    systemd-machine-id-commit getty-static 2>/dev/null
for version in "$root"/lib/modules/*; do
    for part in @UNUSED@; do rm -rf "$version/$part"; done
    in_root depmod "${version##*/}"
done
in_root update-initramfs -u -k all
in_root python3 -m compileall -q --invalidation-mode unchecked-hash \\
    /usr/lib/python3/dist-packages /usr/lib/python3.11 >/dev/null
rm -f "$root"/usr/sbin/policy-rc.d "$root"/etc/ssh/ssh_host_* "$root"/etc/machine-id
: >"$root"/etc/machine-id
echo gateway >"$root"/etc/hostname
printf '127.0.0.1 localhost\\n127.0.1.1 gateway\\n::1 localhost\\n' >"$root"/etc/hosts
ln -sf /run/systemd/resolve/stub-resolv.conf "$root"/etc/resolv.conf
ln -sf ../proc/self/mounts "$root"/etc/mtab
rm -f "$root"/etc/shadow "$root"/etc/shadow- "$root"/etc/gshadow- "$root"/etc/passwd- \\
    "$root"/etc/group-
ln -s /cfg/auth/shadow "$root"/etc/shadow
printf 'redirectd home gateway \\\\n \\\\l\\n\\n' >"$root"/etc/issue
: >"$root"/etc/motd
# not /tmp: mmdebstrap keeps there what tells apt to work in this root and not on the host
rm -rf "$root"/var/cache/* "$root"/var/log/* "$root"/var/lib/dpkg \\
    "$root"/usr/share/bash-completion "$root"/usr/share/zsh "$root"/usr/share/fish \\
    "$root"/usr/share/perl* "$root"/usr/lib/python3/dist-packages/pip
""".replace("@UNUSED@", " ".join(_UNUSED_MODULES))


def _boot_files(tar: Path, target: Path) -> None:
    """kernel, initrd and the UEFI loader out of the root file system."""
    target.mkdir()
    wanted = {"vmlinuz": "boot/vmlinuz-", "initrd": "boot/initrd.img-",
              "loader.efi": "usr/lib/systemd/boot/efi/systemd-bootx64.efi"}  # fmt: skip
    with tarfile.open(tar) as archive:
        for member in archive:
            name = member.name.removeprefix("./")
            for short, prefix in wanted.items():
                if member.isfile() and name.startswith(prefix):
                    source = archive.extractfile(member)
                    if source is not None:
                        (target / short).write_bytes(source.read())
    missing = [name for name in wanted if not (target / name).exists()]
    if missing:
        raise BuildError(f"the packages brought no {', '.join(missing)}")


def _make_root(shop: Workshop, packages: Path, site: Path, epoch: int, target: Path) -> None:
    """The packages and everything of ours as one squashfs."""
    whole = target.with_name(f"{target.name}-whole.tar.partial")
    try:
        _write_tar(whole, _overlay(site), epoch, packages, _links())
        with whole.open("rb") as source:
            shop.run(
                [
                    "sqfstar", "-quiet", "-no-progress", "-comp", "zstd",
                    "-mkfs-time", str(epoch), "-all-time", str(epoch), "-root-mode", "755",
                    "-root-uid", "0", "-root-gid", "0", "-processors", "2", target,
                    # these are in the boot partition
                    "boot/vmlinuz*", "boot/initrd*",
                ],
                stdin=source,
            )  # fmt: skip
    finally:
        whole.unlink(missing_ok=True)


# -- the disk -----------------------------------------------------------------------------


def command_line(slot: str) -> str:
    return f"root=PARTUUID={disk.identifier(f'root-{slot}')} rootfstype=squashfs ro {_COMMAND_LINE}"


def boot_configuration() -> dict[str, bytes]:
    """The same choice for syslinux (BIOS) and systemd-boot (UEFI): slot a, b by hand."""
    syslinux = "SERIAL 0 115200\nDEFAULT a\nPROMPT 0\nTIMEOUT 30\n"
    files = {}
    for slot in ("a", "b"):
        syslinux += (
            f"LABEL {slot}\n KERNEL /{slot}/vmlinuz\n INITRD /{slot}/initrd\n"
            f" APPEND {command_line(slot)}\n"
        )
        files[f"loader/entries/{slot}.conf"] = (
            f"title Gateway, slot {slot}\nlinux /{slot}/vmlinuz\ninitrd /{slot}/initrd\n"
            f"options {command_line(slot)}\n"
        ).encode()
    files["loader/loader.conf"] = b"default a.conf\ntimeout 3\neditor no\n"
    files["syslinux/syslinux.cfg"] = syslinux.encode()
    return files


def _image(shop: Workshop, wanted: Wanted, files: Path, squashfs: Path, image: Path) -> None:
    scratch = shop.directory / "disk.partial"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    try:
        esp, cfg = scratch / "esp", scratch / "cfg"
        contents: dict[str, Path | bytes] = {
            **boot_configuration(),
            "EFI/BOOT/BOOTX64.EFI": files / "loader.efi",
            "a/vmlinuz": files / "vmlinuz",
            "a/initrd": files / "initrd",
        }
        disk.make_esp(shop, esp, wanted.layout.esp, contents, wanted.epoch)
        tree = scratch / "tree"
        _cfg_tree(wanted, tree)
        disk.make_cfg(shop, cfg, wanted.layout.cfg, tree, wanted.epoch)
        disk.assemble(
            shop, image, wanted.layout, {"esp": esp, "root-a": squashfs, "cfg": cfg},
            MBR.read_bytes(),
        )  # fmt: skip
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _cfg_tree(wanted: Wanted, tree: Path) -> None:
    """What /cfg holds at first: the description, and who may log in at the console."""
    (tree / "auth").mkdir(parents=True)
    (tree / "auth").chmod(0o700)
    (tree / "gateway.toml").write_text(wanted.config)
    if wanted.settings:
        (tree / "redirectd.toml").write_text(wanted.settings)
    shadow = tree / "auth" / "shadow"
    shadow.write_text(f"root:{wanted.root_password or '*'}:19000:0:99999:7:::\n")
    shadow.chmod(0o600)
    for path in (tree, *tree.rglob("*")):
        os.utime(path, (wanted.epoch, wanted.epoch))


def fingerprint(wanted: Wanted) -> str:
    """Changes when anything changes that goes into the image."""
    return digest_of(wanted.config, wanted.kernel, OVERLAY, *wheels.tree_inputs())
