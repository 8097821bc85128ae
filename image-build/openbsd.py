"""The OpenBSD image: the official installer runs unattended in QEMU, then writes the card.

    release (checked) + site set -> build system -> make-card -> card image, slot archive

The build system is installed once for a release and site set and kept; nothing of it but
what make-card copies is on the card.
"""

from __future__ import annotations

import functools
import hashlib
import http.server
import re
import shutil
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import answers
import openbsd_files
import openbsd_site
import ports
import release
import wheels
from qemu import Accelerator, Guest, GuestError, Machine
from stages import BuildError, Workshop, finished, need_space

from appliance.config_reading import ConfigError
from pfconf.__main__ import parse_description

HERE = Path(__file__).resolve().parent
MIB = 1 << 20
BUILD_DISK = 8192  # MiB, sparse
ARCHIVE_DISK = 1024
#: of the build system, which nobody else can reach and which is not on the card
BUILDER_PASSWORD = "a build system"  # noqa: S105 -- not a secret
#: no password has this hash: nobody logs in (passwd(5))
LOCKED = "*************"
_INSTALL_TIME = 3600.0
_CARD_TIME = 3600.0


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to build.

    source     directory or URL of the release
    packages   directory with the packages of :mod:`ports`
    owners     directory with the owner's own files for /cfg/etc, or None
    patches    directory with syspatch archives, or None
    """

    source: str
    version: release.Version
    config: str
    config_path: Path
    output: Path
    packages: Path
    card: answers.Card
    root_password: str | None
    epoch: int
    settings: str = ""
    owners: Path | None = None
    patches: Path | None = None
    accelerator: Accelerator = "auto"


@dataclass(frozen=True, slots=True)
class Built:
    image: Path
    size: int
    archive: Path
    archive_digest: str


def check(wanted: Wanted) -> openbsd_site.Parts:
    """Everything that can be known before the first slow step."""
    try:
        gateway = parse_description(wanted.config, wanted.config_path)
        openbsd_files.render(gateway, wanted.settings)
    except ConfigError as error:
        raise BuildError(str(error)) from None
    if not wanted.version.key_path.exists():
        raise BuildError(
            f"{wanted.version.key_path} is missing: the public key of the release is needed"
            " (image-build/keys/README.md)"
        )
    if wanted.root_password is not None and not wanted.root_password.startswith("$2b$"):
        raise BuildError("the root password must be a bcrypt hash: see encrypt(1)")
    owners = _files(wanted.owners)
    for name in openbsd_files.owners_part(gateway):
        if name not in owners:
            raise BuildError(
                f"the description needs {name} with its secrets: put it into a directory and"
                " name that with --owners"
            )
    return openbsd_site.Parts(
        version=wanted.version,
        gateway=gateway,
        config=wanted.config,
        card=wanted.card,
        console_password=wanted.root_password or LOCKED,
        tree=_tree(),
        wheels={},
        pypcap={},
        packages={},
        patches={n: d for n, d in _files(wanted.patches).items() if n.endswith(".tgz")},
        owners=owners,
        settings=wanted.settings,
    )


def _files(folder: Path | None) -> dict[str, bytes]:
    if folder is None:
        return {}
    if not folder.is_dir():
        raise BuildError(f"{folder} is no directory")
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _tree() -> dict[str, bytes]:
    """redirectd's own sources."""
    found = {}
    for name in wheels.PACKAGES:
        for path in sorted((wheels.ROOT / name).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                found[path.relative_to(wheels.ROOT).as_posix()] = path.read_bytes()
    return found


def pure_wheels(wheelhouse: Path) -> dict[str, bytes]:
    """Wheels that run anywhere, without those that a package brings."""
    found = {}
    for path in sorted(wheelhouse.glob("*.whl")):
        name = re.sub(r"[-_.]+", "-", path.name.partition("-")[0]).lower()
        if name in ports.COVERED:
            continue
        if not path.name.endswith("-any.whl"):
            raise BuildError(f"{path.name} is compiled for this machine and in no package list")
        found[path.name] = path.read_bytes()
    return found


def build(shop: Workshop, wanted: Wanted) -> Built:
    parts = check(wanted)
    need_space(wanted.output.parent, wanted.card.total * MIB)
    need_space(shop.directory, 6000 * MIB)
    chosen = ports.closure(wanted.packages)
    sets = shop.stage(
        f"release-{wanted.version.text}",
        [HERE / "release.py", HERE / "signify.py", wanted.source, wanted.version.text,
         wanted.version.key_path],
        lambda path: release.collect(shop, wanted.source, wanted.version, path),
    )  # fmt: skip
    wheelhouse = shop.stage(
        "openbsd-wheels",
        [HERE / "wheels.py", wheels.LOCK, wheels.BUILD_LOCK],
        lambda path: wheels.make_wheelhouse(shop, path),
    )
    pypcap = shop.stage(
        "pypcap",
        [HERE / "wheels.py", wheels.LOCK, wheels.BUILD_LOCK],
        lambda path: wheels.make_pypcap_source(shop, path),
    )
    digits = wanted.version.digits
    parts = _with(
        parts,
        wheels=pure_wheels(wheelhouse),
        pypcap=_files(pypcap),
        packages={name: path.read_bytes() for name, path in sorted(chosen.items())},
        not_on_card=openbsd_site.build_only(
            [sets / f"comp{digits}.tgz", sets / f"man{digits}.tgz"]
        ),
    )
    site = openbsd_site.make(parts, wanted.epoch)
    system = shop.stage(
        "build-system",
        [Path(__file__), HERE / "answers.py", sets.name, site],
        lambda path: _install(shop, wanted, sets, site, path),
    )
    archive = wanted.output.with_name(f"{wanted.output.name}.slot.tgz")
    with finished(archive) as slot, finished(wanted.output) as image:
        digest = _write_card(shop, wanted, system, image, slot)
    return Built(wanted.output, wanted.output.stat().st_size, archive, digest)


def _with(parts: openbsd_site.Parts, **changed: object) -> openbsd_site.Parts:
    names = openbsd_site.Parts.__dataclass_fields__
    return openbsd_site.Parts(**{**{n: getattr(parts, n) for n in names}, **changed})


# -- the installer ------------------------------------------------------------------------


@contextmanager
def served(directory: Path) -> Iterator[int]:
    """Files of ``directory`` by HTTP on the loopback; the guest sees them at 10.0.2.2."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            """The console shows what the installer fetches."""

    handler = functools.partial(Quiet, directory=str(directory))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def sets_disc(shop: Workshop, sets: Path, site: bytes, version: release.Version, iso: Path) -> None:
    """A CD with the checked sets and ours, as the installer expects it."""
    tree = iso.with_name(f"{iso.name}.tree")
    place = tree / version.text / release.ARCH
    try:
        place.mkdir(parents=True)
        for path in sorted(sets.iterdir()):
            if path.suffix != ".iso":
                (place / path.name).hardlink_to(path)
        (place / f"site{version.digits}.tgz").write_bytes(site)
        sizes = {path.name: path.stat().st_size for path in place.iterdir()}
        (place / "index.txt").write_text(answers.index(sizes))
        shop.run(["xorriso", "-as", "mkisofs", "-quiet", "-R", "-o", iso, tree])
    finally:
        shutil.rmtree(tree, ignore_errors=True)


def _sparse(path: Path, mib: int) -> None:
    with path.open("wb") as file:
        file.truncate(mib * MIB)


def _cd(number: int, path: Path) -> tuple[str, ...]:
    return (
        "-drive", f"if=none,id=cd{number},media=cdrom,readonly=on,format=raw,file={path}",
        "-device", f"ide-cd,bus=ide.{number},drive=cd{number}",
    )  # fmt: skip


def _install(shop: Workshop, wanted: Wanted, sets: Path, site: bytes, target: Path) -> None:
    version = wanted.version
    target.mkdir()
    disc = target / "sets.iso"
    sets_disc(shop, sets, site, version, disc)
    disk = target / "disk"
    _sparse(disk, BUILD_DISK)
    answer_folder = target / "answers"
    answer_folder.mkdir()
    (answer_folder / "disklabel").write_text(answers.build_disk_template())
    machine = Machine(
        disk=disk,
        memory=1024,
        bios_console=True,
        extra=(
            "-netdev", "user,id=u", "-device", "virtio-net-pci,netdev=u",
            *_cd(0, sets / f"cd{version.digits}.iso"), *_cd(1, disc), "-boot", "order=d",
            "-action", "reboot=shutdown",
        ),
    )  # fmt: skip
    with served(answer_folder) as port:
        text = answers.install_conf(version, BUILDER_PASSWORD).replace("@PORT@", str(port))
        (answer_folder / "install.conf").write_text(text)
        with Guest("installer", machine, target, wanted.accelerator) as guest:
            guest.start()
            try:
                follow_installer(guest, f"http://10.0.2.2:{port}/install.conf", shop)
            except GuestError as error:
                raise BuildError(str(error)) from None
    shutil.rmtree(answer_folder)
    disc.unlink()


def follow_installer(guest: Guest, url: str, shop: Workshop) -> None:
    """Start the installer on the serial console and watch it to its end."""
    guest.wait_for(r"boot>", 180)
    for line in ("stty com0 115200", "set tty com0", "boot"):
        guest.type(line, end="\r")
    guest.wait_for(r"\(A\)utoinstall or \(S\)hell\?", 600)
    guest.type("a")
    guest.wait_for(r"Response file location\?", 120)
    guest.type(url)
    match = guest.wait_for(r"\((I)\)nstall or \(U\)pgrade\?|Performing non-interactive", 120)
    if match[1]:
        guest.type("i")
    shop.say("  the installer runs")
    end = guest.wait_for(
        r"CONGRATULATIONS|Question has no answer in response file: ([^\r\n]*)"
        r"|failed; check /tmp/ai/ai\.log|install\.site[^\r\n]*failed|panic: ([^\r\n]*)",
        _INSTALL_TIME,
    )
    if not end[0].startswith(b"CONGRATULATIONS"):
        raise GuestError(f"the installer stopped: {end[0].decode(errors='replace')}")
    guest.wait_off(300)


# -- the card -----------------------------------------------------------------------------


def _write_card(shop: Workshop, wanted: Wanted, system: Path, image: Path, slot: Path) -> str:
    """Run make-card in the build system; returns the SHA-256 of the slot archive."""
    scratch = shop.directory / "card.partial"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    try:
        disk = scratch / "disk"  # a copy: the build system stays as it was installed
        shop.run(["cp", "--sparse=always", system / "disk", disk])
        _sparse(image, wanted.card.total)
        raw = scratch / "archive"
        _sparse(raw, ARCHIVE_DISK)
        drives = []
        for path in (image, raw):
            drives += ["-drive", f"if=virtio,format=raw,cache=writeback,file={path}"]
        machine = Machine(disk=disk, memory=1024, extra=tuple(drives), bios_console=True)
        with Guest("builder", machine, scratch, wanted.accelerator) as guest:
            guest.start()
            try:
                guest.login("root", BUILDER_PASSWORD, 600)
                follow_card(guest, shop)
                guest.type("halt -p")
                guest.wait_off(300)
            except GuestError as error:
                raise BuildError(str(error)) from None
        trim_gzip(raw, slot)
        return hashlib.sha256(slot.read_bytes()).hexdigest()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def follow_card(guest: Guest, shop: Workshop) -> None:
    guest.type("/redirectd/make-card sd1 sd2")
    while True:
        match = guest.wait_for(
            r"(STEP: ([^\r\n]*)|CARD DONE [0-9]+|CARD FAILED[^\r\n]*)\r*\n", _CARD_TIME
        )
        if match[2] is not None:
            shop.say(f"  {match[2].decode(errors='replace')}")
        elif match[1].startswith(b"CARD DONE"):
            return
        else:
            raise GuestError(f"make-card: {match[1].decode(errors='replace')}; see {guest.log}")


def trim_gzip(raw: Path, target: Path) -> None:
    """Copy a gzip stream without the zeros that follow it on a raw disk."""
    inflate = zlib.decompressobj(wbits=31)
    with raw.open("rb") as source, target.open("wb") as out:
        while not inflate.eof:
            block = source.read(MIB)
            if not block:
                raise BuildError("the slot archive is cut off")
            try:
                inflate.decompress(block)
            except zlib.error as error:
                raise BuildError(f"the slot archive is damaged: {error}") from None
            out.write(block[: len(block) - len(inflate.unused_data)])
