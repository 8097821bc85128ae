"""``redirectctl capture``: record packets of a connection or a peer, and fetch them."""

from __future__ import annotations

import base64
import contextlib
import os
import sys
import time
from collections.abc import Iterator
from typing import Any

import click

from . import ctl_tables as show
from .ctl_client import ControlClient
from .ctl_common import Context, Failure, common, translated

Json = dict[str, Any]


@click.group("capture")
def capture_group() -> None:
    """Record packets.  ID is that of a capture, as 'capture list' shows it."""


@capture_group.command("start")
@click.option("--connection", "conn", metavar="ID", help="Of this connection.")
@click.option("--peer", metavar="PEER", help="Of everything between us and this peer.")
@click.option("--seconds", type=click.IntRange(1, 300), help="For at most so long.  [60]")
@click.option(
    "--bytes", "most", type=click.IntRange(1024, 16 << 20), help="At most so much.  [4194304]"
)
@common
def capture_start(
    context: Context, conn: str | None, peer: str | None, seconds: int | None, most: int | None
) -> None:
    """Begin to record a connection or a peer."""
    if (conn is None) == (peer is None):
        raise click.UsageError("say either --connection or --peer")
    data = context.ask("capture.start", conn=conn, peer=peer, seconds=seconds, bytes=most)
    what = show.clean(data.get("text"))
    context.tell(data, lambda: f"recording {what}: capture {show.clean(data.get('id'))}")


@capture_group.command("list")
@common
def capture_list(context: Context) -> None:
    """Captures, the newest first."""
    rows = context.ask("capture.list")
    context.tell(rows, lambda: show.captures(rows, time.time()))


@capture_group.command("get")
@click.argument("capture", metavar="ID")
@click.option(
    "-o", "--output", metavar="FILE",
    help="Write to this new file (mode 0600), or '-' to standard output.  [ID.pcap]",
)  # fmt: skip
@common
def capture_get(context: Context, capture: str, output: str | None) -> None:
    """Write what was recorded so far as a pcap file."""
    with translated(context), ControlClient(context.socket) as client:
        pieces = _pieces(client, capture)
        first = next(pieces, b"")  # an ID that is none leaves no file
        if output == "-":
            sys.stdout.flush()
            sys.stdout.buffer.write(first)
            sys.stdout.buffer.writelines(pieces)
            return
        where = output or f"{capture}.pcap"
        try:
            fd = os.open(where, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            message = f"{where}: {error.strerror}: say -o FILE"
            raise Failure(context, 1, "conflict", message) from None
        try:
            with os.fdopen(fd, "wb") as file:
                file.write(first)
                file.writelines(pieces)
                size = file.tell()
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(where)
            raise
    context.tell({"file": where, "size": size}, f"wrote {where}: {size} bytes")


@capture_group.command("delete")
@click.argument("capture", metavar="ID")
@common
def capture_delete(context: Context, capture: str) -> None:
    """Delete a capture; one that runs is stopped."""
    context.tell(context.ask("capture.delete", id=capture), "deleted")


def _pieces(client: ControlClient, capture: str) -> Iterator[bytes]:
    """Until its end, or until there is no more of one that still runs."""
    offset: int | None = 0
    while offset is not None:
        row: Json = client.ask("capture.get", {"id": capture, "offset": offset})
        piece = base64.b64decode(row["data"])
        if not piece:
            return
        yield piece
        offset = row["next"]
