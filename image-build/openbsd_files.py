"""A gateway description as the files that configure the OpenBSD image (pure).

They stand in ``/cfg/etc``; the read-only ``/etc`` has links to them.  Rendered when the
image is built, and again on the appliance by gateway-apply after an owner changed
``/cfg/gateway.toml``.
"""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Interface

from linux_files import pool, settings_document, sshd, web_addresses

from pfconf.description import Gateway, Network
from pfconf.gateway import render_gateway

#: what /etc links to in /cfg/etc, beside the hostname.if files
LINKS = ("pf.conf", "dhcpd.conf", "ntpd.conf", "sysctl.conf", "redirectd.toml")


def render(gateway: Gateway, settings: str = "") -> dict[str, str]:
    """Files by their name in ``/cfg/etc``; ``settings``: the owner's redirectd.toml."""
    files = {
        "pf.conf": render_gateway(gateway),
        "dhcpd.conf": _text(_dhcpd(gateway)),
        "unbound.conf": _text(_unbound(gateway)),
        "ntpd.conf": _text(_ntpd(gateway)),
        "sysctl.conf": _text(_sysctl(gateway)),
        "sshd.conf": _text(sshd(gateway)),
        "redirectd.toml": settings_document(
            gateway, settings, state="/cfg/redirectd", web_state="/cfg/redirectd-web",
            control="/var/run/redirectd/control.sock",
        ),
    }  # fmt: skip
    external = _external(gateway)
    if external is not None:
        files[f"hostname.{gateway.outside.interface}"] = external
    for network in gateway.networks:
        files[f"hostname.{network.interface}"] = _text(_network(network))
    if gateway.wireguard is not None:
        files[f"hostname.{gateway.wireguard.interface}"] = _text(_wireguard(gateway))
    return files


def owners_part(gateway: Gateway) -> tuple[str, ...]:
    """Names in ``/cfg/etc`` that hold secrets and are the owner's to write."""
    names = []
    if gateway.outside.address == "pppoe":
        names.append(f"hostname.{gateway.outside.interface}")
    if gateway.ipsec is not None:
        names.append("iked.conf")
    return tuple(names)


def _text(lines: Iterator[str]) -> str:
    return "\n".join(lines) + "\n"


def _external(gateway: Gateway) -> str | None:
    """hostname.if(5); None when it holds a password (PPPoE) and the owner writes it."""
    outside = gateway.outside
    lines = []
    if outside.address == "pppoe":
        return None
    if outside.mtu is not None:
        lines.append(f"mtu {outside.mtu}")
    if isinstance(outside.address, IPv4Interface):
        lines.append(f"inet {outside.address.ip} {outside.address.netmask}")
        lines.append(f"!route -qn add -inet default {outside.address.network[1]}")
    else:
        lines.append("inet autoconf")
    # 7.9 turns SLAAC on by default: say either.
    lines.append("inet6 autoconf" if outside.ipv6 else "-inet6")
    # LRO would hand packets to divert(4) that are too large to send on.
    lines.append(f"!ifconfig {outside.interface} -tcplro 2>/dev/null || true")
    return "\n".join(lines) + "\n"


def _network(network: Network) -> Iterator[str]:
    if network.address is not None:
        yield f"inet {network.address.ip} {network.address.netmask}"
    if network.ipv6 is not None:
        yield f"inet6 {network.ipv6.ip} {network.ipv6.network.prefixlen}"
    else:
        yield "-inet6"
    yield f"description {network.name}"
    yield f"!ifconfig {network.interface} -tcplro 2>/dev/null || true"


def _wireguard(gateway: Gateway) -> Iterator[str]:
    wireguard = gateway.wireguard
    if wireguard is None or wireguard.address is None:
        return
    # The key is made at the first start and never stands in the image.
    yield f"!sh /etc/wireguard-key {wireguard.interface}"
    yield f"wgport {wireguard.port}"
    yield f"inet {wireguard.address.ip} {wireguard.address.netmask}"
    yield "up"


def _dhcpd(gateway: Gateway) -> Iterator[str]:
    yield "# dhcpd.conf(5), written from gateway.toml"
    for network in gateway.networks:
        address = network.address
        if address is None:
            continue
        yield f"subnet {address.network.network_address} netmask {address.netmask} {{"
        if "dhcp" in network.services:
            offset, size = pool(address)
            first = address.network.network_address + offset
            yield f"\trange {first} {first + size - 1};"
            yield f"\toption routers {address.ip};"
            if "dns" in network.services:
                yield f"\toption domain-name-servers {address.ip};"
            if "ntp" in network.services:
                yield f"\toption ntp-servers {address.ip};"
        yield "}"


def _unbound(gateway: Gateway) -> Iterator[str]:
    yield "# unbound.conf(5), written from gateway.toml"
    yield "server:"
    yield '\tchroot: ""'
    yield '\tdirectory: "/var/unbound"'
    yield "\tuse-syslog: yes"
    yield '\tauto-trust-anchor-file: "/var/unbound/db/root.key"'
    yield "\tinterface: 127.0.0.1"
    yield "\taccess-control: 0.0.0.0/0 refuse"
    yield "\taccess-control: 127.0.0.0/8 allow"
    for network in gateway.networks:
        if "dns" in network.services and network.address is not None:
            yield f"\tinterface: {network.address.ip}"
            yield f"\taccess-control: {network.address.network} allow"
    if gateway.wireguard is not None and gateway.wireguard.address is not None:
        yield f"\tinterface: {gateway.wireguard.address.ip}"
        yield f"\taccess-control: {gateway.wireguard.address.network} allow"
    yield "\thide-identity: yes"
    yield "\thide-version: yes"
    yield "remote-control:"
    yield "\tcontrol-enable: no"


def _ntpd(gateway: Gateway) -> Iterator[str]:
    yield "# ntpd.conf(5), written from gateway.toml"
    yield "servers pool.ntp.org"
    yield "sensor *"
    yield 'constraints from "https://www.openbsd.org"'
    for network in gateway.networks:
        if "ntp" in network.services and network.address is not None:
            yield f"listen on {network.address.ip}"


def _sysctl(gateway: Gateway) -> Iterator[str]:
    yield "net.inet.ip.forwarding=1"
    if gateway.outside.ipv6:
        yield "net.inet6.ip6.forwarding=1"
    # divert(4) can't send what the kernel merged
    yield "net.inet.tcp.tso=0"
    # nobody stands by to type at the debugger
    yield "ddb.panic=0"


def summary(gateway: Gateway) -> str:
    """For the console and the build's log."""
    page = ", ".join(f"http://{address}/" for address in web_addresses(gateway)) or "off"
    return f"external {gateway.outside.interface}, admin page {page}"
