"""What :mod:`tests.lab.faulty` reads: after which command a daemon is to die."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

Who = Literal["engine", "all"]


@dataclass(frozen=True, slots=True)
class Fault:
    """Die after the ``after``-th counted command; 0: never, only count.

    who  "all": the parent dies with the engine, and nobody starts either again
    """

    after: int
    who: Who = "engine"

    def write(self, path: Path) -> None:
        """Armed at once and as a whole; the log begins anew."""
        Path(f"{path}.log").unlink(missing_ok=True)
        new = path.with_suffix(".new")
        new.write_text(json.dumps(asdict(self)))
        new.chmod(0o644)
        new.rename(path)

    @classmethod
    def read(cls, path: Path) -> Fault:
        return cls(**json.loads(path.read_text()))
