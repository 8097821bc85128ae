"""What a gateway description becomes on Linux: loadable rules, units, settings."""

from __future__ import annotations

import configparser
import os
import subprocess
from dataclasses import replace
from ipaddress import IPv4Interface
from pathlib import Path

import attrs
import debian
import disk
import firewall
import linux_files
import pytest
from stages import BuildError

from appliance.config import parse_config
from tests.lab.net import Lab

from . import samples

NAMES = pytest.mark.parametrize("name", ["minimal", "everything"])


@NAMES
def test_the_kernel_takes_the_rules(lab: Lab, name: str) -> None:
    host = lab.machine("gateway")
    text = firewall.render(samples.linux(name))
    for _ in range(2):  # loading again replaces, and adds nothing
        host.run(["nft", "-f", "-"], text=text)
    loaded = host.ruleset("inet", "gateway")
    assert loaded.count("policy drop") == 2
    assert loaded.count("chain input") == 1


def test_only_what_is_described_is_open_outside() -> None:
    lines = firewall.render(samples.linux("minimal")).splitlines()
    accepted = [li.strip() for li in lines if 'iifname "eth0"' in li and li.endswith("accept")]
    assert accepted == [
        'iifname "eth0" udp sport 67 udp dport 68 accept',
        'iifname "eth0" udp sport 67 udp dport 68 accept',
        'iifname "eth0" icmp type echo-request limit rate 20/second accept',
        'iifname "eth0" icmpv6 type echo-request limit rate 20/second accept',
        'iifname "eth0" udp dport 4787 accept',
    ]


def test_the_admin_page_is_for_lans_alone() -> None:
    text = firewall.render(samples.linux("everything"))
    lines = [line for line in text.splitlines() if "tcp dport 4788" in line]
    assert lines
    assert all('iifname "eth1"' in line for line in lines)


def test_a_guest_network_reaches_the_internet_and_no_other_network() -> None:
    text = firewall.render(samples.linux("everything"))
    forward = text[text.index("chain forward") : text.index("chain prerouting")]
    lines = [li.strip() for li in forward.splitlines() if 'iifname "eth2"' in li]
    assert lines == ['iifname "eth2" oifname "eth0" accept']


def test_a_forward_keeps_its_sources_and_its_port() -> None:
    text = firewall.render(samples.linux("everything"))
    assert "tcp dport 443 dnat ip to 192.168.30.10:8443" in text
    assert (
        "ip saddr 198.51.100.0/24 fib daddr type local udp dport 6000-6010"
        " dnat ip to 192.168.30.11\n" in text
    )


def test_integrity_leaves_room_in_each_segment() -> None:
    gateway = samples.linux("minimal")
    assert firewall.max_mss(gateway) is None
    with_macs = attrs.evolve(gateway, redirect=attrs.evolve(gateway.redirect, integrity=True))
    assert firewall.max_mss(with_macs) == 1440
    assert "maxseg size set 1420" in firewall.render(with_macs)  # IPv6


@NAMES
def test_the_daemon_accepts_the_settings(name: str) -> None:
    gateway = samples.linux(name)
    owner = 'first-contact = "strict"\n[web]\nsession-idle = 5\nlisten = ["0.0.0.0:1"]\n'
    config = parse_config(linux_files.redirectd_toml(gateway, owner), Path("x"))
    assert config.first_contact == "strict"
    assert config.web.session_idle == 5
    assert config.web.listen == ("192.168.1.1:4788",)
    assert config.interfaces.inside[0] == "eth1"


@NAMES
def test_units_of_networkd_are_well_formed(name: str) -> None:
    files = linux_files.render(samples.linux(name))
    assert all(path.startswith("/run/") for path in files)
    units = {p: t for p, t in files.items() if p.endswith((".network", ".netdev"))}
    assert len(units) >= 2
    for path, text in units.items():
        parser = configparser.ConfigParser(strict=False)
        parser.optionxform = str  # type: ignore[assignment,method-assign]
        parser.read_string(text.replace("Address=", "Address_=", 1), path)
        assert parser.sections()


def test_what_the_linux_image_does_not_do_is_refused() -> None:
    with pytest.raises(linux_files.Unusable, match="PPPoE"):
        linux_files.render(samples.example("everything"))


@pytest.mark.parametrize(
    ("address", "offset", "size"),
    [("192.168.1.1/24", 128, 127), ("10.0.0.1/30", 1, 2), ("10.0.0.1/29", 4, 3)],
)
def test_a_pool_stays_inside_its_network(address: str, offset: int, size: int) -> None:
    interface = IPv4Interface(address)
    assert linux_files.pool(interface) == (offset, size)
    assert offset + size < interface.network.num_addresses


# -- disk ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "bytes_"), [("2G", 2_000_000_000), ("4G", 4_000_000_000)])
def test_a_third_of_the_card_stays_free(name: str, bytes_: int) -> None:
    assert disk.LAYOUTS[name].total << 20 <= bytes_ * 2 / 3


def test_partitions_follow_each_other() -> None:
    at = 1
    for _, _, start, size in disk.SMALL.partitions():
        assert start == at
        at += size
    assert at + 1 == disk.SMALL.total


def test_a_sparse_copy_is_the_same_file(tmp_path: Path) -> None:
    data = b"\0" * 8192 + b"x" + b"\0" * 5000 + b"y" * 4096
    (tmp_path / "a").write_bytes(data)
    target = os.open(tmp_path / "b", os.O_RDWR | os.O_CREAT)
    try:
        os.ftruncate(target, 1000 + len(data))
        disk.copy_sparse(tmp_path / "a", target, 1000)
    finally:
        os.close(target)
    assert (tmp_path / "b").read_bytes() == b"\0" * 1000 + data


def test_both_loaders_start_the_same_system() -> None:
    files = debian.boot_configuration()
    for slot in ("a", "b"):
        line = debian.command_line(slot).encode()
        assert line in files["syslinux/syslinux.cfg"]
        assert line in files[f"loader/entries/{slot}.conf"]
        assert disk.identifier(f"root-{slot}").encode() in line


def test_every_unit_that_shall_start_is_linked() -> None:
    wanted = {name.rpartition("/")[2] for name, _ in debian._links()}
    assert {
        "gateway-apply.service", "gateway-firewall.service", "redirectd.service",
        "redirectd-web.service", "gateway-console.service", "gateway-ssh.service",
    } == wanted  # fmt: skip


def test_scripts_of_the_overlay_parse() -> None:
    for path in debian.OVERLAY.rglob("*"):
        if path.is_file() and path.read_bytes().startswith(b"#!/bin/sh"):
            assert path.stat().st_mode & 0o100, path
            done = subprocess.run(["sh", "-n", path], capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
    done = subprocess.run(["sh", "-n"], input=debian._HOOK, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def wanted(tmp_path: Path) -> debian.Wanted:
    return debian.Wanted(
        config=(samples.EXAMPLES / "minimal.toml").read_text().replace("em", "eth"),
        source=Path("gateway.toml"), output=tmp_path / "x.img", kernel="cloud",
        layout=disk.SMALL, root_password=None, mirror=None, epoch=0,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"config": (samples.EXAMPLES / "minimal.toml").read_text()}, "eth0, eth1"),
        ({"config": "nonsense"}, "gateway.toml:1"),
        ({"root_password": "in clear"}, r"crypt\(3\)"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_done(
    tmp_path: Path, changed: dict[str, str], words: str
) -> None:
    with pytest.raises(BuildError, match=words):
        debian.check(replace(wanted(tmp_path), **changed))  # type: ignore[arg-type]
