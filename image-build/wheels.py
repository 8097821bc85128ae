"""Python packages for the images: pinned by hash, with redirectd itself beside them."""

from __future__ import annotations

import re
import shutil
import sys
import tarfile
import venv
from pathlib import Path

from stages import BuildError, Workshop

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
LOCK = HERE / "requirements.lock"
BUILD_LOCK = HERE / "build-requirements.lock"
PACKAGES = ("appliance", "pfconf", "keystore", "webui")
_NOT_SHIPPED = shutil.ignore_patterns("__pycache__", "*.pyc", ".mypy_cache")


def copy_tree(target: Path) -> None:
    """The sources that make up redirectd, and nothing else of the working tree."""
    target.mkdir(parents=True)
    for name in PACKAGES:
        shutil.copytree(ROOT / name, target / name, ignore=_NOT_SHIPPED)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copyfile(ROOT / name, target / name)


def tree_inputs() -> list[object]:
    """What :func:`copy_tree` copies, for the digest of a stage."""
    return [ROOT / name for name in (*PACKAGES, "pyproject.toml", "README.md")]


def _make_tools(shop: Workshop, place: Path) -> list[str | Path]:
    """A pip with what builds source packages, all pinned; returns how to call it."""
    venv.create(place, with_pip=True, clear=True)
    pip: list[str | Path] = [place / "bin/python", "-m", "pip"]
    pip += ["--disable-pip-version-check", "--quiet"]
    shop.run([*pip, "install", "--require-hashes", "-r", BUILD_LOCK])
    return pip


def make_wheelhouse(shop: Workshop, target: Path) -> None:
    """Wheels of everything in requirements.lock for this Python; any other hash is refused."""
    tools = target.with_name(f"{target.name}-tools.partial")
    try:
        pip = _make_tools(shop, tools)
        target.mkdir()
        shop.run(
            # Without isolation, what builds a source package is pinned as well.
            [*pip, "wheel", "--require-hashes", "--no-deps", "--no-build-isolation",
             "--wheel-dir", target, "-r", LOCK],
            env={"SOURCE_DATE_EPOCH": "1700000000"},
        )  # fmt: skip
    finally:
        shutil.rmtree(tools, ignore_errors=True)


def make_pypcap_source(shop: Workshop, target: Path) -> None:
    """pypcap's sources for compiling elsewhere; its stale C file is made anew by Cython."""
    tools = target.with_name(f"{target.name}-tools.partial")
    pinned = target.with_name(f"{target.name}-lock.partial")
    try:
        blocks = re.split(r"\n(?=[a-z])", LOCK.read_text())
        pinned.write_text(next(block for block in blocks if block.startswith("pypcap==")) + "\n")
        pip = _make_tools(shop, tools)
        shop.run([*pip, "download", "--require-hashes", "--no-deps", "--no-build-isolation",
                  "--no-binary", ":all:", "--dest", tools / "sdist", "-r", pinned])  # fmt: skip
        (sdist,) = (tools / "sdist").iterdir()
        with tarfile.open(sdist) as archive:
            archive.extractall(tools / "source", filter="data")
        (folder,) = (tools / "source").iterdir()
        shop.run([tools / "bin/cython", "-3", folder / "pcap.pyx", "-o", folder / "pcap.c"])
        target.mkdir()
        for path in sorted(folder.iterdir()):
            if path.suffix in (".c", ".h", ".pyx", ".pxd") or path.name in ("setup.py", "LICENSE"):
                shutil.copyfile(path, target / path.name)
    finally:
        shutil.rmtree(tools, ignore_errors=True)
        pinned.unlink(missing_ok=True)


def make_site_packages(shop: Workshop, wheelhouse: Path, target: Path, epoch: int) -> None:
    """A folder to import from: all wheels, and redirectd made from this tree."""
    tree = target.with_name(f"{target.name}-tree.partial")
    tools = target.with_name(f"{target.name}-tools.partial")
    shutil.rmtree(tree, ignore_errors=True)
    env = {"SOURCE_DATE_EPOCH": str(epoch)}
    try:
        copy_tree(tree)
        pip = _make_tools(shop, tools)
        made = tree / "wheel"
        shop.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", made, tree],
                 env=env)  # fmt: skip
        wheels = sorted([*wheelhouse.glob("*.whl"), *made.glob("*.whl")])
        shop.run([*pip, "install", "--no-deps", "--no-index", "--no-compile",
                  "--target", target, *wheels], env=env)  # fmt: skip
    finally:
        shutil.rmtree(tree, ignore_errors=True)
        shutil.rmtree(tools, ignore_errors=True)
    # What pip wrote for this machine: programs with its paths, where a wheel came from.
    shutil.rmtree(target / "bin", ignore_errors=True)
    for path in (*target.glob("*.dist-info/direct_url.json"), *target.glob("*.dist-info/RECORD")):
        path.unlink()
    # Bytecode that is never checked against its source: the root is read-only.
    shop.run(
        [sys.executable, "-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash",
         "-s", target, "-p", "/usr/lib/redirectd/site-packages", target],
        env={"PYTHONHASHSEED": "0"},  # sets are written in the order of their hashes
    )  # fmt: skip


def need_python(version: tuple[int, int]) -> None:
    """Compiled wheels fit one minor version."""
    if sys.version_info[:2] != version:
        have = ".".join(str(n) for n in sys.version_info[:2])
        want = ".".join(str(n) for n in version)
        raise BuildError(f"the image has Python {want}: build with that version, not {have}")
