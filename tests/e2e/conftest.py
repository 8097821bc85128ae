"""What all attacks need; see :mod:`.street`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab.host import Host
from tests.lab.net import Lab

from .scene import scene
from .street import Street


@pytest.fixture(scope="module")
def street(request: pytest.FixtureRequest) -> Iterator[Street]:
    """``request.param``: see :func:`.street.streets`."""
    role, _, version = request.param.rpartition(" ")
    with Lab() as lab:
        made = scene(lab, "host" if role == "host" else "gateway", int(version))
        street = Street(made, "far" if role == "facing gateway" else "mover")
        yield street
        street.eve.close()


@pytest.fixture(scope="module")
def mallory(street: Street) -> Host:
    lab = street.lab
    return lab.host("mallory", lab.networks["net-c"], "192.0.2.66/24", "2001:db8:c::66/64")
