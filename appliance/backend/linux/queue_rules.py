"""Rules that hand packets to an NFQUEUE, on kernels with nft's ``queue`` and without.

Where nftables can't queue by itself, the xt target NFQUEUE stands in, called through
nft_compat exactly as iptables-nft does; the nft command can't write such a rule, so it
goes to the kernel as netlink.  Either way the rest of a rule set is plain nft text
that jumps to the chain made here.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Final

from pfconf.nft import Queueing

from ..api import BackendError
from . import netlink as nl
from .nfnl import NFNL_MSG_BATCH_BEGIN, NFNL_MSG_BATCH_END, NFNL_SUBSYS_NFTABLES, family_header
from .nftrun import run_nft

_NFPROTO_INET: Final = 1
_NFT_MSG_NEWRULE: Final = 6
_RULE_TABLE, _RULE_CHAIN, _RULE_EXPRESSIONS = 1, 2, 4
_LIST_ELEM: Final = 1
_EXPR_NAME, _EXPR_DATA = 1, 2
_TARGET_NAME, _TARGET_REV, _TARGET_INFO = 1, 2, 3
_NFQ_FLAG_BYPASS: Final = 1


def probe() -> Queueing:
    """What nft can do on this kernel."""
    script = "table inet redirectd_probe {\n chain q {\n  queue num 0\n }\n}\n"
    try:
        run_nft(script + "delete table inet redirectd_probe\n")
    except BackendError:
        return "xt"
    return "nft"


@cache
def check(number: int) -> None:
    """BackendError when this kernel can't queue at all; it is asked once."""
    table = "redirectd_probe"
    install(table, number, "", {"q": False})
    remove(table)


def install(
    table: str,
    number: int,
    body: str,
    chains: Mapping[str, bool],
    *,
    mechanism: Queueing | None = None,
) -> None:
    """Replace table ``inet TABLE``: chains that queue, then ``body``, which jumps to them.

    chains  name -> whether packets pass while nobody listens (otherwise they are dropped)
    body    the rest of the table in nft's language: sets, maps, chains

    The queueing chains are complete before anything can jump to them.
    """
    mechanism = mechanism or probe()
    text = ""
    for chain, bypass in chains.items():
        statement = f"  queue num {number}{' bypass' if bypass else ''}\n"
        text += f" chain {chain} {{\n{statement if mechanism == 'nft' else ''} }}\n"
    run_nft(f"table inet {table}\ndelete table inet {table}\ntable inet {table} {{\n{text}}}\n")
    if mechanism == "xt":
        for chain, bypass in chains.items():
            add_target(_NFPROTO_INET, table, chain, number, bypass=bypass)
    run_nft(f"table inet {table} {{\n{body}\n}}\n")


def remove(table: str) -> None:
    """Take the table away; not there is as good."""
    run_nft(f"table inet {table}\ndelete table inet {table}\n")


def add_target(
    family: int, table: str, chain: str, number: int, *, bypass: bool = False
) -> None:
    """Put the xt target in front of whatever the chain has.

    family  NFPROTO_*
    """
    # struct xt_NFQ_info_v3: queuenum, queues_total, flags; XT_ALIGN makes it 8 bytes.
    info = struct.pack("=HHHxx", number, 1, _NFQ_FLAG_BYPASS if bypass else 0)
    target = nl.nested(
        _LIST_ELEM,
        nl.attribute(_EXPR_NAME, b"target\0"),
        nl.nested(
            _EXPR_DATA,
            nl.attribute(_TARGET_NAME, b"NFQUEUE\0"),
            nl.attribute(_TARGET_REV, struct.pack(">I", 3)),
            nl.attribute(_TARGET_INFO, info),
        ),
    )
    rule = family_header(family) + b"".join((
        nl.attribute(_RULE_TABLE, table.encode() + b"\0"),
        nl.attribute(_RULE_CHAIN, chain.encode() + b"\0"),
        nl.nested(_RULE_EXPRESSIONS, target),
    ))  # fmt: skip
    kind = NFNL_SUBSYS_NFTABLES << 8 | _NFT_MSG_NEWRULE
    _transaction([(kind, nl.NLM_F_CREATE, rule)])


def _transaction(messages: Sequence[tuple[int, int, bytes]]) -> None:
    edge = family_header(0, NFNL_SUBSYS_NFTABLES)
    parts = [nl.message(NFNL_MSG_BATCH_BEGIN, nl.NLM_F_REQUEST, 0, edge)]
    for seq, (kind, flags, payload) in enumerate(messages, 1):
        parts.append(nl.message(kind, flags | nl.NLM_F_REQUEST | nl.NLM_F_ACK, seq, payload))
    parts.append(nl.message(NFNL_MSG_BATCH_END, nl.NLM_F_REQUEST, len(messages) + 1, edge))
    link = nl.NetlinkSocket(nl.NETLINK_NETFILTER)
    try:
        link.send(b"".join(parts))
        waiting = len(messages)
        while waiting:
            for part in nl.parse(link.sock.recv(nl.RECEIVE_SIZE)):
                if part.error:
                    raise _refusal(part.error)
                waiting -= part.error == 0
    finally:
        link.close()


def _refusal(number: int) -> BackendError:
    if number in (errno.ENOENT, errno.EOPNOTSUPP):
        return BackendError(
            "this kernel can queue packets neither by nft (CONFIG_NFT_QUEUE) nor by the xt "
            "target NFQUEUE (CONFIG_NFT_COMPAT, CONFIG_NETFILTER_XT_TARGET_NFQUEUE)"
        )
    return nl.NetlinkError("rule for NFQUEUE", number)
