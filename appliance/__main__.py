"""``redirectd``: reads its configuration and becomes the daemon (redirectd(8))."""

from __future__ import annotations

import logging
import os
import sys
import syslog
from pathlib import Path

import click

from . import __version__
from .config import DEFAULT_PATH, Config, load
from .config_reading import ConfigError

log = logging.getLogger("redirectd")


class _Syslog(logging.Handler):
    """Through syslog(3), which also works in a chroot and where there is no /dev/log."""

    _PRIORITIES = (
        (logging.ERROR, syslog.LOG_ERR),
        (logging.WARNING, syslog.LOG_WARNING),
        (logging.INFO, syslog.LOG_INFO),
    )

    def emit(self, record: logging.LogRecord) -> None:
        priority = next((p for n, p in self._PRIORITIES if record.levelno >= n), syslog.LOG_DEBUG)
        for line in self.format(record).splitlines():
            syslog.syslog(priority, line)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="redirectd")
@click.option("-n", "check", is_flag=True, help="Only check the configuration.")
@click.option("-d", "stay", is_flag=True, help="Stay in the foreground; log to standard error.")
@click.option(
    "-f", "path", metavar="FILE", type=click.Path(path_type=Path), default=DEFAULT_PATH,
    help=f"Configuration.  [{DEFAULT_PATH}]",
)  # fmt: skip
@click.option("-v", "verbose", is_flag=True, help="Log what only a developer wants to know, too.")
def main(check: bool, stay: bool, path: Path, verbose: bool) -> None:
    """Keep established TCP connections alive when an address changes."""
    try:
        config = load(path)
    except ConfigError as error:
        click.echo(f"{error}", err=True)
        sys.exit(1)
    if missing := config.not_yet(can_divert=sys.platform == "linux"):
        click.echo("\n".join(missing), err=True)
        sys.exit(1)
    if check:
        click.echo(f"{path}: configuration OK")
        return
    if os.geteuid() != 0:
        click.echo("redirectd: only root may start it; it drops what it does not need", err=True)
        sys.exit(1)
    if not stay:
        _detach()
    _log_to(stay, verbose)
    sys.exit(_run(config))


def _run(config: Config) -> int:
    # late: -n needs none of it, and it must see the descriptors that are left
    from .backend.api import BackendError
    from .proc.backends import UnsupportedError
    from .proc.parent import run
    from .proc.privileges import PrivilegeError

    log.info("redirectd %s starts: UDP port %d, %s", __version__, config.port, config.source)
    try:
        return run(config)
    except (BackendError, PrivilegeError, UnsupportedError, OSError) as error:
        log.debug("where", exc_info=True)
        log.error("can't start: %s", error)
        return 1


def _detach() -> None:
    """Into the background, as daemon(3) does: a session of its own, no terminal."""
    if os.fork():
        os._exit(0)
    os.setsid()
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    if null > 2:
        os.close(null)


def _log_to(stderr: bool, verbose: bool) -> None:
    handler: logging.Handler
    if stderr:
        handler = logging.StreamHandler(sys.stderr)
        # the journal has its own clock
        stamp = "" if "JOURNAL_STREAM" in os.environ else "%(asctime)s "
        handler.setFormatter(logging.Formatter(f"{stamp}%(name)s: %(levelname)s: %(message)s"))
    else:
        syslog.openlog("redirectd", syslog.LOG_PID, syslog.LOG_DAEMON)
        handler = _Syslog()
        handler.setFormatter(logging.Formatter("%(name)s: %(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.DEBUG if verbose else logging.INFO)


if __name__ == "__main__":
    main(prog_name="redirectd")
