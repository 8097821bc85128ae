"""From TOML values to attrs classes through cattrs; every fault with its line.

A class of settings is an attrs class whose fields are made by :func:`setting`; each names
the function that reads its value (:mod:`.config_values`).
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import attrs
import cattrs
from cattrs.gen import make_dict_structure_fn, override

from .toml_lines import Document, KeyPath

T = TypeVar("T")


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong; ``line`` 0 and ``key`` "" concern the whole file."""

    line: int
    key: str
    problem: str
    remedy: str


class ConfigError(Exception):
    """All faults of a file; ``str()`` gives one ``FILE:LINE: KEY: PROBLEM; REMEDY`` a line."""

    def __init__(self, source: Path, faults: list[Fault]) -> None:
        self.source = source
        self.faults = tuple(sorted(faults, key=lambda f: (f.line, f.key)))
        super().__init__("\n".join(self._text(fault) for fault in self.faults))

    def _text(self, fault: Fault) -> str:
        line = f":{fault.line}" if fault.line else ""
        key = f" {fault.key}:" if fault.key else ""
        return f"{self.source}{line}:{key} {fault.problem}; {fault.remedy}"


class Bad(ValueError):
    """A value that can't be used, and what to write instead."""

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(problem)
        self.problem = problem
        self.remedy = remedy


class BadItems(ValueError):
    """Several faults in one list."""

    def __init__(self, faults: list[Bad]) -> None:
        super().__init__("; ".join(f.problem for f in faults))
        self.faults = faults


def setting(default: T, read: Callable[[Any], T], key: str | None = None) -> T:
    """A field of a class of settings; ``key`` if it is not the field's name with hyphens."""
    made: T = attrs.field(default=default, metadata={"read": read, "key": key})
    return made


def key_of(field: attrs.Attribute[Any]) -> str:
    return str(field.metadata["key"] or field.name.replace("_", "-"))


def settings_of(cls: type[attrs.AttrsInstance]) -> dict[str, attrs.Attribute[Any]]:
    """Key in the file -> field; fields that are no settings are left out."""
    return {key_of(f): f for f in attrs.fields(cls) if "read" in f.metadata}


@cache
def reader() -> cattrs.Converter:
    """Structures every class of settings: hyphens in keys, no unknown key, then its own
    ``check`` of values that must fit together."""
    converter = cattrs.Converter(detailed_validation=True)
    converter.register_structure_hook_factory(
        lambda cls: attrs.has(cls) and bool(settings_of(cls)),
        lambda cls: _structure(cls, converter),
    )
    return converter


def _structure(cls: type[Any], converter: cattrs.Converter) -> Callable[[Any, Any], Any]:
    overrides: dict[str, Any] = {}
    for field in attrs.fields(cls):
        if "read" in field.metadata:
            overrides[field.name] = override(
                rename=key_of(field), struct_hook=_hook(field.metadata["read"])
            )
        else:
            overrides[field.name] = override(omit=True)
    make: Callable[[Any, Any], Any] = make_dict_structure_fn(
        cls,
        converter,
        _cattrs_forbid_extra_keys=True,
        **overrides,
    )

    def structure(value: Any, type_: Any) -> Any:
        if not isinstance(value, Mapping):
            raise Bad(f"{value!r} is not a table", "write its keys below [a header of its own]")
        made = make(value, type_)
        if hasattr(made, "check"):
            made.check()
        return made

    return structure


def _hook(read: Callable[[Any], Any]) -> Callable[[Any, Any], Any]:
    return lambda value, _type: read(value)


def faults_of(error: BaseException, cls: type[Any], document: Document) -> list[Fault]:
    """Flatten what cattrs raised for ``cls`` into faults with their lines."""
    return list(_flatten(error, cls, (), document))


def _flatten(
    error: BaseException, cls: type[Any], path: KeyPath, document: Document
) -> list[Fault]:
    if isinstance(error, cattrs.IterableValidationError):
        noted, bare = error.group_exceptions()
        inner = [(e, (*path, note.index), cls) for e, note in noted]
    elif isinstance(error, cattrs.ClassValidationError):
        classed, bare = error.group_exceptions()
        fields = {f.name: f for f in attrs.fields(error.cl)}
        inner = [(e, (*path, key_of(fields[n.name])), error.cl) for e, n in classed]
    elif isinstance(error, cattrs.ForbiddenExtraKeysError):
        return [_unknown(key, error.cl, path, document) for key in sorted(error.extra_fields)]
    elif isinstance(error, BadItems):
        return [f for e in error.faults for f in _flatten(e, cls, path, document)]
    elif isinstance(error, Bad):
        return [Fault(document.line(path), _shown(path), error.problem, error.remedy)]
    else:
        raise error  # a fault in this program, not in the file
    faults = [f for e, where, of in inner for f in _flatten(e, of, where, document)]
    return faults + [f for e in bare for f in _flatten(e, cls, path, document)]


def _unknown(key: str, cls: type[Any], path: KeyPath, document: Document) -> Fault:
    known = sorted(settings_of(cls))
    near = difflib.get_close_matches(key.lower().replace("_", "-"), known, 1, 0.6)
    remedy = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(known)}"
    where = (*path, key)
    return Fault(document.line(where), _shown(where), "unknown key", remedy)


def _shown(path: KeyPath) -> str:
    """``rule[2].port``: rules are counted from 1, as a person would."""
    text = ""
    for part in path:
        text += f"[{part + 1}]" if isinstance(part, int) else f".{part}"
    return text.lstrip(".")
