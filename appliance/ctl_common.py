"""What all commands of redirectctl share: options, errors with their exit status, secrets."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import Any, TextIO, TypeVar

import click

from .ctl_client import ControlClient, DaemonDown, Refused
from .ctl_tables import clean

DEFAULT_SOCKET = "/run/redirectd/control.sock"

Json = dict[str, Any]
F = TypeVar("F", bound=Callable[..., Any])


def _default_socket() -> Path:
    return Path(os.environ.get("REDIRECTD_SOCKET") or DEFAULT_SOCKET)


@dataclass
class Context:
    """What the options that every command takes have said."""

    socket: Path = field(default_factory=_default_socket)
    json: bool = False

    def ask(self, do: str, **args: Any) -> Any:
        """Ask one thing; absent arguments (None) are left out."""
        with translated(self), ControlClient(self.socket) as client:
            return client.ask(do, {k.rstrip("_"): v for k, v in args.items() if v is not None})

    def tell(self, data: Any, text: str | Callable[[], str]) -> None:
        """Print ``data`` as JSON, or else ``text``."""
        if self.json:
            click.echo(json.dumps(data, indent=2))
        else:
            click.echo(text() if callable(text) else text)


class Failure(click.ClickException):
    """An error message on standard error, as JSON if that was asked for."""

    def __init__(self, context: Context, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.exit_code = status  # type: ignore[misc]
        self._error = {"code": code, "message": message}
        self._json = context.json

    def show(self, file: Any = None) -> None:
        if self._json:
            click.echo(json.dumps({"error": self._error}), err=True)
        else:
            click.echo(f"redirectctl: {clean(self.message)}", err=True)


@contextlib.contextmanager
def translated(context: Context) -> Iterator[None]:
    try:
        yield
    except DaemonDown as error:
        raise Failure(context, 3, "unreachable", str(error)) from None
    except Refused as error:
        raise Failure(context, 1, error.code, error.message) from None


def _set(name: str) -> Callable[[click.Context, click.Parameter, Any], None]:
    def callback(ctx: click.Context, _: click.Parameter, value: Any) -> None:
        if value not in (None, False):
            setattr(ctx.ensure_object(Context), name, value)

    return callback


def common(command: F) -> F:
    """The options that may stand anywhere, and the Context as first argument."""

    @wraps(command)
    @click.pass_context
    def wrapped(ctx: click.Context, *args: Any, **kwargs: Any) -> Any:
        return command(ctx.ensure_object(Context), *args, **kwargs)

    for decorate in (
        click.option(
            "--json", is_flag=True, expose_value=False, callback=_set("json"),
            help="Print JSON, for programs.",
        ),
        click.option(
            "--socket", type=click.Path(path_type=Path),
            metavar="PATH", expose_value=False, callback=_set("socket"),
            help=f"Control socket of the daemon.  [{DEFAULT_SOCKET}]",
        ),
    ):  # fmt: skip
        wrapped = decorate(wrapped)
    return wrapped  # type: ignore[return-value]


@contextlib.contextmanager
def secret_file(
    context: Context, output: str | None, name: str
) -> Iterator[tuple[TextIO, str | None]]:
    """A new file that nobody else may read, made before the daemon is asked: keys that it
    makes must not be lost for want of a place.  Removed again if anything fails."""
    if output == "-":
        yield sys.stdout, None
        return
    where = output or f"{re.sub(r'[^A-Za-z0-9._-]+', '-', name).strip('.-') or 'peer'}.pair"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    try:
        fd = os.open(where, flags, 0o600)
    except OSError as error:
        raise Failure(context, 1, "conflict", f"{where}: {error.strerror}: say -o FILE") from None
    try:
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            yield file, where
            file.flush()
            os.fsync(fd)
    except BaseException:
        os.unlink(where)
        raise


def write_secret(
    context: Context, file: TextIO, where: str | None, data: Json, remedy: str
) -> None:
    """Write ``data["text"]`` to what :func:`secret_file` gave, and say so."""
    if where is None:
        if context.json:
            click.echo(json.dumps(data, indent=2))
        else:
            file.write(str(data.get("text")))
        return
    file.write(str(data.get("text")))
    told = {**{k: v for k, v in data.items() if k != "text"}, "file": where}
    context.tell(told, f"wrote {where}: {remedy}")
