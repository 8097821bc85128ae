"""Peers and bindings come back as they were saved."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from appliance.protocol.records import BindingRecord, PeerRecord
from keystore import DamagedError, Keystore, KeystoreError, open_keystore

from .samples import BINDINGS, ID, PEERS, binding, peer

OTHER = "ee" * 16
# one keystore for all examples of a property: rows replace or join each other
SHARED = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@SHARED
@given(record=PEERS)
def test_a_peer_survives_in_every_field(keystore: Keystore, record: PeerRecord) -> None:
    keystore.save_peer(record)
    assert record in keystore.peers()


@SHARED
@given(records=st.lists(BINDINGS, max_size=5, unique_by=lambda b: b.entry.conn_id))
def test_bindings_survive_in_every_field(keystore: Keystore, records: list[BindingRecord]) -> None:
    keystore.save_peer(peer())
    keystore.save_bindings(records)
    found = {b.entry.conn_id: b for b in keystore.bindings()}
    assert all(found[b.entry.conn_id] == b for b in records)


def test_no_field_of_a_record_is_left_out_by_the_strategies() -> None:
    """A field that somebody adds must be kept as well, or a restart would lose it."""
    assert {f.name for f in fields(PeerRecord)} == {
        "peer_id", "root", "chain", "previous", "initiator", "host_id", "name", "fingerprint",
        "state", "first_contact", "last_contact", "addresses", "port", "dns_name",
    }  # fmt: skip
    assert {f.name for f in fields(BindingRecord)} == {
        "peer_id", "entry", "since", "bound_at", "moves", "last_move",
    }  # fmt: skip


def test_a_newer_record_of_the_same_peer_replaces_the_old_one_and_keeps_its_bindings(
    keystore: Keystore,
) -> None:
    keystore.save_peer(peer())
    keystore.save_bindings([binding()])
    keystore.save_peer(peer(chain=b"N" * 32, name="home"))
    assert keystore.peers() == [peer(chain=b"N" * 32, name="home")]
    assert keystore.bindings() == [binding()]


def test_what_was_saved_is_there_after_a_crash(path: Path) -> None:
    first = open_keystore(path)
    first.save_peer(peer())
    first.save_bindings([binding(1), binding(2)])
    first.release([binding(1).entry.conn_id])
    files = {p.name: p.read_bytes() for p in path.parent.iterdir()}
    first.close()
    crashed = path.parent.parent / "crashed"
    crashed.mkdir(mode=0o700)
    for name, data in files.items():
        (crashed / name).write_bytes(data)
        (crashed / name).chmod(0o600)
    assert "keystore.db-wal" in files
    with open_keystore(crashed / "keystore.db") as again:
        assert again.peers() == [peer()]
        assert again.bindings() == [binding(2)]


def test_bindings_are_saved_all_or_none(keystore: Keystore) -> None:
    keystore.save_peer(peer())
    keystore.save_bindings([binding(1)])
    with pytest.raises(KeystoreError, match="FOREIGN KEY"):
        keystore.save_bindings([binding(1, moves=7), binding(2, peer_id=OTHER)])
    assert keystore.bindings() == [binding(1)]


def test_a_forgotten_peer_takes_its_bindings_and_no_others_with_it(keystore: Keystore) -> None:
    keystore.save_peer(peer())
    keystore.save_peer(peer(OTHER))
    keystore.save_bindings([binding(1), binding(2), binding(3, peer_id=OTHER)])
    assert keystore.forget_peer(ID) == 2
    assert keystore.peers() == [peer(OTHER)]
    assert keystore.bindings() == [binding(3, peer_id=OTHER)]
    assert keystore.forget_peer(ID) == 0


def test_the_keys_of_a_forgotten_peer_are_in_no_file_any_more(
    keystore: Keystore, path: Path
) -> None:
    secret = bytes(range(200, 232))
    keystore.save_peer(peer(root=secret, chain=secret, previous=secret))
    assert any(secret in p.read_bytes() for p in path.parent.iterdir())
    keystore.forget_peer(ID)
    assert not any(secret in p.read_bytes() for p in path.parent.iterdir())


def test_release_ignores_unknown_connections(keystore: Keystore) -> None:
    keystore.save_peer(peer())
    keystore.save_bindings([binding(1), binding(2)])
    assert keystore.release([binding(1).entry.conn_id, "00" * 16]) == 1
    assert keystore.release([]) == 0
    assert keystore.bindings() == [binding(2)]


def test_the_host_id_is_made_once(path: Path) -> None:
    with open_keystore(path) as first:
        made = first.host_id()
    assert len(made) == 32
    assert set(made) <= set("0123456789abcdef")
    with open_keystore(path) as second:
        assert second.host_id() == made


def test_tuples_can_be_read_in_a_sqlite_shell(keystore: Keystore, path: Path) -> None:
    keystore.save_peer(peer())
    keystore.save_bindings([binding(1)])
    shell = sqlite3.connect(path)
    row = shell.execute("SELECT birth, inside, wire, wire_out FROM bindings").fetchone()
    shell.close()
    entry = binding(1).entry
    assert row == (str(entry.birth), str(entry.inside), str(entry.wires[0]), str(entry.wire_out))


def test_a_thousand_bindings_are_saved_in_one_call_without_a_pause(keystore: Keystore) -> None:
    """25 ms on an idle machine; the bound only tells a call a row from a call for all."""
    keystore.save_peer(peer())
    many = [binding(n) for n in range(1000)]
    begin = time.process_time()
    keystore.save_bindings(many)
    assert time.process_time() - begin <= 0.5
    assert len(list(keystore.bindings())) == 1000


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("UPDATE bindings SET entry = '[]'", "not an object"),
        ("UPDATE bindings SET entry = json_set(entry, '$.birth', 'x')", "LOCAL REMOTE"),
        ("UPDATE bindings SET entry = json_remove(entry, '$.wires')", "wires"),
        ("UPDATE bindings SET entry = json_set(entry, '$.wires', 5)", "0000000001"),
        ("UPDATE bindings SET entry = json_set(entry, '$.conn_id', 'cc')", "connection ID"),
        ("UPDATE bindings SET conn_id = '99'", "names 0000"),
    ],
)
def test_a_binding_that_makes_no_sense_is_named(
    keystore: Keystore, path: Path, change: str, named: str
) -> None:
    keystore.save_peer(peer())
    keystore.save_bindings([binding(1)])
    _by_hand(path, change)
    with pytest.raises(DamagedError, match=named) as raised:
        keystore.bindings()
    assert str(path) in str(raised.value)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("UPDATE peers SET addresses = '5'", "list of texts"),
        ("UPDATE peers SET root = x'00'", "root is not 32 bytes"),
        ("UPDATE peers SET peer_id = 'zz'", "not a peer ID"),
    ],
)
def test_a_peer_that_makes_no_sense_is_named_without_its_keys(
    keystore: Keystore, path: Path, change: str, named: str
) -> None:
    keystore.save_peer(peer())
    _by_hand(path, change)
    with pytest.raises(DamagedError, match=named) as raised:
        keystore.peers()
    assert "CCCC" not in str(raised.value)


def test_a_record_that_could_not_be_read_back_is_not_saved(keystore: Keystore) -> None:
    with pytest.raises(ValueError, match="chain is not 32 bytes"):
        keystore.save_peer(peer(chain=b"short"))
    with pytest.raises(ValueError, match="not a state"):
        keystore.save_peer(peer(state="friend"))
    assert keystore.peers() == []


def test_no_secret_is_in_any_repr(keystore: Keystore) -> None:
    assert "RRRR" not in repr(peer())
    assert repr(keystore) == f"Keystore({str(keystore.path)!r})"


def _by_hand(path: Path, statement: str) -> None:
    shell = sqlite3.connect(path)
    with shell:
        shell.execute(statement)
    shell.close()


def test_what_was_acknowledged_survives_kill_9_and_nothing_is_there_by_halves(path: Path) -> None:
    """A child saves batches of 20 bindings and says so after each; it is killed in between."""
    code = (
        "import sys\n"
        "from keystore import open_keystore\n"
        "from tests.keystore.samples import binding, peer\n"
        "k = open_keystore(sys.argv[1])\n"
        "k.save_peer(peer())\n"
        "for batch in range(10_000):\n"
        "    k.save_bindings([binding(batch * 20 + n) for n in range(20)])\n"
        "    print(batch, flush=True)\n"
    )
    root = Path(__file__).resolve().parents[2]
    for told in (1, 7, 20):
        child = subprocess.Popen(
            [sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True, cwd=root
        )
        assert child.stdout is not None
        acknowledged = [int(child.stdout.readline()) for _ in range(told)][-1]
        child.kill()
        rest = child.stdout.read().split()
        child.wait()
        acknowledged = int(rest[-1]) if rest else acknowledged
        with open_keystore(path) as keystore:
            found = {b.entry.conn_id for b in keystore.bindings()}
            assert {f"{n:032x}" for n in range((acknowledged + 1) * 20)} <= found
            assert len(found) % 20 == 0
            keystore.release(found)
