"""Pages and programs say the same: commands, options, keys, defaults, exit codes."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import attrs
import click
import pytest

from appliance import __main__ as daemon
from appliance import ctl_common, redirectctl
from appliance.config import DEFAULT_PATH, Config, Interfaces, Limits, Rule, Web, parse_config
from appliance.config_reading import settings_of

ROOT = Path(__file__).resolve().parent.parent
PAGES = ROOT / "docs" / "man"
SHARE = ROOT / "appliance" / "share"
OURS = ["redirectd.8", "redirectctl.8", "redirectd.toml.5"]


def page(name: str) -> str:
    return (PAGES / name).read_text()


def commands(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[str, click.Command]]:
    for name, command in sorted(group.commands.items()):
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield " ".join((*path, name)), command


def options(command: click.Command) -> set[str]:
    """``-y``, ``--yes``, as they are typed; without those that every command takes."""
    return {o for p in command.params if isinstance(p, click.Option) for o in p.opts}


def flags(text: str) -> set[str]:
    """``.Fl n``, ``.Op Fl -json`` and the like, as they are typed."""
    return {f"-{flag}" for flag in re.findall(r"\bFl (-?[a-z][a-z-]*)", text)}


@pytest.mark.parametrize("name", OURS)
def test_a_page_is_clean_mdoc(name: str) -> None:
    assert shutil.which("mandoc"), "install mandoc (make setup does)"
    told = subprocess.run(
        ["mandoc", "-T", "lint", "-W", "style", str(PAGES / name)], capture_output=True, text=True
    ).stdout
    # only an installed page can be found
    faults = [line for line in told.splitlines() if "referenced manual not found" not in line]
    assert faults == []


@pytest.mark.parametrize("name", OURS)
def test_a_page_refers_to_pages_that_exist(name: str) -> None:
    system = {"ssh 1", "chroot 2", "pledge 2", "unveil 2"}
    for title, section in re.findall(r"\.Xr (\S+) (\d)", page(name)):
        assert f"{title} {section}" in system or (PAGES / f"{title}.{section}").exists()


def test_redirectctl_8_has_every_command_with_its_options() -> None:
    written: dict[str, set[str]] = {}
    items = re.split(r"^\.It Ic ", page("redirectctl.8"), flags=re.M)[1:]
    for item in items:
        head = item.split("\n")[0]
        body = re.split(r"^\.(?:El|Ss|Sh)", item, flags=re.M)[0]
        name = re.split(r" (?:Ar|Oo|Op|Fl) ", head)[0].strip()
        written[name] = flags(body) - {"--json"}
    common = {"--json", "--socket"}
    said_once = {"-o", "--output"}  # in the paragraph on what is secret
    real = {name: options(command) - common for name, command in commands(redirectctl.main)}
    assert set(written) == set(real)
    for name, made in real.items():
        # a synonym may be told with the first command that has it
        short = {o for o in made if not o.startswith("--")}
        assert short | {o for o in made if o in written[name]} <= written[name] | said_once, name
        assert written[name] <= made, name
    assert flags(page("redirectctl.8")) >= {o for made in real.values() for o in made}
    assert flags(page("redirectctl.8")) <= {o for made in real.values() for o in made} | common | {
        "-h", "--help", "--version",
    }  # fmt: skip


def test_redirectctl_8_has_the_general_options_files_and_exit_codes() -> None:
    text = page("redirectctl.8")
    assert {"--json", "--socket", "--version"} <= flags(text)
    assert f".Pa {ctl_common.DEFAULT_SOCKET}" in text
    assert ".It Ev REDIRECTD_SOCKET" in text
    codes = text.split(".Sh EXIT STATUS")[1].split(".Sh")[0]
    assert re.findall(r"^\.It (\d)", codes, re.M) == ["0", "1", "2", "3"]


def test_redirectd_8_has_every_option() -> None:
    listed = page("redirectd.8").split("The options are as follows")[1].split(".El")[0]
    heads = "\n".join(line for line in listed.split("\n") if line.startswith(".It"))
    assert flags(heads) == options(daemon.main) | {"-h", "--help"}
    synopsis = page("redirectd.8").split(".Sh SYNOPSIS")[1].split(".Sh")[0]
    single = "".join(sorted(o[1:] for o in options(daemon.main) if len(o) == 2 and o != "-f"))
    assert f".Op Fl {single}" in synopsis
    assert f".Pa {DEFAULT_PATH}" in page("redirectd.8")


def test_redirectd_toml_5_has_every_key() -> None:
    listed = re.findall(r"^\.It Ic (.*)$", page("redirectd.toml.5"), re.M)
    written = {key for line in listed for key in line.split(" , ")}
    real = set(settings_of(Config)) - {"interfaces", "rule", "limits", "web"}
    for prefix, cls in (
        ("interfaces", Interfaces), ("rule", Rule), ("limits", Limits), ("web", Web),
    ):  # fmt: skip
        real |= {f"{prefix}.{key}" for key in settings_of(cls)}
    assert written == real


def test_redirectd_toml_5_tells_the_real_defaults() -> None:
    items = re.split(r"^\.It Ic ", page("redirectd.toml.5"), flags=re.M)[1:]
    told = {}
    for item in items:
        default = re.search(r"^Default:\n?\s*(?:\.\w+ )?(.*)$", item, re.M)
        if default:
            told[item.split("\n")[0]] = default[1].replace(" .", ".").rstrip(".").strip()
    config = Config().settings()
    for section in ("limits", "web"):
        config |= {f"{section}.{k}": v for k, v in config.pop(section).items()}
    assert len(told) >= 15
    for key, text in told.items():
        value = config[key]
        value = value[0] if isinstance(value, list) else value
        shown = str(value).lower() if isinstance(value, bool) else f"{value}"
        assert text == (shown.removesuffix(".0")), key


def test_the_example_in_redirectd_toml_5_is_right() -> None:
    text = page("redirectd.toml.5").split(".Bd -literal -offset indent\n")[1].split(".Ed")[0]
    config = parse_config(text)
    assert config.first_contact == "ask"
    assert len(config.rules) == 2


# The files that are installed


def test_the_example_configuration_shows_every_key_with_its_default() -> None:
    text = (SHARE / "redirectd.toml").read_text()
    assert parse_config(text) == Config()
    uncommented = re.sub(r"^#(?=[a-z\[])", "", text, flags=re.M)
    assert parse_config(uncommented) == Config()
    shown = set(re.findall(r"^([a-z-]+) = ", uncommented, re.M))
    hidden = {"rule", "interfaces", "limits", "web"}
    keys = {
        *settings_of(Config), *settings_of(Interfaces), *settings_of(Limits),
        *(set(settings_of(Web)) - {"control-socket"}),
    }  # fmt: skip
    assert shown == keys - hidden


def test_the_rules_in_the_example_configuration_are_right() -> None:
    text = (SHARE / "redirectd.toml").read_text()
    rules = text.split("# [[rule]]", 1)[1].split("\n\n")[0]
    config = parse_config(re.sub(r"^# ?", "", "# [[rule]]" + rules, flags=re.M))
    assert len(config.rules) == 3
    assert all(attrs.asdict(rule) != attrs.asdict(Rule()) for rule in config.rules)


def unit() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in (SHARE / "redirectd.service").read_text().splitlines():
        key, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            found.setdefault(key, []).append(value)
    return found


def test_the_unit_starts_the_daemon_with_options_that_it_has() -> None:
    (start,) = unit()["ExecStart"]
    assert start.split()[0].endswith("/redirectd")
    assert set(start.split()[1:]) <= options(daemon.main)
    assert "-d" in start.split()


def test_the_unit_may_write_where_the_daemon_keeps_its_files() -> None:
    assert unit()["ReadWritePaths"] == [f"-{Config().state_dir}"]
    assert unit()["RuntimeDirectory"] == [Config().control_socket.parent.name]
    assert Config().user in unit()["ExecStartPre"][0]


def test_the_unit_is_a_tight_sandbox() -> None:
    found = unit()
    for key in (
        "NoNewPrivileges", "MemoryDenyWriteExecute", "LockPersonality", "RestrictNamespaces",
        "RestrictRealtime", "RestrictSUIDSGID", "ProtectHome", "ProtectClock",
        "ProtectControlGroups", "ProtectHostname", "ProtectKernelLogs", "ProtectKernelModules",
        "ProtectKernelTunables", "PrivateDevices", "PrivateTmp",
    ):  # fmt: skip
        assert found[key] == ["yes"], key
    assert found["ProtectSystem"] == ["strict"]
    forbidden = {"CAP_SYS_ADMIN", "CAP_SYS_PTRACE", "CAP_SYS_MODULE", "CAP_DAC_OVERRIDE"}
    assert not forbidden & set(found["CapabilityBoundingSet"][0].split())


def test_systemd_itself_finds_no_fault_with_the_unit(tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    assert analyze, "install systemd (every Debian has it)"
    copy = tmp_path / "redirectd.service"
    text = (SHARE / "redirectd.service").read_text()
    copy.write_text(text.replace("/usr/local/sbin/redirectd", "/bin/true"))
    verify = subprocess.run(
        [analyze, "verify", "--man=no", str(copy)], capture_output=True, text=True
    )
    assert verify.returncode == 0, verify.stderr
    assert str(copy) not in verify.stderr
    exposure = subprocess.run(
        [analyze, "security", "--offline=true", "--threshold=30", "--no-pager", str(copy)],
        capture_output=True, text=True,
    )  # fmt: skip
    assert exposure.returncode == 0, exposure.stdout
