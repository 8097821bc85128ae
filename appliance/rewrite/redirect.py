"""What the packet path must do for one bound connection.

An :class:`Entry` is the whole of it: the protocol core computes entries, the
keystore keeps them, a backend makes the kernel agree with them.  Nobody sends
differences: an entry replaces the one of the same connection.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from .flow import Flow

DataPath = Literal["kernel", "divert"]


@dataclass(frozen=True, slots=True)
class Entry:
    """The desired packet path of one bound connection.

    conn_id    32 hex digits, random, given at binding; the same at both ends
    birth      as both ends first agreed on it; never changes
    inside     as our end sees it; equal to ``birth`` when the socket is ours
               or when nothing translates between our end and the network
    local      True: the socket lives on this machine; False: we forward for it
    inside_opened  True: our end sent the SYN (source NAT), False: the far end did
               (a port forward)
    wires      wire flows that are let in, newest first (make-before-break keeps
               the older ones while their address lives); never empty
    wire_out   wire flow of what we send; None: shut, segments are held
    stale      wire flows of the past: whatever comes on them is dropped
    path       ``kernel`` or ``divert``
    """

    conn_id: str
    birth: Flow
    inside: Flow
    local: bool
    inside_opened: bool
    wires: tuple[Flow, ...]
    wire_out: Flow | None
    stale: tuple[Flow, ...] = ()
    path: DataPath = "kernel"

    @property
    def redirected(self) -> bool:
        """Whether any direction is translated."""
        return self.wire_out != self.birth or self.wires != (self.birth,)

    def to_json(self) -> dict[str, Any]:
        """Plain values; flows as ``LOCAL REMOTE`` text (see :class:`Flow`)."""
        return {
            "conn_id": self.conn_id,
            "birth": str(self.birth),
            "inside": str(self.inside),
            "local": self.local,
            "inside_opened": self.inside_opened,
            "wires": [str(w) for w in self.wires],
            "wire_out": None if self.wire_out is None else str(self.wire_out),
            "stale": [str(s) for s in self.stale],
            "path": self.path,
        }

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Entry:
        """The inverse of :meth:`to_json`; ValueError or KeyError on anything else."""
        conn_id = str(row["conn_id"])
        if len(conn_id) != 32 or conn_id.strip("0123456789abcdef"):
            raise ValueError(f"{conn_id!r} is not a connection ID")
        read: dict[str, Flow] = {}  # most of an entry's flows are the same

        def flow(text: str) -> Flow:
            found = read.get(text)
            if found is None:
                found = read[text] = Flow.parse(text)
            return found

        wires = tuple(map(flow, row["wires"]))
        if not wires:
            raise ValueError(f"connection {conn_id} lets no wire flow in")
        path = row["path"]
        if path not in ("kernel", "divert"):
            raise ValueError(f"{path!r} is not a data path")
        out = row["wire_out"]
        return cls(
            conn_id=conn_id,
            birth=flow(row["birth"]),
            inside=flow(row["inside"]),
            local=bool(row["local"]),
            inside_opened=bool(row["inside_opened"]),
            wires=wires,
            wire_out=None if out is None else flow(out),
            stale=tuple(flow(s) for s in row["stale"]),
            path=path,
        )
