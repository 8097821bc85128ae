"""nfnetlink: the bytes of nftables set elements and of NFLOG's configuration.

Pure.  Numbers from linux/netfilter/{nfnetlink,nf_tables,nfnetlink_log}.h.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from functools import lru_cache

from pfconf.nftmap import Packed, Value, version_of
from pfconf.nfttable import Delta

from . import netlink as nl

NFNL_SUBSYS_CTNETLINK = 1
NFNL_SUBSYS_ULOG = 4
NFNL_SUBSYS_NFTABLES = 10

NFNL_MSG_BATCH_BEGIN = 16
NFNL_MSG_BATCH_END = 17

NFPROTO = {4: 2, 6: 10}
NFPROTO_ARP = 3

NFT_MSG_NEWSETELEM = 12
NFT_MSG_DELSETELEM = 14

# enum nft_set_elem_list_attributes, nft_set_elem_attributes, nft_data_attributes
_LIST_TABLE, _LIST_SET, _LIST_ELEMENTS = 1, 2, 3
_LIST_ELEM = 1
_ELEM_KEY, _ELEM_DATA, _ELEM_TIMEOUT = 1, 2, 4
_DATA_VALUE, _DATA_VERDICT = 1, 2
_VERDICT_CODE, _VERDICT_CHAIN = 1, 2
_NF_DROP = 0
_NFT_GOTO = 0xFFFFFFFC  # -4

# An attribute says at most 65,535 bytes; elements of ours are below 160.
_ELEMENTS_BYTES = 60_000


def family_header(family: int, res_id: int = 0) -> bytes:
    """struct nfgenmsg."""
    return struct.pack(">BBH", family, 0, res_id)


def _key(raw: Packed) -> bytes:
    return _KEY_HEADS[len(raw)] + raw


_KEY_HEADS = {
    size: nl.nested(_ELEM_KEY, nl.attribute(_DATA_VALUE, bytes(size)))[:8] for size in (4, 16, 40)
}


@lru_cache(maxsize=256)
def _verdict(name: str) -> bytes:
    if name == "drop":
        code = nl.attribute(_VERDICT_CODE, struct.pack(">I", _NF_DROP))
        return nl.nested(_ELEM_DATA, nl.nested(_DATA_VERDICT, code))
    code = nl.attribute(_VERDICT_CODE, struct.pack(">I", _NFT_GOTO))
    chain = nl.attribute(_VERDICT_CHAIN, name.encode() + b"\0")
    return nl.nested(_ELEM_DATA, nl.nested(_DATA_VERDICT, code, chain))


@lru_cache(maxsize=1024)
def _data(raw: bytes) -> bytes:
    return nl.nested(_ELEM_DATA, nl.attribute(_DATA_VALUE, raw))


def element(raw: Packed, value: Value | None, timeout_ms: int | None = None) -> bytes:
    """One element; ``value`` None: its key alone (of a set, or to delete it)."""
    body = _key(raw)
    if value:
        body += _verdict(value) if isinstance(value, str) else _data(value)
    if timeout_ms is not None:
        body += nl.attribute(_ELEM_TIMEOUT, struct.pack(">Q", timeout_ms))
    return _ELEMENT.pack(4 + len(body), _LIST_ELEM | nl.NLA_F_NESTED) + body


_ELEMENT = struct.Struct("=HH")


def set_messages(
    kind: int, table: str, family: int, name: str, elements: list[bytes]
) -> Iterator[tuple[int, int, bytes]]:
    """(type, flags, payload) of the messages that add or delete elements of one set."""
    flags = nl.NLM_F_CREATE if kind == NFT_MSG_NEWSETELEM else 0
    head = family_header(family) + b"".join((
        nl.attribute(_LIST_TABLE, table.encode() + b"\0"),
        nl.attribute(_LIST_SET, name.encode() + b"\0"),
    ))  # fmt: skip
    for piece in _pieces(elements):
        payload = head + nl.nested(_LIST_ELEMENTS, *piece)
        yield NFNL_SUBSYS_NFTABLES << 8 | kind, flags, payload


def _pieces(raws: list[bytes]) -> Iterator[list[bytes]]:
    piece: list[bytes] = []
    size = 0
    for raw in raws:
        if size + len(raw) > _ELEMENTS_BYTES:
            yield piece
            piece, size = [], 0
        piece.append(raw)
        size += len(raw)
    if piece:
        yield piece


def delta_messages(table: str, delta: Delta) -> list[tuple[int, int, bytes]]:
    """One transaction: deletions first, so that a changed element is added anew."""
    messages: list[tuple[int, int, bytes]] = []
    for kind, rows in ((NFT_MSG_DELSETELEM, delta.delete), (NFT_MSG_NEWSETELEM, delta.add)):
        sets: dict[tuple[int, str], list[bytes]] = {}
        for (name, packet), value in rows:
            raw = element(packet, value if kind == NFT_MSG_NEWSETELEM else None)
            sets.setdefault((NFPROTO[version_of(packet)], name), []).append(raw)
        for (family, name), raws in sets.items():
            messages += set_messages(kind, table, family, name, raws)
    return messages


# -- NFLOG

_NFULNL_MSG_CONFIG = 1
_NFULA_CFG_CMD, _NFULA_CFG_MODE, _NFULA_CFG_TIMEOUT, _NFULA_CFG_QTHRESH = 1, 2, 4, 5
_NFULNL_CFG_CMD_BIND = 1
_NFULNL_COPY_PACKET = 2


def log_bind(group: int, copy_range: int) -> tuple[int, int, bytes]:
    """Copies of ``group``, each sent at once, cut to ``copy_range`` bytes."""
    payload = family_header(0, group) + b"".join((
        nl.attribute(_NFULA_CFG_CMD, bytes([_NFULNL_CFG_CMD_BIND])),
        nl.attribute(_NFULA_CFG_MODE, struct.pack(">IBx", copy_range, _NFULNL_COPY_PACKET)),
        nl.attribute(_NFULA_CFG_TIMEOUT, struct.pack(">I", 1)),
        nl.attribute(_NFULA_CFG_QTHRESH, struct.pack(">I", 1)),
    ))  # fmt: skip
    return NFNL_SUBSYS_ULOG << 8 | _NFULNL_MSG_CONFIG, 0, payload
