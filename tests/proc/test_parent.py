"""The parent starts engines, gives up when that is of no use, and ends as it is told."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from appliance.backend.fake import FakeHost, FakeTable
from appliance.config import Config, load
from appliance.proc import backends, parent, udp
from appliance.proc.inherited import Inherited
from appliance.proc.ipc import Message, ParentLink
from appliance.proc.parent import EARLY_DEATHS, EX_SOFTWARE, Parent, Restarts
from appliance.rewrite.flow import Flow
from appliance.rewrite.redirect import Entry

FLOW = Flow.of("192.0.2.1", 40000, "198.51.100.1", 22)
ENTRY = Entry("ab" * 16, FLOW, FLOW, True, True, (FLOW,), None, ())
QUICK = Restarts(first=0.01, most=0.01)
Engine = Callable[[Config, Inherited], None]


class Watched:
    """A daemon whose engines are functions; each of them leaves a line in ``told``."""

    def __init__(self, directory: Path) -> None:
        self.told = directory / "told"
        self.told.touch()
        self.told.chmod(0o666)
        self.table, self.host = FakeTable(), FakeHost()
        path = directory / "redirectd.toml"
        path.write_text(
            f'state-dir = "{directory}/state"\ncontrol-socket = "{directory}/control.sock"\n'
            'user = "nobody"\nport = 47870\n'
        )
        self.config = load(path)

    def tell(self, line: str) -> None:
        with self.told.open("a") as file:
            file.write(f"{line}\n")

    @property
    def lines(self) -> list[str]:
        return self.told.read_text().split()

    def wait(self, lines: int) -> None:
        deadline = time.monotonic() + 10
        while len(self.lines) < lines:
            assert time.monotonic() < deadline, self.lines
            time.sleep(0.005)

    def run(self, engine: Engine, restarts: Restarts = QUICK) -> int:
        self.table.open()
        return Parent(self.config, engine, restarts).run()

    def when(self, lines: int, number: signal.Signals) -> None:
        """Send ourselves (we are the parent) a signal once there are so many lines."""

        def later() -> None:
            try:
                self.wait(lines)
            finally:
                os.kill(os.getpid(), number)

        threading.Thread(target=later, daemon=True).start()


@pytest.fixture
def daemon(monkeypatch: pytest.MonkeyPatch) -> Iterator[Watched]:
    if os.geteuid() != 0:
        pytest.fail("the parent gives up root: run as root ('make test' uses sudo)")
    with tempfile.TemporaryDirectory() as name:  # tmp_path is closed to strangers
        directory = Path(name)
        directory.chmod(0o755)
        made = Watched(directory)
        privileged = backends.Privileged(made.table, made.host, None)
        monkeypatch.setattr(backends, "open_privileged", lambda config: privileged)
        monkeypatch.setattr(parent, "FREE_WITHIN", 0.0)
        yield made
        assert not Path(made.config.control_socket).exists()


def say(inherited: Inherited, *messages: tuple[Message, dict[str, object]]) -> None:
    """What an engine asks of its parent, one after the other."""

    async def talk() -> None:
        link = await ParentLink.connect(inherited.link)
        for kind, body in messages:
            await link.call(kind, body)

    asyncio.run(talk())


def starts(inherited: Inherited) -> None:
    say(inherited, (Message.REPLACE_ALL, {"entries": [ENTRY.to_json()]}), (Message.READY, {}))


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_an_engine_that_never_comes_to_serve_ends_the_daemon(
    daemon: Watched, caplog: pytest.LogCaptureFixture
) -> None:
    def engine(config: Config, inherited: Inherited) -> None:
        daemon.tell("engine")
        raise SystemExit("the database is damaged")

    assert daemon.run(engine) == EX_SOFTWARE
    assert len(daemon.lines) == EARLY_DEATHS
    assert "giving up" in caplog.text
    assert daemon.table.kept is True


def test_an_engine_that_served_is_started_again_however_often_it_dies(daemon: Watched) -> None:
    def engine(config: Config, inherited: Inherited) -> None:
        starts(inherited)
        daemon.tell("engine")
        die()

    daemon.when(3 * EARLY_DEATHS, signal.SIGTERM)
    assert daemon.run(engine) == 0
    assert len(daemon.lines) >= 3 * EARLY_DEATHS
    assert daemon.host.adopted == [ENTRY]


def test_a_few_deaths_at_the_start_are_forgiven(daemon: Watched) -> None:
    def engine(config: Config, inherited: Inherited) -> None:
        daemon.tell("engine")
        if len(daemon.lines) % EARLY_DEATHS == 0:
            starts(inherited)
        die()

    daemon.when(4 * EARLY_DEATHS + 1, signal.SIGTERM)
    assert daemon.run(engine) == 0


def test_pauses_double_up_to_the_longest(
    daemon: Watched, caplog: pytest.LogCaptureFixture
) -> None:
    def engine(config: Config, inherited: Inherited) -> None:
        starts(inherited)
        daemon.tell("engine")
        die()

    daemon.when(6, signal.SIGTERM)
    with caplog.at_level(logging.WARNING):
        assert daemon.run(engine, Restarts(first=0.01, most=0.05)) == 0
    pauses = [r.args for r in caplog.records if "starting it again" in r.msg]
    assert pauses[:5] == [(0.01,), (0.02,), (0.04,), (0.05,), (0.05,)]


def test_a_signal_ends_a_pause(daemon: Watched) -> None:
    def engine(config: Config, inherited: Inherited) -> None:
        starts(inherited)
        daemon.tell("engine")
        die()

    daemon.when(1, signal.SIGTERM)
    began = time.monotonic()
    assert daemon.run(engine, Restarts(first=60.0)) == 0
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("keep", [True, False])
def test_the_engine_says_what_stays_in_the_kernel(daemon: Watched, keep: bool) -> None:
    def engine(config: Config, inherited: Inherited) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        daemon.tell("engine")
        assert signal.sigwait([signal.SIGTERM]) == signal.SIGTERM
        say(inherited, (Message.READY, {}), (Message.BYE, {"keep": keep}))

    daemon.when(1, signal.SIGTERM)
    assert daemon.run(engine) == 0
    assert daemon.table.kept is keep
    assert daemon.host.closed is not keep


def test_everything_stays_when_the_engine_has_no_time_to_say_goodbye(daemon: Watched) -> None:
    def engine(config: Config, inherited: Inherited) -> None:
        starts(inherited)
        daemon.tell("engine")
        signal.pause()  # SIGTERM as it comes: the end

    daemon.when(1, signal.SIGTERM)
    assert daemon.run(engine) == 0
    assert daemon.table.kept is True
    assert not daemon.host.closed


def test_a_goodbye_that_nobody_asked_for_ends_nothing(daemon: Watched) -> None:
    def engine(config: Config, inherited: Inherited) -> None:
        daemon.tell("engine")
        if len(daemon.lines) == 1:
            say(inherited, (Message.READY, {}), (Message.BYE, {"keep": False}))
        else:
            starts(inherited)
            signal.pause()

    daemon.when(2, signal.SIGTERM)
    assert daemon.run(engine) == 0
    assert daemon.table.kept is True


def test_a_configuration_is_read_again_and_only_a_good_one_counts(
    daemon: Watched, caplog: pytest.LogCaptureFixture
) -> None:
    file = daemon.config.source
    assert file is not None
    good = file.read_text()

    def engine(config: Config, inherited: Inherited) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        starts(inherited)
        daemon.tell(f"{config.long_lived_after},{config.port},{inherited.fresh}")
        if len(daemon.lines) == 3:
            die()
        signal.sigwait([signal.SIGTERM])
        say(inherited, (Message.BYE, {"keep": True}))

    def steps() -> None:
        daemon.wait(1)
        file.write_text("what?")
        os.kill(os.getpid(), signal.SIGHUP)
        deadline = time.monotonic() + 10
        while "stays as it was" not in caplog.text and time.monotonic() < deadline:
            time.sleep(0.005)
        for number, after in ((2, 5), (3, 6)):
            text = good.replace("port = 47870", "port = 47871")
            file.write_text(f"long-lived-after = {after}\n{text}")
            os.kill(os.getpid(), signal.SIGHUP)
            daemon.wait(number)
        daemon.wait(4)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=steps, daemon=True).start()
    assert daemon.run(engine) == 0
    port = daemon.config.port
    assert daemon.lines == [
        f"10.0,{port},True", f"5.0,{port},True", f"6.0,{port},True", f"6.0,{port},False",
    ]  # fmt: skip
    assert "port: only a new start changes that" in caplog.text


def test_a_port_in_use_is_said_at_once_or_waited_for(
    daemon: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    def engine(config: Config, inherited: Inherited) -> None:
        starts(inherited)
        daemon.tell("engine")
        signal.pause()

    taken = udp.open_sockets(daemon.config.port)
    with pytest.raises(OSError, match="in use"):
        daemon.run(engine)
    monkeypatch.setattr(parent, "FREE_WITHIN", 10.0)

    def free() -> None:
        for sock in taken:
            sock.close()

    threading.Timer(0.2, free).start()
    daemon.when(1, signal.SIGTERM)
    assert daemon.run(engine) == 0
