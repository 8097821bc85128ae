"""A pair's keys as text: what ``peer introduce`` and ``peer export`` write.

    -----BEGIN REDIRECTD PAIR-----
    Version: 1
    Kind: introduction
    Secret: whoever has read this can pose as either end of the pair

    eyJhZGRyZXNzZXMi...
    =kZ3mXw1S
    -----END REDIRECTD PAIR-----

The lines of base64 hold one JSON object, the line with ``=`` the first six bytes of its
SHA-256.  It survives what mail programs and terminals do to text (quoting marks, blanks,
other line ends, words before and after it), and is refused when a single letter is lost.
The checksum tells damage, not forgery: the way that the text took must be trusted.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, Literal, get_args

from .protocol.records import PeerRecord, TrustState

Kind = Literal["introduction", "backup"]

VERSION = 1
TEXT_MAX = 65536  # characters
_LINE = 64
_ADDRESSES_MAX = 16
_SECRET_BYTES = 32
_BEGIN = re.compile(r"-{5}BEGIN REDIRECTD PAIR-{5}")
_END = re.compile(r"-{5}END REDIRECTD PAIR-{5}")
_CHECKSUM = re.compile(r"=[A-Za-z0-9+/]{8}")
# what quoting puts before a line, and blanks that browsers and word processors put in
_AROUND = " \t\r\n>|\u00a0\u200b\ufeff"
_KEYS = frozenset(
    ("kind", "peer_id", "root", "chain", "previous", "initiator", "host_id", "name",
     "fingerprint", "state", "first_contact", "last_contact", "addresses", "port", "dns_name")
)  # fmt: skip


class IntroductionError(ValueError):
    """The text can't be used; the message says why and what to do, and holds none of it."""


@dataclass(frozen=True, slots=True)
class Pair:
    """kind: ``introduction``, made for the host that reads it; ``backup``, this host's own
    side of a pair, for itself or the machine that replaces it."""

    kind: Kind
    record: PeerRecord


def write_pair(record: PeerRecord, kind: Kind) -> str:
    """The text that :func:`read_pair` reads; ends with a newline.  Secret."""
    payload = json.dumps(
        {
            "kind": kind,
            "peer_id": record.peer_id,
            "root": record.root.hex(),
            "chain": record.chain.hex(),
            "previous": record.previous.hex(),
            "initiator": record.initiator,
            "host_id": record.host_id,
            "name": record.name,
            "fingerprint": record.fingerprint,
            "state": record.state,
            "first_contact": record.first_contact,
            "last_contact": record.last_contact,
            "addresses": list(record.addresses[:_ADDRESSES_MAX]),
            "port": record.port,
            "dns_name": record.dns_name,
        },
        sort_keys=True,
        separators=(",", ":"),
    ).encode()
    body = base64.b64encode(payload).decode()
    lines = [
        "-----BEGIN REDIRECTD PAIR-----",
        f"Version: {VERSION}",
        f"Kind: {kind}",
        "Secret: whoever has read this can pose as either end of the pair",
        "",
        *(body[i : i + _LINE] for i in range(0, len(body), _LINE)),
        f"={_checksum(payload)}",
        "-----END REDIRECTD PAIR-----",
    ]
    return "\n".join(lines) + "\n"


def read_pair(text: str) -> Pair:
    """Find and read the one pair in ``text``; IntroductionError on anything else."""
    if len(text) > TEXT_MAX:
        raise IntroductionError(f"the text is longer than {TEXT_MAX} characters: wrong file?")
    headers, body, checksum = _unarmour(text)
    version = headers.get("version", "")
    if version != str(VERSION):
        if version.isascii() and version.isdigit() and int(version[:9]) > VERSION:
            raise IntroductionError("a newer redirectd wrote it: update this one")
        raise IntroductionError("it names no version that exists: copy it again, whole")
    try:
        payload = base64.b64decode(body, validate=True)
    except ValueError:
        raise _damaged() from None
    if base64.b64encode(payload) != body.encode():
        raise _damaged()  # bits that say nothing were set (RFC 4648, 3.5)
    if not hmac.compare_digest(_checksum(payload).encode(), checksum.encode()):
        raise _damaged()
    try:
        values = json.loads(payload)
    except (ValueError, RecursionError):
        raise _damaged() from None
    if not isinstance(values, dict) or set(values) != _KEYS:
        raise IntroductionError("it does not hold what a pair consists of: write it anew")
    return _pair(values)


def _unarmour(text: str) -> tuple[dict[str, str], str, str]:
    """Headers in lower case, base64 without line ends, checksum."""
    lines = [line.strip(_AROUND) for line in text.split("\n")]
    begins = [i for i, line in enumerate(lines) if _BEGIN.search(line)]
    ends = [i for i, line in enumerate(lines) if _END.search(line)]
    if not begins:
        raise IntroductionError(
            "no line 'BEGIN REDIRECTD PAIR' in it: paste the whole output of"
            " 'redirectctl peer introduce'"
        )
    if not ends or ends[0] < begins[0]:
        raise IntroductionError("its end is missing: paste it whole, with the line 'END ...'")
    if len(begins) > 1 or len(ends) > 1:
        raise IntroductionError("there is more than one pair in it: import one at a time")
    headers: dict[str, str] = {}
    body: list[str] = []
    checksum = ""
    for line in lines[begins[0] + 1 : ends[0]]:
        name, colon, value = line.partition(":")
        if _CHECKSUM.fullmatch(line):  # and not padding that re-wrapping brought to a line's start
            checksum = line[1:]
        elif colon:
            headers[name.strip().lower()] = value.strip()
        else:
            body.append("".join(line.split()))
    return headers, "".join(body), checksum


def _pair(values: Mapping[str, Any]) -> Pair:
    kind = values["kind"]
    if kind not in get_args(Kind):
        raise IntroductionError("it is of a kind that this redirectd does not know: update it")
    state = values["state"]
    if state not in get_args(TrustState):
        raise _wrong("state")
    if type(values["initiator"]) is not bool:
        raise _wrong("initiator")
    port = values["port"]
    if type(port) is not int or not 0 <= port <= 65535:
        raise _wrong("port")
    dns_name = values["dns_name"]
    record = PeerRecord(
        peer_id=_hex(values, "peer_id", 16).hex(),
        root=_hex(values, "root", _SECRET_BYTES),
        chain=_hex(values, "chain", _SECRET_BYTES),
        previous=_hex(values, "previous", _SECRET_BYTES),
        initiator=values["initiator"],
        # a host that was introduced has not told its own ID yet
        host_id=_hex(values, "host_id", 16).hex() if values["host_id"] != "" else "",
        name=_words(values, "name", 64),
        fingerprint=_words(values, "fingerprint", 512),
        state=state,
        first_contact=_time(values, "first_contact"),
        last_contact=_time(values, "last_contact"),
        addresses=_addresses(values),
        port=port,
        dns_name=None if dns_name is None else _words(values, "dns_name", 253),
    )
    return Pair(kind, record)


def _hex(values: Mapping[str, Any], key: str, size: int) -> bytes:
    value = values[key]
    if not isinstance(value, str) or not re.fullmatch(f"[0-9a-f]{{{2 * size}}}", value):
        raise _wrong(key)
    return bytes.fromhex(value)


def _words(values: Mapping[str, Any], key: str, most: int) -> str:
    value = values[key]
    if not isinstance(value, str) or len(value) > most or not value.isprintable():
        raise _wrong(key)
    return value


def _time(values: Mapping[str, Any], key: str) -> float:
    value = values[key]
    if type(value) not in (int, float) or not math.isfinite(value) or not 0 <= value < 1e12:
        raise _wrong(key)
    return float(value)


def _addresses(values: Mapping[str, Any]) -> tuple[str, ...]:
    value = values["addresses"]
    if not isinstance(value, list) or len(value) > _ADDRESSES_MAX:
        raise _wrong("addresses")
    try:
        return tuple(str(ip_address(str(a))) for a in value)
    except ValueError:
        raise _wrong("addresses") from None


def _checksum(payload: bytes) -> str:
    return base64.b64encode(hashlib.sha256(payload).digest()[:6]).decode()


def _damaged() -> IntroductionError:
    return IntroductionError("it was damaged on its way: copy it again, whole")


def _wrong(key: str) -> IntroductionError:
    return IntroductionError(f"its {key!r} makes no sense: write it anew")
