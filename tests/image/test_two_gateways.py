"""Two gateways, each a guest, and hosts behind both; both get new addresses.

    laptop -- lan A -- [gateway A] -- net-a -- core -- net-c -- [gateway B] -- lan B -- desk
                            |                                        |
                         provider                                 provider

Only with ``make image-test``: two emulated guests are too much for CI.
"""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ethernet import Wire
from leases import LeaseServer
from qemu import Card, Guest, Machine

from tests.lab.net import Lab
from tests.lab.streams import Traffic, open_stream

from .conftest import PASSWORD
from .systems import SYSTEMS
from .world import BOOT, plug, wait_for

pytestmark = pytest.mark.timeout(2400)
PORT = 5000


class Gateway:
    """One guest with its two wires and its provider."""

    def __init__(self, stack: contextlib.ExitStack, lab: Lab, image: Path, place: Path,
                 name: str, net: str, number: int) -> None:  # fmt: skip
        folder = place / name
        folder.mkdir()
        disk = folder / "disk"
        subprocess.run(["cp", "--sparse=always", image, disk], check=True)
        self.mac = f"52:54:00:0{number}:00:01"
        self.prefix = f"{net}."
        self.inside = f"192.168.{77 + number}.1"
        self.address = f"{net}.20"
        self._last = 20
        self.wan = stack.enter_context(Wire(folder, "wan"))
        self.lan = stack.enter_context(Wire(folder, "lan"))
        network = lab.network(f"net-{name}", f"{net}.1/24")
        home = lab.network(f"lan-{name}")
        home.add_router(f"{self.inside}/24")
        plug(lab, self.wan, network, f"w{name}")
        plug(lab, self.lan, home, f"l{name}")
        self.host = lab.host(f"host-{name}", home, f"192.168.{77 + number}.10/24")
        self.provider = LeaseServer(f"{net}.254", router=f"{net}.1", seconds=8)
        self.provider.assign(self.mac, self.address)
        self.wan.add_peer(self.provider)
        cards = (Card(self.wan, self.mac), Card(self.lan, f"52:54:00:0{number}:00:02"))
        self.guest = stack.enter_context(Guest(name, Machine(disk, cards), folder))

    def boot(self) -> None:
        self.guest.start()
        self.guest.login("root", PASSWORD, BOOT)
        wait_for(self.guest, "redirectctl show status", lambda text: self.address in text, 600)

    def describe(self, text: str) -> None:
        """The owner changes the address plan, and restarts."""
        self.guest.put(text.encode(), "/cfg/gateway.toml")
        self.guest.run("gateway-apply --check && sync")
        self.guest.cut_power()
        self.boot()

    def renumber(self) -> None:
        self._last += 1
        self.address = f"{self.prefix}{self._last}"
        self.provider.assign(self.mac, self.address)
        assert self.provider.wait_for_ack(self.mac, self.address, 180)


@pytest.fixture(params=list(SYSTEMS))
def gateways(
    request: pytest.FixtureRequest,
    images: Callable[[str], Path],
    tmp_path: Path,
) -> Iterator[tuple[Gateway, Gateway]]:
    image = images(request.param)
    with contextlib.ExitStack() as stack:
        lab = stack.enter_context(Lab())
        a = Gateway(stack, lab, image, tmp_path, "a", "198.51.100", 1)
        b = Gateway(stack, lab, image, tmp_path, "b", "192.0.2", 2)
        text = (Path(__file__).with_name("gateway.toml")).read_text()
        if request.param == "openbsd":
            text = text.replace("eth", "vio")
        for gateway in (a, b):
            gateway.boot()
            own = text.replace("192.168.77.1/24", f"{gateway.inside}/24")
            if gateway is b:
                own += f'\n[[forward]]\nport = {PORT}\nto = "192.168.79.10"\n'
            gateway.describe(own)
        yield a, b


def test_a_connection_between_hosts_behind_two_gateways_survives_moves_of_both(
    gateways: tuple[Gateway, Gateway],
) -> None:
    a, b = gateways
    pair = a.guest.run(f"redirectctl peer introduce b --address {b.address} -o -").output
    b.guest.put(pair.strip().encode() + b"\n", "/tmp/pair", 0o600)
    b.guest.run("redirectctl peer import /tmp/pair --name a")
    stream = open_stream(Traffic(a.host), Traffic(b.host), b.address, interval=0.05, port=PORT)
    for gateway in (a, b):
        wait_for(
            gateway.guest, "redirectctl show connections --state bound",
            lambda text: str(PORT) in text, 300,
        )  # fmt: skip
    for mover in (a, b, a):
        stream.wait(10, timeout=180)
        mover.renumber()
        stream.wait(10, timeout=180)
    stream.finish(timeout=120).check()
