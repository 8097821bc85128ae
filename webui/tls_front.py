"""The TLS front for OpenBSD: relayd.conf(5), rendered from the page's settings."""

from __future__ import annotations

import ipaddress

from .settings import Settings

_TEMPLATE = """\
# relayd.conf: TLS in front of the admin page of redirectd.
# Rendered by: redirectd-web --relayd {address}
# Certificate: /etc/ssl/{keypair}.crt, key: /etc/ssl/private/{keypair}.key (acme-client(1), or
# your own authority).

http protocol "redirectd_web" {{
	# What a browser sends in their place is not believed.
	match request header set "X-Forwarded-For" value "$REMOTE_ADDR"
	match request header set "X-Forwarded-Proto" value "https"
	tls keypair "{keypair}"
}}

relay "redirectd_web" {{
	listen on {address} port 443 tls
	protocol "redirectd_web"
	forward to {inner} port {port}
}}
"""


def relayd_conf(settings: Settings, address: str) -> str:
    """relayd.conf that takes TLS on ``address`` port 443 and passes requests on to the page.

    The key pair is called like the first of ``settings.names``, or else like the address.
    ValueError: ``address`` is no address of the LAN side, or the page is not told of a front.
    """
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        raise ValueError(f"{address!r} is no address, such as 192.168.1.1") from None
    if parsed.is_unspecified or parsed.is_loopback or parsed.is_multicast:
        raise ValueError(f"{address} is not the LAN address of this machine")
    if not settings.behind_tls:
        raise ValueError("set behind-tls = true under [web] first, and listen on 127.0.0.1")
    inner = settings.listen[0]
    return _TEMPLATE.format(
        address=parsed,
        keypair=settings.names[0] if settings.names else str(parsed),
        inner=inner.address,
        port=inner.port,
    )
