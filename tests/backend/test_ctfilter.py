"""Which connection tracking events reach user space."""

from __future__ import annotations

import select
import socket

from appliance.backend.linux import ctfilter, ctnetlink, sockets
from appliance.backend.linux import netlink as nl
from tests.lab import topologies
from tests.lab.host import Host
from tests.lab.net import Lab

from .node import PATIENCE, connect, node


def listen(host: Host, filtered: bool) -> nl.NetlinkSocket:
    with host.entered():
        sock = nl.NetlinkSocket(
            nl.NETLINK_NETFILTER,
            (sockets.NFNLGRP_CONNTRACK_NEW, sockets.NFNLGRP_CONNTRACK_UPDATE,
             sockets.NFNLGRP_CONNTRACK_DESTROY),
        )  # fmt: skip
    if filtered:
        ctfilter.attach(sock.sock)
    return sock


def events(sock: nl.NetlinkSocket) -> list[tuple[bool, int | None]]:
    """(the entry ended, TCP state) of what is there."""
    found = []
    for part in sock.notifications(1000):
        entry = ctnetlink.parse(part.payload)
        found.append((part.kind == ctnetlink.CT_DELETE, None if entry is None else entry.state))
    return found


def test_only_what_says_something_passes(lab: Lab) -> None:
    net = topologies.two_hosts(lab)
    with node(net.alice):
        every, some = listen(net.alice, False), listen(net.alice, True)
        with net.alice.entered(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            udp.sendto(b"x", (net.bob.address(), 53))
        stream = connect(net.alice, net.bob)
        stream.say(b"x")
        stream.near.close()
        assert stream.far.recv(1) == b""
        stream.far.close()
        aborted = connect(net.alice, net.bob)
        flow = aborted.flow
        net.alice.run(["conntrack", "-D", "-p", "tcp", "--sport", str(flow.local.port)])
        net.alice.run(["conntrack", "-F"])
        aborted.close()
        seen: list[tuple[bool, int | None]] = []
        while (True, ctnetlink.ESTABLISHED) not in seen:
            assert select.select([some], [], [], PATIENCE)[0]
            seen += events(some)
        told = events(every)
        assert len(told) > len(seen)
        assert (False, ctnetlink.SYN_SENT) in told
        assert {state for ended, state in seen if not ended} <= set(ctfilter.UPDATES)
        assert {state for ended, state in seen if ended} <= set(ctfilter.ENDS)
        assert (False, ctnetlink.ESTABLISHED) in seen
        assert (False, ctnetlink.TIME_WAIT) in seen
        every.close()
        some.close()
