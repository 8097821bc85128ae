"""The configuration: ``redirectd.toml`` as frozen, checked values (redirectd.toml(5)).

config = load(Path("/etc/redirectd.toml"))     # ConfigError tells all faults at once
config.rule_for(22, addr, peer_id, peer_name)  # what holds for one connection
"""

# ruff: noqa: RUF009 -- setting() makes an attrs field
from __future__ import annotations

import os
import stat
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Any, Literal

import attrs

from . import config_values as v
from .config_reading import Bad, ConfigError, Fault, faults_of, reader, setting
from .rewrite.flow import Address
from .rewrite.redirect import DataPath
from .toml_lines import TomlError, parse

DEFAULT_PATH = Path("/etc/redirectd.toml")
_SIZE_MAX = 1 << 20

Network = IPv4Network | IPv6Network
FirstContact = Literal["tofu", "ask", "strict"]
Integrity = Literal["off", "prefer", "require"]


@attrs.frozen
class Interfaces:
    """inside: the LAN side, never a source towards peers; outside: the network side (empty:
    every other one); ignore: not looked at, as if they were not there."""

    inside: tuple[str, ...] = setting((), v.listed(v.interface))
    outside: tuple[str, ...] = setting((), v.listed(v.interface))
    ignore: tuple[str, ...] = setting((), v.listed(v.interface))

    def check(self) -> None:
        seen: dict[str, str] = {}
        for kind in ("inside", "outside", "ignore"):
            for name in getattr(self, kind):
                if name in seen:
                    raise Bad(f"{name!r} is both {seen[name]} and {kind}", "keep it in one list")
                seen[name] = kind


@attrs.frozen
class Limits:
    """peers: known hosts; half_open: first contacts under way; events: rows of the event log;
    event_days: their age; prune_days: after so many days without contact a peer without
    connections is forgotten, unless a person verified or revoked it."""

    peers: int = setting(1000, v.whole(1, 1_000_000))
    half_open: int = setting(64, v.whole(1, 10_000))
    events: int = setting(10_000, v.whole(100, 10_000_000))
    event_days: int = setting(90, v.whole(1, 36_500))
    prune_days: int = setting(365, v.whole(1, 36_500))


@attrs.frozen
class Web:
    """The admin page, a process of its own that reads this table itself."""

    enabled: bool = setting(True, v.boolean)
    listen: tuple[str, ...] = setting(("127.0.0.1:4788",), v.one_or_more(v.listen))
    names: tuple[str, ...] = setting((), v.listed(v.host_name))
    behind_tls: bool = setting(False, v.boolean)
    session_idle: int = setting(60, v.whole(1, 1440))
    session_max: int = setting(12, v.whole(1, 720))
    state_dir: Path = setting(Path("/var/lib/redirectd-web"), v.absolute_path)
    control_socket: Path | None = setting(None, v.socket_path)


@attrs.frozen
class Policy:
    """What holds for one connection; times in seconds.

    long_lived_after  age at which it is bound; None: never
    hold_max          how long its segments are held during a change; None: without end
    """

    long_lived_after: float | None
    path: DataPath
    integrity: Integrity
    hold_max: float | None


@attrs.frozen
class Rule:
    """One ``[[rule]]``: what a connection must be, and what then holds.

    A selector that is absent takes every connection; a setting that is None is left to the
    rules below.  ``inf`` stands for "off".
    """

    port: int | None = setting(None, v.whole(1, 65535))
    ports: tuple[tuple[int, int], ...] = setting((), v.one_or_more(v.port_range))
    prefix: tuple[Network, ...] = setting((), v.one_or_more(v.prefix))
    peer: str | None = setting(None, v.peer)
    long_lived_after: float | None = setting(None, v.seconds_or_off)
    path: DataPath | None = setting(None, v.choice("kernel", "divert"))
    integrity: Integrity | None = setting(None, v.choice("off", "prefer", "require"))
    hold_max: float | None = setting(None, v.seconds_or_off)

    def check(self) -> None:
        if self.port is not None and self.ports:
            raise Bad("has both 'port' and 'ports'", "keep one of them")
        if (self.long_lived_after, self.path, self.integrity, self.hold_max) == (None,) * 4:
            raise Bad("sets nothing", "add 'long-lived-after', 'path', 'integrity' or 'hold-max'")
        if self.integrity in ("prefer", "require") and self.path == "kernel":
            raise Bad(
                "asks for integrity on the kernel path, which carries none",
                "say path = \"divert\", or leave 'path' out",
            )

    def matches(self, port: int, addr: Address, peer_id: str | None, peer_name: str | None) -> bool:
        ranges = ((self.port, self.port),) if self.port is not None else self.ports
        if ranges and not any(low <= port <= high for low, high in ranges):
            return False
        if self.prefix and not any(addr in network for network in self.prefix):
            return False
        if self.peer is None:
            return True
        # a name that a person gave, or four or more digits of the ID, as on the command line
        by_id = len(self.peer) >= 4 and peer_id is not None and peer_id.startswith(self.peer)
        return by_id or (peer_name is not None and self.peer == peer_name)


@attrs.frozen
class Config:
    """Everything in the file, defaults filled in.  ``source`` is where it was read."""

    port: int = setting(4787, v.whole(1, 65535))
    state_dir: Path = setting(Path("/var/lib/redirectd"), v.absolute_path)
    control_socket: Path = setting(Path("/run/redirectd/control.sock"), v.socket_path)
    user: str = setting("_redirectd", v.user)
    first_contact: FirstContact = setting("tofu", v.choice("tofu", "ask", "strict"))
    discover: Literal["any", "known"] | tuple[Network, ...] = setting("any", v.discover)
    long_lived_after: float = setting(10.0, v.seconds_or_off)
    interfaces: Interfaces = setting(Interfaces(), v.table(Interfaces))
    rules: tuple[Rule, ...] = setting((), v.tables(Rule), key="rule")
    limits: Limits = setting(Limits(), v.table(Limits))
    web: Web = setting(Web(), v.table(Web))
    table: str = setting("redirectd", v.nft_name)
    nflog_group: int = setting(4787, v.whole(1, 65535))
    nfqueue: int = setting(4787, v.whole(0, 65535))
    source: Path | None = attrs.field(default=None, eq=False)

    def rule_for(
        self,
        port: int,
        addr: Address,
        peer_id: str | None = None,
        peer_name: str | None = None,
    ) -> Policy:
        """What holds for a connection to ``port`` (the one that listens) whose far end is
        ``addr``; each setting comes from the first rule that matches and has it."""
        after, path, integrity, hold = None, None, None, None
        for rule in self.rules:
            if rule.matches(port, addr, peer_id, peer_name):
                after = rule.long_lived_after if after is None else after
                path = rule.path if path is None else path
                integrity = rule.integrity if integrity is None else integrity
                hold = rule.hold_max if hold is None else hold
        integrity = integrity or "off"
        return Policy(
            long_lived_after=_or_never(self.long_lived_after if after is None else after),
            # only user space can add a MAC to a segment
            path="divert" if integrity != "off" else path or "kernel",
            integrity=integrity,
            hold_max=None if hold is None else _or_never(hold),
        )

    def diverts(self) -> bool:
        """Whether a packet worker will be needed."""
        return any(rule.path == "divert" for rule in self.rules)

    def not_yet(self, can_divert: bool) -> list[str]:
        """Rules that this version can read but not carry out; ``can_divert``: whether it has
        a packet worker on this system."""
        faults = []
        for number, rule in enumerate(self.rules, 1):
            where = f"{self.source}: rule {number}"
            if rule.integrity in ("prefer", "require"):
                faults.append(f"{where}: this version adds no 'integrity' yet; leave it out")
            elif rule.path == "divert" and not can_divert:
                faults.append(
                    f"{where}: 'path = \"divert\"' needs a packet worker, which this version"
                    " has on Linux only; leave it out"
                )
        return faults

    def settings(self) -> dict[str, Any]:
        """The settings as they stand in a file, as plain values (there are no secrets)."""
        return {key: v.plain(value) for key, value in v.keys_and_values(self)}


def _or_never(seconds: float) -> float | None:
    return None if seconds == float("inf") else seconds


def parse_config(text: str, source: Path = DEFAULT_PATH) -> Config:
    """Raises ConfigError with every fault in ``text``; ``source`` is named in them."""
    try:
        document = parse(text)
    except TomlError as error:
        fault = Fault(error.line, "", f"is not TOML: {error.problem}", "see redirectd.toml(5)")
        raise ConfigError(source, [fault]) from None
    try:
        config: Config = reader().structure(document.values, Config)
    except Exception as error:
        raise ConfigError(source, faults_of(error, Config, document)) from None
    return attrs.evolve(config, source=source)


def load(path: Path = DEFAULT_PATH) -> Config:
    """Read a file.  It steers a process of root's, so nobody else may be able to write it."""
    try:
        with path.open("rb") as file:
            found = os.fstat(file.fileno())
            data = file.read(_SIZE_MAX + 1)
    except OSError as error:
        raise ConfigError(
            path, [Fault(0, "", f"can't be read ({error.strerror})", "check -f and its mode")]
        ) from None
    faults = []
    if found.st_uid not in (0, os.geteuid()) or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        faults.append(
            Fault(0, "", "others than root can change it", f"'chown 0 {path}; chmod go-w {path}'")
        )
    if len(data) > _SIZE_MAX:
        faults.append(Fault(0, "", f"is larger than {_SIZE_MAX} bytes", "is it the right file?"))
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        faults.append(Fault(line, "", "is not UTF-8", "save it as UTF-8"))
    if faults:
        raise ConfigError(path, faults)
    return parse_config(text, path)
