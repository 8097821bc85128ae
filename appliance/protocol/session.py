"""A session: fresh keys with a peer, one a direction; lives in memory only."""

from __future__ import annotations

import hmac
from dataclasses import dataclass, field

from .keys import SessionKeys, mac
from .message import Data, data_head
from .replay import ReplayWindow

MAX_COUNTER = 2**63


@dataclass(slots=True, repr=False)
class Session:
    """index: where we receive; remote_index: where the peer does; since: seconds."""

    index: int
    remote_index: int
    send_key: bytes
    recv_key: bytes
    send_mask: bytes
    recv_mask: bytes
    since: float
    serial: int
    counter: int = 0
    last_mac: bytes = b""
    used: float = 0.0
    window: ReplayWindow = field(default_factory=ReplayWindow)

    @classmethod
    def of(
        cls, keys: SessionKeys, initiator: bool, index: int, remote: int, now: float, serial: int
    ) -> Session:
        """``initiator``: we sent K1."""
        send, recv = (keys.to_r, keys.to_i) if initiator else (keys.to_i, keys.to_r)
        masks = (keys.mask_i, keys.mask_r) if initiator else (keys.mask_r, keys.mask_i)
        return cls(index, remote, send, recv, masks[0], masks[1], now, serial, used=now)

    def seal(self, payload: bytes) -> bytes:
        """A datagram; counters are never used twice within a session."""
        head = data_head(self.remote_index, self.counter)
        self.counter += 1
        self.last_mac = mac(self.send_key, head, payload)
        return head + payload + self.last_mac

    def open(self, data: Data) -> bool:
        """Whether the packet is the peer's and new; then its counter is used up."""
        if not self.window.fresh(data.counter):
            return False
        want = mac(self.recv_key, data_head(data.to, data.counter), data.payload)
        return hmac.compare_digest(want, data.mac) and self.window.accept(data.counter)


def masked(mask: bytes, host_id: str) -> bytes:
    """A host ID under a one-time mask; the same call with the bytes as hex undoes it."""
    return bytes(a ^ b for a, b in zip(mask, bytes.fromhex(host_id), strict=True))
