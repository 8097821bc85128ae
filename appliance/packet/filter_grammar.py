"""WinDivert's filter language: text to tree.

    filter := and-chain ("or" and-chain)*
    chain  := factor ("and" factor)*
    factor := "(" filter ")" | "(" filter "?" filter ":" filter ")" | "not"* test
    test   := "true" | "false" | field [op value]

with "&&", "||", "!" for the words.  "not" stands before a test only.  Errors carry
the position of the offending token and WinDivert's words for it.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from typing import Final

from .consts import Layer
from .filter_fields import FIELDS, MACROS, SIZED

BAD_WORD: Final = "Filter expression contains a bad token"
NOT_ON_LAYER: Final = "Filter expression contains a bad token for layer"
PARSE_ERROR: Final = "Filter expression parse error"
TOO_LONG: Final = "Filter expression too long"
TOO_DEEP: Final = "Filter expression too deep"
OUT_OF_BOUNDS: Final = "Filter expression array index is out-of-bounds"

MAX_TEXT: Final = 16384
MAX_TESTS: Final = 256
MAX_DEPTH: Final = 100
MAX_PACKET: Final = 65535


class FilterError(ValueError):
    """A filter that doesn't parse: ``position`` in the text, ``message``."""

    def __init__(self, position: int, message: str) -> None:
        super().__init__(f"{message} (at {position})")
        self.position = position
        self.message = message


@dataclass(frozen=True, slots=True)
class Const:
    value: bool


@dataclass(frozen=True, slots=True)
class Index:
    """Which word of a packet or payload: byte offset from the start or the end."""

    offset: int
    from_end: bool


@dataclass(frozen=True, slots=True)
class Test:
    """``field op value``; a field that a packet doesn't have makes it false."""

    field: str
    index: Index | None
    op: str
    value: int


@dataclass(frozen=True, slots=True)
class And:
    left: Node
    right: Node


@dataclass(frozen=True, slots=True)
class Or:
    left: Node
    right: Node


@dataclass(frozen=True, slots=True)
class Choice:
    """``(test? then: otherwise)``"""

    test: Node
    then: Node
    otherwise: Node


Node = Const | Test | And | Or | Choice

COMPARE: Final[dict[str, Callable[[int, int], bool]]] = {
    "==": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le,
    ">": operator.gt, ">=": operator.ge,
}  # fmt: skip
_OPPOSITE: Final = {"==": "!=", "!=": "==", "<": ">=", ">=": "<", ">": "<=", "<=": ">"}
_WORD = re.compile(r"[A-Za-z0-9_.:]+")
_SYMBOLS: Final = ("==", "!=", "<=", ">=", "&&", "||", "=", "<", ">", "!", "(", ")", "[", "]",
                   "?", ":", "-")  # fmt: skip
_WORDS: Final = {"and": "and", "or": "or", "not": "not", "true": "true", "false": "false", "b": "b"}
_SAME: Final = {"=": "==", "&&": "and", "||": "or", "!": "not"}


@dataclass(frozen=True, slots=True)
class Token:
    """``kind`` is a symbol, a word of the language, "field", "macro", "value", "end"."""

    kind: str
    position: int
    text: str = ""
    value: int = 0


def tokens(text: str, layer: Layer) -> list[Token]:
    """Cut a filter into tokens, the last one of the kind "end"; FilterError."""
    if len(text) > MAX_TEXT:
        raise FilterError(0, TOO_LONG)
    found: list[Token] = []
    at = 0
    while at < len(text):
        if text[at].isspace():
            at += 1
            continue
        # A colon begins no word: addresses that do so begin with two.
        word = None if text[at] == ":" and text[at + 1 : at + 2] != ":" else _WORD.match(text, at)
        if word is not None:
            # In "? udp : icmp" and "(a? b: c)" a last colon is the choice's own.
            name = word.group()
            if name.endswith(":") and not name.endswith("::"):
                name = name[:-1]
            found.extend(_word(name, at, layer))
            at += len(name)
            continue
        symbol = next((s for s in _SYMBOLS if text.startswith(s, at)), None)
        if symbol is None:
            raise FilterError(at + 1, BAD_WORD)
        found.append(Token(_SAME.get(symbol, symbol), at))
        at += len(symbol)
    found.append(Token("end", len(text)))
    return found


def _word(name: str, at: int, layer: Layer) -> list[Token]:
    if name in _WORDS:
        return [Token(_WORDS[name], at)]
    if name in FIELDS:
        if layer not in FIELDS[name].layers:
            raise FilterError(at, NOT_ON_LAYER)
        return [Token("field", at, name)]
    if name in MACROS:
        value = MACROS[name].get(layer)
        # A macro of another layer is a word of the language, but no value here.
        return [Token("macro", at, name) if value is None else Token("value", at, name, value)]
    if name[-1] == "b" and name[:-1].isdecimal() and name.isascii():
        return [Token("value", at, name, int(name[:-1])), Token("b", at + len(name) - 1)]
    value = _number(name)
    if value is None:
        raise FilterError(at, BAD_WORD)
    return [Token("value", at, name, value)]


def _number(name: str) -> int | None:
    """Decimal, hexadecimal, or an address; IPv4 counts as ::ffff:a.b.c.d."""
    if name.isascii() and name.isdecimal() and len(name) < 50:
        value = int(name)
    elif name[:2] == "0x":
        digits = name[2:].lower()
        if len(digits) > 32 or any(c not in "0123456789abcdef" for c in digits):
            return None
        value = int(digits or "0", 16)
    else:
        try:
            if ":" in name:
                value = int(IPv6Address(name))
            else:
                parts = [part.lstrip("0") or "0" for part in name.split(".") if part.isdecimal()]
                if len(parts) != len(name.split(".")):
                    return None
                value = 0xFFFF << 32 | int(IPv4Address(".".join(parts)))
        except AddressValueError:
            return None
    return value if value < 1 << 128 else None


class _Parser:
    def __init__(self, found: list[Token]) -> None:
        self._tokens = found
        self._at = 0
        self._tests = 0

    @property
    def _now(self) -> Token:
        return self._tokens[self._at]

    def _next(self) -> Token:
        token = self._tokens[self._at]
        self._at += 1
        return token

    def _accept(self, *kinds: str) -> bool:
        if self._now.kind in kinds:
            self._at += 1
            return True
        return False

    def _expect(self, kind: str) -> Token:
        token = self._now
        if token.kind != kind:
            raise FilterError(token.position, PARSE_ERROR)
        return self._next()

    def parse(self) -> Node:
        node = self._filter(0)
        self._expect("end")
        return node

    def _filter(self, depth: int) -> Node:
        node = self._chain(depth)
        while self._accept("or"):
            node = Or(node, self._chain(depth))
        return node

    def _chain(self, depth: int) -> Node:
        node = self._factor(depth)
        while self._accept("and"):
            node = And(node, self._factor(depth))
        return node

    def _factor(self, depth: int) -> Node:
        if self._now.kind != "(":
            return self._negatable()
        if depth >= MAX_DEPTH:
            raise FilterError(self._now.position, TOO_DEEP)
        self._next()
        node = self._filter(depth + 1)
        if self._accept("?"):
            then = self._filter(depth + 1)
            self._expect(":")
            node = Choice(node, then, self._filter(depth + 1))
        self._expect(")")
        return node

    def _negatable(self) -> Node:
        negated = False
        while self._accept("not"):
            negated = not negated
        self._tests += 1
        if self._tests > MAX_TESTS:
            raise FilterError(0, TOO_LONG)
        token = self._next()
        field, index = token.text, None
        if token.kind in ("true", "false"):
            if self._now.kind not in _OPPOSITE:
                return Const((token.kind == "true") != negated)
            op, value = self._comparison()
            return Const(COMPARE[op](int(token.kind == "true"), value) != negated)
        if token.kind != "field":
            raise FilterError(token.position, PARSE_ERROR)
        if field in SIZED:
            index = self._index(SIZED[field])
        op, value = self._comparison() if self._now.kind in _OPPOSITE else ("!=", 0)
        return Test(field, index, _OPPOSITE[op] if negated else op, value)

    def _comparison(self) -> tuple[str, int]:
        op = self._next().kind
        minus = self._accept("-")
        value = self._expect("value").value
        return op, -value if minus else value

    def _index(self, size: int) -> Index:
        self._expect("[")
        negative = self._accept("-")
        token = self._expect("value")
        scale = 1 if self._accept("b") else size
        end = self._expect("]")
        offset = token.value * scale
        low, high = (size, MAX_PACKET) if negative else (0, MAX_PACKET - size)
        if not low <= offset <= high:
            raise FilterError(end.position, OUT_OF_BOUNDS)
        return Index(offset, negative)


def parse(text: str, layer: Layer = Layer.NETWORK) -> Node:
    """The tree of a filter; FilterError."""
    return _Parser(tokens(text, layer)).parse()
