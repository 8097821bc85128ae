"""``make demo``: four changes of address under ssh, rsync and psql, told as they happen.

      LAN 192.168.7.0/24          the internet of the lab            198.51.100.0/24: A
                                                                     203.0.113.0/24: B
    +--------+     +---------+                    +----------+
    | laptop |-----|  home   |---- A or B --------|  server  |  192.0.2.9   runs redirectd
    +--------+     | gateway |     |         |    +----------+
      ssh, rsync,  +---------+     |         |    +----------+
      psql          NAT, firewall, |         +----| plainbox |  192.0.2.10  does not
                    runs redirectd |    20 ms     +----------+
                               stranger

The exit status is 0 only if nothing was lost, doubled or altered.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from tabulate import tabulate

from . import services, topologies
from .daemon import Daemon, introduce
from .kernel import LabError
from .net import Lab
from .page import open_page
from .sessions import PsqlLedger, RsyncCopy, Session, SshCounter

SERVER, PLAINBOX = "192.0.2.9", "192.0.2.10"
RATE_KB = 2000  # of rsync, so that it lasts as long as the demo


class Story:
    """Prints what happens, each line with its time."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.color = sys.stdout.isatty() and "NO_COLOR" not in os.environ

    def _paint(self, code: str, text: str) -> str:
        return f"\033[{code}m{text}\033[0m" if self.color else text

    def good(self, text: str) -> str:
        return self._paint("32", text)

    def bad(self, text: str) -> str:
        return self._paint("31", text)

    def title(self, text: str) -> None:
        print()
        self.tell(self._paint("1", text))

    def tell(self, text: str) -> None:
        print(f"[{time.monotonic() - self.began:5.1f} s] {text}", flush=True)

    def more(self, text: str) -> None:
        print(f"          {text}", flush=True)


@dataclass(slots=True)
class Stage:
    """Everything on it."""

    lab: Lab
    top: topologies.Home
    protected: list[Session]
    contrast: Session
    gateway: Daemon | None
    server: Daemon | None


def set_up(lab: Lab, story: Story, rtt_ms: float, protect: bool) -> Stage:
    story.title("A small internet in network namespaces; this machine's network stays as it is")
    top = topologies.home(lab, rtt_ms=rtt_ms)
    plainbox = lab.host("plainbox", top.net.c, *topologies.C2, rtt_ms=rtt_ms)
    story.tell(f"built: laptop, home gateway, two servers {rtt_ms:g} ms away")
    sshd, plain_sshd = services.Sshd(top.server), services.Sshd(plainbox)
    rsyncd, postgres = services.Rsyncd(top.server), services.Postgres(top.server)
    story.tell("real servers started: sshd, rsync, PostgreSQL")
    gateway = server = None
    if protect:
        gateway = lab.daemon(top.home, interfaces={"inside": ["lan"], "outside": ["wan"]})
        server = lab.daemon(top.server)
        introduce(gateway, server)
        story.tell("redirectd runs on the home gateway and on the server; they know each other")
    protected: list[Session] = [
        SshCounter("ssh", top.laptop, sshd, SERVER),
        RsyncCopy("rsync", top.laptop, rsyncd, SERVER, 60 << 20, RATE_KB),
        PsqlLedger("psql", top.laptop, postgres, SERVER),
    ]
    contrast = SshCounter("ssh, unprotected", top.laptop, plain_sshd, PLAINBOX)
    for session in [*protected, contrast]:
        if not session.wait_beats(1):
            raise LabError(f"{session.name} did not start: {session.last_words}")
    story.title("Four connections from the laptop, through the gateway's NAT")
    story.more(f"ssh    to {SERVER}    prints a counter, ten lines a second")
    story.more(f"rsync  to {SERVER}    uploads 60 MB at {RATE_KB / 1000:g} MB/s")
    story.more(f"psql   to {SERVER}    inserts ten rows a second, each awaited")
    story.more(f"ssh    to {PLAINBOX}   the same counter, on a server without redirectd")
    threading.Thread(target=tell_death, args=(contrast, story), daemon=True).start()
    return Stage(lab, top, protected, contrast, gateway, server)


def show_page(stage: Stage, story: Story, port: int) -> None:
    if stage.gateway is None:
        return
    page = open_page(stage.lab, stage.gateway, port)
    story.title(f"The gateway's admin page, for a browser on this machine: {page.url}")
    story.more(f"set-up code: {page.setup_code}    (moves can be watched under Connections)")


def stay(stage: Stage, story: Story) -> None:
    story.title("Everything stays as it is until Ctrl-C")
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            time.sleep(3600)
    print()


def await_bound(stage: Stage, story: Story) -> None:
    if stage.gateway is None or stage.server is None:
        story.tell("no redirectd this time: see what happens without it")
        return
    story.tell("connections that live for 10 s are worth keeping; the daemons bind them …")
    stage.gateway.wait_bound(len(stage.protected), timeout=60)
    stage.server.wait_bound(len(stage.protected), timeout=60)
    story.tell(story.good("bound: ssh, rsync and psql, each proved to be the same at both ends"))


def move(
    stage: Stage,
    story: Story,
    number: int,
    what: str,
    details: str,
    act: Callable[[], float],
    since: str = "the new address came",
) -> None:
    """``act`` changes the address and returns the moment that counts, ``since`` names it."""
    story.title(f"Move {number}: {what}")
    story.more(details)
    before = time.monotonic()
    there = act()
    patience = there + 5
    for session in stage.protected:
        if not session.alive and session.died is None:
            continue  # rsync was through already
        first = session.first_after(there, patience - time.monotonic())
        if first is None:
            story.more(f"{session.name:6} " + story.bad("is silent"))
            continue
        gap = session.longest_gap(before, first)
        story.more(
            f"{session.name:6} "
            + story.good("goes on")
            + f" {(first - there) * 1000:4.0f} ms after {since};"
            + f" longest silence {gap * 1000:.0f} ms"
        )
    for session in stage.protected:
        session.wait_beats(15, timeout=max(0.0, patience + 5 - time.monotonic()))


def tell_death(contrast: Session, story: Story) -> None:
    """In a thread: the unprotected session dies when it pleases."""
    while contrast.alive:
        time.sleep(0.05)
    if contrast.died is not None:
        words = f": {contrast.last_words}" if contrast.last_words else ""
        count = f"{len(contrast.beats)} {contrast.unit}"
        story.tell(story.bad(f"meanwhile the unprotected ssh died, after {count}") + words)


def moves(stage: Stage, story: Story) -> None:
    lab, top = stage.lab, stage.top
    home = top.home
    a, a2, b, b2 = "198.51.100.7/24", "198.51.100.8/24", "203.0.113.7/24", "203.0.113.8/24"

    def renew_late() -> float:
        home.del_address(a)
        time.sleep(0.3)
        home.add_address(a2)
        return time.monotonic()

    def other_provider() -> float:
        home.del_address(a2)
        home.unplug()
        time.sleep(1)
        home.plug(network=top.net.b)
        home.add_address(b)
        return time.monotonic()

    def renew_early() -> float:
        home.add_address(b2)
        time.sleep(1)
        home.del_address(b)
        return time.monotonic()

    def come_back() -> float:
        home.del_address(b2)
        home.unplug()
        time.sleep(0.5)
        home.plug(network=top.net.a)
        home.add_address(a)
        return time.monotonic()

    move(stage, story, 1, "the provider gives the gateway another address",
         "198.51.100.7 goes, 0.3 s later 198.51.100.8 comes", renew_late)  # fmt: skip
    stranger = lab.host("stranger", top.net.a, a)
    story.tell("a stranger gets the freed address 198.51.100.7 and answers there with RST")
    move(stage, story, 2, "another provider: the cable goes into another network",
         "1 s without any link, then 203.0.113.7", other_provider)  # fmt: skip
    move(stage, story, 3, "make before break",
         "203.0.113.8 comes 1 s before 203.0.113.7 goes", renew_early,
         "the old address went")  # fmt: skip
    stranger.del_address(a)
    move(stage, story, 4, "and back to the first address",
         "the stranger left; 0.5 s without link, then 198.51.100.7 again", come_back)  # fmt: skip


def finish(stage: Stage, story: Story) -> bool:
    """Ends the programs, prints the table; True if nothing was lost."""
    story.title("The programs come to their natural end")
    rows: list[list[object]] = []
    fine = True
    moved = _moves_of(stage)
    handovers = _handovers(stage)
    for session in stage.protected:
        alive = session.died is None
        if session.name == "rsync" and alive:
            story.tell("waiting for rsync to finish and comparing SHA-256 …")
        session.finish(timeout=60 if alive and session.beats_in(10) else 5)
        faults = session.faults()
        fine = fine and not faults
        rows.append(
            [
                session.name,
                moved.get(session.name, "-"),
                _amount(session),
                story.bad(", ".join(faults)) if faults else story.good("0"),
                f"{session.longest_gap() * 1000:.0f} ms",
                handovers,
            ]
        )
    contrast = stage.contrast
    if contrast.died is None:
        contrast.finish()
        state = "alive"
    else:
        state = story.bad(f"died at {contrast.died - story.began:.1f} s")
    rows.append([contrast.name, 0, _amount(contrast), state, "-", "-"])
    headers = ["connection", "moves", "carried", "lost or doubled", "longest gap", "handover"]
    print()
    print(tabulate(rows, headers, tablefmt="simple", disable_numparse=True))
    print(
        "\nlongest gap: without a line, counting the time without any address (1 s in move 2)\n"
        'handover: from sending the address change to the far gateway\'s "done", median (most)'
    )
    return fine


def _amount(session: Session) -> str:
    if isinstance(session, RsyncCopy):
        return f"{session.size >> 20} MB"
    return f"{len(session.numbers)} {session.unit}"


def _moves_of(stage: Stage) -> dict[str, int]:
    """How often each protected connection was moved, as the gateway counts."""
    if stage.gateway is None:
        return {}
    ports = {str(services.SSH_PORT): "ssh", str(services.RSYNC_PORT): "rsync",
             str(services.POSTGRES_PORT): "psql"}  # fmt: skip
    return {
        ports[row["birth"][1].rpartition(":")[2]]: row["moves"]
        for row in stage.gateway.connections()
        if row["conn_id"] and row["birth"][1].rpartition(":")[2] in ports
    }


def _handovers(stage: Stage) -> str:
    if stage.gateway is None:
        return "-"
    times = [m["handover_ms"] for m in stage.gateway.ctl("moves") if m["handover_ms"] is not None]
    if not times:
        return "-"
    return f"{statistics.median(times):.0f} ms ({max(times):.0f})"


def check_nothing_left(stage: Stage, story: Story) -> bool:
    """With the last connection everything that redirectd did must go."""
    if stage.gateway is None or stage.server is None:
        return True
    story.tell("the connections are closed; the daemons let go of them …")
    for daemon in (stage.gateway, stage.server):
        daemon.wait_released()
        status = daemon.stop()
        if status != 0:
            story.tell(story.bad(f"{daemon} ended with {status}"))
            return False
    tables = stage.top.home.run(["nft", "list", "tables"]).stdout.split("\n")
    extra = [t for t in tables if t and t != "table inet home"]
    if extra:
        story.tell(story.bad(f"left behind on the gateway: {', '.join(extra)}"))
        return False
    story.tell("the daemons stopped; nothing of theirs is left on the gateway")
    return True


def main() -> int:
    parser = argparse.ArgumentParser(prog="make demo", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rtt", type=float, default=20, help="round trip in ms (20)")
    parser.add_argument(
        "--without-redirectd", action="store_true", help="the same, and see everything die"
    )
    parser.add_argument(
        "--stay", action="store_true", help="keep running after the moves, until Ctrl-C"
    )
    parser.add_argument("--page-port", type=int, default=0, help="of the admin page (any)")
    options = parser.parse_args()
    print((__doc__ or "").partition("\n\n")[2].rpartition("\n\n")[0])
    story = Story()
    with Lab() as lab:
        try:
            stage = set_up(lab, story, options.rtt, not options.without_redirectd)
            show_page(stage, story, options.page_port)
            await_bound(stage, story)
            moves(stage, story)
            if options.stay:
                stay(stage, story)
            fine = finish(stage, story)
            fine = check_nothing_left(stage, story) and fine
        except LabError as error:
            story.tell(story.bad(f"the demo broke: {error}"))
            return 2
        if not fine and not options.without_redirectd:
            for daemon in lab.daemons:
                print(f"\n{daemon.host.name}: redirectd's log\n{daemon.log[-4000:]}")
    print()
    story.tell(story.good("Nothing was lost.") if fine else story.bad("Something was lost."))
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
