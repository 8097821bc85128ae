"""redirectd-web(8): serves the admin page."""

from __future__ import annotations

import logging
import os
import signal
import sys
from pathlib import Path
from types import FrameType

import click

from appliance.config import DEFAULT_PATH
from appliance.config_reading import ConfigError
from appliance.proc import sandbox

from .app import create_app
from .credentials import Credentials, StateError
from .serve import make_server
from .settings import Settings, load_settings
from .tls_front import relayd_conf


def announce(settings: Settings, credentials: Credentials) -> str:
    """Where the page is, and how to get in the first time; for the console."""
    lines = [f"The admin page is at {' '.join(settings.urls)}"]
    code = credentials.setup_code
    if not credentials.has_password and code is not None:
        lines.append(f"Set-up code (asked for once, in the browser): {code}")
    return "\n".join(lines)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "-f",
    "--config",
    type=click.Path(path_type=Path),
    default=DEFAULT_PATH,
    show_default=True,
    help="Configuration; its [web] table is used.",
)
@click.option("-n", "--check", is_flag=True, help="Check the configuration and exit.")
@click.option("--show", is_flag=True, help="Print the address and the set-up code and exit.")
@click.option("--reset-password", is_flag=True, help="Forget the password; print a new code.")
@click.option("--relayd", metavar="ADDRESS", help="Print a relayd.conf for TLS and exit.")
@click.version_option(package_name="redirectd", message="%(version)s")
def main(config: Path, check: bool, show: bool, reset_password: bool, relayd: str | None) -> None:
    """Serve the admin page of redirectd."""
    try:
        settings = load_settings(config)
        credentials = Credentials(settings.state_dir)
        if check:
            return
        if relayd is not None:
            click.echo(relayd_conf(settings, relayd), nl=False)
            return
        if reset_password or show:
            credentials.prepare()
            if reset_password:
                credentials.reset()
            _keep_owner(settings.state_dir)
            click.echo(announce(settings, credentials))
            return
        if not settings.enabled:
            click.echo(f"{config}: the page is off: set enabled = true under [web]", err=True)
            return
        _serve(settings, credentials, config)
    except (ConfigError, StateError, ValueError) as error:
        click.echo(str(error), err=True)
        sys.exit(1)
    except OSError as error:
        click.echo(f"redirectd-web: {error}", err=True)
        sys.exit(1)


def _keep_owner(directory: Path) -> None:
    """Root ran this: files in the directory must stay readable for the page's own user."""
    owner = directory.stat()
    if os.geteuid() == 0 and owner.st_uid != 0:
        for path in directory.iterdir():
            os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)


def _serve(settings: Settings, credentials: Credentials, config: Path) -> None:
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    app = create_app(settings)
    server = make_server(app, settings)

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise SystemExit(0)

    signal.signal(signal.SIGTERM, stop)
    if sys.stdout.isatty():
        print(announce(settings, credentials), flush=True)
    else:
        # A log may be read by others, or sent elsewhere: no code in there.
        print(f"serving {' '.join(settings.urls)}; redirectd-web --show prints how to get in")
        sys.stdout.flush()
    sandbox.enter("web", settings.state_dir, settings.control_socket, config)
    server.run()


if __name__ == "__main__":
    main()
