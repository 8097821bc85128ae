"""The command line of image-build/build."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import answers
import click
import debian
import disk
import openbsd
import release
from qemu import Accelerator
from stages import BuildError, Stopped, Workshop

EPOCH = 1_767_225_600  # 2026-01-01: every time stamp in an image


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Build the appliance image from a gateway description (docs/image.md)."""


def common(function: click.decorators.FC) -> click.decorators.FC:
    for option in (
        click.option("--config", required=True, type=click.Path(path_type=Path, exists=True,
                     dir_okay=False), help="Gateway description (pfconf(1))."),
        click.option("--settings", type=click.Path(path_type=Path, exists=True, dir_okay=False),
                     help="Further settings for redirectd.toml(5)."),
        click.option("-o", "--output", required=True, type=click.Path(path_type=Path),
                     help="The image; it appears under this name when it is complete."),
        click.option("--size", type=click.Choice(list(disk.LAYOUTS)), default="2G",
                     show_default=True, help="Size of the card."),
        click.option("--work", type=click.Path(path_type=Path), default=Path("out/image-work"),
                     show_default=True, help="Where finished steps are kept for the next run."),
        click.option("--console-password", type=click.Path(path_type=Path, exists=True),
                     help="File with a crypt(3) hash for root at the console; without it nobody "
                          "can log in there."),
    ):  # fmt: skip
        function = option(function)
    return function


def password(path: Path | None) -> str | None:
    return None if path is None else path.read_text().strip()


@main.command("debian")
@common
@click.option("--kernel", type=click.Choice(list(debian.KERNELS)), default="generic",
              show_default=True, help="cloud: for virtual machines alone, smaller.")  # fmt: skip
@click.option("--mirror", help="Debian mirror; without it, the one of this machine.")
def debian_command(
    config: Path,
    settings: Path | None,
    output: Path,
    size: str,
    work: Path,
    console_password: Path | None,
    kernel: debian.Kernel,
    mirror: str | None,
) -> None:
    """The Linux image, for x86 mini PCs and virtual machines."""
    start = time.monotonic()

    def make(shop: Workshop) -> None:
        wanted = debian.Wanted(
            config=config.read_text(),
            source=config,
            output=output,
            kernel=kernel,
            layout=disk.LAYOUTS[size],
            root_password=password(console_password),
            mirror=mirror,
            epoch=EPOCH,
            settings=settings.read_text() if settings else "",
        )
        built = debian.build(shop, wanted)
        shop.say(
            f"{built.image}: {built.size / 1e6:.0f} MB for a card of {size}B,"
            f" {built.used / 1e6:.0f} MB of it in use; {time.monotonic() - start:.0f} s"
        )

    work_in(work, make)


@main.command("openbsd")
@common
@click.option("--release", "source", required=True, metavar="DIR|URL",
              help="The release: a directory or mirror with SHA256.sig in it.")  # fmt: skip
@click.option("--version", "version", required=True, metavar="7.8", help="Its version.")
@click.option("--packages", required=True,
              type=click.Path(path_type=Path, exists=True, file_okay=False),
              help="Directory with the packages for that release (docs/image.md).")  # fmt: skip
@click.option("--patches", type=click.Path(path_type=Path, exists=True, file_okay=False),
              help="Directory with syspatch archives to apply.")  # fmt: skip
@click.option("--owners", type=click.Path(path_type=Path, exists=True, file_okay=False),
              help="Directory with files for /cfg/etc that hold secrets.")  # fmt: skip
@click.option("--accelerator", type=click.Choice(["auto", "kvm", "tcg"]), default="auto",
              show_default=True, help="How QEMU runs the installer.")  # fmt: skip
def openbsd_command(
    config: Path,
    settings: Path | None,
    output: Path,
    size: str,
    work: Path,
    console_password: Path | None,
    source: str,
    version: str,
    packages: Path,
    patches: Path | None,
    owners: Path | None,
    accelerator: Accelerator,
) -> None:
    """The OpenBSD image, for compact-flash cards."""
    start = time.monotonic()

    def make(shop: Workshop) -> None:
        wanted = openbsd.Wanted(
            source=source,
            version=release.Version(version),
            config=config.read_text(),
            config_path=config,
            output=output,
            packages=packages,
            card=answers.CARDS[size],
            root_password=password(console_password),
            epoch=EPOCH,
            settings=settings.read_text() if settings else "",
            owners=owners,
            patches=patches,
            accelerator=accelerator,
        )
        built = openbsd.build(shop, wanted)
        shop.say(
            f"{built.image}: {built.size / 1e6:.0f} MB for a card of {size}B;"
            f" {time.monotonic() - start:.0f} s\n"
            f"{built.archive}: for gateway-slot upgrade, SHA256 {built.archive_digest}"
        )

    work_in(work, make)


def work_in(directory: Path, make: object) -> None:
    """Run a build; whatever stops it is told in one line, and leaves nothing behind."""
    try:
        with Workshop(directory) as shop:
            assert callable(make)
            make(shop)
    except BuildError as error:
        click.echo(f"build: {error}", err=True)
        sys.exit(1)
    except UnicodeDecodeError:
        click.echo("build: a file that should be text is not UTF-8", err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        click.echo("build: interrupted; finished steps are kept for the next run", err=True)
        sys.exit(130)
    except Stopped as stopped:
        click.echo(f"build: stopped by {stopped}; finished steps are kept", err=True)
        sys.exit(143)
