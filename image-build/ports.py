"""Which OpenBSD packages the appliance takes from ports, with all that they need.

A package is a .tgz whose first member, +CONTENTS, has a line for each dependency:
``@depend PKGPATH:PATTERN:DEFAULT``.  pkg_add(1) checks the packages' own signatures; this
only finds the files.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from stages import BuildError

#: compiled packages: current cryptography does not build against LibreSSL
FROM_PORTS = ("python", "py3-cryptography", "py3-cffi", "py3-argon2-cffi", "py3-MarkupSafe",
              "py3-wrapt", "py3-setuptools", "unzip--")  # fmt: skip
#: distributions that those packages bring: their wheels stay away
COVERED = frozenset(
    {"cryptography", "cffi", "pycparser", "argon2-cffi", "argon2-cffi-bindings", "markupsafe",
     "wrapt", "pypcap"}
)  # fmt: skip
_NAME = re.compile(r"([A-Za-z0-9_.+-]+?)-([0-9][A-Za-z0-9.,_+]*)(-[a-z0-9_-]+)?")
_CONTENTS_MAX = 8 << 20


def stem(name: str) -> str:
    """``py3-cffi`` of ``py3-cffi-1.17.1``."""
    match = _NAME.fullmatch(name)
    return match[1] if match else name


def dependencies(package: Path) -> list[str]:
    """Default package names that ``package`` depends on."""
    try:
        with tarfile.open(package, "r|gz") as tar:
            for member in tar:
                if member.name != "+CONTENTS":
                    continue
                source = tar.extractfile(member)
                if source is None or member.size > _CONTENTS_MAX:
                    break
                text = source.read().decode("utf-8", errors="replace")
                return [
                    line.rpartition(":")[2]
                    for line in text.splitlines()
                    if line.startswith("@depend ")
                ]
    except (tarfile.TarError, OSError, EOFError) as error:
        raise BuildError(f"{package}: no package: {error}") from None
    raise BuildError(f"{package}: no package: it has no +CONTENTS")


def closure(folder: Path, stems: Iterable[str] = FROM_PORTS) -> dict[str, Path]:
    """Package file name -> path for ``stems`` and everything below them in ``folder``."""
    by_stem: dict[str, list[Path]] = {}
    for path in sorted(folder.glob("*.tgz")):
        by_stem.setdefault(stem(path.name.removesuffix(".tgz")), []).append(path)
    found: dict[str, Path] = {}
    wanted = [name.removesuffix("--") for name in stems]
    while wanted:
        name = wanted.pop()
        chosen = _choose(name, by_stem)
        if chosen is None:
            raise BuildError(f"{folder} has no package {name}: copy it there from a mirror")
        if chosen.name in found:
            continue
        found[chosen.name] = chosen
        wanted += dependencies(chosen)
    return found


def _choose(name: str, by_stem: Mapping[str, list[Path]]) -> Path | None:
    """The named version, else the only or newest Python 3 of the stem."""
    candidates = by_stem.get(stem(name), [])
    for path in candidates:
        if path.name == f"{name}.tgz":
            return path
    if stem(name) == "python":
        candidates = [p for p in candidates if p.name.startswith("python-3.")]
    return max(candidates, key=lambda p: _numbers(p.name)) if candidates else None


def _numbers(name: str) -> tuple[int, ...]:
    return tuple(int(n) for n in re.findall(r"[0-9]+", name))
