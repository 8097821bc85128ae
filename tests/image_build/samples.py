"""Gateway descriptions and what a site set is made of."""

from __future__ import annotations

import answers
import openbsd_site
from release import Version

from pfconf.__main__ import parse_description
from pfconf.description import Gateway

from .conftest import ROOT

EXAMPLES = ROOT / "pfconf" / "examples"


def example(name: str) -> Gateway:
    path = EXAMPLES / f"{name}.toml"
    return parse_description(path.read_text(), path)


def linux(name: str) -> Gateway:
    """An example with Linux's names of cards, and without what only OpenBSD does."""
    text = (EXAMPLES / f"{name}.toml").read_text()
    for old, new in (
        ('"pppoe0"', '"eth0"'), ('"pppoe"', '"dhcp"'), ('"em0"', '"eth0"'), ('"em1"', '"eth1"'),
        ('"em2"', '"eth2"'), ('"em3"', '"eth3"'),
    ):  # fmt: skip
        text = text.replace(old, new)
    head, ipsec, rest = text.partition("[ipsec]")
    if ipsec:
        text = head + rest[rest.index("\n[") :]
    return parse_description(text, EXAMPLES / f"{name}.toml")


def parts(name: str = "minimal") -> openbsd_site.Parts:
    return openbsd_site.Parts(
        version=Version("7.8"),
        gateway=example(name),
        config=(EXAMPLES / f"{name}.toml").read_text(),
        card=answers.CARDS["2G"],
        console_password="*************",
        tree={"appliance/__init__.py": b"", "webui/__main__.py": b"print()\n"},
        wheels={"click-8-py3-none-any.whl": b"wheel"},
        pypcap={"setup.py": b"", "pcap.c": b""},
        packages={"python-3.12.11.tgz": b"package", "py3-cffi-1.17.1.tgz": b"package"},
        not_on_card=("./usr/bin/cc",),
    )
