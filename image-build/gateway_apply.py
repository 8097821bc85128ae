"""Configures the Linux appliance at each start: /cfg/gateway.toml becomes files in /run.

    gateway-apply            called by gateway-apply.service, before the network is up
    gateway-apply --check    only says what is wrong with /cfg/gateway.toml

A description that can't be used never leaves the house without a gateway: the last one
that could is taken, and the console says so.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import pwd
import shutil
import subprocess
import sys
from pathlib import Path

import linux_files

from appliance.config_reading import ConfigError
from pfconf.__main__ import parse_description
from pfconf.description import Gateway

CFG = Path("/cfg")
DESCRIPTION = CFG / "gateway.toml"
ACCEPTED = CFG / "gateway.accepted.toml"
SETTINGS = CFG / "redirectd.toml"
ISSUE = Path("/run/issue.d/10-gateway.issue")
_LIMIT = 1 << 20


def read(path: Path) -> str:
    with path.open("rb") as file:
        return file.read(_LIMIT).decode()


def write_safely(path: Path, text: str, mode: int = 0o600) -> None:
    """All or nothing, also when the plug is pulled; not at all when nothing changed."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        if path.read_text() == text:
            return
    partial = path.with_name(f".{path.name}.new")
    with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def usable(path: Path) -> tuple[Gateway, dict[str, str]]:
    """The description in ``path`` and the files that follow from it."""
    present = tuple(
        name for name in os.listdir("/sys/class/net") if name not in ("lo", "sit0", "tunl0")
    )
    gateway = parse_description(read(path), path, present)
    settings = read(SETTINGS) if SETTINGS.exists() else ""
    return gateway, linux_files.render(gateway, settings)


def prepare_cfg() -> None:
    """Folders that each service may write, and nobody else may read."""
    for name, user in (
        ("redirectd", "_redirectd"), ("redirectd-web", "_redirectdweb"),
        ("ssh", "root"), ("wireguard", "root"), ("auth", "root"),
    ):  # fmt: skip
        account = pwd.getpwnam(user)
        folder = CFG / name
        folder.mkdir(mode=0o700, exist_ok=True)
        for path in (folder, *folder.rglob("*")):
            found = path.lstat()
            if (found.st_uid, found.st_gid) != (account.pw_uid, account.pw_gid):
                os.chown(path, account.pw_uid, account.pw_gid, follow_symlinks=False)
        if folder.stat().st_mode & 0o077:
            folder.chmod(0o700)
    for path in (DESCRIPTION, ACCEPTED, SETTINGS):
        if path.exists() and path.stat().st_uid != 0:
            os.chown(path, 0, 0)


def make_keys(gateway: Gateway) -> None:
    """Keys that this one machine makes for itself, once."""
    if gateway.admin.ssh and not (CFG / "ssh/ssh_host_ed25519_key").exists():
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "gateway",
             "-f", "/cfg/ssh/ssh_host_ed25519_key"], check=True,
        )  # fmt: skip
    if gateway.wireguard is None:
        return
    private = CFG / "wireguard/private.key"
    if not private.exists():
        done = subprocess.run(["wg", "genkey"], check=True, capture_output=True, text=True)
        write_safely(private, done.stdout)
    target = Path(linux_files.WIREGUARD_KEY)
    target.write_text(private.read_text())
    group = pwd.getpwnam("systemd-network").pw_gid
    os.chown(target, 0, group)
    target.chmod(0o640)
    peers = CFG / "wireguard/peers.conf"
    if peers.exists():
        folder = Path("/run/systemd/network/50-wireguard.netdev.d")
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(peers, folder / "peers.conf")
        os.chown(folder / "peers.conf", 0, group)
        (folder / "peers.conf").chmod(0o640)


def tell(text: str) -> None:
    """On the console, above each login prompt."""
    print(text, file=sys.stderr, flush=True)
    ISSUE.parent.mkdir(exist_ok=True)
    ISSUE.write_text(text.replace("\\", "\\\\") + "\n\n")


def apply() -> int:
    prepare_cfg()
    problem = None
    try:
        gateway, files = usable(DESCRIPTION)
    except (ConfigError, linux_files.Unusable, OSError, UnicodeDecodeError) as error:
        problem = str(error)
        try:
            gateway, files = usable(ACCEPTED)
        except (ConfigError, linux_files.Unusable, OSError, UnicodeDecodeError):
            tell(f"The gateway is NOT configured:\n{problem}\nCorrect /cfg/gateway.toml.")
            return 1
        tell(f"{problem}\nThe description that worked last is in use instead.")
    Path("/run/gateway").mkdir(mode=0o755, exist_ok=True)
    for name, text in files.items():
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o644)
    make_keys(gateway)
    if problem is None:
        write_safely(ACCEPTED, read(DESCRIPTION))
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="gateway-apply", description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="check /cfg/gateway.toml and exit")
    arguments = parser.parse_args()
    if not arguments.check:
        return apply()
    try:
        usable(DESCRIPTION)
    except (ConfigError, linux_files.Unusable, OSError, UnicodeDecodeError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
