"""The rule set itself: loaded, flushed by others, spared, parked; and what it costs."""

from __future__ import annotations

import subprocess
import time

import pytest

from appliance.backend.api import BackendError
from appliance.backend.linux.nft import NftTable
from pfconf import nft
from tests.lab import firewall, kernel, topologies
from tests.lab.net import Lab

from .node import PATIENCE, at, connect, entry, node, receive, there
from .test_nftmap import BIRTH, WIRE

USER = "table inet user {\n chain input {\n  type filter hook input priority 0\n }\n}\n"


@pytest.mark.parametrize("routed", [False, True])
def test_the_rules_load_again_and_again_and_go_without_trace(lab: Lab, routed: bool) -> None:
    host = lab.machine("alone")
    host.nft(USER)
    before = host.ruleset()
    for _ in range(2):
        script = nft.ruleset(nft.Settings(), routed=routed, queueing="xt")
        host.run(["nft", "-f", "-"], text=script)
    assert "redirectd" in host.ruleset()
    for _ in range(2):
        host.run(["nft", "-f", "-"], text=nft.removal(nft.Settings()))
    assert host.ruleset() == before


def test_a_flushed_table_is_put_back_whole_with_the_next_change(lab: Lab) -> None:
    net = topologies.two_hosts(lab)
    with node(net.alice) as alice:
        with net.alice.entered():
            alice.host.park(BIRTH.local.addr)
        alice.apply(entry(1, BIRTH, [WIRE], WIRE))
        whole = net.alice.ruleset()
        net.alice.run(["nft", "flush", "ruleset"])
        alice.apply(entry(1, BIRTH, [WIRE], WIRE))  # nothing to change, so nothing is seen
        other = there(BIRTH, "192.0.2.10")
        alice.apply(entry(2, other, [other], other))
        with net.alice.entered():
            alice.table.remove([f"{2:032x}"])
        assert net.alice.ruleset() == whole


def test_a_flushed_table_is_put_back_when_it_is_looked_at(lab: Lab) -> None:
    net = topologies.two_hosts(lab)
    with node(net.alice) as alice, node(net.bob) as bob:
        stream = connect(net.alice, net.bob)
        wire = at(stream.flow, str(stream.flow.local.addr), 40_000)
        alice.apply(entry(1, stream.flow, [wire], wire))
        bob.apply(entry(1, stream.far_flow, [wire.reversed()], wire.reversed()))
        stream.say(b"x")
        with net.alice.entered():
            assert not alice.table.verify()
        net.alice.run(["nft", "flush", "ruleset"])
        stream.near.sendall(b"lost")
        with net.alice.entered():
            assert alice.table.verify()
            assert not alice.table.verify()
        receive(stream.far, b"lost", time.monotonic() + PATIENCE)
        stream.answer(b"x")
        stream.close()


def test_a_refused_change_leaves_kernel_and_memory_alike(lab: Lab) -> None:
    net = topologies.two_hosts(lab)
    with node(net.alice) as alice:
        alice.apply(entry(1, BIRTH, [WIRE], WIRE))
        before = net.alice.ruleset()
        with pytest.raises(BackendError, match="another port"):
            alice.apply(entry(2, there(BIRTH, "192.0.2.10"), [WIRE], WIRE))
        assert net.alice.ruleset() == before
        alice.apply(entry(1, BIRTH, [BIRTH], BIRTH))
        with net.alice.entered():
            alice.table.remove([f"{1:032x}", "unknown"])
        assert "203.0.113.7" not in net.alice.ruleset()


def test_rules_of_an_earlier_run_stay_until_they_are_replaced(lab: Lab) -> None:
    host = lab.machine("alone")
    with host.entered():
        table = NftTable(nft.Settings())
        table.open()
        table.apply([entry(1, BIRTH, [WIRE], WIRE)])
        table.close(keep=True)
        again = NftTable(nft.Settings())
        again.open()
        assert "203.0.113.7" in host.ruleset()
        again.replace_all([entry(2, BIRTH, [at(WIRE, "203.0.113.8")], None)])
        assert "203.0.113.7" not in host.ruleset()
        assert "203.0.113.8" in host.ruleset()
        again.close(keep=False)
        assert host.ruleset() == ""


def test_a_machine_that_forwards_nothing_is_spared_the_chains_for_it(lab: Lab) -> None:
    net = topologies.two_hosts(lab)
    with node(net.alice) as alice:
        alice.apply(entry(1, BIRTH, [WIRE], WIRE))
        assert "hook forward" not in net.alice.ruleset()
        assert "type nat" not in net.alice.ruleset()
        inside = at(BIRTH, "192.168.7.20")
        alice.apply(entry(2, there(BIRTH, "192.0.2.10"), [WIRE.reversed()], None, inside=inside))
        assert "type nat" in net.alice.ruleset()
        assert "held" in net.alice.ruleset()


def test_where_the_user_translates_our_connections_keep_their_identity(lab: Lab) -> None:
    """A masquerade rule that meets a connection anew would change its source."""
    net = topologies.two_hosts(lab)
    net.alice.nft(firewall.gateway(["eth0"], ["lan"]))
    with node(net.alice) as alice:
        assert "nat_s" in net.alice.ruleset("ip", "redirectd")
        stream = connect(net.alice, net.bob)
        port = stream.flow.local.port
        taken = at(stream.flow, net.alice.address())
        alice.apply(entry(1, taken, [taken], taken))
        net.alice.run(["conntrack", "-F"])
        with net.alice.entered():
            alice.host.restore_nat([entry(1, taken, [taken], taken)])
        stream.answer(b"from outside first")
        stream.say(b"x")
        listed = net.alice.run(["conntrack", "-L", "-p", "tcp"]).stdout
        assert listed.count(f"={port} ") == 2
        stream.close()


def test_nobody_learns_a_parked_address(lab: Lab) -> None:
    """It belongs to somebody else now."""
    net = topologies.two_hosts(lab)
    old = topologies.A[0]
    addr = BIRTH.local.addr
    assert old.startswith(str(addr))
    with node(net.alice) as alice:
        net.alice.del_address(old)
        net.alice.add_address("198.51.100.8/24")
        with net.alice.entered():
            alice.host.park(addr)
            alice.host.park(addr)
        stranger = lab.host("stranger", net.net.a, "198.51.100.9/24")
        ping = ["ping", "-c1", "-W1"]
        assert stranger.run([*ping, "198.51.100.8"]).returncode == 0
        assert stranger.run([*ping, str(addr)], check=False).returncode != 0
        with net.alice.entered():
            alice.host.unpark(addr)
            alice.host.unpark(addr)
        left = kernel.command(["ip", "-n", net.alice.netns, "rule"])
        assert "4787" not in left
        assert str(addr) not in net.alice.run(["ip", "route", "show", "table", "all"]).stdout


def test_a_parked_address_is_not_used_by_anybody_else(lab: Lab) -> None:
    """Neither do its datagrams reach a service of this machine for lack of a route."""
    import socket

    net = topologies.two_hosts(lab)
    addr = str(BIRTH.local.addr)
    with node(net.alice) as alice:
        net.alice.del_address(topologies.A[0])
        with net.alice.entered():
            alice.host.park(BIRTH.local.addr)
            server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            server.bind(("0.0.0.0", 5353))
            client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            client.bind((addr, 0))
            with pytest.raises(OSError, match=r"not permitted|unreachable"):
                client.sendto(b"x", ("192.0.2.9", 5353))
            client.sendto(b"own", (addr, 5353))
            server.settimeout(1)
            assert server.recv(16) == b"own"
            server.close()
            client.close()


def test_what_an_earlier_run_left_is_let_go(lab: Lab) -> None:
    net = topologies.two_hosts(lab)
    needed, left = BIRTH.local.addr, WIRE.local.addr
    net.alice.del_address(topologies.A[0])
    with node(net.alice) as alice:
        with net.alice.entered():
            alice.host.park(needed)
            alice.host.park(left)
            alice.host.adopt([entry(1, BIRTH, [WIRE], WIRE)])
        shown = net.alice.run(["ip", "route", "show", "table", "local"]).stdout
        assert str(needed) in shown
        assert str(left) not in shown


def test_without_nft_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*args: object, **kwargs: object) -> None:
        raise FileNotFoundError("nft")

    monkeypatch.setattr(subprocess, "run", missing)
    with pytest.raises(BackendError, match="nftables"):
        NftTable(nft.Settings(table="rdtest")).close(keep=False)
