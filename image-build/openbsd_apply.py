"""gateway-apply on OpenBSD: /cfg/etc from /cfg/gateway.toml, all of it or nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import openbsd_files
from gateway_apply import read, write_safely

from appliance.config_reading import ConfigError
from pfconf.__main__ import parse_description

CFG = Path("/cfg")


def main() -> int:
    source = CFG / "gateway.toml"
    settings = CFG / "redirectd.toml"
    try:
        gateway = parse_description(read(source), source)
        files = openbsd_files.render(gateway, read(settings) if settings.exists() else "")
    except (ConfigError, OSError, UnicodeDecodeError) as error:
        print(error, file=sys.stderr)
        return 1
    trial = CFG / "etc" / ".pf.conf.trial"
    write_safely(trial, files["pf.conf"])
    try:
        checked = subprocess.run(["pfctl", "-nf", str(trial)], capture_output=True, text=True)
    finally:
        trial.unlink(missing_ok=True)
    if checked.returncode != 0:
        print(f"pf refuses the rules:\n{checked.stderr}", file=sys.stderr)
        return 1
    for name, text in files.items():
        write_safely(CFG / "etc" / name, text)
    os.sync()
    subprocess.run(["pfctl", "-f", str(CFG / "etc" / "pf.conf")], check=True)
    print("the packet filter has its new rules; the rest follows at the next start")
    return 0
