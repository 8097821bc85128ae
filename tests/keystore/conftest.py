from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from keystore import Keystore, open_keystore


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "keystore.db"


@pytest.fixture
def keystore(path: Path) -> Iterator[Keystore]:
    with open_keystore(path) as opened:
        yield opened
