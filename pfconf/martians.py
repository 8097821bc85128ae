"""Addresses that have no business on the Internet (RFC 6890)."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network

# The documentation prefixes (RFC 5737, RFC 3849) are left out: examples use them, and
# nobody routes them.
_NEVER4 = (
    "0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "192.0.0.0/24", "198.18.0.0/15",
    "224.0.0.0/4", "240.0.0.0/4",
)  # fmt: skip
_PRIVATE4 = ("10.0.0.0/8", "100.64.0.0/10", "172.16.0.0/12", "192.168.0.0/16")
_NEVER6 = ("::/128", "::1/128", "::ffff:0:0/96", "100::/64", "fc00::/7")


def martians(private_uplink: bool, ipv6: bool) -> tuple[IPv4Network | IPv6Network, ...]:
    """Prefixes to refuse on the external interface.

    private_uplink: the provider's router has private addresses, which then are none.
    """
    four = _NEVER4 if private_uplink else (*_NEVER4, *_PRIVATE4)
    six = _NEVER6 if ipv6 else ()
    return (*(IPv4Network(p) for p in four), *(IPv6Network(p) for p in six))
