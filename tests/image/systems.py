"""How to ask each image the same questions: shell commands of Linux and OpenBSD."""

from __future__ import annotations

import re
from dataclasses import dataclass

from qemu import Guest

SETUP_CODE = re.compile(r"Set-up code[^:\n]*: ([a-z0-9]{4}(?:-[a-z0-9]{4}){3})")


@dataclass(frozen=True, slots=True)
class System:
    """One image's ways.

    outside, inside  names of the cards
    config           its redirectd.toml
    """

    name: str
    outside: str
    inside: str
    config: str

    def notice(self, guest: Guest) -> str:
        """What the console shows about the admin page, once more."""
        return guest.run(f"redirectd-web --show -f {self.config}", timeout=120).output

    def failed(self, guest: Guest) -> str:
        """Services that should run and don't."""
        if self.name == "debian":
            return guest.run("systemctl --failed --plain --no-legend --no-pager").output
        return guest.run("rcctl ls failed", check=False).output

    def mounts(self, guest: Guest) -> dict[str, str]:
        """Mount point -> "ro" or "rw" of what lies on the card."""
        if self.name == "debian":
            text = guest.run("findmnt -rno TARGET,OPTIONS -t ext4,squashfs").output
            return {line.split()[0]: line.split()[1].split(",")[0] for line in text.splitlines()}
        text = guest.run("mount -t ffs").output
        return {
            line.split()[2]: "ro" if "read-only" in line else "rw" for line in text.splitlines()
        }

    def make_root_writable(self, guest: Guest) -> None:
        """Try to; on OpenBSD root can, as its own fsck must, so nothing is tried there."""
        if self.name == "debian":
            guest.run("mount -o remount,rw /", check=False)

    def memory(self, guest: Guest) -> float:
        """MB in use, without the kernel's caches."""
        if self.name == "debian":
            words = guest.run("free -b | grep Mem").output.split()
            return (int(words[1]) - int(words[6])) / 1e6
        pages = guest.run("vmstat -s | grep -E 'bytes per page|pages (active|wired)'").output
        found = {line.split(maxsplit=1)[1]: int(line.split()[0]) for line in pages.splitlines()}
        size = found["bytes per page"]
        return (found["pages active"] + found.get("pages wired", 0)) * size / 1e6

    def written(self, guest: Guest) -> int:
        """Bytes that were written to the card since the start."""
        if self.name == "debian":
            device = guest.run("basename $(findmnt -no SOURCE /cfg)").output
            return int(guest.run(f"grep ' {device} ' /proc/diskstats").output.split()[9]) * 512
        # iostat has no bytes of writes alone; the whole disk's transfers are an upper bound
        line = guest.run("iostat -DI sd0 | tail -1").output.split()
        return int(float(line[0]) * 1024)

    def used(self, guest: Guest) -> int:
        """KiB in use on /cfg."""
        return int(guest.run("df -k /cfg | tail -1").output.split()[2])

    def outside_sockets(self, guest: Guest, lan_address: str) -> set[str]:
        """``PROTOCOL PORT`` of sockets that are not bound to the LAN or to loopback."""
        if self.name == "debian":
            rows = guest.run("ss -Hlntu | awk '{print $1, $5}'").output.splitlines()
            ours: tuple[str, ...] = ("127.", "[::1]", f"{lan_address}:", f"0.0.0.0%{self.inside}:")
            cut = ":"
        else:
            rows = guest.run(
                "netstat -an -f inet -f inet6 | awk '/^udp|LISTEN/ {print $1, $4}'"
            ).output.splitlines()
            ours = ("127.", "::1.", f"{lan_address}.")
            cut = "."
        found = set()
        for row in rows:
            protocol, address = row.split()
            if not address.startswith(ours):
                found.add(f"{protocol[:3]} {address.rpartition(cut)[2]}")
        return found

    def disks_are_sound(self, guest: Guest) -> None:
        """Nothing was repaired beyond a replayed journal."""
        if self.name == "debian":
            log = guest.run(
                "journalctl -b -o cat -u 'systemd-fsck@*' --no-pager; dmesg | grep -i ext4",
                check=False,
            ).output
            assert "error" not in log.lower().replace("errors=remount-ro", ""), log
        else:
            log = guest.run("dmesg -s; cat /var/run/dmesg.boot", check=False).output
            assert "UNEXPECTED INCONSISTENCY" not in log, log


DEBIAN = System("debian", "eth0", "eth1", "/run/gateway/redirectd.toml")
OPENBSD = System("openbsd", "vio0", "vio1", "/etc/redirectd.toml")
SYSTEMS = {system.name: system for system in (DEBIAN, OPENBSD)}
