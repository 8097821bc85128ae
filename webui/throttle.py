"""How often a password or the set-up code may be tried."""

from __future__ import annotations

import ipaddress

from limits import RateLimitItemPerHour, RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter

_PER_ADDRESS = (RateLimitItemPerMinute(5), RateLimitItemPerHour(30))
# Bounds a guesser with many addresses. The owner is locked out with them for as long as they
# try: better than a guessed password, and only somebody inside the LAN gets this far.
_ALL = RateLimitItemPerHour(120)


class Throttle:
    """Failed attempts are counted by the address they come from and all together."""

    def __init__(self) -> None:
        self._limiter = MovingWindowRateLimiter(MemoryStorage())

    def allowed(self, address: str | None) -> bool:
        """Whether another attempt may be made now."""
        key = _key(address)
        return self._limiter.test(_ALL, "all") and all(
            self._limiter.test(item, key) for item in _PER_ADDRESS
        )

    def failed(self, address: str | None) -> None:
        key = _key(address)
        self._limiter.hit(_ALL, "all")
        for item in _PER_ADDRESS:
            self._limiter.hit(item, key)


def _key(address: str | None) -> str:
    try:
        parsed = ipaddress.ip_address((address or "").partition("%")[0])
    except ValueError:
        return "unknown"
    # One IPv6 host makes itself as many addresses in its /64 as it likes (RFC 8981).
    if parsed.version == 6:
        return str(ipaddress.ip_network((parsed, 64), strict=False))
    return str(parsed)
