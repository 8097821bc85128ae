"""Addresses that our own sockets need though no interface has them any more.

A socket emits nothing once its address is gone, so the address is parked for as long as
a bound connection of ours was born there.
"""

from __future__ import annotations

from ..rewrite.flow import Address
from .commands import Park, Unpark
from .connections import Binding
from .world import World


class Parking:
    def __init__(self, world: World) -> None:
        self.world = world
        self._users: dict[Address, set[str]] = {}
        self._unsure: set[Address] = set()

    def restored(self, binding: Binding) -> None:
        """Whether an earlier run parked the address of this one is not known."""
        if binding.local:
            self._unsure.add(binding.birth.local.addr)

    def update(self) -> None:
        """Addresses came or went."""
        before, self._users = self._users, {}
        for binding in self.world.table.all_bindings():
            self._use(binding)
        for addr in self._users.keys() - (before.keys() - self._unsure):
            self.world.emit(Park(addr))
        for addr in (before.keys() | self._unsure) - self._users.keys():
            self.world.emit(Unpark(addr))
        self._unsure.clear()

    def _use(self, binding: Binding) -> None:
        addr = binding.birth.local.addr
        if binding.local and addr not in self.world.local:
            self._users.setdefault(addr, set()).add(binding.conn_id)

    def bound(self, binding: Binding) -> None:
        """The address went while the proof was made."""
        addr = binding.birth.local.addr
        known = addr in self._users
        self._use(binding)
        if addr in self._users and not known:
            self.world.emit(Park(addr))

    def leave(self, binding: Binding) -> None:
        """Called before the connection is released: so a crash leaves nothing parked."""
        addr = binding.birth.local.addr
        users = self._users.get(addr)
        if users is not None:
            users.discard(binding.conn_id)
            if not users:
                del self._users[addr]
                self.world.emit(Unpark(addr))
