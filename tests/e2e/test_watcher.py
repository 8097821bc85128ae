"""Every way in which a machine comes by another address, made by the real thing."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.lab import topologies as t
from tests.lab.host import Host
from tests.lab.net import Lab, Network

from .scene import Scene, addresses, scene

SCRIPT = """#!/bin/sh
# what a DHCP client's script does, without touching this machine's resolv.conf
case "$1" in
deconfig) ip -4 addr flush dev "$interface" ;;
bound|renew)
    ip -4 addr replace "$ip/$mask" dev "$interface"
    ip route replace default via "$router" dev "$interface" metric 100 ;;
esac
"""


class DhcpServer:
    """dnsmasq in the network of the provider; offers exactly one address."""

    def __init__(self, lab: Lab, network: Network) -> None:
        self.host: Host = lab.host("provider", network, "198.51.100.2/24")
        self._process = None

    def offer(self, address: str) -> None:
        """From now on this is what everybody gets; older leases are unknown."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(10)
        leases = Path(self.host.dir / "state" / "leases")
        leases.unlink(missing_ok=True)
        self._process = self.host.popen(
            ["dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--port=0",
             "--user=root", "--interface=eth0", "--bind-interfaces", f"--dhcp-leasefile={leases}",
             f"--dhcp-range={address},{address},255.255.255.0,2m", "--dhcp-authoritative",
             "--dhcp-option=option:router,198.51.100.1", "--no-ping", "--pid-file="],
        )  # fmt: skip
        self.host.run(["sh", "-c", "for i in $(seq 200); do ss -lun | grep -q :67 && exit 0;"
                       " sleep .02; done; exit 1"])  # fmt: skip


def bound_stream(s: Scene) -> None:
    s.open()
    s.bind()


@pytest.fixture
def two(lab: Lab) -> Scene:
    made = scene(lab)
    bound_stream(made)
    return made


def test_dhcp_renews_to_another_address(lab: Lab) -> None:
    s = scene(lab)
    server = DhcpServer(lab, lab.networks["net-a"])
    server.offer("198.51.100.60")
    script = s.mover.file("udhcpc.sh", SCRIPT, 0o755)
    s.mover.del_address(t.A[0])
    client = s.mover.popen(
        ["busybox", "udhcpc", "-f", "-i", "eth0", "-s", str(script), "-t", "20", "-T", "1"]
    )
    s.mover_daemon.wait_until(
        "a lease", lambda d: any(a["addr"] == "198.51.100.60" for a in d.ctl("status")["addresses"])
    )
    bound_stream(s)
    for moves, address in enumerate(["198.51.100.61", "198.51.100.62"], 1):
        server.offer(address)
        client.send_signal(10)  # SIGUSR1: renew now; the server answers with NAK
        s.settle(moves)
        s.flows()
        assert s.mover_daemon.bound()[0]["wire"][0].startswith(address + ":")
    s.finish()


@pytest.mark.parametrize("version", [4, 6])
def test_a_deprecated_address_is_left_while_it_still_lives(lab: Lab, version: int) -> None:
    s = scene(lab, version=version)
    bound_stream(s)
    s.mover.add_address(next(addresses(version)))
    old = s.at["mover"]
    s.mover.run(["ip", "addr", "change", old, "dev", "eth0", "preferred_lft", "0"])
    s.settle(1)
    s.flows()
    assert old.partition("/")[0] not in s.mover_daemon.bound()[0]["wire"][0].replace("[", "")
    s.finish()


def test_a_link_that_is_lost_and_comes_back_with_the_same_address(two: Scene) -> None:
    two.mover.unplug()
    two.mover_daemon.wait_until("held", lambda d: d.connections("held"))
    two.mover.plug()
    two.mover_daemon.wait_until("open again", lambda d: not d.connections("held"))
    two.flows()
    assert two.mover_daemon.bound()[0]["moves"] == 0
    two.finish()


def test_a_link_that_comes_back_with_another_address(two: Scene) -> None:
    new = next(addresses(4))
    two.mover.unplug()
    two.mover_daemon.wait_until("held", lambda d: d.connections("held"))
    two.mover.replace_address(two.at["mover"], new, first="del")
    two.mover.plug()
    two.settle(1)
    two.flows()
    two.finish()


def test_an_interface_that_is_switched_off_and_on(two: Scene) -> None:
    two.mover.link_down()
    two.mover_daemon.wait_until("held", lambda d: d.connections("held"))
    two.mover.link_up()
    two.mover_daemon.wait_until("open again", lambda d: not d.connections("held"))
    two.flows()
    two.finish()


def test_of_several_addresses_only_the_one_in_use_counts(two: Scene) -> None:
    new = addresses(4)
    first, second = next(new), next(new)
    two.mover.add_address(first)
    two.mover.add_address(second)
    two.mover.del_address(first)
    two.flows()
    assert two.mover_daemon.bound()[0]["moves"] == 0
    two.mover.del_address(t.A[0])
    two.settle(1)
    two.flows()
    assert two.mover_daemon.bound()[0]["wire"][0].startswith(second.partition("/")[0])
    two.finish()


def test_a_host_whose_ipv6_prefix_is_renumbered(lab: Lab) -> None:
    s = scene(lab, version=6)
    lab.add_subnet(lab.networks["net-a"], "2001:db8:aa::1/64")
    bound_stream(s)
    s.mover.add_address("2001:db8:aa::7/64")
    s.mover.run(["ip", "addr", "change", t.A[1], "dev", "eth0", "preferred_lft", "0"])
    s.settle(1)
    s.mover.del_address(t.A[1])
    s.flows()
    assert s.far_daemon.bound()[0]["wire"][1].startswith("[2001:db8:aa::7]")
    s.finish()


def test_the_operator_moves_connections_by_hand(two: Scene) -> None:
    new = next(addresses(4))
    two.mover.add_address(new)
    two.mover_daemon.wait_until("known", lambda d: len(d.ctl("status")["addresses"]) == 3)
    assert two.mover_daemon.ctl("move", to=new.partition("/")[0]) == {"connections": 1}
    two.settle(1)
    two.flows()
    two.finish()
