"""``redirectctl``: shows and steers redirectd through its control socket (redirectctl(8)).

Exit status: 0 done; 1 refused or not found; 2 usage; 3 the daemon can't be reached.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, TextIO

import click

from . import __version__
from . import ctl_tables as show
from .config import DEFAULT_PATH
from .ctl_captures import capture_group
from .ctl_client import ControlClient
from .ctl_common import Context, Failure, common, secret_file, translated, write_secret
from .introduction import TEXT_MAX, IntroductionError, read_pair

Json = dict[str, Any]


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="redirectctl")
@common
def main(context: Context) -> None:
    """Show and steer redirectd."""


# show


@main.group("show")
def show_group() -> None:
    """Show peers, connections, redirects, events, moves, status or config."""


_LIMIT = click.option("-n", "--limit", type=click.IntRange(1, 1000), help="How many.  [100]")


@show_group.command("peers")
@click.option("-l", "--long", is_flag=True, help="Fingerprints and DNS names, too.")
@common
def show_peers(context: Context, long: bool) -> None:
    """Known hosts."""
    rows = context.ask("peers")
    context.tell(rows, lambda: show.peers(rows, time.time(), long))


@show_group.command("connections")
@click.option(
    "--state", type=click.Choice(["short", "long", "bound", "held", "redirected"]),
    help="Only those in this state.",
)  # fmt: skip
@click.option("--peer", metavar="PEER", help="Only those to this peer.")
@common
def show_connections(context: Context, state: str | None, peer: str | None) -> None:
    """TCP connections, and why they are protected or not."""
    rows = context.ask("connections", state=state, peer=peer)
    context.tell(rows, lambda: show.connections(rows, time.time()))


@show_group.command("redirects")
@common
def show_redirects(context: Context) -> None:
    """Connections that are translated or held now."""
    rows = context.ask("redirects")
    context.tell(rows, lambda: show.connections(rows, time.time()) if rows else "no redirects")


@show_group.command("events")
@_LIMIT
@click.option("--before", type=click.IntRange(0), metavar="ID", help="Older than this event.")
@click.option(
    "--level", type=click.Choice(["debug", "info", "notice", "warning", "alert"]),
    help="This level and graver ones.",
)  # fmt: skip
@click.option("--search", metavar="TEXT", help="Only those that hold TEXT.")
@common
def show_events(
    context: Context,
    limit: int | None,
    before: int | None,
    level: str | None,
    search: str | None,
) -> None:
    """What happened, the newest last."""
    rows = context.ask("events", limit=limit, before=before, level=level, search=search)
    context.tell(rows, lambda: show.events(rows))


@show_group.command("moves")
@_LIMIT
@common
def show_moves(context: Context, limit: int | None) -> None:
    """Address changes, the newest first."""
    rows = context.ask("moves", limit=limit)
    context.tell(rows, lambda: show.moves(rows))


@show_group.command("status")
@common
def show_status(context: Context) -> None:
    """The daemon at a glance, with its warnings."""
    data = context.ask("status")
    context.tell(data, lambda: show.status(data, time.time()))


@show_group.command("config")
@common
def show_config(context: Context) -> None:
    """The settings in force."""
    data = context.ask("config")
    context.tell(data, lambda: show.settings(data))


@main.command("monitor")
@common
def monitor(context: Context) -> None:
    """Print events as they happen, until interrupted."""
    with (
        contextlib.suppress(KeyboardInterrupt),
        translated(context),
        ControlClient(context.socket) as client,
    ):
        for event in client.monitor():
            click.echo(json.dumps(event) if context.json else show.event(event))
            sys.stdout.flush()


# peer


@main.group("peer")
def peer_group() -> None:
    """Decide about known hosts.  PEER is a name, an ID, or its first digits (4 or more)."""


_PEER = click.argument("peer", metavar="PEER")
_YES = click.option("-y", "--yes", is_flag=True, help="Do not ask.")


@peer_group.command("list")
@click.option("-l", "--long", is_flag=True, help="Fingerprints and DNS names, too.")
@common
def peer_list(context: Context, long: bool) -> None:
    """The same as 'show peers'."""
    rows = context.ask("peers")
    context.tell(rows, lambda: show.peers(rows, time.time(), long))


@peer_group.command("accept")
@_PEER
@common
def peer_accept(context: Context, peer: str) -> None:
    """Trust a peer that waits for it."""
    data = context.ask("peer.accept", peer=peer)
    context.tell(data, lambda: f"{_named(data)} is trusted")


@peer_group.command("verify")
@_PEER
@_YES
@common
def peer_verify(context: Context, peer: str, yes: bool) -> None:
    """Say that the fingerprint was compared with the one shown at the other host."""
    if _may_ask(context, yes):
        found = _find(context, peer)
        click.echo(f"Fingerprint of {_named(found)}: {show.clean(found.get('fingerprint'))}")
        click.confirm("Does the other host show the same?", abort=True)
        peer = str(found.get("peer_id"))
    data = context.ask("peer.verify", peer=peer)
    context.tell(data, lambda: f"{_named(data)} is verified")


@peer_group.command("rename")
@_PEER
@click.argument("name", metavar="NAME")
@common
def peer_rename(context: Context, peer: str, name: str) -> None:
    """Give a peer another name."""
    data = context.ask("peer.rename", peer=peer, name=name)
    context.tell(data, lambda: f"renamed to {_named(data)}")


@peer_group.command("revoke")
@_PEER
@common
def peer_revoke(context: Context, peer: str) -> None:
    """Trust a peer no more, and remember that."""
    data = context.ask("peer.revoke", peer=peer)
    context.tell(data, lambda: f"{_named(data)} is revoked")


@peer_group.command("forget")
@_PEER
@_YES
@common
def peer_forget(context: Context, peer: str, yes: bool) -> None:
    """Delete a peer with its keys."""
    if _may_ask(context, yes):
        found = _find(context, peer)
        count = found.get("connections")
        noun = "connection" if count == 1 else "connections"
        click.echo(f"{count} {noun} with {_named(found)} will end at the next address change.")
        click.confirm("Forget it with its keys?", abort=True)
        peer = str(found.get("peer_id"))
    data = context.ask("peer.forget", peer=peer)
    left = data.get("connections")
    nouns = "connection is a plain one" if left == 1 else "connections are plain ones"
    context.tell(data, f"forgotten; {left} {nouns} now")


@peer_group.command("dns")
@_PEER
@click.argument("dns_name", metavar="[DNS-NAME]", required=False)
@common
def peer_dns(context: Context, peer: str, dns_name: str | None) -> None:
    """Where to look for a peer when both ends moved at once; no DNS-NAME: nowhere."""
    # null is a value here, so it must be sent
    with translated(context), ControlClient(context.socket) as client:
        data = client.ask("peer.dns", {"peer": peer, "dns_name": dns_name})
    context.tell(data, lambda: f"{_named(data)}: {show.clean(data.get('dns_name'))}")


_OUTPUT = click.option(
    "-o", "--output", metavar="FILE",
    help="Write to this new file (mode 0600), or '-' to standard output.  [NAME.pair]",
)  # fmt: skip


@peer_group.command("export")
@_PEER
@_OUTPUT
@common
def peer_export(context: Context, peer: str, output: str | None) -> None:
    """Write our keys with a peer, as a backup or for a new machine of ours.  Secret!"""
    name = str(_find(context, peer).get("name")) if output is None else ""
    with secret_file(context, output, name) as (file, where):
        data = context.ask("peer.export", peer=peer)
        write_secret(context, file, where, data, "keep it as safe as a password")


@peer_group.command("introduce")
@click.argument("name", metavar="NAME")
@click.option("--address", metavar="ADDRESS", help="Where the other host is.")
@click.option("--port", type=click.IntRange(1, 65535), help="Its redirectd's UDP port.")
@_OUTPUT
@common
def peer_introduce(
    context: Context, name: str, address: str | None, port: int | None, output: str | None
) -> None:
    """Make keys for a pair and write what the other host is to import.  Secret!"""
    with secret_file(context, output, name) as (file, where):
        data = context.ask("peer.introduce", name=name, address=address, port=port)
        remedy = "on the other host: 'redirectctl peer import FILE'; then delete it"
        write_secret(context, file, where, data, remedy)


@peer_group.command("import")
@click.argument("file", metavar="[FILE]", type=click.File("r", encoding="utf-8"), default="-")
@click.option("--name", metavar="NAME", help="What to call the peer.")
@common
def peer_import(context: Context, file: TextIO, name: str | None) -> None:
    """Read the keys that 'introduce' or 'export' wrote; without FILE from standard input."""
    try:
        text = file.read(TEXT_MAX + 1)
        read_pair(text)
    except UnicodeDecodeError:
        raise Failure(context, 1, "bad-request", f"{file.name} is not text") from None
    except IntroductionError as error:
        raise Failure(context, 1, "bad-request", f"{file.name}: {error}") from None
    data = context.ask("peer.import", text=text, name=name)
    context.tell(data, lambda: f"{_named(data)} is {show.clean(data.get('state'))}")


# connections


@main.group("connection")
def connection_group() -> None:
    """Steer one connection.  ID is its ID or a unique beginning of it."""


@connection_group.command("resend")
@click.argument("conn", metavar="ID")
@common
def connection_resend(context: Context, conn: str) -> None:
    """Tell the peer its newest address change again."""
    context.tell(context.ask("connection.resend", conn=conn), "sent again")


@connection_group.command("path")
@click.argument("conn", metavar="ID")
@click.argument("path", metavar="kernel|divert", type=click.Choice(["kernel", "divert"]))
@common
def connection_path(context: Context, conn: str, path: str) -> None:
    """Let the kernel translate it, or a packet worker, until the rules are read again."""
    context.tell(context.ask("connection.path", conn=conn, path=path), f"on the {path} path")


@connection_group.command("drop")
@click.argument("conn", metavar="ID")
@common
def connection_drop(context: Context, conn: str) -> None:
    """Give a binding up: the connection is a plain one from then on."""
    context.tell(context.ask("connection.drop", conn=conn), "given up")


@main.command("move")
@click.argument("to", metavar="TO")
@click.option("--from", "from_", metavar="ADDRESS", help="Only what is on this address now.")
@common
def move(context: Context, to: str, from_: str | None) -> None:
    """Move the bound connections to TO, another address of this machine."""
    context.tell(context.ask("move", to=to, from_=from_), "moving: see 'redirectctl show moves'")


main.add_command(capture_group)


# How


def _may_ask(context: Context, yes: bool) -> bool:
    """A question is for a person at a terminal; a script has decided already."""
    return not yes and not context.json and sys.stdin.isatty()


def _named(peer: Json) -> str:
    return f"{show.clean(peer.get('name'))} ({str(peer.get('peer_id'))[:8]})"


def _find(context: Context, peer: str) -> Json:
    rows: list[Json] = context.ask("peers")
    exact = [r for r in rows if peer in (r.get("peer_id"), r.get("name"))]
    begin = [r for r in rows if len(peer) >= 4 and str(r.get("peer_id")).startswith(peer)]
    found = exact or begin
    if len(found) == 1:
        return found[0]
    if found:
        raise Failure(context, 1, "ambiguous", f"{peer!r} names {len(found)} peers: use the ID")
    raise Failure(context, 1, "not-found", f"no peer {peer!r}: see 'redirectctl show peers'")


@main.command("web")
@click.option(
    "-f", "path", metavar="FILE", type=click.Path(path_type=Path), default=DEFAULT_PATH,
    help=f"Configuration.  [{DEFAULT_PATH}]",
)  # fmt: skip
@common
def web(context: Context, path: Path) -> None:
    """Where the admin page is and, as long as no password is set, its set-up code."""
    # a program of its own, since the page's secrets are none of the daemon's matters
    argv = [sys.executable, "-m", "webui", "--show", "--config", str(path)]
    done = subprocess.run(argv, capture_output=True, text=True)
    if done.returncode != 0:
        raise Failure(context, 1, "refused", done.stderr.strip() or "redirectd-web failed")
    context.tell({"text": done.stdout}, done.stdout.rstrip("\n"))


if __name__ == "__main__":
    main(prog_name="redirectctl")
