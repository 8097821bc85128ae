"""Guests in QEMU: serial console, wires between them, power that can be cut.

    with Wire(tmp, "wan") as wan, Guest("gw", spec, tmp) as gw:
        gw.start()
        gw.login("root", "secret")
        print(gw.run("uname -a").output)
        gw.cut_power()          # SIGKILL: what the guest had not flushed is gone
        gw.start()

No root and no bridge: a card of a guest is a Unix socket of an :class:`ethernet.Wire`.
Whatever waits has a time-out, and a failure shows the end of the console.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import itertools
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pexpect
from ethernet import Wire

Accelerator = Literal["auto", "kvm", "tcg"]
PROGRAM = "qemu-system-x86_64"
_TAIL_LINES = 40
_LINE_MAX = 900  # terminals in canonical mode cut lines at 1024 (BSD) or 4096 (Linux)
_ALIVE = re.compile(rb"Linux version|OpenBSD [0-9]|OpenBSD/amd64|login: ")
_KVM_PATIENCE = 40.0
_EMULATED = 5  # an emulated processor is that much slower, and may share its host
_kvm_refused = False  # a guest of this process did not start with it


class GuestError(RuntimeError):
    """A guest did not do what was expected; says where its console stood."""


@dataclass(frozen=True, slots=True)
class Card:
    """A network card on a wire."""

    wire: Wire
    mac: str


@dataclass(frozen=True, slots=True)
class Machine:
    """What the guest is made of.

    disk    raw image, written to; None: no disk
    memory  MiB
    extra   more arguments for QEMU (a CD, a kernel, another netdev)

    bios_console  the firmware's screen and keyboard are on the serial console as well
    """

    disk: Path | None
    cards: tuple[Card, ...] = ()
    memory: int = 512
    extra: tuple[str, ...] = ()
    firmware: Path | None = None
    bios_console: bool = False


@dataclass(frozen=True, slots=True)
class Result:
    status: int
    output: str


@dataclass(slots=True)
class _Tail:
    """What pexpect copies the console to: a file, and the last lines for errors."""

    path: Path
    lines: deque[str] = field(default_factory=lambda: deque(maxlen=_TAIL_LINES))
    _rest: str = ""

    def write(self, data: bytes) -> None:
        with self.path.open("ab") as file:
            file.write(data)
        *full, self._rest = (self._rest + data.decode(errors="replace")).split("\n")
        self.lines.extend(line.rstrip("\r") for line in full)

    def flush(self) -> None:
        """Written at once."""

    def text(self) -> str:
        return "\n".join([*self.lines, self._rest]).strip()


class Guest:
    """One virtual machine; ``directory`` keeps its sockets and console log."""

    def __init__(
        self, name: str, machine: Machine, directory: Path, accelerator: Accelerator = "auto"
    ) -> None:
        self.name = name
        self.machine = machine
        self.accelerator = accelerator
        self.log = directory / f"{name}.console"
        # Unix socket paths are short (108 bytes), directories need not be.
        self._control_place = tempfile.TemporaryDirectory(prefix="qemu-")
        self._control_path = Path(self._control_place.name) / "control"
        self._tail = _Tail(self.log)
        self._child: pexpect.spawn[bytes] | None = None
        self._control: Control | None = None
        self._mark = itertools.count(1)
        self._patience = 1
        self._kvm: bool | None = None

    def __enter__(self) -> Guest:
        return self

    def __exit__(self, *_: object) -> None:
        self.cut_power()
        self._control_place.cleanup()

    # -- power -----------------------------------------------------------------------

    @property
    def running(self) -> bool:
        return self._child is not None and self._child.isalive()

    @property
    def pid(self) -> int:
        """QEMU's process."""
        return self._running_child().pid or 0

    def start(self) -> None:
        """Switch on.  With ``auto``, KVM is kept only if the guest shows signs of life
        under it; otherwise it starts again, emulated."""
        global _kvm_refused
        if self.running:
            raise GuestError(f"{self.name} is running already")
        if self.accelerator != "auto":
            self._spawn(self.accelerator)
            return
        if self._kvm is None:
            usable = os.access("/dev/kvm", os.R_OK | os.W_OK) and not _kvm_refused
            self._kvm = usable and self._starts_with_kvm()
            if self._kvm:
                return
            _kvm_refused = True
        self._spawn("kvm" if self._kvm else "tcg")

    def _starts_with_kvm(self) -> bool:
        """Another guest's success says nothing: some hosts run only simple ones."""
        self._spawn("kvm")
        try:
            self.wait_for(_ALIVE, _KVM_PATIENCE)
        except GuestError:
            self.cut_power()
            return False
        # Whoever waits next must find all of it.
        child = self._running_child()
        child.buffer = (child.before or b"") + (child.after or b"") + (child.buffer or b"")  # type: ignore[operator]
        return True

    def _spawn(self, accelerator: str) -> None:
        if shutil.which(PROGRAM) is None:
            raise GuestError(f"{PROGRAM} is missing: install the package qemu-system-x86")
        self._control_path.unlink(missing_ok=True)
        self._patience = 1 if accelerator == "kvm" else _EMULATED
        child: pexpect.spawn[bytes] = pexpect.spawn(
            PROGRAM, self.arguments(accelerator), timeout=60, echo=False, ignore_sighup=False
        )
        child.logfile_read = self._tail
        # A pseudo-terminal that is slow to drain must not stop the guest's clock.
        child.delaybeforesend = None
        self._child = child

    def arguments(self, accelerator: str) -> list[str]:
        machine = self.machine
        arguments = [
            "-name", self.name, "-nodefaults", "-no-user-config",
            "-machine",
            f"q35,accel={accelerator}{',graphics=off' if machine.bios_console else ''}",
            "-cpu", "host" if accelerator == "kvm" else "max",
            "-m", str(machine.memory), "-display", "none", "-vga", "none",
            # Ctrl-C on the console goes to the guest.
            # (QEMU leaves the terminal's NL to CR NL on: lines end with CR CR NL.)
            "-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console",
            "-qmp", f"unix:{self._control_path},server=on,wait=off",
            "-object", "rng-random,id=rng,filename=/dev/urandom",
            "-device", "virtio-rng-pci,rng=rng",
        ]  # fmt: skip
        if machine.firmware is not None:
            arguments += ["-drive", f"if=pflash,format=raw,readonly=on,file={machine.firmware}"]
        if machine.disk is not None:
            arguments += ["-drive", f"file={machine.disk},if=virtio,format=raw,cache=writeback"]
        for number, card in enumerate(machine.cards):
            path = card.wire.path
            arguments += [
                "-netdev",
                f"stream,id=n{number},server=off,addr.type=unix,addr.path={path}",
                "-device", f"virtio-net-pci,netdev=n{number},mac={card.mac},id=card{number}",
            ]  # fmt: skip
        return [*arguments, *machine.extra]

    def cut_power(self) -> None:
        """Pull the plug: QEMU is killed, nothing more is written."""
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._child is not None:
            if self._child.isalive():
                # At once: QEMU would still write what it holds on any other signal.
                self._child.kill(signal.SIGKILL)
                with contextlib.suppress(pexpect.ExceptionPexpect):
                    self._child.wait()
            self._child.close(force=True)
            self._child = None
        self._control_path.unlink(missing_ok=True)

    def wait_off(self, timeout: float = 60) -> None:
        """Wait until the guest has switched itself off."""
        child = self._running_child()
        timeout *= self._patience
        try:
            child.expect(pexpect.EOF, timeout=timeout)
        except pexpect.TIMEOUT:
            raise self._error(f"was still running after {timeout:g} s") from None
        child.wait()
        self.cut_power()

    # -- console ---------------------------------------------------------------------

    def _running_child(self) -> pexpect.spawn[bytes]:
        if self._child is None:
            raise GuestError(f"{self.name} is switched off")
        return self._child

    def _error(self, what: str) -> GuestError:
        return GuestError(f"{self.name}: {what}; its console ends with\n{self._tail.text()}")

    def wait_for(self, pattern: str | re.Pattern[bytes], timeout: float = 60) -> re.Match[bytes]:
        """Read the console until ``pattern`` (a regular expression) appears.

        timeout  seconds on a real processor; an emulated one gets five times as long
        """
        child = self._running_child()
        timeout *= self._patience
        wanted = re.compile(pattern.encode()) if isinstance(pattern, str) else pattern
        try:
            child.expect([wanted], timeout=timeout)
        except pexpect.TIMEOUT:
            raise self._error(f"no {wanted.pattern!r} within {timeout:g} s") from None
        except pexpect.EOF:
            raise self._error(f"ended (status {child.wait()}), no {wanted.pattern!r}") from None
        match = child.match
        assert isinstance(match, re.Match)
        return match

    def type(self, text: str, end: str = "\n") -> None:
        """Type at the console."""
        self._running_child().send((text + end).encode())

    def login(self, user: str, password: str | None, timeout: float = 120) -> None:
        """Wait for the login prompt, log in, make the shell fit for :meth:`run`."""
        self.wait_for(r"login: ", timeout)
        self.type(user)
        if password is not None:
            self.wait_for(r"[Pp]assword:", 60)
            self.type(password)
        self.wait_for(r"[#$] ", 60)
        # No echo, no prompt, no kernel messages between our answers, no line editing.
        self.type("unset PROMPT_COMMAND; PS1=; PS2=; stty -echo cols 500; set +o emacs +o vi")
        self.type("dmesg -n 1 2>/dev/null || true")
        self.run("true", timeout=30)

    def run(self, command: str, timeout: float = 60, check: bool = True) -> Result:
        """Run one shell command at the console, after :meth:`login`.

        GuestError when it fails, unless ``check`` is false; ``output`` holds stdout and
        stderr.
        """
        if "\n" in command or len(command.encode()) > _LINE_MAX:
            raise ValueError("a console takes one line of at most 900 bytes; put() a script")
        mark = f"{os.getpid()}x{next(self._mark)}"
        # The marks are split, so that an echo of this line never looks like an answer.
        self.type(
            f"printf '%s\\n' 'BEGIN-''{mark}'; {{ {command}\n}} 2>&1; "
            f"printf '\\nEND-''{mark}:%s:\\n' $?"
        )
        self.wait_for(rf"BEGIN-{mark}\r*\n", timeout)
        match = self.wait_for(rf"\nEND-{mark}:([0-9]+):\r*\n", timeout)
        child = self._running_child()
        before = child.before if isinstance(child.before, bytes) else b""
        result = Result(int(match[1]), before.decode(errors="replace").replace("\r", "").strip())
        if check and result.status != 0:
            raise GuestError(
                f"{self.name}: {command!r} exited with {result.status}: {result.output}"
            )
        return result

    def put(self, data: bytes, path: str, mode: int = 0o644) -> None:
        """Copy a small file into the guest through the console."""
        target = shlex.quote(path)
        self.run(f": > {target}.b64")
        text = base64.b64encode(data).decode()
        for start in range(0, len(text), 760):
            self.run(f"echo {text[start : start + 760]} >> {target}.b64")
        self.run(
            f"if command -v base64 >/dev/null; then base64 -d < {target}.b64 > {target};"
            f" else openssl base64 -d < {target}.b64 > {target}; fi &&"
            f" rm {target}.b64 && chmod {mode:o} {target}"
        )
        if self.digest(path) != hashlib.sha256(data).hexdigest():
            raise self._error(f"{path} arrived damaged")

    def get(self, path: str, timeout: float = 120) -> bytes:
        """Copy a small file out of the guest through the console."""
        source = shlex.quote(path)
        text = self.run(
            f"if command -v base64 >/dev/null; then base64 < {source};"
            f" else openssl base64 < {source}; fi",
            timeout,
        ).output
        data = base64.b64decode(text)
        if self.digest(path) != hashlib.sha256(data).hexdigest():
            raise self._error(f"{path} arrived damaged, or changes")
        return data

    def digest(self, path: str) -> str:
        """SHA-256 of a file in the guest, in hexadecimal."""
        source = shlex.quote(path)
        output = self.run(
            f"if command -v sha256sum >/dev/null; then sha256sum < {source};"
            f" else sha256 -q {source}; fi"
        ).output
        return output.split()[0]

    # -- hardware --------------------------------------------------------------------

    @property
    def control(self) -> Control:
        self._running_child()
        if self._control is None:
            self._control = Control(self._control_path)
        return self._control

    def set_link(self, card: int, up: bool) -> None:
        """Pull or plug a card's cable."""
        self.control.execute("set_link", name=f"card{card}", up=up)

    def press_power_button(self) -> None:
        self.control.execute("system_powerdown")

    def resident_memory(self) -> int:
        """Bytes that QEMU's process holds."""
        child = self._running_child()
        status = Path(f"/proc/{child.pid}/status").read_text()
        match = re.search(r"VmRSS:\s+(\d+) kB", status)
        return int(match[1]) * 1024 if match else 0


class Control:
    """QEMU's own control socket (QMP: one JSON object a line)."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(20)
        try:
            self._socket.connect(str(path))
            self._file = self._socket.makefile("rb")
            self._read()  # the greeting
            self.execute("qmp_capabilities")
        except BaseException:
            self._socket.close()
            raise

    def _read(self) -> dict[str, Any]:
        line = self._file.readline(1 << 20)
        if not line:
            raise GuestError("QEMU closed its control socket")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def execute(self, command: str, **arguments: Any) -> Any:
        text = json.dumps({"execute": command, "arguments": arguments})
        self._socket.sendall(text.encode() + b"\n")
        while True:
            answer = self._read()
            if "return" in answer:
                return answer["return"]
            if "error" in answer:
                raise GuestError(f"{command}: {answer['error'].get('desc', answer['error'])}")
            # anything else is an event

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._file.close()
            self._socket.close()


def version() -> str:
    done = subprocess.run([PROGRAM, "--version"], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[0]
