"""The traffic program notices what it is there to notice, and the real servers run."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest

from tests.lab import services, topologies, traffic
from tests.lab.net import Lab
from tests.lab.streams import Traffic, open_stream


def receiver() -> traffic.Endpoint:
    endpoint = traffic.Endpoint(traffic.Agent(), "r", {"size": 10})
    endpoint.last_time = time.monotonic_ns()
    return endpoint


def feed(endpoint: traffic.Endpoint, *numbers: int, content: bytes | None = None) -> None:
    for number in numbers:
        endpoint.take(number, 0, traffic.body(number, 10) if content is None else content)


def test_a_lost_record_is_counted() -> None:
    endpoint = receiver()
    feed(endpoint, 0, 1, 3)
    assert (endpoint.received, endpoint.lost, endpoint.doubled) == (3, 1, 0)


def test_records_lost_at_the_end_are_counted() -> None:
    endpoint = receiver()
    feed(endpoint, 0, 1)
    endpoint.take(2**64 - 1, 0, b"4")
    assert (endpoint.received, endpoint.lost) == (2, 2)
    assert not endpoint.report()["complete"]


def test_a_doubled_record_is_counted() -> None:
    endpoint = receiver()
    feed(endpoint, 0, 1, 1)
    assert (endpoint.received, endpoint.doubled) == (2, 1)


def test_an_altered_record_is_counted() -> None:
    endpoint = receiver()
    feed(endpoint, 0, content=b"0123456789")
    assert endpoint.altered == 1


def test_bytes_that_are_no_record_end_the_connection() -> None:
    endpoint = receiver()
    endpoint.buffer += b"x" * 40
    endpoint.parse()
    assert endpoint.altered == 1
    assert endpoint.error == "what came is not a record"


@pytest.mark.parametrize("addr", ["192.0.2.9", "2001:db8:c::9"])
def test_paced_bulk_echo_and_idle_streams_are_byte_exact(lab: Lab, addr: str) -> None:
    top = topologies.two_hosts(lab)
    near, far = Traffic(top.alice), Traffic(top.bob)
    streams = [open_stream(near, far, addr, mode=mode) for mode in ("paced", "bulk", "echo")]
    quiet = open_stream(near, far, addr, mode="idle")
    quiet.say(3)
    quiet.say(2, "far")
    quiet.wait_for(2)
    for stream in streams:
        stream.wait(20)
    for stream in [*streams, quiet]:
        stream.finish().check()


def test_the_longest_gap_is_the_time_without_a_record(lab: Lab) -> None:
    top = topologies.two_hosts(lab)
    stream = open_stream(Traffic(top.alice), Traffic(top.bob), "192.0.2.9", mode="idle", down=False)
    stream.say()
    stream.wait_for(1)
    began = time.monotonic()
    stream.say()
    stream.wait_for(2)
    between = (time.monotonic() - began) * 1000
    assert 0 < stream.report().longest_gap_ms <= between + 50
    stream.finish().check()


def test_ssh_rsync_and_postgresql_serve(lab: Lab, tmp_path: Path) -> None:
    top = topologies.two_hosts(lab)
    sshd = services.Sshd(top.bob)
    done = top.alice.run(["ssh", *sshd.options(), "192.0.2.9", "echo", "hello"])
    assert done.stdout == "hello\n"

    rsyncd = services.Rsyncd(top.bob)
    (tmp_path / "file").write_bytes(bytes(range(256)) * 100)
    top.alice.run(["rsync", str(tmp_path / "file"), rsyncd.url("192.0.2.9")])
    assert (rsyncd.path / "file").read_bytes() == (tmp_path / "file").read_bytes()

    postgres = services.Postgres(top.bob)
    session = top.alice.popen(
        postgres.psql("192.0.2.9"), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert session.stdin is not None
    session.stdin.write(b"create table t (n int); insert into t values (42) returning n;\n")
    session.stdin.flush()
    assert services.read_line(session) == b"42\n"
