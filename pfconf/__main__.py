"""``pfconf render|check|diff``: a gateway's description and its pf.conf (pfconf(1))."""

from __future__ import annotations

import difflib
import os
import sys
import tempfile
from pathlib import Path

import click

from appliance.config_reading import ConfigError, Fault

from .description import Gateway, read_description
from .gateway import render_gateway
from .ruleset import check_ruleset

_SIZE_MAX = 1 << 20

_description = click.argument(
    "description", type=click.Path(dir_okay=False, path_type=Path, allow_dash=False)
)
_interface = click.option(
    "--interface",
    "-i",
    "present",
    multiple=True,
    metavar="NAME",
    help="An interface that the machine has; any other name is refused.",
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Turn the short description of a home gateway into a complete pf.conf."""


@main.command()
@_description
@_interface
@click.option(
    "--output",
    "-o",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write here (mode 0600, in one step) instead of to standard output.",
)
def render(description: Path, present: tuple[str, ...], output: Path | None) -> None:
    """Print pf.conf.  A faulty description is refused and nothing is written."""
    text = render_gateway(_load(description, present))
    if output is None:
        click.echo(text, nl=False)
    else:
        _write(output, text)


@main.command()
@_description
@_interface
@click.option(
    "--pf-conf",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Check this ruleset as well: does its redirect anchor stand before its NAT rule?",
)
def check(description: Path, present: tuple[str, ...], pf_conf: Path | None) -> None:
    """Check a description and, with --pf-conf, a ruleset written by hand."""
    _load(description, present)
    if pf_conf is None:
        return
    findings = check_ruleset(_read(pf_conf))
    for finding in findings:
        line = f":{finding.line}" if finding.line else ""
        word = "" if finding.fatal else "warning: "
        click.echo(f"{pf_conf}{line}: {word}{finding}", err=True)
    if any(finding.fatal for finding in findings):
        sys.exit(1)


@main.command()
@_description
@click.argument("pf_conf", type=click.Path(dir_okay=False, path_type=Path))
@_interface
def diff(description: Path, pf_conf: Path, present: tuple[str, ...]) -> None:
    """Show what rendering would change in PF_CONF; exit 1 if anything."""
    wanted = render_gateway(_load(description, present))
    lines = list(
        difflib.unified_diff(
            _read(pf_conf).splitlines(keepends=True),
            wanted.splitlines(keepends=True),
            str(pf_conf),
            f"rendered from {description}",
        )
    )
    click.echo("".join(lines), nl=False)
    sys.exit(1 if lines else 0)


def parse_description(text: str, source: Path, present: tuple[str, ...] | None = None) -> Gateway:
    """The description in ``text``; ConfigError names every fault with its line."""
    gateway, faults = read_description(text, present)
    if gateway is None:
        raise ConfigError(source, faults)
    return gateway


def _load(path: Path, present: tuple[str, ...]) -> Gateway:
    try:
        return parse_description(_read(path), path, present or None)
    except ConfigError as error:
        click.echo(str(error), err=True)
        sys.exit(1)


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(_SIZE_MAX + 1)
        if len(data) > _SIZE_MAX:
            raise ConfigError(
                path, [Fault(0, "", f"is larger than {_SIZE_MAX} bytes", "is it the right file?")]
            )
        return data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        click.echo(f"{path}:{line}: is not UTF-8; save it as UTF-8", err=True)
    except OSError as error:
        click.echo(f"{path}: can't be read ({error.strerror}); check its name and mode", err=True)
    except ConfigError as error:
        click.echo(str(error), err=True)
    sys.exit(1)


def _write(path: Path, text: str) -> None:
    """Whole or not at all: a half pf.conf would leave the gateway open or shut."""
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(handle, "w") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        click.echo(f"{path}: can't be written ({error.strerror}); nothing was changed", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main(prog_name="pfconf")
