"""Addresses: ifconfig's picture, and how recorded messages change it."""

from __future__ import annotations

import socket
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.backend.api import BackendError
from appliance.backend.openbsd import ifconfig, routemsg, watcher
from appliance.backend.openbsd.routemsg import AnnounceMessage
from appliance.backend.openbsd.settings import Settings
from appliance.backend.openbsd.watcher import Picture, RouteWatcher
from appliance.rewrite.flow import Address

from . import fixtures

GATEWAY = """\
lo0: flags=8049<UP,LOOPBACK,RUNNING,MULTICAST> mtu 32768
\tindex 4 priority 0 llprio 3
\tgroups: lo
\tinet6 ::1 prefixlen 128
\tinet 127.0.0.1 netmask 0xff000000
\tinet 10.9.0.2 netmask 0xffffffff
em0: flags=808843<UP,BROADCAST,RUNNING,SIMPLEX,MULTICAST,AUTOCONF4> mtu 1500
\tlladdr 52:54:00:12:34:56
\tindex 1 priority 0 llprio 3
\tgroups: egress
\tmedia: Ethernet autoselect (1000baseT full-duplex)
\tstatus: active
\tinet 203.0.113.5 netmask 0xffffff00 broadcast 203.0.113.255
em1: flags=8843<UP,BROADCAST,RUNNING,SIMPLEX,MULTICAST> mtu 1500
\tlladdr 52:54:00:12:34:57
\tindex 2 priority 0 llprio 3
\tstatus: active
\tinet 192.168.1.1 netmask 0xffffff00 broadcast 192.168.1.255
\tinet6 fe80::1%em1 prefixlen 64 scopeid 0x2
\tinet6 2001:db8:1::1 prefixlen 64 deprecated autoconf pltime 0 vltime 3600
em2: flags=8802<BROADCAST,SIMPLEX,MULTICAST> mtu 1500
\tindex 3 priority 0 llprio 3
\tstatus: no carrier
\tinet6 2001:db8:2::1 prefixlen 64 tentative
pppoe0: flags=8851<UP,POINTOPOINT,RUNNING,SIMPLEX,MULTICAST> mtu 1492
\tindex 5 priority 0 llprio 3
\tinet 198.51.100.7 --> 198.51.100.1 netmask 0xffffffff
"""
VETHER = "vether0: flags=8843<UP,BROADCAST,RUNNING,SIMPLEX,MULTICAST> mtu 1500\n\tindex 12\n"


def picture(text: str = GATEWAY, flags: int | None = 0, **change: tuple[str, ...]) -> Picture:
    return Picture(Settings(**change), text, lambda name, addr: flags)  # type: ignore[arg-type]


def shown(made: Picture) -> list[str]:
    return [
        f"{a.addr}/{a.prefix_len} {a.ifname}{'' if a.usable else ' unusable'}"
        f"{' inside' if a.inside else ''}"
        for a in made.addresses()
    ]


def test_gateway_is_read_from_ifconfig() -> None:
    assert shown(picture()) == [
        "203.0.113.5/24 em0",
        "192.168.1.1/24 em1 inside",
        "2001:db8:1::1/64 em1 unusable inside",
        "2001:db8:2::1/64 em2 unusable",
        "198.51.100.7/32 pppoe0",
    ]


def test_parked_addresses_are_ours_and_not_among_the_usable() -> None:
    assert picture().is_local(ip_address("10.9.0.2"))
    assert not picture().is_local(ip_address("10.9.0.3"))


def test_roles_follow_the_settings_when_they_name_interfaces_or_prefixes() -> None:
    by_name = picture(inside=("em2",))
    assert by_name.inside_names() == {"em2"}
    by_prefix = picture(inside=("192.168.0.0/16", "2001:db8:1::/48"))
    assert [a.ifname for a in by_prefix.addresses() if a.inside] == ["em1", "em1"]
    assert by_prefix.is_inside(ip_address("192.168.77.1"))
    assert not by_prefix.is_inside(ip_address("203.0.113.9"))
    assert picture(ignore=("em0",)).addresses()[0].ifname == "em1"
    assert picture(outside=("pppoe0",)).outside_name() == "pppoe0"
    assert picture().outside_name() == "em0"
    assert picture(outside=("em0", "pppoe0")).outside_name() is None


def test_without_a_network_side_nothing_is_inside() -> None:
    assert picture(GATEWAY.replace("groups: egress", "")).inside_names() == set()


def test_inside_host_is_found_on_its_interface() -> None:
    assert picture().interface_of(ip_address("192.168.1.77")) == "em1"
    assert picture().interface_of(ip_address("203.0.113.9")) is None


def replay(made: Picture, action: str) -> bool:
    """Messages of one recorded ifconfig call; whether any was of interest."""
    parsed = [routemsg.parse(m) for m in dict(fixtures.route_actions())[action]]
    interesting = [made.take(m) for m in parsed if m is not None]
    return any(interesting)


def test_recorded_messages_change_the_picture_as_ifconfig_did() -> None:
    made = picture(VETHER)
    steps = [
        ("ifconfig vether0 inet 10.77.0.2/24", ["10.77.0.2/24 vether0"]),
        ("ifconfig vether0 inet 10.77.0.9/24", ["10.77.0.9/24 vether0"]),
        (
            "ifconfig vether0 inet 10.77.0.50/32 alias",
            ["10.77.0.9/24 vether0", "10.77.0.50/32 vether0"],
        ),
        ("ifconfig vether0 inet 10.77.0.50 delete", ["10.77.0.9/24 vether0"]),
        (
            "ifconfig vether0 inet6 2001:db8:77::2/64",
            ["10.77.0.9/24 vether0", "2001:db8:77::2/64 vether0"],
        ),
        ("ifconfig vether0 inet6 2001:db8:77::2 delete", ["10.77.0.9/24 vether0"]),
        ("ifconfig vether0 down", ["10.77.0.9/24 vether0 unusable"]),
        ("ifconfig vether0 up", ["10.77.0.9/24 vether0"]),
        ("ifconfig vether0 inet 10.77.0.9 delete", []),
        (
            "ifconfig vether0 inet 10.77.0.10/24; route -n add default 10.77.0.1",
            ["10.77.0.10/24 vether0"],
        ),
    ]
    for action, wanted in steps:
        assert replay(made, action), action
        assert shown(made) == wanted, action
    assert made.outside_name() == "vether0"
    assert replay(made, "route -n delete default 10.77.0.1")
    assert made.outside_name() is None
    assert replay(made, "ifconfig vether0 destroy")
    assert shown(made) == []


@pytest.mark.parametrize(
    ("flags", "usable"), [(0, True), (0x02, False), (0x04, False), (0x10, False), (None, True)]
)
def test_ipv6_flags_decide_whether_an_address_is_usable(flags: int | None, usable: bool) -> None:
    made = picture(VETHER, flags)
    replay(made, "ifconfig vether0 inet6 2001:db8:77::2/64")
    assert made.addresses()[0].usable == usable


def test_without_flags_a_new_ipv6_address_is_tentative_until_its_attributes_change() -> None:
    made = picture(VETHER, None)
    messages = dict(fixtures.route_actions())["ifconfig vether0 inet6 2001:db8:77::2/64"]
    seen = []
    for raw in messages:
        message = routemsg.parse(raw)
        assert message is not None
        made.take(message)
        seen.append([a.usable for a in made.addresses()])
    assert seen[3] == [False]
    assert seen[-1] == [True]


def test_a_new_interface_appears_by_its_announcement_or_its_address() -> None:
    made = picture("")
    assert replay(made, "ifconfig vether0 inet 10.77.0.2/24")
    assert shown(made) == ["10.77.0.2/24 vether0"]
    assert not made.take(AnnounceMessage(13, "vether1", False))
    assert not made.take(AnnounceMessage(14, "vether9", True))


def test_lines_of_unknown_form_are_skipped() -> None:
    text = (
        "em0: flags=8843<UP> mtu 1500\n\tinet6 fe80::zz prefixlen 64\n\tinet6 ::5 prefixlen 999\n"
    )
    assert ifconfig.parse("\tinet 1.2.3.4 netmask 0xff\n" + text)[0].addresses == {}


@given(st.text(max_size=200))
def test_any_text_is_read_without_a_fault(text: str) -> None:
    ifconfig.parse(text)


@pytest.fixture
def pair(monkeypatch: pytest.MonkeyPatch) -> tuple[RouteWatcher, socket.socket, list[str]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    monkeypatch.setattr(watcher, "open_route_socket", lambda: ours)
    monkeypatch.setattr(watcher, "ipv6_flags", lambda name, addr: 0)
    texts = [VETHER]
    return RouteWatcher(Settings(), lambda: texts[-1]), theirs, texts


def test_watcher_reads_what_is_there_and_tells_whether_it_mattered(
    pair: tuple[RouteWatcher, socket.socket, list[str]],
) -> None:
    made, kernel, _ = pair
    assert not made.read()
    for raw in dict(fixtures.route_actions())["ifconfig vether0 inet 10.77.0.2/24"]:
        kernel.send(raw)
    kernel.send(b"rubbish")
    assert made.read()
    assert [str(a.addr) for a in made.addresses()] == ["10.77.0.2"]
    assert made.fileno() > 0
    made.close()


def test_after_an_overflow_everything_is_read_anew(
    pair: tuple[RouteWatcher, socket.socket, list[str]],
) -> None:
    made, kernel, texts = pair
    texts.append(GATEWAY)
    kernel.send(b"\x08\x00\x05\x10\x08\x00\x00\x00")
    assert made.read()
    assert len(made.addresses()) == 5


def test_an_overflow_that_can_not_be_healed_ends_the_engine(
    pair: tuple[RouteWatcher, socket.socket, list[str]],
) -> None:
    made, _, _ = pair

    def refused() -> str:
        raise BackendError("no exec")

    made._snapshot = refused
    with pytest.raises(BackendError, match="overflowed"):
        made.take(b"\x08\x00\x05\x10\x08\x00\x00\x00")


def test_source_is_what_routing_would_choose(
    pair: tuple[RouteWatcher, socket.socket, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, _, texts = pair
    texts.append("eth9: flags=1<UP>\n\tinet 127.0.0.1 netmask 0xff000000\n")
    made._again()
    assert made.source_for(ip_address("127.0.0.5")) == ip_address("127.0.0.1")
    assert made.source_for(ip_address("::1")) is None

    class NoRoute:
        def __init__(self, *args: object) -> None: ...
        def __enter__(self) -> NoRoute:
            return self

        def __exit__(self, *args: object) -> None: ...
        def connect(self, where: object) -> None:
            raise OSError("no route")

    monkeypatch.setattr(socket, "socket", NoRoute)
    nowhere: Address | None = made.source_for(ip_address("203.0.113.1"))
    assert nowhere is None
