"""What the admin page needs to know before it can start: the ``[web]`` table of redirectd.toml."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path

import attrs

from appliance.config import DEFAULT_PATH, Config, load
from appliance.config_reading import ConfigError, Fault

DEFAULT_PORT = 4788


@attrs.frozen
class Listen:
    """One address to bind to. ``address`` is an IP address without brackets."""

    address: str
    port: int

    @property
    def host(self) -> str:
        """The address as it stands in a URL and in a Host header."""
        return f"[{self.address}]" if ":" in self.address else self.address

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


@attrs.frozen
class Settings:
    """The ``[web]`` table, and the one key outside of it that the page uses.

    listen          addresses of this machine inside the LAN; never a wildcard, so that the page
                    is not reachable from outside when the firewall has a hole
    names           further names under which browsers open the page (Host header check)
    control_socket  Unix socket of the daemon
    state_dir       0700 directory of the page: password hash, set-up code, secrets
    behind_tls      True: a TLS front on this machine passes requests on; cookies become Secure
    session_idle    minutes without a click after which one is signed out
    session_max     hours after which one is signed out in any case
    """

    listen: tuple[Listen, ...] = (Listen("127.0.0.1", DEFAULT_PORT),)
    names: tuple[str, ...] = ()
    enabled: bool = True
    behind_tls: bool = False
    session_idle: int = 60
    session_max: int = 12
    state_dir: Path = Path("/var/lib/redirectd-web")
    control_socket: Path = Path("/run/redirectd/control.sock")

    @property
    def hosts(self) -> frozenset[str]:
        """Every host part of a Host header that is ours, in lower case."""
        return frozenset({*(item.host for item in self.listen), *self.names})

    @property
    def urls(self) -> tuple[str, ...]:
        """Where to point a browser, for people."""
        if self.behind_tls:
            # The front decides on which address it listens; only its names are known here.
            return tuple(f"https://{name}/" for name in self.names or ("gateway",))
        return tuple(f"http://{item}/" for item in self.listen)


def parse_listen(text: str) -> Listen:
    """``ADDRESS``, ``ADDRESS:PORT``, ``[ADDRESS]`` or ``[ADDRESS]:PORT``; ValueError otherwise.

    Only the form: whether it is an address, appliance.config has looked at.
    """
    match = re.fullmatch(r"(?:\[([0-9a-fA-F:.]+)\]|([0-9.]+))(?::(\d{1,5}))?", text, re.ASCII)
    if match is None:
        raise ValueError(f"{text!r} is no address to listen on")
    port = int(match[3]) if match[3] else DEFAULT_PORT
    return Listen((match[1] or match[2]).lower(), port)


def settings_of(config: Config) -> Settings:
    """The part of ``config`` that is the page's; ConfigError when it contradicts itself."""
    web = config.web
    settings = Settings(
        listen=tuple(parse_listen(item) for item in web.listen),
        names=web.names,
        enabled=web.enabled,
        behind_tls=web.behind_tls,
        session_idle=web.session_idle,
        session_max=web.session_max,
        state_dir=web.state_dir,
        control_socket=web.control_socket or config.control_socket,
    )
    if settings.behind_tls and not all(
        ipaddress.ip_address(item.address).is_loopback for item in settings.listen
    ):
        # Anybody in the LAN could pass the front by, and say where they come from.
        fault = Fault(
            0,
            "web.listen",
            "is open to the LAN, past the TLS front of behind-tls",
            f"listen on 127.0.0.1:{DEFAULT_PORT}",
        )
        raise ConfigError(config.source or DEFAULT_PATH, [fault])
    return settings


def load_settings(path: Path) -> Settings:
    """Read redirectd.toml; ConfigError names every fault in it, with its line."""
    return settings_of(load(path))
