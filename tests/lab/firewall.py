"""nftables rule sets that a careful administrator would have: default deny.

They stand for the user's own rules, which redirectd must leave alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

REDIRECTD_PORT = 4787


@dataclass(frozen=True, slots=True)
class Forward:
    """A port forward: what comes to ``port`` outside goes to ``to_addr:to_port`` inside."""

    port: int
    to_addr: str
    to_port: int


def gateway(
    outside: Iterable[str],
    inside: Iterable[str],
    forwards: Iterable[Forward] = (),
    udp_port: int = REDIRECTD_PORT,
    masquerade6: bool = False,
) -> str:
    """Masquerading home gateway: only answers and the LAN's own traffic get through.

    outside, inside  interface names
    masquerade6      translate IPv6 as well (otherwise it is routed, and let in only
                     as an answer)
    """
    wan = "{ " + ", ".join(f'"{name}"' for name in outside) + " }"
    lan = "{ " + ", ".join(f'"{name}"' for name in inside) + " }"
    four = [f for f in forwards if ":" not in f.to_addr]
    six = [f for f in forwards if ":" in f.to_addr]
    dnat = "".join(
        f"  iifname {wan} meta nfproto ipv4 tcp dport {f.port} dnat ip to {f.to_addr}:{f.to_port}\n"
        for f in four
    ) + "".join(
        f"  iifname {wan} meta nfproto ipv6 tcp dport {f.port}"
        f" dnat ip6 to [{f.to_addr}]:{f.to_port}\n"
        for f in six
    )
    masquerade = f"  oifname {wan} meta nfproto ipv4 masquerade\n"
    if masquerade6:
        masquerade += f"  oifname {wan} meta nfproto ipv6 masquerade\n"
    return f"""
table inet home {{
 chain input {{
  type filter hook input priority 0; policy drop;
  iif "lo" accept
  ct state invalid drop
  ct state established,related accept
  iifname {lan} accept
  meta l4proto {{ icmp, ipv6-icmp }} accept
  udp dport {udp_port} accept
 }}
 chain forward {{
  type filter hook forward priority 0; policy drop;
  ct state invalid drop
  ct state established,related accept
  iifname {lan} oifname {wan} accept
  ct status dnat accept
  meta l4proto ipv6-icmp accept
 }}
 chain prerouting {{
  type nat hook prerouting priority -100;
{dnat} }}
 chain postrouting {{
  type nat hook postrouting priority 100;
{masquerade} }}
}}
"""


def host(tcp_ports: Iterable[int] = (), udp_port: int = REDIRECTD_PORT) -> str:
    """A host that lets in nothing but answers and the named services."""
    services = "".join(f"  tcp dport {port} accept\n" for port in tcp_ports)
    return f"""
table inet host {{
 chain input {{
  type filter hook input priority 0; policy drop;
  iif "lo" accept
  ct state invalid drop
  ct state established,related accept
  meta l4proto {{ icmp, ipv6-icmp }} accept
  udp dport {udp_port} accept
{services} }}
}}
"""
