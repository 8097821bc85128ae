"""Requests on the control socket: one table says what each may hold.  No I/O."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from types import MappingProxyType
from typing import Any, Literal

from ..rewrite.flow import Address

Code = Literal["bad-request", "not-found", "ambiguous", "conflict", "refused", "internal"]

NAME_MAX = 64
_HOST = re.compile(r"(?=.{1,253}$)[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
                   r"(\.[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*\.?", re.ASCII)  # fmt: skip
_LOOKS = ("capture.list", "capture.get")
_STATES = ("short", "long", "bound", "held", "redirected")
_LEVELS = ("debug", "info", "notice", "warning", "alert")


class ControlError(Exception):
    """A request that is not carried out; ``message`` tells the operator why, and what to do."""

    def __init__(self, code: Code, message: str, request_id: Any = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.request_id = request_id


@dataclass(frozen=True, slots=True)
class Request:
    """A request whose arguments have been read; ``method`` is one of Operations."""

    id: Any
    do: str
    method: str
    args: Mapping[str, Any]

    @property
    def changes(self) -> bool:
        """Whether it does more than look: such requests are logged."""
        return ("." in self.do or self.do == "move") and self.do not in _LOOKS


@dataclass(frozen=True, slots=True)
class Argument:
    """``read`` raises ValueError saying what the value must be.

    parameter  its name in Operations
    default    None with ``required`` unset: passed when absent
    nullable   may be null although it is required
    """

    read: Callable[[Any], Any]
    required: bool = False
    default: Any = None
    nullable: bool = False
    parameter: str | None = None


@dataclass(frozen=True, slots=True)
class Operation:
    method: str
    args: Mapping[str, Argument] = field(default_factory=dict)


def _text(most: int) -> Callable[[Any], str]:
    def read(value: Any) -> str:
        if not isinstance(value, str) or not 1 <= len(value) <= most:
            raise ValueError(f"must be a text of 1 to {most} characters")
        value.encode()  # UnicodeEncodeError is a ValueError: a lone surrogate is no text
        return value

    return read


def _name(value: Any) -> str:
    # printable: it will stand in terminals, logs and pages
    if (
        not isinstance(value, str)
        or not 1 <= len(value) <= NAME_MAX
        or not value.isprintable()
        or value != value.strip()
    ):
        raise ValueError(f"must be 1 to {NAME_MAX} printable characters, no blank at its ends")
    return value


def _host(value: Any) -> str:
    if not isinstance(value, str) or not _HOST.fullmatch(value):
        raise ValueError("must be a host name such as 'home.example.net'")
    return value


def _whole(low: int, high: int) -> Callable[[Any], int]:
    def read(value: Any) -> int:
        if type(value) is not int or not low <= value <= high:
            raise ValueError(f"must be a whole number from {low} to {high}")
        return value

    return read


def _address(value: Any) -> Address:
    try:
        if isinstance(value, str):  # ip_address takes numbers as well
            return ip_address(value)
    except ValueError:
        pass
    raise ValueError("must be an IPv4 or IPv6 address")


def _word(*words: str) -> Callable[[Any], str]:
    def read(value: Any) -> str:
        if value not in words or not isinstance(value, str):
            raise ValueError(f"must be one of {', '.join(words)}")
        return value

    return read


_PEER = Argument(_text(NAME_MAX), required=True)
_CONN = Argument(_text(32), required=True)
_CAPTURE = Argument(_text(32), required=True, parameter="capture")
_LIMIT = Argument(_whole(1, 1000), default=100)

OPERATIONS: Mapping[str, Operation] = MappingProxyType(
    {
        "status": Operation("status"),
        "peers": Operation("peers"),
        "connections": Operation(
            "connections",
            {"state": Argument(_word(*_STATES)), "peer": Argument(_text(NAME_MAX))},
        ),
        "redirects": Operation("redirects"),
        "events": Operation(
            "events",
            {
                "limit": _LIMIT,
                "before": Argument(_whole(0, 2**63 - 1)),
                "level": Argument(_word(*_LEVELS)),
                "search": Argument(_text(200)),
            },
        ),
        "moves": Operation("moves", {"limit": _LIMIT}),
        "config": Operation("config"),
        "peer.accept": Operation("peer_accept", {"peer": _PEER}),
        "peer.verify": Operation("peer_verify", {"peer": _PEER}),
        "peer.revoke": Operation("peer_revoke", {"peer": _PEER}),
        "peer.forget": Operation("peer_forget", {"peer": _PEER}),
        "peer.rename": Operation(
            "peer_rename", {"peer": _PEER, "name": Argument(_name, required=True)}
        ),
        "peer.dns": Operation(
            "peer_dns",
            {"peer": _PEER, "dns_name": Argument(_host, required=True, nullable=True)},
        ),
        "peer.export": Operation("peer_export", {"peer": _PEER}),
        "peer.introduce": Operation(
            "peer_introduce",
            {
                "name": Argument(_name, required=True),
                "address": Argument(_address),
                "port": Argument(_whole(1, 65535)),
            },
        ),
        "peer.import": Operation(
            "peer_import",
            {"text": Argument(_text(65536), required=True), "name": Argument(_name)},
        ),
        "connection.resend": Operation("connection_resend", {"conn": _CONN}),
        "connection.drop": Operation("connection_drop", {"conn": _CONN}),
        "connection.path": Operation(
            "connection_path",
            {"conn": _CONN, "path": Argument(_word("kernel", "divert"), required=True)},
        ),
        "move": Operation(
            "move",
            {
                "to": Argument(_address, required=True),
                "from": Argument(_address, parameter="from_"),
            },
        ),
        "capture.start": Operation(
            "capture_start",
            {
                "conn": Argument(_text(32)),
                "peer": Argument(_text(NAME_MAX)),
                "seconds": Argument(_whole(1, 300), default=60),
                "bytes": Argument(_whole(1024, 16 << 20), default=4 << 20, parameter="most"),
            },
        ),
        "capture.list": Operation("capture_list"),
        "capture.get": Operation(
            "capture_get",
            {"id": _CAPTURE, "offset": Argument(_whole(0, 2**63 - 1), default=0)},
        ),
        "capture.delete": Operation("capture_delete", {"id": _CAPTURE}),
        "monitor": Operation("subscribe"),
    }
)


def parse_request(line: bytes) -> Request:
    """One line of a client's; ControlError (``bad-request``) and nothing else."""
    try:
        message = json.loads(line, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise ControlError("bad-request", "not one JSON object a line") from None
    if not isinstance(message, dict):
        raise ControlError("bad-request", "not one JSON object a line")
    request_id = message.get("id")
    if not (request_id is None or type(request_id) is int or isinstance(request_id, str)):
        raise ControlError("bad-request", "'id' is neither a number nor a text")
    if isinstance(request_id, str) and len(request_id) > NAME_MAX:
        raise ControlError("bad-request", "'id' is too long")
    do = message.get("do")
    operation = OPERATIONS.get(do) if isinstance(do, str) else None
    if operation is None or not isinstance(do, str):
        raise ControlError("bad-request", "'do' names no operation", request_id)
    strange = set(message) - {"id", "do", "args"}
    if strange:
        raise ControlError("bad-request", f"unknown: {_names(strange)}", request_id)
    args = message.get("args", {})
    if not isinstance(args, dict):
        raise ControlError("bad-request", "'args' is not an object", request_id)
    strange = set(args) - set(operation.args)
    if strange:
        raise ControlError("bad-request", f"{do} takes no {_names(strange)}", request_id)
    values = {}
    for name, argument in operation.args.items():
        try:
            values[argument.parameter or name] = _read(argument, args, name)
        except ValueError as error:
            raise ControlError("bad-request", f"{do}: {name} {error}", request_id) from None
    return Request(request_id, do, operation.method, values)


def _read(argument: Argument, args: Mapping[str, Any], name: str) -> Any:
    if name not in args:
        if argument.required:
            raise ValueError("is missing")
        return argument.default
    if args[name] is None and (argument.nullable or not argument.required):
        return argument.default
    return argument.read(args[name])


def _names(strange: set[str]) -> str:
    return ", ".join(repr(name[:NAME_MAX]) for name in sorted(strange)[:4])


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
