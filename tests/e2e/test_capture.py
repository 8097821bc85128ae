"""Captures by a real daemon: the packets that were asked for, and no others."""

from __future__ import annotations

import base64
import io
import os
import stat
import time
from collections.abc import Iterator
from typing import Any

import dpkt
import pytest

from appliance.rewrite.flow import Flow
from tests.lab.daemon import ControlError, Daemon, introduce
from tests.lab.net import Lab
from tests.lab.streams import Traffic, open_stream
from tests.lab.topologies import A, B, home, two_hosts

FAR = "192.0.2.9"


def download(daemon: Daemon, capture: str) -> bytes:
    data, offset = b"", 0
    while offset is not None:
        piece = daemon.ctl("capture.get", id=capture, offset=offset)
        data += base64.b64decode(piece["data"])
        offset = piece["next"]
    return data


def segments(file: bytes) -> Iterator[tuple[Flow, dpkt.tcp.TCP]]:
    """(sender and receiver, segment); everything in the file must be TCP."""
    reader = dpkt.pcap.Reader(io.BytesIO(file))
    assert reader.datalink() == dpkt.pcap.DLT_RAW or reader.datalink() == 101
    for when, frame in reader:
        assert abs(when - time.time()) < 600
        packet = dpkt.ip.IP(frame)
        assert packet.len == len(frame)
        tcp = packet.data
        assert isinstance(tcp, dpkt.tcp.TCP)
        source, target = ".".join(map(str, packet.src)), ".".join(map(str, packet.dst))
        yield Flow.of(source, tcp.sport, target, tcp.dport), tcp


def both_ways(*pairs: list[str]) -> set[Flow]:
    flows = [Flow.parse(" ".join(pair)) for pair in pairs]
    return {*flows, *(flow.reversed() for flow in flows)}


def done(daemon: Daemon, capture: str) -> dict[str, Any]:
    def ended(d: Daemon) -> dict[str, Any] | None:
        (row,) = [r for r in d.ctl("capture.list") if r["id"] == capture]
        return None if row["state"] == "running" else row

    row: dict[str, Any] = daemon.wait_until("the capture ended", ended)
    assert row["state"] == "done", row
    return row


def opened(daemon: Daemon, capture: str) -> None:
    daemon.wait_until(
        "the capture began",
        lambda d: any(r["id"] == capture and r["size"] for r in d.ctl("capture.list")),
    )


def test_a_connection_is_recorded_under_all_of_its_names_and_nothing_else(lab: Lab) -> None:
    top = home(lab)
    gateway = Daemon(
        top.home, long_lived_after=1, interfaces={"inside": ["lan"], "outside": ["wan"]}
    )
    server = Daemon(top.server, long_lived_after=1)
    introduce(gateway, server)
    near, far = Traffic(top.laptop), Traffic(top.server)
    wanted, other = (open_stream(near, far, FAR) for _ in range(2))
    rows = gateway.wait_bound(2)
    row = rows[0]
    capture = gateway.ctl("capture.start", conn=row["conn_id"], seconds=5)["id"]
    opened(gateway, capture)
    before = row["wire"]
    top.home.unplug()
    top.home.plug(network=top.net.b)
    top.home.replace_address(A[0], B[0], "wan")
    after = next(r for r in gateway.wait_moved(1) if r["conn_id"] == row["conn_id"])["wire"]
    assert before != after
    done(gateway, capture)
    found = list(segments(download(gateway, capture)))
    names = both_ways(row["inside"], before, after)
    assert {flow for flow, _ in found} == names
    assert any(tcp.data for flow, tcp in found if flow == Flow.parse(" ".join(after)))
    folder = top.home.dir / "state" / "captures"
    for path in [folder, *folder.iterdir()]:
        owner = path.stat()
        assert owner.st_uid != 0
        assert stat.S_IMODE(owner.st_mode) & 0o077 == 0
    for stream in (wanted, other):
        stream.finish().check()


def test_a_host_is_recorded_up_to_the_bytes_allowed(lab: Lab) -> None:
    top = two_hosts(lab)
    alice, bob = (Daemon(host, long_lived_after=1) for host in (top.alice, top.bob))
    introduce(alice, bob)
    stream = open_stream(Traffic(top.alice), Traffic(top.bob), top.bob.address())
    alice.wait_bound(1)
    capture = alice.ctl("capture.start", peer="bob", seconds=60, bytes=20_000)["id"]
    row = done(alice, capture)
    assert 20_000 - 1600 < row["size"] <= 20_000
    for _, frame in dpkt.pcap.Reader(io.BytesIO(download(alice, capture))):
        packet = dpkt.ip.IP(frame)
        ends = {".".join(map(str, end)) for end in (packet.src, packet.dst)}
        assert top.bob.address() in ends
    assert [e["peer_id"] for e in alice.events("capture")] == [row["peer_id"]]
    stream.finish().check()


def test_deleting_stops_it_and_three_run_at_a_time(lab: Lab) -> None:
    top = two_hosts(lab)
    alice, bob = (Daemon(host, long_lived_after=1) for host in (top.alice, top.bob))
    introduce(alice, bob)
    captures = [alice.ctl("capture.start", peer="bob", seconds=300)["id"] for _ in range(3)]
    with pytest.raises(ControlError, match="run already"):
        alice.ctl("capture.start", peer="bob")
    for capture in captures:
        opened(alice, capture)
        alice.ctl("capture.delete", id=capture)
    alice.wait_until("room again", lambda d: not _recorders(d))
    again = alice.ctl("capture.start", peer="bob", seconds=300)["id"]
    opened(alice, again)
    alice.kill("engine")  # whoever crashes: the capture goes on, and is found again
    alice.wait_until("an engine", lambda d: d.ctl("capture.list")[0]["state"] == "running")
    alice.stop()
    deadline = time.monotonic() + 5
    while _recorders(alice):
        assert time.monotonic() < deadline, "captures outlive the daemon"
        time.sleep(0.05)


def _recorders(daemon: Daemon) -> list[int]:
    """Processes that have a capture open."""
    folder = str(daemon.host.dir / "state" / "captures")
    found = []
    for pid in (int(name) for name in os.listdir("/proc") if name.isdigit()):
        try:
            links = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
        except OSError:
            continue
        if any(link.startswith(folder) and ".pcap" in link for link in links):
            found.append(pid)
    return found
