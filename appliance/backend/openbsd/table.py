"""The redirect table in pf: one anchor, replaced whole, and the kills that follow.

A load is one step for pf, so the anchor holds all connections.  After the rules the old
states must die, or nothing changes; which, and when, is the safe order of openbsd.md:

    mover          rules in for the new wire, out held; kill     (wire_out changes to None)
    correspondent  rules in for the new wire; the old state goes on, nothing is killed
    mover          rule out to the new wire; kill                (wire_out changes)
    correspondent  rule out to the new wire, guard; kill         (wire_out changes)

No packet of the new wire tuple ever meets a stack without a rule.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence

from pfconf.anchor import Layout, entry_rules, reserved_text
from pfconf.kill import Kill, KillId, KillLabel, kills
from pfconf.labels import FLUSH_LABEL
from pfconf.rule import render

from ...rewrite.flow import Address, Flow
from ...rewrite.redirect import Entry
from ..api import BackendError
from .pfctl import Pfctl
from .pfstates import PfState

log = logging.getLogger("redirectd.openbsd")

Observer = Callable[[Sequence[Flow]], None]


class PfTable:
    """:class:`..api.RedirectTable`.

    layout   what the rules have in common
    lan_of   interface of an inside address, None when it is not known
    observe  where the flows to observe go (the filter of the segment tap)
    states   the state table, read after a restart to find what contradicts the rules
    """

    def __init__(
        self,
        pfctl: Pfctl,
        layout: Layout,
        anchor: str = "redirect",
        reserved: str = "redirect-reserved",
        lan_of: Callable[[Address], str | None] = lambda addr: None,
        observe: Observer = lambda flows: None,
        states: Callable[[], Iterable[PfState]] = tuple,
    ) -> None:
        self._pfctl, self._layout = pfctl, layout
        self._anchor, self._reserved = f"{anchor}/connections", reserved
        self._lan_of, self._observe, self._states = lan_of, observe, states
        self._entries: dict[str, Entry] = {}
        self._texts: dict[str, str] = {}
        self._restored: set[str] = set()
        # connections whose states are all of our rules' making, so that their label is enough
        self._ours: set[str] = set()
        self._held_ports: dict[str, Flow] | None = None  # what pf holds is not known yet

    def open(self) -> None:
        """An empty anchor; whatever an earlier run left in it is gone at once."""
        self._entries, self._texts = {}, {}
        self._ours = set()
        self._pfctl.load(self._anchor, "")
        self._pfctl.load(self._reserved, "")
        self._held_ports = {}

    def replace_all(self, entries: Sequence[Entry]) -> None:
        """States that our rules made before a restart go on: only those die whose
        translation contradicts an entry (a crash fell between rules and kills)."""
        entries_by_id = {entry.conn_id: entry for entry in entries}
        texts = {cid: text for cid, e in entries_by_id.items() if (text := self._text(e))}
        self._pfctl.load(self._anchor, "".join(texts.values()))
        self._entries, self._texts = entries_by_id, texts
        self._ours &= texts.keys()
        redirected = {e.inside: e for e in entries if e.conn_id in texts}
        if redirected:
            self._pfctl.kill(_contradictions(self._states(), redirected))

    def apply(self, entries: Sequence[Entry]) -> None:
        before = {e.conn_id: self._entries.get(e.conn_id) for e in entries}
        texts = dict(self._texts)
        for entry in entries:
            text = self._text(entry)
            if text:
                texts[entry.conn_id] = text
            else:
                texts.pop(entry.conn_id, None)
        if texts != self._texts:
            self._pfctl.load(self._anchor, "".join(texts.values()))
        self._texts = texts
        self._ours &= texts.keys()
        new_addresses = False
        dead: dict[str, tuple[Kill, ...]] = {}
        for entry in entries:
            old = before[entry.conn_id]
            new_addresses |= _new_address(old, entry)
            if entry.conn_id in texts and _must_kill(old, entry):
                label = KillLabel(entry.conn_id)
                dead[entry.conn_id] = (label,) if entry.conn_id in self._ours else kills(entry)
        self._pfctl.kill(kill for of_one in dead.values() for kill in of_one)
        self._ours |= dead.keys()
        # only now: who applies them again after a kill that failed has it tried again
        self._entries |= {entry.conn_id: entry for entry in entries}
        if new_addresses:
            # UDP and ICMP states would go on using the dead address
            self._pfctl.flush_label(FLUSH_LABEL)

    def remove(self, conn_ids: Iterable[str]) -> None:
        """Their states are left to end by themselves: the last ACKs may be on their way."""
        changed = False
        for conn_id in conn_ids:
            self._entries.pop(conn_id, None)
            self._restored.discard(conn_id)
            self._ours.discard(conn_id)
            changed |= self._texts.pop(conn_id, None) is not None
        if changed:
            self._pfctl.load(self._anchor, "".join(self._texts.values()))

    def observe(self, flows: Sequence[Flow]) -> None:
        self._observe(flows)

    def verify(self) -> bool:
        """Nothing to do: reloading or flushing the main rule set keeps anchors."""
        return False

    def close(self, keep: bool) -> None:
        if keep:
            return
        self.open()

    # -- for the host part

    def restore(self, entries: Sequence[Entry]) -> None:
        """Rules also for connections that never moved: their NAT state is gone, and the
        rules re-create the mapping with the next packet from either side."""
        self._restored |= {entry.conn_id for entry in entries}
        self.apply(entries)

    def reserve(self, ports: dict[str, Flow]) -> None:
        """Exactly these wire flows are kept off new connections."""
        if ports != self._held_ports:
            self._pfctl.load(self._reserved, reserved_text(ports.items(), self._layout))
            self._held_ports = dict(ports)

    def entry(self, conn_id: str) -> Entry | None:
        return self._entries.get(conn_id)

    def needs_rules(self, entry: Entry) -> bool:
        """A connection that never moved lives by the state that pf made for it.  One that
        came back to its first address has lost that state for good."""
        return entry.redirected or bool(entry.stale) or entry.conn_id in self._restored

    def _text(self, entry: Entry) -> str:
        if not (self.needs_rules(entry) or entry.path == "divert"):
            return ""
        layout = self._layout
        if not entry.local:
            layout = layout.with_lan(self._lan_of(entry.inside.local.addr) or "any")
        try:
            return render(entry_rules(entry, layout))
        except ValueError as fault:
            raise BackendError(f"connection {entry.conn_id}: {fault}") from None


def _must_kill(old: Entry | None, new: Entry) -> bool:
    """Gaining an inbound wire flow needs no kill, and must not: an old state that dies too
    early lets a packet on the new wire flow turn our answers there unproved."""
    if old is None:
        return new.redirected
    lost = set(old.wires) - set(new.wires)
    return old.wire_out != new.wire_out or bool(lost) or old.path != new.path


def _new_address(old: Entry | None, new: Entry) -> bool:
    """Our own side of the connection moved to another address."""
    known = {wire.local.addr for wire in old.wires} if old else {new.birth.local.addr}
    return any(wire.local.addr not in known for wire in new.wires)


def _contradictions(states: Iterable[PfState], entries: dict[Flow, Entry]) -> list[Kill]:
    found: list[Kill] = []
    for state in states:
        inside = Flow(state.stack.near, state.stack.far)
        entry = entries.get(inside)
        if entry is None or state.proto != "tcp" or state.wire.rdomain or not state.translated:
            continue
        wire = Flow(state.wire.near, state.wire.far)

        if wire not in entry.wires and wire != entry.wire_out:
            found.append(KillId(state.state_id))
    return found
