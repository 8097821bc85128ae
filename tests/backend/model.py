"""What the rules must do, as a plain Python model: one entry, one packet at a time.

It is written from the meaning of an entry (appliance/rewrite/redirect.py), not from the
rules, and looks at all entries in turn.
"""

from __future__ import annotations

from collections.abc import Sequence

from appliance.rewrite.flow import Flow
from appliance.rewrite.redirect import Entry


def inbound(entries: Sequence[Entry], packet: Flow) -> Flow | None:
    """A packet from the network as the stack sees it; None: dropped.

    ``packet.local`` is its source.
    """
    for entry in entries:
        if packet.reversed() in entry.wires:
            return entry.birth.reversed()
    for entry in entries:
        if packet.reversed() in entry.stale:
            return None
    return packet


def outbound(entries: Sequence[Entry], packet: Flow) -> Flow | None:
    """A packet of our own socket as the network sees it; None: it does not leave."""
    for entry in entries:
        if entry.local and packet == entry.birth:
            return entry.wire_out
    for entry in entries:
        if packet == entry.wire_out:
            return None  # somebody else's socket on a wire tuple
    return packet
