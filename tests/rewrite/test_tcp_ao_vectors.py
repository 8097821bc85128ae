"""The vectors of RFC 9235: 8 connections, 4 segments each, their traffic keys and MACs."""

from __future__ import annotations

import json
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from appliance.rewrite import tcp_ao
from appliance.rewrite.flow import Endpoint
from appliance.rewrite.tcp_ao import MAC_SIZE, Algorithm
from tests.rewrite.packets import tuple_in

VECTORS = json.loads((Path(__file__).parent / "vectors/rfc9235.json").read_text())
NAMES = ("client SYN", "server", "client", "server")
CASES = [
    pytest.param(row, number, id=f"{row['section']}.{number + 1}")
    for row in VECTORS["connections"]
    for number in range(4)
]


def test_the_whole_edition_is_here() -> None:
    assert len(CASES) == 32
    assert [row["section"] for row in VECTORS["connections"]] == [
        "4.1", "4.2", "5.1", "5.2", "6.1", "6.2", "7.1", "7.2",
    ]  # fmt: skip


def ends(packet: bytes) -> tuple[Endpoint, Endpoint]:
    source, target, sport, dport = tuple_in(packet)
    return Endpoint(ip_address(source), sport), Endpoint(ip_address(target), dport)


def isns(row: dict[str, Any], number: int) -> tuple[int, int]:
    client, server = int(row["client_isn"], 16), int(row["server_isn"], 16)
    return (server, client) if number % 2 else (client, 0 if number == 0 else server)


@pytest.mark.parametrize(("row", "number"), CASES)
def test_traffic_key(row: dict[str, Any], number: int) -> None:
    source, target = ends(bytes.fromhex(row["segments"][number]))
    key = tcp_ao.traffic_key(
        Algorithm(row["algorithm"]), VECTORS["master_key"].encode(), source, target,
        *isns(row, number),
    )  # fmt: skip
    assert key.hex() == row["traffic_keys"][NAMES[number]]


@pytest.mark.parametrize(("row", "number"), CASES)
def test_mac_of_the_segment(row: dict[str, Any], number: int) -> None:
    packet = bytearray.fromhex(row["segments"][number])
    at = tcp_ao.segment(packet, 0, len(packet))
    assert at is not None
    place = tcp_ao.find(packet, at)
    assert place is not None
    assert (place.key_id, place.next_id) == ((84, 61) if number % 2 else (61, 84))
    key = bytes.fromhex(row["traffic_keys"][NAMES[number]])
    mac = tcp_ao.mac_of(Algorithm(row["algorithm"]), key)
    made = tcp_ao.compute(mac, packet, at, place.at, 0, *ends(bytes(packet)), row["cover_options"])
    assert made.hex() == packet[place.at + 4 : place.at + 4 + MAC_SIZE].hex()
