"""The architecture, kept by machine: who may import whom (docs/architecture.md)."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PURE = ["appliance/protocol", "appliance/rewrite", "pfconf"]
NOT_PURE = {"pfconf/__main__.py"}  # a command line reads files; the rest of pfconf does not
IO_MODULES = {
    "asyncio", "ctypes", "fcntl", "glob", "http", "io", "logging", "multiprocessing", "os",
    "pathlib", "random", "secrets", "select", "selectors", "shutil", "signal", "socket",
    "sqlite3", "sqlite_utils", "ssl", "subprocess", "tempfile", "threading", "time", "urllib",
}  # fmt: skip
ONLY_IN = {
    "pcap": ["appliance/packet/capture.py"],
    "sqlite_utils": ["keystore/"],
    "flask": ["webui/"],
    "ctypes": [
        "appliance/backend/linux/libnftables.py",
        "appliance/backend/openbsd/sandbox.py",
        "appliance/proc/privileges.py",
        "appliance/proc/sandbox.py",
        "appliance/backend/linux/nfqueue.py",
    ],
}


def sources(*folders: str) -> Iterator[Path]:
    for folder in folders:
        yield from sorted((ROOT / folder).rglob("*.py"))


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports(path: Path) -> Iterator[str]:
    """Absolute dotted names of everything that ``path`` imports, at any depth."""
    package = name(path).removesuffix(".py").split("/")[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                base = package[: len(package) - node.level + 1]
                module = ".".join(base + ([node.module] if node.module else []))
            else:
                module = node.module or ""
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", list(sources(*PURE)), ids=name)
def test_pure_parts_import_no_io(path: Path) -> None:
    if name(path) in NOT_PURE:
        return
    assert {module.split(".")[0] for module in imports(path)} & IO_MODULES == set()


@pytest.mark.parametrize("module", ONLY_IN)
def test_a_library_is_imported_only_where_it_belongs(module: str) -> None:
    users = {
        name(path)
        for path in sources("appliance", "keystore", "pfconf", "webui")
        if module in {found.split(".")[0] for found in imports(path)}
    }
    strangers = {user for user in users if not any(user.startswith(p) for p in ONLY_IN[module])}
    assert strangers == set()


@pytest.mark.parametrize("path", list(sources("appliance/backend")), ids=name)
def test_backends_know_neither_the_core_nor_the_processes(path: Path) -> None:
    allowed = (
        "appliance.backend", "appliance.packet", "appliance.rewrite", "pfconf",
        "appliance.protocol.inputs", "appliance.protocol.records",
    )  # fmt: skip
    ours = {m for m in imports(path) if m.split(".")[0] in ("appliance", "keystore", "webui")}
    assert {m for m in ours if not m.startswith(allowed) and m != "appliance.protocol"} == set()


def test_only_proc_picks_a_backend() -> None:
    users = {
        name(path)
        for path in sources("appliance", "webui", "keystore")
        if any(m.startswith(("appliance.backend.linux", "appliance.backend.openbsd"))
               for m in imports(path))
    }  # fmt: skip
    inside = ("appliance/backend/", "appliance/proc/backends.py", "appliance/proc/sandbox.py",
              "appliance/packet/")  # fmt: skip
    assert {user for user in users if not user.startswith(inside)} == set()


def test_only_the_engine_opens_the_keystore() -> None:
    users = {
        name(path)
        for path in sources("appliance", "webui", "pfconf")
        if any(m.split(".")[0] == "keystore" for m in imports(path))
    }
    assert {user for user in users if not user.startswith("appliance/proc/")} == set()
