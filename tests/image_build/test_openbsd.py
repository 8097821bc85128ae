"""Answers, labels, configuration and packages of the OpenBSD image, without a release."""

from __future__ import annotations

import gzip
import re
from pathlib import Path

import answers
import openbsd
import openbsd_files
import ports
import pytest
from release import Version
from stages import BuildError

from appliance.config import parse_config

from . import samples
from .building import package

VERSION = Version("7.8")


def test_each_answer_stands_once_and_on_one_line() -> None:
    lines = answers.install_conf(VERSION, "secret").splitlines()
    keys = [line.partition(" = ")[0] for line in lines]
    assert len(set(keys)) == len(keys)
    assert all(line.partition(" = ")[2] for line in lines)
    assert "Set name(s) = -all bsd* base78.tgz comp78.tgz man78.tgz site78.tgz" in lines


@pytest.mark.parametrize("card", list(answers.CARDS.values()), ids=list(answers.CARDS))
def test_a_label_fills_the_card_without_overlap(card: answers.Card) -> None:
    label = answers.card_label(card)
    parts = {
        m[1]: (int(m[3]), int(m[2]))
        for m in re.finditer(r"^  ([a-p]): (\d+) (\d+) ", label, re.MULTILINE)
    }
    assert parts["c"] == (0, card.total * 2048)
    assert set(parts) == {"a", "c", "d", "e"}
    ends = 64
    for name in ("a", "d", "e"):
        start, size = parts[name]
        assert start >= ends
        assert start % 2048 == 0
        ends = start + size
    assert ends <= card.total * 2048


@pytest.mark.parametrize(("name", "bytes_"), [("2G", 2_000_000_000), ("4G", 4_000_000_000)])
def test_a_third_of_the_card_stays_free(name: str, bytes_: int) -> None:
    assert answers.CARDS[name].total << 20 <= bytes_ * 2 / 3


def test_the_root_is_mounted_read_only_and_what_changes_is_in_memory() -> None:
    lines = answers.fstab("0123456789abcdef", "a").splitlines()
    options = {line.split()[1]: (line.split()[2], line.split()[3].split(",")) for line in lines}
    assert options["/"][1][0] == "ro"
    assert options["/cfg"][1][0] == "rw"
    assert {"nosuid", "nodev", "noexec"} <= set(options["/cfg"][1])
    assert {m for m, (kind, _) in options.items() if kind == "mfs"} == {"/tmp", "/var", "/dev"}


def test_the_loader_starts_slot_a_unless_told_otherwise() -> None:
    assert "boot " not in answers.boot_conf("a").replace("set tty", "")
    assert answers.boot_conf("b").splitlines()[-1] == "boot hd0d:/bsd"


def test_the_index_is_as_the_installer_reads_it() -> None:
    line = answers.index({"site78.tgz": 12345}).split()
    assert line[0].startswith("-")
    assert line[4] == "12345"
    assert line[-1] == "site78.tgz"


@pytest.mark.parametrize("name", ["minimal", "everything"])
def test_the_daemon_accepts_the_settings_that_are_rendered(name: str) -> None:
    gateway = samples.example(name)
    files = openbsd_files.render(gateway, 'first-contact = "ask"\n')
    config = parse_config(files["redirectd.toml"], Path("redirectd.toml"))
    assert config.first_contact == "ask"
    assert config.interfaces.outside == (gateway.outside.interface,)
    assert config.state_dir == Path("/cfg/redirectd")
    assert config.web.listen == tuple(f"{n.address.ip}:4788" for n in gateway.admins if n.address)


def test_a_small_gateway_has_all_its_files() -> None:
    files = openbsd_files.render(samples.example("minimal"))
    assert files["hostname.em0"].startswith("inet autoconf\n-inet6\n")
    assert files["hostname.em1"].startswith("inet 192.168.1.1 255.255.255.0\n")
    assert "range 192.168.1.128 192.168.1.254;" in files["dhcpd.conf"]
    assert "interface: 192.168.1.1\n" in files["unbound.conf"]
    assert "net.inet.ip.forwarding=1\n" in files["sysctl.conf"]
    assert "net.inet.tcp.tso=0\n" in files["sysctl.conf"]


def test_secrets_of_the_owner_are_asked_for_and_not_invented() -> None:
    gateway = samples.example("everything")
    assert openbsd_files.owners_part(gateway) == ("hostname.pppoe0", "iked.conf")
    assert "hostname.pppoe0" not in openbsd_files.render(gateway)


# -- what stops a build before it starts ---------------------------------------------------


def wanted(tmp_path: Path, name: str = "minimal", **changed: object) -> openbsd.Wanted:
    path = samples.EXAMPLES / f"{name}.toml"
    values: dict[str, object] = {
        "source": str(tmp_path), "version": VERSION, "config": path.read_text(),
        "config_path": path, "output": tmp_path / "cf.img", "packages": tmp_path,
        "card": answers.CARDS["2G"], "root_password": None, "epoch": 0,
    }  # fmt: skip
    return openbsd.Wanted(**{**values, **changed})  # type: ignore[arg-type]


def test_a_good_description_passes(tmp_path: Path) -> None:
    parts = openbsd.check(wanted(tmp_path))
    assert "appliance/__main__.py" in parts.tree
    assert not any("__pycache__" in name for name in parts.tree)


def test_a_version_without_its_key_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"openbsd-61-base\.pub is missing"):
        openbsd.check(wanted(tmp_path, version=Version("6.1")))


def test_a_password_in_clear_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="bcrypt"):
        openbsd.check(wanted(tmp_path, root_password="secret"))


def test_missing_secrets_are_named(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"needs hostname\.pppoe0"):
        openbsd.check(wanted(tmp_path, "everything"))


def test_a_faulty_description_is_refused_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r":\d+:"):
        openbsd.check(wanted(tmp_path, config='[external]\ninterface = "em0"\nfoo = 1\n'))


# -- packages ------------------------------------------------------------------------------


def test_packages_bring_what_they_depend_on(tmp_path: Path) -> None:
    package(tmp_path, "python-3.12.11", "libffi-3.4.8")
    package(tmp_path, "python-2.7.18p11")
    package(tmp_path, "libffi-3.4.8")
    package(tmp_path, "py3-cffi-1.17.1", "python-3.12.11")
    package(tmp_path, "quirks-7.9")
    found = ports.closure(tmp_path, ["py3-cffi", "python"])
    assert set(found) == {"py3-cffi-1.17.1.tgz", "python-3.12.11.tgz", "libffi-3.4.8.tgz"}


def test_a_missing_package_is_named(tmp_path: Path) -> None:
    package(tmp_path, "py3-cffi-1.17.1", "python-3.12.11")
    with pytest.raises(BuildError, match="no package python-3"):
        ports.closure(tmp_path, ["py3-cffi"])


def test_what_is_no_package_is_refused(tmp_path: Path) -> None:
    (tmp_path / "python-3.12.11.tgz").write_bytes(b"no package at all")
    with pytest.raises(BuildError, match="no package"):
        ports.closure(tmp_path, ["python"])


def test_compiled_wheels_never_reach_openbsd(tmp_path: Path) -> None:
    (tmp_path / "click-8.1-py3-none-any.whl").write_bytes(b"")
    (tmp_path / "cryptography-50-cp311-abi3-manylinux.whl").write_bytes(b"")
    assert list(openbsd.pure_wheels(tmp_path)) == ["click-8.1-py3-none-any.whl"]
    (tmp_path / "other-1-cp311-cp311-linux_x86_64.whl").write_bytes(b"")
    with pytest.raises(BuildError, match="other-1"):
        openbsd.pure_wheels(tmp_path)


def test_an_archive_is_cut_where_its_gzip_stream_ends(tmp_path: Path) -> None:
    data = gzip.compress(b"a system" * 1000)
    (tmp_path / "raw").write_bytes(data + bytes(1 << 20))
    openbsd.trim_gzip(tmp_path / "raw", tmp_path / "slot.tgz")
    assert (tmp_path / "slot.tgz").read_bytes() == data
    (tmp_path / "raw").write_bytes(data[:-20])
    with pytest.raises(BuildError, match="cut off"):
        openbsd.trim_gzip(tmp_path / "raw", tmp_path / "slot.tgz")
