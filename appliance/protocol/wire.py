"""Fields of messages: how each is put into bytes and got out again, bounded.

A message is a frozen dataclass with a ``LAYOUT``, one codec a field, in the order
of the wire; integers are in network order.  The tables of docs/protocol.md are
these layouts.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address
from typing import Any, ClassVar, Protocol, TypeVar

from ..rewrite.flow import Address, Endpoint, Flow


class MessageError(Exception):
    """Bytes that are no message; the text says why."""


class Reader:
    """Takes bytes from the front; never reads beyond the end."""

    __slots__ = ("_at", "_data")

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def take(self, count: int) -> bytes:
        part = self._data[self._at : self._at + count]
        if len(part) != count:
            raise MessageError(f"{count} bytes wanted, {len(part)} left")
        self._at += count
        return part

    def rest(self) -> bytes:
        return self.take(len(self._data) - self._at)

    def empty(self) -> bool:
        return self._at == len(self._data)


class Codec(Protocol):
    def put(self, value: Any) -> bytes: ...

    def get(self, reader: Reader) -> Any: ...

    def describe(self) -> str:
        """For the tables in the documentation."""


class Number:
    def __init__(self, size: int) -> None:
        self.size = size

    def put(self, value: int) -> bytes:
        return value.to_bytes(self.size, "big")

    def get(self, reader: Reader) -> int:
        return int.from_bytes(reader.take(self.size), "big")

    def describe(self) -> str:
        return f"{8 * self.size}-bit number"


class Fixed:
    def __init__(self, size: int) -> None:
        self.size = size

    def put(self, value: bytes) -> bytes:
        if len(value) != self.size:
            raise ValueError(f"{self.size} bytes wanted, {len(value)} given")
        return value

    def get(self, reader: Reader) -> bytes:
        return reader.take(self.size)

    def describe(self) -> str:
        return f"{self.size} bytes"


class Hex:
    """An ID: hex digits inside, bytes on the wire."""

    def __init__(self, size: int) -> None:
        self.size = size

    def put(self, value: str) -> bytes:
        return Fixed(self.size).put(bytes.fromhex(value))

    def get(self, reader: Reader) -> str:
        return reader.take(self.size).hex()

    def describe(self) -> str:
        return f"{self.size} bytes (an ID)"


class Word:
    """One byte out of an enumeration."""

    def __init__(self, kind: type[IntEnum]) -> None:
        self.kind = kind

    def put(self, value: IntEnum) -> bytes:
        return bytes((value,))

    def get(self, reader: Reader) -> IntEnum:
        number = reader.take(1)[0]
        try:
            return self.kind(number)
        except ValueError:
            raise MessageError(f"{number} is no {self.kind.__name__}") from None

    def describe(self) -> str:
        return f"1 byte, {self.kind.__name__}"


class Flag:
    def put(self, value: bool) -> bytes:
        return b"\1" if value else b"\0"

    def get(self, reader: Reader) -> bool:
        number = reader.take(1)[0]
        if number > 1:
            raise MessageError(f"{number} is no flag")
        return number == 1

    def describe(self) -> str:
        return "1 byte, 0 or 1"


def _address(version: int, data: bytes) -> Address:
    return IPv4Address(data) if version == 4 else IPv6Address(data)


def _version(reader: Reader) -> int:
    version = reader.take(1)[0]
    if version not in (4, 6):
        raise MessageError(f"{version} is no IP version")
    return version


class AddressField:
    def put(self, value: Address) -> bytes:
        return bytes((value.version,)) + value.packed

    def get(self, reader: Reader) -> Address:
        version = _version(reader)
        return _address(version, reader.take(4 if version == 4 else 16))

    def describe(self) -> str:
        return "1 byte (4 or 6), then 4 or 16 bytes"


class EndpointField:
    def put(self, value: Endpoint) -> bytes:
        return bytes((value.addr.version,)) + value.packed()

    def get(self, reader: Reader) -> Endpoint:
        addr: Address = AddressField().get(reader)
        return Endpoint(addr, int.from_bytes(reader.take(2), "big"))

    def describe(self) -> str:
        return "an address, then a 16-bit port"


class FlowField:
    def put(self, value: Flow) -> bytes:
        return bytes((value.version,)) + value.local.packed() + value.remote.packed()

    def get(self, reader: Reader) -> Flow:
        version = _version(reader)
        ends = []
        for _ in range(2):
            addr = _address(version, reader.take(4 if version == 4 else 16))
            ends.append(Endpoint(addr, int.from_bytes(reader.take(2), "big")))
        return Flow(ends[0], ends[1])

    def describe(self) -> str:
        return "1 byte (4 or 6), then address and port of the sender's end, of the other end"


class Pair:
    def __init__(self, first: Codec, second: Codec) -> None:
        self.first, self.second = first, second

    def put(self, value: tuple[Any, Any]) -> bytes:
        return self.first.put(value[0]) + self.second.put(value[1])

    def get(self, reader: Reader) -> tuple[Any, Any]:
        return self.first.get(reader), self.second.get(reader)

    def describe(self) -> str:
        return f"({self.first.describe()}; {self.second.describe()})"


class Many:
    """A count of one byte, then so many items; at most ``limit``."""

    def __init__(self, item: Codec, limit: int) -> None:
        self.item, self.limit = item, limit

    def put(self, value: tuple[Any, ...]) -> bytes:
        if len(value) > self.limit:
            raise ValueError(f"at most {self.limit} items, not {len(value)}")
        return bytes((len(value),)) + b"".join(self.item.put(item) for item in value)

    def get(self, reader: Reader) -> tuple[Any, ...]:
        count = reader.take(1)[0]
        if count > self.limit:
            raise MessageError(f"at most {self.limit} items, not {count}")
        return tuple(self.item.get(reader) for _ in range(count))

    def describe(self) -> str:
        return f"1 byte count (at most {self.limit}), then each: {self.item.describe()}"


U8, U16, U32, U64 = Number(1), Number(2), Number(4), Number(8)
ADDRESS, ENDPOINT, FLOW, FLAG = AddressField(), EndpointField(), FlowField(), Flag()
ID = Hex(16)

Layout = tuple[tuple[str, Codec], ...]


class Laid(Protocol):
    """A message class: a dataclass with a layout; ``SIZE`` > 0: padded with zeros."""

    LAYOUT: ClassVar[Layout]
    SIZE: ClassVar[int]


M = TypeVar("M")


def put_fields(message: Laid) -> bytes:
    body = b"".join(codec.put(getattr(message, name)) for name, codec in message.LAYOUT)
    return body.ljust(message.SIZE, b"\0")


def get_fields(kind: type[M], data: bytes) -> M:
    """Parse ``data`` as the whole body of a message; MessageError on anything else."""
    layout: Layout = kind.LAYOUT  # type: ignore[attr-defined]
    size: int = kind.SIZE  # type: ignore[attr-defined]
    reader = Reader(data)
    values: Mapping[str, Any] = {name: codec.get(reader) for name, codec in layout}
    padding = reader.rest()
    if padding and (len(data) > size or padding.strip(b"\0")):
        raise MessageError("bytes behind the last field")
    if len(data) < size:
        raise MessageError(f"{size} bytes wanted, {len(data)} given")
    return kind(**values)
