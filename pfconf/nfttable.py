"""The elements of all connections, and what a change of entries changes in them.

Thousands of connections rest here for months, so what is known of one is a string of
bytes (some 300), and whose an element is is known by its hash alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from appliance.rewrite.flow import Flow
from appliance.rewrite.redirect import Entry

from .nftmap import (
    DROP,
    HOOK_FIELDS,
    Elements,
    Key,
    Packed,
    Value,
    entry_elements,
    observed_elements,
    pack,
    seen,
    unpack,
    verdicts,
)


class CollisionError(ValueError):
    """Two connections would need different treatment of the same packet."""


_WEAK: Final[Mapping[Value, int]] = {"seen_in": 0, "seen_out": 0, "taken": 1, DROP: 2}


@dataclass(frozen=True, slots=True)
class Delta:
    """What must change in the kernel: first all deletions, then all additions."""

    delete: tuple[tuple[Key, Value], ...]
    add: tuple[tuple[Key, Value], ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """A change that was found possible; :meth:`ElementTable.commit` makes it true."""

    delta: Delta
    blobs: Mapping[str, bytes | None]
    lost: frozenset[int]
    won: frozenset[int]
    weak: Mapping[Key, tuple[Value, ...]]
    births: Mapping[Packed, str | None]
    observed: Mapping[Packed, Flow]


class ElementTable:
    """All connections.

    A key that two connections claim belongs to a living connection's own element; the
    ``drop`` of a past wire flow, ``taken`` and the copying of observed flows are weak: they
    give way, in this order, and come back when that one goes.  Two living connections
    that claim the same are a CollisionError.
    """

    def __init__(self) -> None:
        self._blobs: dict[str, bytes] = {}  # connection -> birth tuple and elements
        self._strong: set[int] = set()  # hashes of the keys that are somebody's own
        self._weak: dict[Key, tuple[Value, ...]] = {}  # all weak claims
        self._by_birth: dict[Packed, str] = {}
        self._observed: dict[Packed, Flow] = {}

    def __contains__(self, conn_id: str) -> bool:
        return conn_id in self._blobs

    def connections(self) -> list[str]:
        return list(self._blobs)

    def birth_of(self, conn_id: str) -> Flow | None:
        blob = self._blobs.get(conn_id)
        return None if blob is None else unpack(_birth(blob))

    @property
    def observed(self) -> list[Flow]:
        return list(self._observed.values())

    def elements(self) -> Elements:
        """Everything that the kernel should hold now."""
        found: Elements = {key: _most(values) for key, values in self._weak.items()}
        for blob in self._blobs.values():
            found |= {key: value for key, value in _decode(blob) if value not in _WEAK}
        return found

    def plan(self, put: Iterable[Entry] = (), remove: Iterable[str] = ()) -> Plan:
        """Add or replace entries, forget connections; unknown ones are ignored."""
        new = {entry.conn_id: entry for entry in put}
        gone = [c for c in dict.fromkeys(remove) if c in self._blobs and c not in new]
        births = {conn: pack(*entry.birth) for conn, entry in new.items()}
        elements = {
            conn: entry_elements(entry, births[conn] in self._observed)
            for conn, entry in new.items()
        }
        by_birth: dict[Packed, str | None] = {}
        for conn in (*gone, *new):
            if conn in self._blobs:
                by_birth[_birth(self._blobs[conn])] = None
        by_birth |= {birth: conn for conn, birth in births.items()}
        blobs: dict[str, bytes | None] = dict.fromkeys(gone)
        blobs |= {conn: _encode(births[conn], found) for conn, found in elements.items()}
        freed = [b for b, c in by_birth.items() if c is None and b in self._observed]
        bound = [b for b in births.values() if b in self._observed and b not in self._by_birth]
        return self._plan(blobs, elements, by_birth, self._observed, freed, bound)

    def plan_observe(self, flows: Iterable[Flow]) -> Plan:
        """Copy small segments of these birth flows, and of no others."""
        wanted = {pack(*flow): flow for flow in flows}
        blobs: dict[str, bytes | None] = {}
        elements: dict[str, Elements] = {}
        changed = wanted.keys() ^ self._observed.keys()
        for birth in changed & self._by_birth.keys():
            conn = self._by_birth[birth]
            plain = {key: _plain(value) for key, value in _decode(self._blobs[conn])}
            if birth in wanted:
                plain = {key: seen(value) for key, value in plain.items()}
            elements[conn], blobs[conn] = plain, _encode(birth, plain)
        begin = [b for b in wanted if b in changed and b not in self._by_birth]
        end = [b for b in self._observed if b in changed and b not in self._by_birth]
        return self._plan(blobs, elements, {}, wanted, begin, end)

    def commit(self, plan: Plan) -> None:
        for conn, blob in plan.blobs.items():
            if blob is None:
                del self._blobs[conn]
            else:
                self._blobs[conn] = blob
        self._strong -= plan.lost
        self._strong |= plan.won
        for key, values in plan.weak.items():
            if values:
                self._weak[key] = values
            else:
                self._weak.pop(key, None)
        for birth, owner in plan.births.items():
            if owner is None:
                self._by_birth.pop(birth, None)
            else:
                self._by_birth[birth] = owner
        self._observed = dict(plan.observed)

    def _plan(
        self,
        blobs: Mapping[str, bytes | None],
        elements: Mapping[str, Elements],
        births: Mapping[Packed, str | None],
        observed: Mapping[Packed, Flow],
        begin: Iterable[Packed],
        end: Iterable[Packed],
    ) -> Plan:
        """``begin``, ``end``: observed flows that begin and end to be nobody's."""
        lost: Elements = {}
        won: Elements = {}
        less: list[tuple[Key, Value]] = []
        more: list[tuple[Key, Value]] = []
        for conn in blobs:
            old = self._blobs.get(conn)
            for key, value in () if old is None else _decode(old):
                if value in _WEAK:
                    less.append((key, value))
                else:
                    lost[key] = value
        for conn, found in elements.items():
            for key, value in found.items():
                if value in _WEAK:
                    more.append((key, value))
                elif key in won or (key not in lost and hash(key) in self._strong):
                    raise self._collision(key, conn, elements)
                else:
                    won[key] = value
        for birth in end:
            less += observed_elements(self._observed[birth]).items()
        for birth in begin:
            more += observed_elements(observed[birth]).items()
        for key in [k for k, v in won.items() if lost.get(k) == v]:
            del lost[key], won[key]  # most of a connection stays as it is
        weak = self._weak_after(less, more)
        delete: list[tuple[Key, Value]] = []
        add: list[tuple[Key, Value]] = []
        for key in lost.keys() | won.keys() | weak.keys():
            if key in lost:
                before: Value | None = lost[key]
            elif hash(key) in self._strong:
                continue  # it belongs to a connection that does not change
            else:
                before = _best(self._weak.get(key))
            after = won[key] if key in won else _best(weak.get(key, self._weak.get(key)))
            if before == after:
                continue
            if before is not None:
                delete.append((key, before))
            if after is not None:
                add.append((key, after))
        return Plan(
            Delta(tuple(delete), tuple(add)),
            blobs,
            frozenset(map(hash, lost)),
            frozenset(map(hash, won)),
            weak,
            births,
            observed,
        )

    def _weak_after(
        self, less: list[tuple[Key, Value]], more: list[tuple[Key, Value]]
    ) -> dict[Key, tuple[Value, ...]]:
        after: dict[Key, tuple[Value, ...]] = {}
        for key, value in less:
            values = list(after.get(key, self._weak.get(key, ())))
            values.remove(value)
            after[key] = tuple(values)
        for key, value in more:
            after[key] = (*after.get(key, self._weak.get(key, ())), value)
        return after

    def _collision(self, key: Key, conn: str, new: Mapping[str, Elements]) -> CollisionError:
        others = [c for c, found in new.items() if c != conn and key in found]
        others += [c for c, b in self._blobs.items() if c not in new and key in dict(_decode(b))]
        packet = unpack(key[1])
        return CollisionError(
            f"connections {conn} and {', '.join(others)} both need packets {packet.local} >"
            f" {packet.remote} in map {key[0]}: move one of them to another port"
        )


def _best(values: tuple[Value, ...] | None) -> Value | None:
    return _most(values) if values else None


def _most(values: tuple[Value, ...]) -> Value:
    """Of weak claims, the one with most say."""
    return values[0] if len(values) == 1 else max(values, key=_WEAK.__getitem__)


def _plain(value: Value) -> Value:
    return value.removesuffix("_seen") if isinstance(value, str) else value


# -- one connection as bytes: length of a tuple, the birth tuple, then for each element the
#    number of its map, the packet tuple, and the number of its verdict or its data.

_MAPS: Final = (
    "guard",
    "sent",
    "nat_s",
    "nat_d",
    *(f"{hook}_go" for hook in HOOK_FIELDS),
    *(f"{hook}_{field}" for hook, fields in HOOK_FIELDS.items() for field in fields),
)
_MAP_NUMBERS: Final = {name: bytes([number]) for number, name in enumerate(_MAPS)}
_VERDICTS: Final = tuple(verdicts())
_VERDICT_NUMBERS: Final = {name: bytes([number]) for number, name in enumerate(_VERDICTS)}


def _data_length(name: str, half: int) -> int:
    """Bytes of what a map without verdicts gives."""
    if name in ("guard", "sent"):
        return 0
    if name.startswith("nat_"):
        return half
    return 2 if name.endswith(("_sp", "_dp")) else half - 4


_LENGTHS: Final = {
    size: tuple(1 if name.endswith("_go") else _data_length(name, size // 2) for name in _MAPS)
    for size in (16, 40)
}
_IS_VERDICT: Final = tuple(name.endswith("_go") for name in _MAPS)


def _encode(birth: Packed, elements: Elements) -> bytes:
    parts = [bytes([len(birth)]), birth]
    for (name, packet), value in elements.items():
        data = _VERDICT_NUMBERS[value] if isinstance(value, str) else value
        parts += (_MAP_NUMBERS[name], packet, data)
    return b"".join(parts)


def _birth(blob: bytes) -> Packed:
    return blob[1 : 1 + blob[0]]


def _decode(blob: bytes) -> Iterator[tuple[Key, Value]]:
    size = blob[0]
    lengths = _LENGTHS[size]
    at, end = 1 + size, len(blob)
    while at < end:
        number = blob[at]
        data = at + 1 + size
        key = (_MAPS[number], blob[at + 1 : data])
        if _IS_VERDICT[number]:
            yield key, _VERDICTS[blob[data]]
            at = data + 1
        else:
            at = data + lengths[number]
            yield key, blob[data:at]
