"""Real servers inside the lab: OpenSSH, rsync, PostgreSQL.

Each has its own keys, configuration and data in the machine's directory, listens on an
unprivileged port, is ready when a connection to it succeeds, and ends with the lab.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pwd
import select
import shutil
import socket
import subprocess
import time
from functools import cache
from pathlib import Path

from .host import Host
from .kernel import LabError, command

SSH_PORT = 2222
RSYNC_PORT = 8873
POSTGRES_PORT = 5432


def wait_port(
    host: Host, port: int, process: subprocess.Popen[bytes], log: Path, timeout: float = 20
) -> None:
    """Until something on ``host`` accepts TCP connections at ``port``."""
    deadline = time.monotonic() + timeout
    while True:
        with host.entered(), socket.socket() as sock:
            sock.settimeout(1)
            if sock.connect_ex(("127.0.0.1", port)) == 0:
                return
        if process.poll() is not None or time.monotonic() > deadline:
            text = log.read_text(errors="replace") if log.exists() else ""
            raise LabError(f"{host.name}: nothing listens on port {port}:\n{text}")
        time.sleep(0.01)  # a listening socket of another process can't be awaited


# -- ssh -----------------------------------------------------------------------------


class Sshd:
    """sshd(8) that lets root in with a key of this lab.

    ``options()`` are those of ssh, scp and rsync -e on a client.
    """

    def __init__(self, host: Host, port: int = SSH_PORT) -> None:
        self.host = host
        self.port = port
        etc = host.dir / "etc"
        self.key = etc / "client_key"
        for path in (etc / "host_key", self.key):
            command(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "lab", "-f", str(path)])
        shutil.copy(f"{self.key}.pub", etc / "authorized_keys")
        # sshd's own chroot for the part before authentication.
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        config = host.file(
            "sshd_config",
            f"Port {port}\nHostKey {etc}/host_key\nAuthorizedKeysFile {etc}/authorized_keys\n"
            "PermitRootLogin yes\nPasswordAuthentication no\nStrictModes no\n"
            f"UsePAM {'yes' if _root_is_locked() else 'no'}\n"
            "PrintMotd no\nPrintLastLog no\nUseDNS no\nMaxStartups 200\nMaxSessions 200\n"
            f"PidFile none\nSubsystem sftp internal-sftp\n",
        )
        log = host.dir / "sshd.log"
        sshd = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin") or "/usr/sbin/sshd"
        with log.open("ab") as out:
            self.process = host.popen([sshd, "-D", "-e", "-f", str(config)], stderr=out)
        wait_port(host, port, self.process, log)

    def options(self, alive_interval: int = 0, alive_count: int = 3) -> list[str]:
        """``-o`` options; ``alive_interval`` seconds between ssh's own life signs (0: none)."""
        values = {
            "Port": self.port,
            "IdentityFile": self.key,
            "IdentitiesOnly": "yes",
            "User": "root",
            "StrictHostKeyChecking": "no",
            "UserKnownHostsFile": "/dev/null",
            "GlobalKnownHostsFile": "/dev/null",
            "LogLevel": "ERROR",
            "BatchMode": "yes",
            "ConnectTimeout": 10,
            "ServerAliveInterval": alive_interval,
            "ServerAliveCountMax": alive_count,
            "TCPKeepAlive": "no",
        }
        return ["-F", "none"] + [w for k, v in values.items() for w in ("-o", f"{k}={v}")]


def _root_is_locked() -> bool:
    """Without PAM sshd turns away an account whose password field begins with '!'."""
    with contextlib.suppress(OSError):
        for line in Path("/etc/shadow").read_text().splitlines():
            if line.startswith("root:"):
                return line.split(":")[1].startswith("!")
    return False


# -- rsync ---------------------------------------------------------------------------


class Rsyncd:
    """rsync's own daemon: module ``files`` is the directory ``path``."""

    def __init__(self, host: Host, port: int = RSYNC_PORT) -> None:
        self.host = host
        self.port = port
        self.path = host.dir / "state" / "files"
        self.path.mkdir(exist_ok=True)
        log = host.dir / "rsyncd.log"
        config = host.file(
            "rsyncd.conf",
            f"log file = {log}\nuse chroot = no\nuid = root\ngid = root\nreverse lookup = no\n"
            f"[files]\npath = {self.path}\nread only = no\n",
        )
        self.process = host.popen(
            ["rsync", "--daemon", "--no-detach", f"--port={port}", f"--config={config}"]
        )
        wait_port(host, port, self.process, log)

    def url(self, addr: str, name: str = "") -> str:
        shown = f"[{addr}]" if ":" in addr else addr
        return f"rsync://{shown}:{self.port}/files/{name}"


# -- PostgreSQL ------------------------------------------------------------------------


@cache
def postgres_programs() -> Path:
    """Directory of initdb and postgres; Debian keeps it out of PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=_version)
    if found:
        return found[-1].parent
    on_path = shutil.which("postgres")
    if on_path is None:
        raise LabError("PostgreSQL is not installed (tests/lab/setup.sh does it)")
    return Path(on_path).resolve().parent


def _version(path: Path) -> float:
    try:
        return float(path.parts[-3])
    except ValueError:
        return 0.0


class Postgres:
    """A PostgreSQL server whose superuser ``postgres`` needs no password."""

    def __init__(self, host: Host, port: int = POSTGRES_PORT) -> None:
        self.host = host
        self.port = port
        self.data = host.dir / "state" / "postgres"
        user = pwd.getpwnam("postgres")
        self.data.mkdir(mode=0o700)
        os.chown(self.data, user.pw_uid, user.pw_gid)
        programs = postgres_programs()
        # Durability is not what the lab is about: no fsync anywhere.
        host.run(
            [
                str(programs / "initdb"),
                "--no-sync",
                "--no-instructions",
                "--auth=trust",
                "--username=postgres",
                "--encoding=UTF8",
                "--locale=C",
                f"--pgdata={self.data}",
            ],
            user="postgres",
            timeout=60,
        )
        with (self.data / "pg_hba.conf").open("a") as rules:
            rules.write("host all all 0.0.0.0/0 trust\nhost all all ::/0 trust\n")
        log = host.dir / "postgres.log"
        settings = {
            "listen_addresses": "*",
            "port": port,
            "unix_socket_directories": "",
            "fsync": "off",
            "shared_buffers": "16MB",
            "max_connections": 100,
            "autovacuum": "off",
            "jit": "off",
            "tcp_keepalives_idle": 0,
        }
        options = [word for k, v in settings.items() for word in ("-c", f"{k}={v}")]
        with log.open("ab") as out:
            self.process = host.popen(
                [str(programs / "postgres"), "-D", str(self.data), *options],
                user="postgres",
                stdout=out,
                stderr=out,
            )
        wait_port(host, port, self.process, log)

    def psql(self, addr: str) -> list[str]:
        """A psql command line that reads statements from stdin, one answer a line."""
        return ["psql", "-X", "-q", "-A", "-t", "-U", "postgres", "-h", addr, "-p", str(self.port),
                "-d", "postgres", "-v", "ON_ERROR_STOP=1"]  # fmt: skip


def read_line(process: subprocess.Popen[bytes], timeout: float = 10) -> bytes:
    """The next line of a process's stdout (unbuffered pipe); b"" at its end."""
    assert process.stdout is not None
    fd = process.stdout.fileno()
    line = b""
    deadline = time.monotonic() + timeout
    while not line.endswith(b"\n"):
        ready, _, _ = select.select([fd], [], [], max(0, deadline - time.monotonic()))
        if not ready:
            raise LabError(f"no line within {timeout} s (so far {line!r})")
        try:
            piece = os.read(fd, 1)
        except OSError as error:
            if error.errno == errno.EIO:
                return line
            raise
        if not piece:
            return line
        line += piece
    return line
