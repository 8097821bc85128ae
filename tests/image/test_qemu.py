"""The QEMU driver with the smallest guest there is: a boot sector that says something."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import qemu
from ethernet import Wire
from qemu import Card, Guest, GuestError, Machine

pytestmark = pytest.mark.timeout(300)
WORDS = b"the guest speaks\r\nlogin: "


def boot_sector(words: bytes) -> bytes:
    """Prints ``words`` on the first serial port, then halts."""
    code = bytes.fromhex("31c08ed8")  # ds = 0
    code += bytes.fromhex("be") + (0x7C00 + len(code) + 0x11).to_bytes(2, "little")  # si = words
    code += bytes.fromhex("ac84c07406baf803eeebf5")  # until 0: out 0x3f8
    code += bytes.fromhex("f4ebfd")  # hlt, for ever
    return (code + words + b"\0").ljust(510, b"\0") + b"\x55\xaa"


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk"
    path.write_bytes(boot_sector(WORDS).ljust(1 << 20, b"\0"))
    return path


@pytest.fixture
def guest(tmp_path: Path, disk: Path) -> Guest:
    return Guest("tiny", Machine(disk, memory=16), tmp_path, "tcg")


def test_what_a_guest_says_can_be_awaited_and_is_kept(guest: Guest) -> None:
    with guest:
        guest.start()
        match = guest.wait_for(r"the guest (\w+)", 60)
        assert match[1] == b"speaks"
        guest.wait_for("login: ")
    assert "the guest speaks" in guest.log.read_text()
    assert not guest.running


def test_a_time_out_shows_the_end_of_the_console(guest: Guest) -> None:
    with guest:
        guest.start()
        guest.wait_for("login: ", 60)
        with pytest.raises(GuestError, match=r"(?s)tiny: no .*never.*the guest speaks\nlogin:"):
            guest.wait_for("never", 0.2)


def test_a_guest_that_cannot_start_says_why(tmp_path: Path) -> None:
    with Guest("tiny", Machine(tmp_path / "none"), tmp_path, "tcg") as guest:
        guest.start()
        with pytest.raises(GuestError, match="No such file or directory"):
            guest.wait_for("login: ", 60)


def test_cutting_the_power_ends_qemu_at_once_and_for_good(guest: Guest) -> None:
    with guest:
        for _ in range(2):
            guest.start()
            guest.wait_for("login: ", 60)
            pid = guest.pid
            start = time.monotonic()
            guest.cut_power()
            assert time.monotonic() - start < 5
            with pytest.raises(ProcessLookupError):
                os.kill(pid, 0)


def test_a_guest_is_switched_on_once(guest: Guest) -> None:
    with guest:
        guest.start()
        with pytest.raises(GuestError, match="running already"):
            guest.start()
    with pytest.raises(GuestError, match="switched off"):
        guest.wait_for("x")


def test_automatic_acceleration_ends_with_a_guest_that_runs(tmp_path: Path, disk: Path) -> None:
    """KVM where it works, else emulation: the guest speaks in any case."""
    with Guest("tiny", Machine(disk, memory=16), tmp_path, "auto") as guest:
        guest.start()
        guest.wait_for("the guest speaks", 60)
        guest.wait_for("login: ", 60)


def test_cables_can_be_pulled_and_errors_of_qemu_are_told(tmp_path: Path, disk: Path) -> None:
    with Wire(tmp_path, "wan") as wire:
        machine = Machine(disk, (Card(wire, "52:54:00:00:00:01"),), memory=16)
        with Guest("tiny", machine, tmp_path, "tcg") as guest:
            guest.start()
            guest.wait_for("login: ", 60)
            guest.set_link(0, False)
            guest.set_link(0, True)
            with pytest.raises(GuestError, match="set_link"):
                guest.set_link(7, False)


def test_a_command_must_fit_into_one_line(guest: Guest) -> None:
    for command in ("a\nb", "x" * 1000):
        with pytest.raises(ValueError, match="one line"):
            guest.run(command)


def test_what_showed_that_kvm_works_can_still_be_awaited(
    guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Emulated, as KVM may be missing: only the choice is tried."""
    emulated = Guest.arguments(guest, "tcg")
    monkeypatch.setattr(Guest, "arguments", lambda self, accelerator: emulated)
    monkeypatch.setattr(qemu, "_kvm_refused", False)
    monkeypatch.setattr(os, "access", lambda path, mode: True)
    guest.accelerator = "auto"
    with guest:
        guest.start()
        guest.wait_for("the guest speaks", 60)
        guest.wait_for("login: ", 60)


def test_a_guest_that_does_not_start_with_kvm_is_emulated(
    guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    emulated = Guest.arguments(guest, "tcg")
    used: list[str] = []

    def arguments(self: Guest, accelerator: str) -> list[str]:
        used.append(accelerator)
        return emulated if accelerator == "tcg" else ["-no-such-option"]

    monkeypatch.setattr(Guest, "arguments", arguments)
    monkeypatch.setattr(qemu, "_kvm_refused", False)
    monkeypatch.setattr(os, "access", lambda path, mode: True)
    guest.accelerator = "auto"
    with guest:
        guest.start()
        guest.wait_for("login: ", 60)
    assert used == ["kvm", "tcg"]
