"""The files of an OpenBSD release, checked before anything is done with them."""

from __future__ import annotations

import re
import shutil
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import signify
from stages import BuildError, Workshop

HERE = Path(__file__).resolve().parent
KEYS = HERE / "keys"
ARCH = "amd64"
_FILE_MAX = 1 << 30
_VERSION = re.compile(r"[1-9][0-9]?\.[0-9]")


@dataclass(frozen=True, slots=True)
class Version:
    """``7.8``; ``digits`` is 78."""

    text: str

    def __post_init__(self) -> None:
        if not _VERSION.fullmatch(self.text):
            raise BuildError(f"{self.text!r} is no OpenBSD version: write it like 7.8")

    @property
    def digits(self) -> str:
        return self.text.replace(".", "")

    @property
    def key_path(self) -> Path:
        return KEYS / f"openbsd-{self.digits}-base.pub"


def needed(version: Version) -> tuple[str, ...]:
    """What the build uses: the installer's CD and the sets."""
    sets = [f"{name}{version.digits}.tgz" for name in ("base", "comp", "man")]
    return (f"cd{version.digits}.iso", "bsd", "bsd.mp", "bsd.rd", "BUILDINFO", *sets)


def _places(source: str, version: Version) -> list[str]:
    """Where the files of ``source`` may lie: in it, or as on a mirror."""
    base = source.rstrip("/")
    return [base, f"{base}/{ARCH}", f"{base}/{version.text}/{ARCH}"]


def _get(place: str, target: Path, limit: int = _FILE_MAX) -> bool:
    """Copy one file from a directory or a URL; False when it is not there."""
    if not place.startswith(("http://", "https://")):
        path = Path(place)
        if not path.is_file():
            return False
        shutil.copyfile(path, target)
        return True
    request = urllib.request.Request(place)  # noqa: S310 -- http or https, seen above
    try:
        with urllib.request.urlopen(request, timeout=60) as answer, target.open("wb") as file:  # noqa: S310
            left = limit
            while block := answer.read(1 << 20):
                left -= len(block)
                if left < 0:
                    raise BuildError(f"{place} is larger than {limit} bytes")
                file.write(block)
    except urllib.error.HTTPError as error:
        if error.code in (403, 404):
            return False
        raise BuildError(f"{place}: {error}") from None
    except (urllib.error.URLError, TimeoutError) as error:
        raise BuildError(f"{place}: {error}") from None
    return True


def signed_list(source: str, version: Version, scratch: Path) -> tuple[str, dict[str, str]]:
    """(where the files lie, their checksums); BuildError when the signature is not good."""
    try:
        key = signify.read_public_key(version.key_path)
        for place in _places(source, version):
            if _get(f"{place}/SHA256.sig", scratch, signify.MESSAGE_MAX):
                message = signify.verify_embedded(key, scratch.read_bytes())
                return place, signify.parse_checksums(message)
    except signify.SignatureError as error:
        raise BuildError(f"{source}: SHA256.sig: {error}{_hint(scratch, version)}") from None
    finally:
        scratch.unlink(missing_ok=True)
    raise BuildError(f"{source}: there is no SHA256.sig: is it the directory of a release?")


def _hint(scratch: Path, version: Version) -> str:
    """The usual reason for a wrong key: another release lies there."""
    try:
        found = re.search(rb"\(base([0-9]{2,3})\.tgz\)", scratch.read_bytes())
    except OSError:
        return ""
    if found is None or found[1].decode() == version.digits:
        return ""
    other = found[1].decode()
    return f"; it seems to be release {other[:-1]}.{other[-1]}, not {version.text}"


def collect(
    shop: Workshop, source: str, version: Version, target: Path, names: Iterable[str] = ()
) -> None:
    """Copy what is needed into ``target``, each file checked by the signed list."""
    place, checksums = signed_list(source, version, target.with_name(f"{target.name}.sig.partial"))
    wanted = tuple(names) or needed(version)
    missing = [name for name in wanted if name not in checksums]
    if missing:
        raise BuildError(f"{source}: the signed list has no {', '.join(missing)}")
    target.mkdir()
    if not _get(f"{place}/SHA256.sig", target / "SHA256.sig", signify.MESSAGE_MAX):
        raise BuildError(f"{place}/SHA256.sig went away")
    for name in wanted:
        shop.say(f"  {name}")
        if not _get(f"{place}/{name}", target / name):
            raise BuildError(f"{place}/{name} is missing")
        try:
            signify.check_file(target / name, checksums)
        except signify.SignatureError as error:
            raise BuildError(f"{place}: {error}") from None
