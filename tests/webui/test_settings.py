"""The [web] table of redirectd.toml, and the command."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import signal
import socket
import subprocess
import sys
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from appliance.config import parse_config
from appliance.config_reading import ConfigError
from webui.__main__ import main
from webui.explain import explain
from webui.present import flatten
from webui.settings import DEFAULT_PORT, Listen, Settings, parse_listen, settings_of
from webui.tls_front import relayd_conf

ROOT = Path(__file__).resolve().parents[2]


def read(text: str) -> Settings:
    return settings_of(parse_config(text))


def test_the_defaults_reach_nobody_else() -> None:
    assert [item.address for item in read("").listen] == ["127.0.0.1"]
    assert read("") == Settings()


def test_all_keys_are_taken_over() -> None:
    text = """
        control-socket = "/var/run/c.sock"
        [web]
        listen = ["192.168.1.1:8080", "[FD00::1]"]
        names = ["Gateway.LAN."]
        enabled = false
        session-idle = 5
        session-max = 1
        state-dir = "/var/redirectd-web"
    """
    settings = read(text)
    assert settings == Settings(
        listen=(Listen("192.168.1.1", 8080), Listen("fd00::1", 4788)),
        names=("gateway.lan",),
        enabled=False,
        session_idle=5,
        session_max=1,
        state_dir=Path("/var/redirectd-web"),
        control_socket=Path("/var/run/c.sock"),
    )
    assert settings.hosts == {"192.168.1.1", "[fd00::1]", "gateway.lan"}
    assert settings.urls == ("http://192.168.1.1:8080/", "http://[fd00::1]:4788/")


def test_behind_a_tls_front_only_the_front_is_reachable() -> None:
    with pytest.raises(ConfigError, match="past the TLS front"):
        read('[web]\nbehind-tls = true\nlisten = ["127.0.0.1", "192.168.1.1"]')
    settings = read('[web]\nbehind-tls = true\nnames = ["gateway.lan"]\nlisten = "[::1]:80"')
    assert settings.urls == ("https://gateway.lan/",)


def test_the_tls_front_is_rendered() -> None:
    settings = Settings(behind_tls=True, names=("gateway.lan",))
    text = relayd_conf(settings, "192.168.1.1")
    assert "listen on 192.168.1.1 port 443 tls\n" in text
    assert "forward to 127.0.0.1 port 4788\n" in text
    assert 'tls keypair "gateway.lan"\n' in text
    assert 'set "X-Forwarded-For" value "$REMOTE_ADDR"' in text
    assert text.count("{") == text.count("}") == 2


@pytest.mark.parametrize("address", ["gateway", "0.0.0.0", "127.0.0.1", "::", '1.2.3.4"'])
def test_a_tls_front_needs_the_lan_address(address: str) -> None:
    with pytest.raises(ValueError, match=r"address"):
        relayd_conf(Settings(behind_tls=True), address)
    with pytest.raises(ValueError, match="behind-tls"):
        relayd_conf(Settings(), "192.168.1.1")


def test_a_wildcard_is_no_address_to_listen_on() -> None:
    for wildcard in ("0.0.0.0", "[::]"):
        with pytest.raises(ConfigError, match="is not one address"):
            read(f'[web]\nlisten = "{wildcard}"')


@given(st.ip_addresses(), st.none() | st.integers(0, 65535))
def test_listen_is_read_as_it_is_written(address: IPv4Address | IPv6Address, port: int) -> None:
    host = f"[{address}]" if address.version == 6 else str(address)
    wanted = Listen(str(address), DEFAULT_PORT if port is None else port)
    assert parse_listen(host if port is None else f"{host}:{port}") == wanted
    assert parse_listen(str(wanted)) == wanted


@given(st.text(max_size=40))
def test_any_text_is_an_address_or_refused(text: str) -> None:
    with contextlib.suppress(ValueError):
        assert parse_listen(str(parse_listen(text))) == parse_listen(text)


_toml = st.recursive(
    st.booleans() | st.integers() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=18), _toml))
def test_settings_of_any_shape_can_be_shown_and_explained(settings: dict[str, Any]) -> None:
    assert all(isinstance(value, str) for _, value in flatten(settings))
    assert all(isinstance(sentence, str) for sentence in explain(settings))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"first-contact": "strict"}, "introduced beforehand"),
        ({"first_contact": "tofu"}, "trusted at once"),
        ({"discover": ["192.0.2.0/24"]}, "within 192.0.2.0/24"),
        ({"discover": "known"}, "already known"),
        ({"long-lived-after": 10}, "once it is 10 s old"),
        ({"long-lived-after": "off"}, "never protected"),
        ({"rule": [{"prefix": "192.0.2.0/24", "integrity": "require"}]}, "must carry"),
        ({"rule": [{"port": 22, "long-lived-after": "off"}]}, "port 22: a connection is never"),
        ({"rule": [{"peer": "office"}]}, "the host office: a connection is treated like all"),
    ],
)
def test_the_policy_is_put_into_words(settings: dict[str, Any], said: str) -> None:
    (sentence,) = explain(settings)
    assert said in sentence


def config(tmp_path: Path, **web: object) -> Path:
    path = tmp_path / "redirectd.toml"
    lines = [f'control-socket = "{tmp_path}/control.sock"', "[web]"]
    lines.append(f'state-dir = "{tmp_path}/state"')
    lines += [f"{key} = {value}" for key, value in web.items()]
    path.write_text("\n".join(lines))
    return path


def test_show_prints_the_address_and_the_code(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["-f", str(config(tmp_path)), "--show"])
    assert result.exit_code == 0, result.output
    assert "http://127.0.0.1:4788/" in result.output
    code = (tmp_path / "state" / "setup-code").read_text().strip()
    assert code in result.output


def test_reset_makes_a_new_code(tmp_path: Path) -> None:
    path = str(config(tmp_path))
    first = CliRunner().invoke(main, ["-f", path, "--show"]).output
    second = CliRunner().invoke(main, ["-f", path, "--reset-password"]).output
    assert "Set-up code" in second
    assert first != second


def test_check_names_the_fault_and_fails(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["-f", str(config(tmp_path, enabled=3)), "-n"])
    assert result.exit_code == 1
    assert "web.enabled" in result.output
    assert CliRunner().invoke(main, ["-f", str(config(tmp_path)), "-n"]).exit_code == 0


def test_a_page_that_is_off_does_not_start(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["-f", str(config(tmp_path, enabled="false"))])
    assert result.exit_code == 0
    assert "the page is off" in result.output


def test_an_address_in_use_is_a_clear_failure(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        listen = f'"127.0.0.1:{taken.getsockname()[1]}"'
        result = CliRunner().invoke(main, ["-f", str(config(tmp_path, listen=listen))])
    assert result.exit_code == 1
    assert "in use" in result.output


@pytest.mark.parametrize("console", [True, False])
def test_the_code_is_printed_on_a_console_and_kept_out_of_a_log(
    tmp_path: Path, console: bool
) -> None:
    path = config(tmp_path, listen='"127.0.0.1:0"')
    command = [sys.executable, "-m", "webui", "-f", str(path)]
    reader, writer = pty.openpty() if console else os.pipe()
    with subprocess.Popen(command, stdout=writer, stderr=subprocess.DEVNULL) as process:
        os.close(writer)
        said = b""
        wanted = b"browser): " if console else b"--show"
        while wanted not in said or not said.endswith(b"\n"):
            said += os.read(reader, 4096)
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    os.close(reader)
    code = (tmp_path / "state" / "setup-code").read_bytes().strip()
    assert (code in said) is console


def test_the_manual_lists_every_option_and_no_other() -> None:
    text = (ROOT / "docs" / "man" / "redirectd-web.8").read_text()
    listed = text.split("The options are as follows")[1].split(".El")[0]
    found = set(re.findall(r"Fl -?([a-z-]+)", listed))
    real = {flag.lstrip("-") for option in main.params for flag in option.opts}
    assert found == real | {"h", "help"}


def test_the_service_files_agree_with_the_defaults() -> None:
    share = ROOT / "webui" / "share"
    unit = (share / "redirectd-web.service").read_text()
    assert f"StateDirectory={Settings().state_dir.name}\n" in unit
    script = share / "redirectd_web.rc"
    assert str(Settings().state_dir) in script.read_text()
    assert subprocess.run(["/bin/sh", "-n", script]).returncode == 0
