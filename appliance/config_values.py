"""How single values of the configuration are read; each function raises :class:`Bad`."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Any, Literal, TypeVar

import attrs

from .config_reading import Bad, BadItems, key_of, reader

T = TypeVar("T")
Network = IPv4Network | IPv6Network

_SOCKET_PATH_MAX = 103  # bytes in sun_path: 104 with the NUL on OpenBSD, unix(4)
_SECONDS_MAX = 10 * 365 * 86400
_WEB_PORT = 4788
_HOST = re.compile(
    r"(?=.{1,253}$)[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*"
)


def whole(low: int, high: int) -> Callable[[Any], int]:
    def read(value: Any) -> int:
        # bool is an int in Python: "port = true" must not mean port 1
        if type(value) is not int or not low <= value <= high:
            raise Bad(f"{_quoted(value)} is no whole number from {low} to {high}", "write one")
        return value

    return read


def boolean(value: Any) -> bool:
    if type(value) is not bool:
        raise Bad(f"{_quoted(value)} is neither true nor false", "write true or false, unquoted")
    return value


def choice(*words: Any) -> Callable[[Any], Any]:
    def read(value: Any) -> Any:
        if value not in words or type(value) is not str:
            raise Bad(f"{_quoted(value)} is not possible", f"write one of {_listing(words)}")
        return value

    return read


def seconds_or_off(value: Any) -> float:
    """Seconds; ``inf`` for "off"."""
    if value == "off":
        return math.inf
    if type(value) not in (int, float) or not 0 <= value <= _SECONDS_MAX:  # nan fails, too
        raise Bad(f"{_quoted(value)} is no time", 'write seconds, such as 10, or "off"')
    return float(value)


def text(pattern: str, what: str, example: str) -> Callable[[Any], str]:
    form = re.compile(pattern)

    def read(value: Any) -> str:
        if not isinstance(value, str) or not form.fullmatch(value):
            raise Bad(f"{_quoted(value)} is no {what}", f"write one, such as {example!r}")
        return value

    return read


interface = text(r"[^\s/\0]{1,15}", "interface name", "eth0")
user = text(r"[a-z_][a-z0-9_-]{0,30}", "user name", "_redirectd")
nft_name = text(r"[A-Za-z][A-Za-z0-9_]{0,30}", "name of an nftables table", "redirectd")


def peer(value: Any) -> str:
    """A peer's name, or four or more digits of its ID."""
    if not isinstance(value, str) or not value.strip() or len(value) > 64:
        raise Bad(f"{_quoted(value)} names no peer", "write a name or ID from 'redirectctl peers'")
    return value


def absolute_path(value: Any) -> Path:
    if not isinstance(value, str) or not value.startswith("/") or "\0" in value:
        raise Bad(f"{_quoted(value)} is no absolute path", "begin it with '/'")
    return Path(value)


def socket_path(value: Any) -> Path:
    path = absolute_path(value)
    if len(bytes(path)) > _SOCKET_PATH_MAX:
        raise Bad(
            f"{_quoted(value)} is too long for a socket",
            f"use at most {_SOCKET_PATH_MAX} bytes",
        )
    return path


def prefix(value: Any) -> Network:
    if isinstance(value, str):
        try:
            return ip_network(value)
        except ValueError:
            pass
        try:  # an address with host bits is a slip that has an obvious meaning
            meant = ip_network(value, strict=False)
        except ValueError:
            pass
        else:
            raise Bad(f"{value!r} has bits behind its prefix length", f"did you mean '{meant}'?")
    raise Bad(
        f"{_quoted(value)} is no prefix", "write one, such as '192.0.2.0/24' or '2001:db8::/32'"
    )


def port_range(value: Any) -> tuple[int, int]:
    """``22`` or ``"6000-6063"``."""
    remedy = 'write a number from 1 to 65535, or a range such as "6000-6063"'
    if type(value) is int:
        low = high = value
    elif isinstance(value, str) and re.fullmatch(r"[0-9]{1,5}(-[0-9]{1,5})?", value, re.ASCII):
        first, _, last = value.partition("-")
        low, high = int(first), int(last or first)
    else:
        raise Bad(f"{_quoted(value)} is neither a port nor a range", remedy)
    if not 1 <= low <= high <= 65535:
        raise Bad(f"{_quoted(value)} is neither a port nor a range", remedy)
    return low, high


def discover(value: Any) -> Literal["any", "known"] | tuple[Network, ...]:
    if value in ("any", "known"):
        word: Literal["any", "known"] = value
        return word
    if not isinstance(value, list):
        raise Bad(
            f"{_quoted(value)} is not possible",
            'write "any", "known", or a list of prefixes',
        )
    return listed(prefix)(value)


def listen(value: Any) -> str:
    """``ADDRESS``, ``ADDRESS:PORT``, ``[ADDRESS]`` or ``[ADDRESS]:PORT``."""
    remedy = f"write an address of this machine in the LAN, such as '192.168.1.1:{_WEB_PORT}'"
    form = r"(?:\[(?P<six>[0-9a-fA-F:.]+)\]|(?P<four>[0-9.]+))(?::(?P<port>[0-9]{1,5}))?"
    match = re.fullmatch(form, value) if isinstance(value, str) else None
    try:
        if match is None:
            raise ValueError
        addr = ip_address(match["six"] or match["four"])
    except ValueError:
        raise Bad(f"{_quoted(value)} is no address to listen on", remedy) from None
    if addr.is_unspecified or addr.is_multicast or int(match["port"] or 0) > 65535:
        raise Bad(f"{_quoted(value)} is not one address and port of this machine", remedy)
    return str(value)


def host_name(value: Any) -> str:
    if not isinstance(value, str) or not _HOST.fullmatch(value.lower().rstrip(".")):
        raise Bad(f"{_quoted(value)} is no host name", "write one, such as 'gateway.lan'")
    return value.lower().rstrip(".")


def listed(read: Callable[[Any], T]) -> Callable[[Any], tuple[T, ...]]:
    def read_all(value: Any) -> tuple[T, ...]:
        if not isinstance(value, list):
            raise Bad(f"{_quoted(value)} is no list", "put it in [brackets]")
        made, faults = [], []
        for item in value:
            try:
                made.append(read(item))
            except Bad as bad:
                faults.append(bad)
        if faults:
            raise BadItems(faults)
        return tuple(made)

    return read_all


def one_or_more(read: Callable[[Any], T]) -> Callable[[Any], tuple[T, ...]]:
    """A list that is not empty, or one value without brackets."""

    def read_all(value: Any) -> tuple[T, ...]:
        if value == []:
            raise Bad("the list is empty", "leave the key out, or name something")
        return listed(read)(value if isinstance(value, list) else [value])

    return read_all


def table(cls: type[T]) -> Callable[[Any], T]:
    return lambda value: reader().structure(value, cls)


def tables(cls: type[T]) -> Callable[[Any], tuple[T, ...]]:
    def read(value: Any) -> tuple[T, ...]:
        if not isinstance(value, list):
            raise Bad("is not a list of tables", "write double brackets around its header")
        return tuple(reader().structure(value, list[cls]))  # type: ignore[valid-type]

    return read


# And back, for the control socket


def keys_and_values(made: attrs.AttrsInstance) -> Iterator[tuple[str, Any]]:
    """The settings of an object with their keys in the file; unset ones are left out."""
    for field in attrs.fields(type(made)):
        value = getattr(made, field.name)
        if "read" in field.metadata and value is not None and value != ():
            yield key_of(field), value


def plain(value: Any) -> Any:
    """As it would be written in the file: JSON values only."""
    if attrs.has(type(value)):
        return {key: plain(inner) for key, inner in keys_and_values(value)}
    if isinstance(value, tuple) and len(value) == 2 and all(type(p) is int for p in value):
        low, high = value
        return low if low == high else f"{low}-{high}"
    if isinstance(value, tuple):
        return [plain(inner) for inner in value]
    if value == math.inf:
        return "off"
    return value if isinstance(value, (bool, int, float, str)) else str(value)


def _quoted(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."


def _listing(words: tuple[Any, ...]) -> str:
    return ", ".join(f'"{word}"' for word in words)
