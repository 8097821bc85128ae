"""A gateway description as the files that configure the Linux image (pure).

Rendered on the appliance at each start, from ``/cfg/gateway.toml`` into ``/run``, so that
a change of the description needs no new image.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Interface

import firewall
import tomlkit

from pfconf.description import Gateway, Network

REDIRECTD_TOML = "/run/gateway/redirectd.toml"
FIREWALL = "/run/gateway/nftables.conf"
WIREGUARD_KEY = "/run/gateway/wireguard.key"


@dataclass(frozen=True, slots=True)
class Unusable(Exception):
    """The description says something that the Linux image does not do."""

    key: str
    problem: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.key}: {self.problem}; {self.remedy}"


def check(gateway: Gateway) -> None:
    """Raises Unusable for what only the OpenBSD image does."""
    if gateway.outside.address == "pppoe":
        raise Unusable(
            "external.address", "the Linux image speaks no PPPoE",
            'let the modem do it and write "dhcp", or build the OpenBSD image',
        )  # fmt: skip
    if gateway.ipsec is not None:
        raise Unusable(
            "ipsec", "the Linux image has no IKE daemon",
            "use [wireguard], or build the OpenBSD image",
        )  # fmt: skip


def render(gateway: Gateway, settings: str = "") -> dict[str, str]:
    """Files by absolute path, all below ``/run``.

    settings  the owner's redirectd.toml; what follows from the description is set in it
    """
    check(gateway)
    files = {
        FIREWALL: firewall.render(gateway),
        REDIRECTD_TOML: redirectd_toml(gateway, settings),
        "/run/sysctl.d/60-gateway.conf": "\n".join(_sysctls(gateway)) + "\n",
        "/run/systemd/network/10-external.network": "\n".join(_external(gateway)) + "\n",
        "/run/systemd/resolved.conf.d/gateway.conf": "\n".join(_resolved(gateway)) + "\n",
        "/run/gateway/sshd.conf": "\n".join(_sshd(gateway)) + "\n",
        "/run/gateway/chrony.conf": "\n".join(_chrony(gateway)) + "\n",
    }
    for number, network in enumerate(gateway.networks):
        path = f"/run/systemd/network/{20 + number}-{network.name}.network"
        files[path] = "\n".join(_network(network)) + "\n"
    if gateway.wireguard is not None:
        files["/run/systemd/network/50-wireguard.netdev"] = "\n".join(_wg_device(gateway)) + "\n"
        files["/run/systemd/network/50-wireguard.network"] = "\n".join(_wg_network(gateway)) + "\n"
    return files


def web_addresses(gateway: Gateway) -> list[str]:
    """Where the admin page listens: the LANs' own addresses."""
    port = gateway.admin.web
    if port is None:
        return []
    return [f"{n.address.ip}:{port}" for n in gateway.admins if n.address is not None]


def redirectd_toml(gateway: Gateway, settings: str) -> str:
    return settings_document(
        gateway, settings, state="/cfg/redirectd", web_state="/cfg/redirectd-web",
        control="/run/redirectd/control.sock",
    )  # fmt: skip


def settings_document(
    gateway: Gateway, settings: str, *, state: str, web_state: str, control: str
) -> str:
    """redirectd.toml(5): the owner's settings, and over them what the appliance fixes."""
    document = tomlkit.parse(settings)
    document["port"] = gateway.redirect.port
    document["state-dir"] = state
    document["control-socket"] = control
    interfaces = tomlkit.table()
    interfaces["inside"] = [n.interface for n in gateway.networks]
    interfaces["outside"] = [gateway.outside.interface]
    if gateway.wireguard is not None:
        interfaces["ignore"] = [gateway.wireguard.interface]
    document["interfaces"] = interfaces
    web = document.get("web")
    if not isinstance(web, dict):
        web = tomlkit.table()
        document["web"] = web
    listen = web_addresses(gateway)
    web["enabled"] = bool(listen)
    if listen:
        web["listen"] = listen
    web["state-dir"] = web_state
    return tomlkit.dumps(document)


def _sysctls(gateway: Gateway) -> Iterator[str]:
    yield "net.ipv4.ip_forward=1"
    yield f"net.ipv6.conf.all.forwarding={int(gateway.outside.ipv6)}"
    # Deleting an interface's first address must not take the second with it.
    yield "net.ipv4.conf.all.promote_secondaries=1"
    yield "net.ipv4.conf.default.promote_secondaries=1"
    # Only connections whose beginning was seen: redirectd re-creates those it moves.
    yield "net.netfilter.nf_conntrack_tcp_loose=0"
    yield f"net.netfilter.nf_conntrack_max={gateway.filter.states}"
    yield "net.ipv4.conf.all.rp_filter=2"
    yield "net.ipv4.conf.all.accept_redirects=0"
    yield "net.ipv4.conf.all.send_redirects=0"
    yield "net.ipv6.conf.all.accept_redirects=0"
    yield "net.ipv4.conf.all.accept_source_route=0"
    yield "net.ipv4.tcp_syncookies=1"
    yield "kernel.kptr_restrict=2"
    yield "kernel.dmesg_restrict=1"
    yield "kernel.unprivileged_bpf_disabled=1"


def _external(gateway: Gateway) -> Iterator[str]:
    outside = gateway.outside
    yield "[Match]"
    yield f"Name={outside.interface}"
    if outside.mtu is not None:
        yield "[Link]"
        yield f"MTUBytes={outside.mtu}"
    yield "[Network]"
    yield "LLMNR=no"
    yield "MulticastDNS=no"
    yield "LLDP=no"
    if isinstance(outside.address, IPv4Interface):
        yield f"Address={outside.address}"
        yield f"Gateway={outside.address.network.network_address + 1}"
        yield f"DHCP={'ipv6' if outside.ipv6 else 'no'}"
    else:
        yield f"DHCP={'yes' if outside.ipv6 else 'ipv4'}"
    yield f"IPv6AcceptRA={'yes' if outside.ipv6 else 'no'}"
    if not outside.ipv6:
        yield "LinkLocalAddressing=no"
    yield "[DHCPv4]"
    # The same client after a reboot, although /etc/machine-id does not stay.
    yield "ClientIdentifier=mac"
    yield "UseHostname=no"
    yield "SendHostname=no"
    yield "UseDomains=no"
    yield "[DHCPv6]"
    yield "DUIDType=link-layer"


def _network(network: Network) -> Iterator[str]:
    yield "[Match]"
    yield f"Name={network.interface}"
    yield "[Network]"
    yield f"Address={network.address}"
    if network.ipv6 is not None:
        yield f"Address={network.ipv6}"
        yield "IPv6SendRA=yes"
    else:
        yield "LinkLocalAddressing=no"
    yield "IPv6AcceptRA=no"
    yield "ConfigureWithoutCarrier=yes"
    yield "IgnoreCarrierLoss=yes"
    yield "LLMNR=no"
    yield "MulticastDNS=no"
    yield "LLDP=no"
    if "dhcp" in network.services and network.address is not None:
        yield "DHCPServer=yes"
        yield "[DHCPServer]"
        offset, size = pool(network.address)
        yield f"PoolOffset={offset}"
        yield f"PoolSize={size}"
        yield "EmitRouter=yes"
        if "dns" in network.services:
            yield f"DNS={network.address.ip}"
        if "ntp" in network.services:
            yield f"NTP={network.address.ip}"
    if network.ipv6 is not None:
        yield "[IPv6SendRA]"
        yield "EmitDNS=no"
        yield "[IPv6Prefix]"
        yield f"Prefix={network.ipv6.network}"


def pool(address: IPv4Interface) -> tuple[int, int]:
    """(offset, size) of the addresses to hand out: the upper half of the network, so that
    the lower one is left for addresses that an owner gives by hand."""
    hosts = address.network.num_addresses
    if hosts < 8:
        return 1, max(1, hosts - 2)
    return hosts // 2, hosts // 2 - 1


def _resolved(gateway: Gateway) -> Iterator[str]:
    yield "[Resolve]"
    yield "LLMNR=no"
    yield "MulticastDNS=no"
    for network in gateway.networks:
        if "dns" in network.services and network.address is not None:
            yield f"DNSStubListenerExtra={network.address.ip}"
    if gateway.wireguard is not None and gateway.wireguard.address is not None:
        yield f"DNSStubListenerExtra={gateway.wireguard.address.ip}"


def _sshd(gateway: Gateway) -> Iterator[str]:
    yield from sshd(gateway)
    yield "UsePAM no"
    yield "X11Forwarding no"
    yield "PrintMotd no"


def sshd(gateway: Gateway) -> Iterator[str]:
    """What sshd_config(5) says on every system."""
    addresses = [n.address.ip for n in gateway.admins if n.address is not None]
    yield "# ssh is for the LAN; keys alone, kept in /cfg"
    for address in addresses if gateway.admin.ssh else ():
        yield f"ListenAddress {address}"
    if not gateway.admin.ssh or not addresses:
        yield "ListenAddress 127.0.0.1"
    yield "HostKey /cfg/ssh/ssh_host_ed25519_key"
    yield "AuthorizedKeysFile /cfg/ssh/authorized_keys"
    yield "PermitRootLogin prohibit-password"
    yield "PasswordAuthentication no"
    yield "KbdInteractiveAuthentication no"
    yield "AllowTcpForwarding no"


def _chrony(gateway: Gateway) -> Iterator[str]:
    yield "pool 2.debian.pool.ntp.org iburst maxsources 3"
    yield "makestep 1 3"
    yield "rtcsync"
    yield "cmdport 0"
    serving = [n for n in gateway.networks if "ntp" in n.services and n.address is not None]
    if not serving:
        yield "port 0"
    for network in serving:
        if network.address is not None:
            yield f"allow {network.address.network}"


def _wg_device(gateway: Gateway) -> Iterator[str]:
    wireguard = gateway.wireguard
    if wireguard is None:
        return
    yield "[NetDev]"
    yield f"Name={wireguard.interface}"
    yield "Kind=wireguard"
    yield "[WireGuard]"
    yield f"ListenPort={wireguard.port}"
    # Peers, being keys, stay on /cfg: gateway-apply adds 50-wireguard.netdev.d/peers.conf.
    yield f"PrivateKeyFile={WIREGUARD_KEY}"


def _wg_network(gateway: Gateway) -> Iterator[str]:
    wireguard = gateway.wireguard
    if wireguard is None:
        return
    yield "[Match]"
    yield f"Name={wireguard.interface}"
    yield "[Network]"
    yield f"Address={wireguard.address}"
    yield "LLMNR=no"
    yield "MulticastDNS=no"
