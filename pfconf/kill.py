"""Which pf states must die when rules have changed, as arguments of pfctl(8).

openbsd.md: "Rules alone change nothing until the old states die; this is so again at
every later move."  A kill that finds nothing is no fault: "killed 0 states" exits 0.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from appliance.rewrite.flow import Endpoint, Flow
from appliance.rewrite.redirect import Entry

from .rule import label_name, plain_address

_STATE_ID = re.compile(r"[0-9a-f]{1,16}\Z")


def key_host(endpoint: Endpoint) -> str:
    """``10.8.0.2:5000`` or ``fd07::1[5000]`` (``[addr]:port`` is "invalid host")."""
    addr = plain_address(endpoint.addr)
    return f"{addr}:{endpoint.port}" if addr.version == 4 else f"{addr}[{endpoint.port}]"


@dataclass(frozen=True, slots=True)
class KillKey:
    """``pfctl -k key -k "tcp SOURCE -> DEST"``: the key before translation.

    It kills every state that has this key, so at a gateway both the LAN-side state and
    the NAT state.
    """

    source: Endpoint
    dest: Endpoint

    def argv(self) -> tuple[str, ...]:
        return ("-k", "key", "-k", f"tcp {key_host(self.source)} -> {key_host(self.dest)}")


@dataclass(frozen=True, slots=True)
class KillLabel:
    """``pfctl -k label -k ID``: whatever our own rules of a connection created."""

    label: str

    def argv(self) -> tuple[str, ...]:
        return ("-k", "label", "-k", label_name(self.label))


@dataclass(frozen=True, slots=True)
class KillId:
    """``pfctl -k id -k ID``: one state (16 hex digits, as ``pfctl -ss -vv`` shows it).

    The best way on the divert path: only the NAT state dies and the LAN state lives on.
    """

    state_id: str

    def argv(self) -> tuple[str, ...]:
        if not _STATE_ID.match(self.state_id):
            raise ValueError(f"{self.state_id!r} is not a state id")
        return ("-k", "id", "-k", self.state_id)


Kill = KillKey | KillLabel | KillId


def birth_kills(entry: Entry) -> tuple[KillKey, ...]:
    """The states that pf made by itself before we redirected ``entry``.

    pf finds a state by the key that the first packet had before its translation: the
    inside tuple for a connection from our side (source NAT), the tuple on the network
    for one from the far side (port forward, or our own server).
    """
    if entry.inside_opened:
        return (KillKey(entry.inside.local, entry.inside.remote),)
    first = KillKey(entry.birth.remote, entry.birth.local)
    if entry.inside == entry.birth:
        return (first,)
    # a port forward: the LAN-side state saw the translated destination
    return (first, KillKey(entry.inside.remote, entry.inside.local))


def kills(entry: Entry) -> tuple[Kill, ...]:
    """Everything that must die after the rules of ``entry`` were loaded."""
    return (*birth_kills(entry), KillLabel(entry.conn_id))


def nat_key(inside: Flow) -> KillKey:
    """The key of a source NAT state, for a caller that has no entry."""
    return KillKey(inside.local, inside.remote)
