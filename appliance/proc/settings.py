"""From redirectd.toml to what the protocol core wants to know."""

from __future__ import annotations

from collections.abc import Callable

from ..config import Config, Policy
from ..protocol.inputs import Connection
from ..protocol.settings import CoreSettings, Limits
from ..rewrite.redirect import DataPath

NameOf = Callable[[str], str | None]


def core_settings(config: Config, name_of: NameOf) -> CoreSettings:
    """``name_of`` gives a peer's name by its ID: rules may name peers either way."""

    def policy(connection: Connection, peer_id: str | None) -> Policy:
        birth = connection.birth
        listens = birth.remote.port if connection.inside_opened else birth.local.port
        name = None if peer_id is None else name_of(peer_id)
        return config.rule_for(listens, birth.remote.addr, peer_id, name)

    def long_lived_after(connection: Connection, peer_id: str | None) -> float | None:
        return policy(connection, peer_id).long_lived_after

    def path_for(connection: Connection, peer_id: str) -> DataPath:
        return policy(connection, peer_id).path

    def hold_max(connection: Connection, peer_id: str) -> float | None:
        return policy(connection, peer_id).hold_max

    return CoreSettings(
        port=config.port,
        first_contact=config.first_contact,
        discover=config.discover,
        long_lived_after=long_lived_after,
        path_for=path_for,
        hold_max=hold_max,
        limits=Limits(peers=config.limits.peers, half_open=config.limits.half_open),
    )
