"""Filters in WinDivert's language: checked, matched in Python.

What the kernel can select by itself is worked out in :mod:`.filter_kernel`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from .consts import Layer
from .filter_fields import FIELDS, SIZED, Facts, payload_range
from .filter_grammar import (
    COMPARE,
    And,
    Choice,
    Const,
    FilterError,
    Index,
    Node,
    Or,
    Test,
    parse,
)

__all__ = ["Facts", "Filter", "FilterError", "check_filter", "compile_filter"]

Predicate = Callable[[Facts], bool]


class Filter:
    """A compiled filter.

    text, layer  as given
    node         its tree
    """

    __slots__ = ("_predicate", "layer", "node", "text")

    def __init__(self, text: str, layer: Layer = Layer.NETWORK) -> None:
        self.text = text
        self.layer = layer
        self.node = parse(text, layer)
        self._predicate = _predicate(self.node)

    def __repr__(self) -> str:
        return f"Filter({self.text!r}, {self.layer!s})"

    def matches(self, facts: Facts) -> bool:
        """Whether the packet matches; a packet without an IP header never does."""
        return facts.at is not None and self._predicate(facts)


@lru_cache(maxsize=64)
def compile_filter(text: str, layer: Layer = Layer.NETWORK) -> Filter:
    """The filter, compiled once; FilterError."""
    return Filter(text, layer)


def check_filter(text: str, layer: Layer = Layer.NETWORK) -> tuple[bool, int, str]:
    """(valid, position of the fault, description), without raising."""
    try:
        compile_filter(text, layer)
    except FilterError as fault:
        return False, fault.position, fault.message
    return True, 0, ""


def _predicate(node: Node) -> Predicate:
    match node:
        case Const(value):
            return lambda facts: value
        case And(left, right):
            first, second = _predicate(left), _predicate(right)
            return lambda facts: first(facts) and second(facts)
        case Or(left, right):
            first, second = _predicate(left), _predicate(right)
            return lambda facts: first(facts) or second(facts)
        case Choice(test, then, otherwise):
            asked, yes, no = _predicate(test), _predicate(then), _predicate(otherwise)
            return lambda facts: yes(facts) if asked(facts) else no(facts)
        case Test():
            return _test(node)


def _test(test: Test) -> Predicate:
    compare, wanted = COMPARE[test.op], test.value
    if test.index is not None:
        return _indexed(test.field, test.index, compare, wanted)
    get = FIELDS[test.field].get

    def predicate(facts: Facts) -> bool:
        value = get(facts)
        return value is not None and compare(value, wanted)

    return predicate


def _indexed(
    name: str, index: Index, compare: Callable[[int, int], bool], wanted: int
) -> Predicate:
    size = SIZED[name]

    def predicate(facts: Facts) -> bool:
        place = payload_range(name, facts)
        if place is None:
            return False
        start, end = place
        at = end - index.offset if index.from_end else start + index.offset
        if at < start or at + size > end:
            return False
        return compare(facts.number(at, size), wanted)

    return predicate
