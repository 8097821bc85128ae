"""pfconf(1) and the program agree: options, commands, keys, defaults."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import attrs
import click
import pytest

from appliance.config_reading import settings_of
from pfconf.__main__ import main
from pfconf.description import Gateway

PAGE = Path(__file__).resolve().parents[2] / "docs" / "man" / "pfconf.1"
TEXT = PAGE.read_text()


def test_page_is_clean_mdoc() -> None:
    assert shutil.which("mandoc"), "install mandoc (make setup does)"
    told = subprocess.run(
        ["mandoc", "-T", "lint", "-W", "style", str(PAGE)], capture_output=True, text=True
    ).stdout
    # only an installed page can be found
    faults = [line for line in told.splitlines() if "referenced manual not found" not in line]
    assert faults == []


def test_every_command_and_option_is_explained() -> None:
    taken = {"-h", "--help"}
    for name, command in main.commands.items():
        assert f".It Cm {name}\n" in TEXT
        taken |= {o for p in command.params if isinstance(p, click.Option) for o in p.opts}
    described = set()
    for line in re.findall(r"^\.It (Fl .*)$", TEXT, re.MULTILINE):
        described |= {f"-{flag}" for flag in re.findall(r"\bFl (-?[a-z][a-z-]*)", line)}
    assert described == taken


def section(key: str) -> str:
    found = re.search(rf"^\.Ss {key}\n(.*?)(?=^\.S[sh] )", TEXT, re.MULTILINE | re.DOTALL)
    assert found, key
    return found[1]


TABLES = {key: field for key, field in settings_of(Gateway).items() if key != "interfaces"}
CLASSES = {
    "external": "External", "network": "Network", "forward": "Forward",
    "wireguard": "Wireguard", "ipsec": "Ipsec", "redirect": "Redirect", "admin": "Admin",
    "filter": "Filter", "anchor": "Anchor",
}  # fmt: skip


@pytest.mark.parametrize("table", TABLES)
def test_keys_of_a_table_are_those_of_the_program(table: str) -> None:
    import pfconf.description as description

    cls: type[attrs.AttrsInstance] = getattr(description, CLASSES[table])
    described = re.findall(r"^\.It Ic ([a-z0-9-]+)$", section(table), re.MULTILINE)
    assert described == list(settings_of(cls))


@pytest.mark.parametrize(
    ("table", "key"),
    [
        ("wireguard", "port"), ("redirect", "port"), ("admin", "web"), ("filter", "states"),
    ],
)  # fmt: skip
def test_default_numbers_are_those_of_the_program(table: str, key: str) -> None:
    import pfconf.description as description

    cls = getattr(description, CLASSES[table])
    default = settings_of(cls)[key].default
    assert f"{default} by default" in section(table)


def test_smallest_form_in_the_page_is_the_example() -> None:
    example = (PAGE.parents[2] / "pfconf" / "examples" / "minimal.toml").read_text()
    shown = re.search(r"\.Bd -literal -offset indent\n(\[external\].*?)\.Ed", TEXT, re.DOTALL)
    assert shown
    assert shown[1].strip() == example.partition("\n\n")[2].strip()
