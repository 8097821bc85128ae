"""The site set of the OpenBSD build system: everything of ours, in one archive.

./install.site          called by the installer
./redirectd/make-card   writes the card, with what lies beside it:
    tree/ image/ wheels/ pypcap/ packages/ syspatch/ root/ cfg/ and small lists
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import answers
import openbsd_files
from release import Version
from siteset import Member, archive

from pfconf.description import Gateway

HERE = Path(__file__).resolve().parent
FILES = HERE / "openbsd"
SHARED_RC = (HERE.parent / "appliance/share/openbsd", HERE.parent / "webui/share")
#: modules of this folder that gateway-apply needs on the appliance
CODE = ("openbsd_apply", "openbsd_files", "linux_files", "firewall", "gateway_apply")


@dataclass(frozen=True, slots=True)
class Parts:
    """What goes into the set.

    wheels, packages, patches  file name -> content
    not_on_card                files that only a build needs, as ``./usr/bin/cc``
    owners                     the owner's own files for /cfg/etc (iked.conf, PPPoE)
    """

    version: Version
    gateway: Gateway
    config: str
    card: answers.Card
    console_password: str
    tree: Mapping[str, bytes]
    wheels: Mapping[str, bytes]
    pypcap: Mapping[str, bytes]
    packages: Mapping[str, bytes]
    not_on_card: tuple[str, ...] = ()
    patches: Mapping[str, bytes] = field(default_factory=dict)
    owners: Mapping[str, bytes] = field(default_factory=dict)
    settings: str = ""


def members(parts: Parts) -> Iterator[Member]:
    yield Member("install.site", (FILES / "install.site").read_bytes(), 0o755)
    yield Member("redirectd/make-card", (FILES / "make-card").read_bytes(), 0o755)
    texts = {
        "version": f"{parts.version.text}\n",
        "card.label": answers.card_label(parts.card),
        "fstab": answers.fstab("@DUID@", "@SLOT@"),
        "boot.conf": answers.boot_conf("a"),
        "console-password": f"{parts.console_password}\n",
        "packages.list": "".join(f"{name.removesuffix('.tgz')}\n" for name in parts.packages),
        "not-on-card": "".join(f"{name}\n" for name in sorted(parts.not_on_card)),
        "links": "".join(f"{name}\n" for name in links(parts)),
        "cfg/gateway.toml": parts.config,
        **({"cfg/redirectd.toml": parts.settings} if parts.settings else {}),
    }
    rendered = openbsd_files.render(parts.gateway, parts.settings)
    texts |= {f"cfg/etc/{name}": text for name, text in rendered.items()}
    for name, text in texts.items():
        mode = 0o600 if name == "console-password" or name.startswith("cfg/") else 0o644
        yield Member(f"redirectd/{name}", text.encode(), mode)
    for name, data in parts.owners.items():
        yield Member(f"redirectd/cfg/etc/{name}", data, 0o600)
    for name in CODE:
        yield Member(f"redirectd/image/{name}.py", (HERE / f"{name}.py").read_bytes())
    for folder, files in (
        ("tree", parts.tree), ("wheels", parts.wheels), ("pypcap", parts.pypcap),
        ("packages", parts.packages), ("syspatch", parts.patches),
    ):  # fmt: skip
        for name, data in files.items():
            yield Member(f"redirectd/{folder}/{name}", data)
    yield from _root()


def _root() -> Iterator[Member]:
    """Files of the card's root, and the rc.d scripts that every OpenBSD gets."""
    names = set()
    for path in sorted((FILES / "root").rglob("*")):
        if path.is_file():
            name = path.relative_to(FILES / "root").as_posix()
            names.add(name)
            yield Member(f"redirectd/root/{name}", path.read_bytes(), _mode(path))
    for folder in SHARED_RC:
        for path in sorted(folder.glob("*.rc")):
            name = f"etc/rc.d/{path.stem}"
            if name not in names:
                script = path.read_bytes().replace(b"@PREFIX@", b"/usr/local")
                yield Member(f"redirectd/root/{name}", script, 0o755)


def _mode(path: Path) -> int:
    return 0o755 if path.stat().st_mode & 0o100 else 0o644


def links(parts: Parts) -> list[str]:
    """Names in /etc that are links to /cfg/etc."""
    rendered = openbsd_files.render(parts.gateway, parts.settings)
    own = [name for name in rendered if name.startswith("hostname.")]
    return sorted({*openbsd_files.LINKS, *own, *openbsd_files.owners_part(parts.gateway)})


def make(parts: Parts, epoch: int) -> bytes:
    """``siteNN.tgz``; the same bytes for the same parts."""
    return archive(members(parts), epoch)


def build_only(sets: Iterable[Path]) -> tuple[str, ...]:
    """Names of all plain files in sets that the card does without (compiler, manuals)."""
    found = set()
    for path in sets:
        with tarfile.open(path, "r|gz") as tar:
            found |= {"./" + member.name.removeprefix("./") for member in tar if not member.isdir()}
    return tuple(sorted(found))


def unpack(data: bytes) -> dict[str, bytes]:
    """Plain files of a .tgz by their name, for looking into it."""
    found = {}
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as tar:
        for member in tar:
            source = tar.extractfile(member) if member.isreg() else None
            if source is not None:
                found[member.name.removeprefix("./")] = source.read()
    return found
