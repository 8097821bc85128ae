"""The lab itself: fast, private, and gone afterwards."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.lab import kernel, topologies
from tests.lab.firewall import Forward
from tests.lab.host import Host
from tests.lab.net import Lab
from tests.lab.streams import Traffic, open_stream

ROOT = Path(__file__).resolve().parents[2]


def ping(host: Host, addr: str) -> bool:
    """Whether an answer comes within a few tries (a neighbour may have to be found)."""
    argv = ["ping", "-c1", "-w4", "-i0.2", addr]
    return host.run(argv, check=False).returncode == 0


def silent(host: Host, addr: str) -> bool:
    return host.run(["ping", "-c2", "-i0.2", "-W0.3", addr], check=False).returncode != 0


def test_a_lab_of_five_machines_is_built_and_removed_quickly() -> None:
    began = time.monotonic()
    with Lab() as lab:
        topologies.home(lab)
        built = time.monotonic()
    assert built - began < 1.5
    assert time.monotonic() - built < 1.5


def test_two_labs_live_side_by_side(lab: Lab) -> None:
    one = topologies.two_hosts(lab)
    with Lab() as other:
        two = topologies.two_hosts(other)
        two.alice.del_address(topologies.A[0])
        assert ping(one.alice, "192.0.2.9")
        assert silent(two.alice, "192.0.2.9")
    assert ping(one.alice, "192.0.2.9")


def test_everything_goes_when_an_exception_leaves_the_lab() -> None:
    name = ""

    def fail() -> None:
        nonlocal name
        with Lab() as lab:
            name = lab.name
            topologies.two_hosts(lab).alice.popen(["sleep", "1000"])
            raise KeyError("on purpose")

    with pytest.raises(KeyError, match="on purpose"):
        fail()
    assert not [n for n in kernel.lab_namespaces() if n.startswith(f"{name}-")]


# In turns of a moment: a signal just before a blocking read(2) would wait for its end.
BUSY = """
import select
from tests.lab import topologies
from tests.lab.net import Lab
with Lab() as lab:
    topologies.two_hosts(lab, rtt_ms=1).alice.popen(["sleep", "1000"])
    print(lab.name, flush=True)
    while True:
        select.select([], [], [], 0.05)
"""


def _start_busy_lab() -> tuple[subprocess.Popen[str], str]:
    process = subprocess.Popen(
        [sys.executable, "-c", BUSY],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def _remains(name: str) -> list[str]:
    namespaces = [n for n in kernel.lab_namespaces() if n.startswith(f"{name}-")]
    return namespaces + [str(d) for d in kernel.lab_directories() if d.name == name]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_everything_goes_on_ctrl_c_and_sigterm(number: signal.Signals) -> None:
    process, name = _start_busy_lab()
    with process:
        assert _remains(name)
        process.send_signal(number)
        assert process.wait(timeout=10) != 0
    assert not _remains(name)


def test_the_reaper_clears_up_after_a_killed_run_and_spares_living_ones(lab: Lab) -> None:
    alive = topologies.two_hosts(lab).alice
    process, name = _start_busy_lab()
    with process:
        process.kill()
        process.wait(timeout=10)
    assert _remains(name)
    assert any(name in gone for gone in kernel.reap())
    assert not _remains(name)
    assert ping(alive, "192.0.2.9")


def test_the_gateway_translates_and_lets_in_only_what_it_should(lab: Lab) -> None:
    top = topologies.home(lab, forwards=[Forward(7000, "192.168.7.20", 7001)])
    laptop, server = Traffic(top.laptop), Traffic(top.server)
    out = open_stream(laptop, server, "192.0.2.9")
    out.wait(5)
    assert out.report("far").remote[0].endswith("198.51.100.7")
    laptop.listen(7001)
    with top.server.entered(), socket.socket() as sock:
        sock.settimeout(1)
        assert sock.connect_ex(("198.51.100.7", 7000)) == 0
    with top.server.entered(), socket.socket() as sock:
        sock.settimeout(0.3)
        assert sock.connect_ex(("198.51.100.7", 7001)) != 0
    assert silent(top.server, "192.168.7.20")
    out.finish().check()


def test_an_unprotected_connection_dies_when_the_gateway_moves(lab: Lab) -> None:
    """The contrast to everything else here: without redirectd nothing survives."""
    top = topologies.home(lab)
    stream = open_stream(Traffic(top.laptop), Traffic(top.server), "192.0.2.9")
    stream.wait(5)
    top.home.replace_address(topologies.A[0], topologies.A2[0])
    before = stream.report("far").received
    with pytest.raises(kernel.LabError, match="not within"):
        stream.wait(20, "far", timeout=1)
    assert stream.report("far").received - before < 5
    assert ping(top.laptop, "192.0.2.9")


@pytest.mark.parametrize(
    ("spoofed", "far"), [("203.0.113.99/32", "192.0.2.9"), ("2001:db8:b::99/128", "2001:db8:c::9")]
)
def test_spoofed_sources_do_not_cross_the_internet(lab: Lab, spoofed: str, far: str) -> None:
    top = topologies.two_hosts(lab)
    kernel.ip_batch([f"addr add {spoofed} dev lo"], top.alice.netns)
    source = spoofed.partition("/")[0]
    family = "ip6" if ":" in source else "ip"
    top.bob.nft(
        "table inet seen { chain c { type filter hook prerouting priority -400;"
        f" {family} saddr {source} counter comment spoofed; {family} daddr {far} counter\n }}\n}}\n"
    )
    assert ping(top.alice, far)
    top.alice.run(["ping", "-c3", "-i0.05", "-W0.2", "-I", source, far], check=False)
    spoofs, all_of_them = re.findall(r"counter packets (\d+)", top.bob.ruleset("inet", "seen"))
    assert int(spoofs) == 0
    assert int(all_of_them) > 0


def test_a_stranger_takes_a_freed_address_and_answers(lab: Lab) -> None:
    top = topologies.two_hosts(lab)
    assert ping(top.bob, "198.51.100.7")
    top.alice.del_address(*topologies.A)
    assert silent(top.bob, "198.51.100.7")
    lab.host("stranger", top.net.a, *topologies.A)
    assert ping(top.bob, "198.51.100.7")
    assert ping(top.bob, "2001:db8:a::7")


def test_a_host_moves_to_another_network(lab: Lab) -> None:
    top = topologies.two_hosts(lab)
    top.alice.del_address(*topologies.A)
    top.alice.unplug()
    top.alice.plug(network=top.net.b)
    top.alice.add_address(*topologies.B)
    assert ping(top.alice, "192.0.2.9")
    assert ping(top.alice, "2001:db8:c::9")


def test_a_second_uplink_takes_over_when_the_first_loses_its_address(lab: Lab) -> None:
    top = topologies.two_uplinks(lab)
    route = ["ip", "route", "get", "192.0.2.9"]
    assert "dev eth0" in top.alice.run(route).stdout
    top.alice.del_address(*topologies.A)
    assert "dev wlan0" in top.alice.run(route).stdout
    assert ping(top.alice, "192.0.2.9")
    assert ping(top.alice, "2001:db8:c::9")


def test_link_down_and_up_brings_addresses_and_routes_back(lab: Lab) -> None:
    top = topologies.two_hosts(lab)
    top.alice.link_down()
    assert silent(top.alice, "192.0.2.9")
    top.alice.link_up()
    assert ping(top.alice, "192.0.2.9")
    assert ping(top.alice, "2001:db8:c::9")


def test_silence_on_the_wire_keeps_the_carrier(lab: Lab) -> None:
    top = topologies.two_hosts(lab)
    top.alice.cut()
    assert silent(top.alice, "192.0.2.9")
    state = json.loads(top.alice.run(["ip", "-j", "link", "show", "eth0"]).stdout)
    assert "LOWER_UP" in state[0]["flags"]
    top.alice.mend()
    assert ping(top.alice, "192.0.2.9")


def test_a_rebooted_gateway_forwards_again_and_keeps_only_its_disk(lab: Lab) -> None:
    top = topologies.home(lab)
    (top.home.dir / "state" / "kept").write_text("kept")
    (top.home.dir / "run" / "gone").write_text("gone")
    process = top.home.popen(["sleep", "1000"])
    top.home.reboot()
    assert process.poll() is not None
    assert (top.home.dir / "state" / "kept").exists()
    assert not (top.home.dir / "run" / "gone").exists()
    assert ping(top.laptop, "192.0.2.9")
    assert ping(top.laptop, "2001:db8:c::9")
    assert "masquerade" in top.home.ruleset("inet", "home")


def test_blocked_udp_lets_tcp_through(lab: Lab) -> None:
    top = topologies.two_hosts(lab)
    with top.bob.entered(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("0.0.0.0", 4787))
        server.settimeout(0.3)
        with top.alice.entered(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.sendto(b"one", ("192.0.2.9", 4787))
            assert server.recv(10) == b"one"
            lab.block_udp()
            client.sendto(b"two", ("192.0.2.9", 4787))
            with pytest.raises(TimeoutError):
                server.recv(10)
            stream = open_stream(Traffic(top.alice), Traffic(top.bob), "192.0.2.9")
            stream.wait(3)
            lab.block_udp(False)
            client.sendto(b"three", ("192.0.2.9", 4787))
            assert server.recv(10) == b"three"


def test_the_lab_refuses_to_run_without_root() -> None:
    pid = os.fork()
    if pid == 0:
        os.setresuid(65534, 65534, 65534)
        try:
            with Lab():
                os._exit(1)
        except kernel.LabError as error:
            os._exit(0 if "root" in str(error) else 2)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
