"""TOML with the line of every key, so that a fault can be shown where it stands.

tomlkit keeps the whole text of a document (comments, blank lines, order) but no line
numbers; they follow from walking it in order and counting.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import tomlkit
from tomlkit.exceptions import KeyAlreadyPresent, ParseError, TOMLKitError
from tomlkit.items import AoT, Item, Key, Table, Whitespace

KeyPath = tuple[str | int, ...]


class TomlError(Exception):
    """Not TOML; ``line`` counts from 1, 0 where it is not known."""

    def __init__(self, line: int, problem: str) -> None:
        super().__init__(problem)
        self.line = line
        self.problem = problem


@dataclass(frozen=True)
class Document:
    """Plain values, and the line of each key path such as ``("rule", 0, "port")``."""

    values: Mapping[str, Any]
    lines: Mapping[KeyPath, int]

    def line(self, path: KeyPath) -> int:
        """The line of a path, or of the nearest one around it that has one."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 1)


def parse(text: str) -> Document:
    """Raises TomlError, nothing else, whatever ``text`` is."""
    try:
        document = tomlkit.parse(text)
        values = document.unwrap()
    except ParseError as error:
        problem = re.sub(r" at line \d+ col \d+$", "", str(error)).rstrip(".")
        raise TomlError(error.line, problem) from None
    except KeyAlreadyPresent as error:
        raise TomlError(0, str(error).rstrip(".")) from None
    except (TOMLKitError, ValueError, RecursionError) as error:
        raise TomlError(0, str(error)) from None
    lines: dict[KeyPath, int] = {}
    _walk(document.body, (), 1, lines)
    written = text.split("\n")
    # tomlkit gathers tables of tables that stand apart: better no line than a wrong one
    sure = {
        path: line
        for path, line in lines.items()
        if line <= len(written)
        and str(next(k for k in reversed(path) if isinstance(k, str))) in written[line - 1]
    }
    return Document(values, sure)


def _walk(
    body: list[tuple[Key | None, Item]], path: KeyPath, line: int, lines: dict[KeyPath, int]
) -> int:
    """Note the lines of ``body``, which begins at ``line``; the line after it."""
    for key, item in body:
        if key is None:
            line += item.as_string().count("\n")
            continue
        # a dotted key ("a.b = 1") is a table of one key without a header of its own
        here = (*path, key.key)
        if isinstance(item, AoT):
            for number, table in enumerate(item.body):
                lines.setdefault(here, line)
                line = _table(table, (*here, number), line, lines)
        elif isinstance(item, Table):
            line = _table(item, here, line, lines)
        else:
            line += _newlines(item, "indent")
            lines.setdefault(here, line)
            line += item.as_string().count("\n") + _newlines(item, "trail")
    return line


def _table(table: Table, path: KeyPath, line: int, lines: dict[KeyPath, int]) -> int:
    line += _newlines(table, "indent")
    lines.setdefault(path, line)
    if table.display_name is not None and not table.is_super_table():
        line += _newlines(table, "trail")
    return _walk(table.value.body, path, line, lines)


def _newlines(item: Item, part: str) -> int:
    if isinstance(item, Whitespace):
        return 0
    return str(getattr(item.trivia, part)).count("\n")
