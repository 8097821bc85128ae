"""Lets a process that gave up root read the interpreter and the source tree.

A checkout below /root or a private home can't be read by the daemon's user.  An installed
daemon does not have that problem, so the lab takes it away without touching the
machine: in a mount namespace of the process, the closed directory is covered by an open,
empty one that holds nothing but what the daemon needs.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def _closed_ancestor(path: Path) -> Path | None:
    """The topmost directory above ``path`` that strangers may not search."""
    for directory in reversed(path.parents):
        if not directory.stat().st_mode & 0o001:
            return directory
    return None


def readable(argv: Sequence[str], also: Iterable[Path] = ()) -> list[str]:
    """``argv``, run so that any user can read the interpreter, the tree and ``also``."""
    needed = {ROOT, *map(Path, (sys.prefix, sys.base_prefix)), *also}
    closed: dict[Path, set[Path]] = {}
    for path in needed:
        ancestor = _closed_ancestor(path)
        if ancestor is not None:
            closed.setdefault(ancestor, set()).add(path)
    if not closed:
        return list(argv)
    steps = ["set -e", "spot=$(mktemp -d)", "mount -t tmpfs tmpfs $spot"]
    moves: list[str] = []
    for ancestor, paths in sorted(closed.items()):
        for path in sorted(paths):
            if any(other in path.parents for other in paths):
                continue
            number = len(moves)
            quoted = shlex.quote(str(path))
            steps.append(f"mkdir $spot/{number}; mount --bind {quoted} $spot/{number}")
            moves.append(f"mkdir -p {quoted}; mount --bind $spot/{number} {quoted}")
        steps.append(f"mount -t tmpfs -o mode=755 tmpfs {shlex.quote(str(ancestor))}")
    script = "\n".join([*steps, *moves, "umount -R $spot; rmdir $spot", 'exec "$@"'])
    return ["unshare", "--mount", "sh", "-c", script, "sh", *argv]
