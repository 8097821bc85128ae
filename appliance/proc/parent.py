"""The privileged parent: opens sockets, applies rules, parses nothing from the network.

    parent (root) --- Unix socket, ipc.py --- engine (_redirectd)
      | nftables or pfctl, routes, conntrack         | UDP, keystore, control socket
      | raw and netlink sockets, opened here         | the same sockets, no capability
      |
      +---------- Unix socket, ipc.py --- packet worker (_redirectd), see diverted.py

It starts either again when it dies; the kernel's rules stay meanwhile, so that
connections go on (those on the divert path wait for their worker).  On SIGHUP it reads the
configuration again, and starts an engine with the new one.  An engine that dies again
and again before it serves needs a person: then the parent ends as well, and says so.
"""

from __future__ import annotations

import errno
import logging
import os
import select
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import attrs

from ..backend.api import BackendError
from ..config import DEFAULT_PATH, Config, load
from ..config_reading import ConfigError
from . import backends, privileges, sandbox, udp
from .diverted import PathTable, WorkerProcess
from .inherited import Inherited
from .ipc import EngineLink, ProtocolError
from .recording import Recordings
from .servant import Servant

log = logging.getLogger("redirectd.parent")

T = TypeVar("T")

FREE_WITHIN = 3.0  # seconds
VERIFY_EVERY = 5.0  # seconds without a request after which the rules are looked at
EARLY_DEATHS = 5  # in a row: then it is no accident
EX_SOFTWARE = 70  # sysexits(3)

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

# What the parent has opened by, and can't have otherwise without a new start.
_FIXED = ("port", "state_dir", "control_socket", "user", "interfaces", "table", "nflog_group",
          "nfqueue")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Restarts:
    """Seconds: the pause before an engine that died is started again is ``first``, then
    twice as long each time up to ``most``, and ``first`` again after one lived ``calm``.

    early  an engine that dies before it serves, and before this, could not start
    """

    first: float = 0.2
    most: float = 30.0
    calm: float = 60.0
    early: float = 10.0


class Parent:
    """Forks the engine, serves it, starts it again when it dies."""

    def __init__(
        self,
        config: Config,
        engine_main: Callable[[Config, Inherited], None],
        restarts: Restarts = Restarts(),
    ) -> None:
        self._config = config
        self._engine_main = engine_main
        self._restarts = restarts
        self._engine_pid = 0
        self._stopping = self._reload = False
        # whether the next engine goes by the rules of a configuration that is new
        self._fresh = True

    def run(self) -> int:
        """Until a signal ends it; the exit status."""
        config = self._config
        account = privileges.account(config.user)
        _private_directory(Path(config.state_dir), account.pw_uid, account.pw_gid)
        worker = WorkerProcess(
            lambda: backends.open_queue(config), backends.packet_worker, config.user
        )
        privileged = _once_free(lambda: backends.open_privileged(config))
        sockets = _once_free(lambda: udp.open_sockets(config.port))
        control = _control_socket(Path(config.control_socket), account.pw_gid)
        recordings = Recordings(
            Path(config.state_dir),
            config.user,
            backends.capture_interfaces(config),
            lambda: self._lock_up("capture"),
        )
        self._lock_up("parent")
        table = PathTable(privileged.table, worker)
        servant = Servant(table, privileged.host, recordings)
        try:
            if config.diverts():
                _once_free(worker.start)
            with self._signals() as wake_up:
                return self._keep_one_running(
                    servant,
                    lambda: self._one_engine(
                        servant, worker, wake_up, sockets, control, privileged.sockets
                    ),
                    worker,
                    wake_up,
                )
        finally:
            recordings.close()
            if not servant.keep:
                privileged.host.close()
            table.close(keep=servant.keep)
            Path(config.control_socket).unlink(missing_ok=True)

    def _lock_up(self, process: str) -> None:
        config = self._config
        sandbox.enter(process, config.state_dir, config.control_socket, config.source)

    def _keep_one_running(
        self,
        servant: Servant,
        one_engine: Callable[[], None],
        worker: WorkerProcess,
        wake_up: socket.socket,
    ) -> int:
        pause, early = self._restarts.first, 0
        while True:
            started = time.monotonic()
            one_engine()
            if self._stopping:
                return 0
            if self._fresh:
                continue  # it made way for the next one
            lived = time.monotonic() - started
            early = 0 if servant.serves or lived > self._restarts.early else early + 1
            if early == EARLY_DEATHS:
                log.critical(
                    "giving up: the engine died %d times before it served, and said above why;"
                    " rules and connections stay as they are",
                    EARLY_DEATHS,
                )
                return EX_SOFTWARE
            if lived > self._restarts.calm:
                pause = self._restarts.first
            log.warning("the engine died; starting it again in %.1f s", pause)
            until = time.monotonic() + pause
            while not self._stopping and (left := until - time.monotonic()) > 0:
                _wait([wake_up], worker, left)
                if _woken(wake_up) and self._reload:
                    self._read_again(worker)
            if self._stopping:
                return 0
            pause = min(2 * pause, self._restarts.most)

    @contextmanager
    def _signals(self) -> Iterator[socket.socket]:
        """Catches them; the socket is readable once one came, so that no pause sleeps on."""
        reader, writer = socket.socketpair()
        for end in (reader, writer):
            end.setblocking(False)
        before = {number: signal.signal(number, self._on_signal) for number in _SIGNALS}
        old = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        try:
            yield reader
        finally:
            signal.set_wakeup_fd(old)
            for number, handler in before.items():
                signal.signal(number, handler)
            reader.close()
            writer.close()

    def _one_engine(
        self,
        servant: Servant,
        worker: WorkerProcess,
        wake_up: socket.socket,
        sockets: list[socket.socket],
        control: socket.socket,
        backend: backends.Sockets,
    ) -> None:
        servant.engine_starts()
        fresh, self._fresh = self._fresh, False
        ours, theirs = socket.socketpair()
        # a signal must find the engine's process ID as soon as there is an engine
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        pid = os.fork()
        if pid == 0:
            status = EX_SOFTWARE
            try:
                ours.close()
                worker.forget()
                signal.set_wakeup_fd(-1)
                for number in _SIGNALS:
                    signal.signal(number, signal.SIG_DFL)
                signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
                privileges.drop(self._config.user)
                self._engine_main(
                    self._config, Inherited(theirs, sockets, control, backend, fresh)
                )
                status = 0
            except SystemExit as fault:
                log.debug("the engine ends: %s", fault)
            except BaseException:
                log.exception("the engine failed")
            finally:
                logging.shutdown()
                os._exit(status)
        self._engine_pid = pid
        if self._stopping:
            os.kill(pid, signal.SIGTERM)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        theirs.close()
        link = EngineLink(ours)
        verify_at = time.monotonic() + VERIFY_EVERY
        try:
            while True:
                ready = _wait([ours, wake_up], worker, verify_at - time.monotonic())
                woken = wake_up in ready and _woken(wake_up)
                if woken and self._reload and self._read_again(worker):
                    os.kill(pid, signal.SIGTERM)
                if ours in ready:
                    servant.serve_one(link)
                    verify_at = time.monotonic() + VERIFY_EVERY
                elif time.monotonic() >= verify_at:
                    servant.verify()
                    verify_at = time.monotonic() + VERIFY_EVERY
        except (EOFError, ConnectionError):
            pass
        except ProtocolError as fault:
            log.error("the engine broke the protocol: %s", fault)
            os.kill(pid, signal.SIGKILL)
        finally:
            ours.close()
            self._engine_pid = 0
            os.waitpid(pid, 0)

    def _read_again(self, worker: WorkerProcess) -> bool:
        """The configuration; whether there is a new one to go by."""
        self._reload = False
        before = self._config
        try:
            found = load(before.source or DEFAULT_PATH)
            if missing := found.not_yet(backends.can_divert()):
                raise BackendError("\n".join(missing))
            if found.diverts():
                worker.start()
        except (ConfigError, BackendError) as fault:
            log.error("the configuration stays as it was: %s", fault)
            return False
        fixed = {name: getattr(before, name) for name in _FIXED}
        if changed := [name for name in _FIXED if getattr(found, name) != fixed[name]]:
            log.warning("%s: only a new start changes that", ", ".join(changed).replace("_", "-"))
        self._config = attrs.evolve(found, **fixed)
        self._fresh = True
        log.info("the configuration is read again; an engine starts with it")
        return True

    def _on_signal(self, number: int, frame: object) -> None:
        """Pass an end on: the engine decides what stays in the kernel."""
        if number == signal.SIGHUP:
            self._reload = True
            return
        self._stopping = True
        if self._engine_pid:
            os.kill(self._engine_pid, number)


def _wait(
    channels: list[socket.socket], worker: WorkerProcess, seconds: float
) -> list[socket.socket]:
    """Until one of them can be read, or so long; looks after the packet worker meanwhile."""
    due = worker.due()
    timeout = max(0.0, seconds if due is None else min(due, seconds))
    ready = select.select([*channels, *worker.channels()], [], [], timeout)[0]
    worker.look()
    return ready


def _woken(wake_up: socket.socket) -> bool:
    """Whether there were signals; those are taken care of."""
    with suppress(BlockingIOError):
        return bool(wake_up.recv(4096))
    return False


def _once_free(open_it: Callable[[], T]) -> T:
    """An engine whose parent was killed ends by itself; what it had is free in a moment."""
    deadline = time.monotonic() + FREE_WITHIN
    while True:
        try:
            return open_it()
        except (BackendError, OSError) as fault:
            taken = getattr(fault, "errno", None) in (errno.EADDRINUSE, errno.EBUSY)
            if not taken or time.monotonic() > deadline:
                raise
        time.sleep(0.05)


def _private_directory(path: Path, uid: int, gid: int) -> None:
    path.mkdir(parents=True, exist_ok=True)
    os.chown(path, uid, gid)
    path.chmod(0o700)


def _control_socket(path: Path, gid: int) -> socket.socket:
    """Listening, mode 0660, group of the daemon's user; a stale one is replaced."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o117)
    try:
        sock.bind(str(path))
    finally:
        os.umask(before)
    os.chown(path, 0, gid)
    sock.listen(16)
    sock.setblocking(False)
    return sock


def _engine(config: Config, inherited: Inherited) -> None:
    from .engine import main  # heavy imports: only the engine pays for them

    main(config, inherited)


def run(config: Config) -> int:
    """Run the daemon in the foreground until a signal ends it; the exit status."""
    return Parent(config, _engine).run()
