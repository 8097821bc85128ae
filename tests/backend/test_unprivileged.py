"""The engine's half works as nobody, with no capability, on sockets that root opened."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable

from tests.lab import topologies
from tests.lab.net import Lab

from .node import connect, entry, node

NOBODY = 65534


def as_nobody(action: Callable[[], None]) -> int:
    """Exit status of a child that gives root up and then does ``action``."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            action()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_copies_dumps_and_injection_need_no_capability(lab: Lab) -> None:
    net = topologies.two_hosts(lab)
    with node(net.alice) as alice:
        stream = connect(net.alice, net.bob)
        alice.apply(entry(1, stream.flow, [stream.flow], stream.flow))
        with net.alice.entered():
            alice.table.observe([stream.flow])
            alice.host.request_connections()

            def engine() -> None:
                with open("/proc/self/status") as status:
                    assert "CapEff:\t0000000000000000\n" in status.readlines()
                alice.pump(lambda seen: seen.known is not None, enter=False)
                assert alice.seen.known is not None
                assert [c.birth for c in alice.seen.known] == [stream.flow]
                alice.tap.prompt(stream.flow, True)
                alice.pump(lambda seen: seen.segments, enter=False)
                assert alice.watcher.source_for(stream.flow.remote.addr) == stream.flow.local.addr

            assert as_nobody(engine) == 0
        stream.close()
