"""Datagrams carry their local address both ways."""

from __future__ import annotations

import select
import socket
from ipaddress import ip_address

import pytest

from appliance.proc import udp
from appliance.rewrite.flow import Endpoint


@pytest.fixture
def pair() -> list[list[socket.socket]]:
    a, b = udp.open_sockets(0), udp.open_sockets(0)
    return [a, b]


def receive_one(sock: socket.socket) -> tuple[bytes, Endpoint, object]:
    assert select.select([sock], [], [], 5)[0]
    (got,) = list(udp.receive(sock))
    return got


@pytest.mark.parametrize(
    ("family", "source", "target"), [(0, "127.0.0.7", "127.0.0.9"), (1, "::1", "::1")]
)
def test_a_datagram_leaves_from_the_chosen_address_and_tells_the_one_it_came_to(
    pair: list[list[socket.socket]], family: int, source: str, target: str
) -> None:
    a, b = pair[0][family], pair[1][family]
    to = Endpoint(ip_address(target), b.getsockname()[1])
    assert udp.send(pair[0], b"hello", to, ip_address(source)) is None
    data, remote, local = receive_one(b)
    assert data == b"hello"
    assert remote == Endpoint(ip_address(source), a.getsockname()[1])
    assert local == ip_address(target)


def test_an_address_that_is_not_ours_is_an_error_text_and_no_exception(
    pair: list[list[socket.socket]],
) -> None:
    to = Endpoint(ip_address("127.0.0.1"), 9)
    why = udp.send(pair[0], b"x", to, ip_address("192.0.2.1"))
    assert why is not None
    assert why.startswith("127.0.0.1:9")


def test_a_flood_is_read_in_bounded_pieces(pair: list[list[socket.socket]]) -> None:
    b = pair[1][0]
    to = Endpoint(ip_address("127.0.0.1"), b.getsockname()[1])
    for _ in range(udp.BATCH + 10):
        udp.send(pair[0], b"x", to, None)
    assert select.select([b], [], [], 5)[0]
    assert len(list(udp.receive(b))) == udp.BATCH
