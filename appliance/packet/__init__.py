"""Packets taken out of the network stack, shown, changed, put back; shaped like pydivert.

Names are imported when they are used first, so that nobody pays for what he does not use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .consts import CalcChecksumsOption, Direction, Flag, Layer, Param, Protocol
    from .divert import Divert, WinDivert
    from .packet import Packet
    from .port import UnsupportedError

__all__ = [
    "CalcChecksumsOption",
    "Direction",
    "Divert",
    "Flag",
    "Layer",
    "Packet",
    "Param",
    "Protocol",
    "UnsupportedError",
    "WinDivert",
]

_MODULES = {
    "Divert": "divert",
    "WinDivert": "divert",
    "Packet": "packet",
    "UnsupportedError": "port",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f".{_MODULES.get(name, 'consts')}", __name__)
    return getattr(module, name)
