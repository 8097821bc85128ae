"""What outlives the daemon: known hosts, bindings, moves, events; in one SQLite file.

    with open_keystore("/var/lib/redirectd/keystore.db") as keystore:
        for peer in keystore.peers(): ...

Only the engine opens it.  Importing this package imports sqlite-utils.
"""

from .errors import DamagedError, KeystoreError, NewerError, PlaceError
from .history import LEVELS, EventRecord, MoveRecord
from .store import Keystore, open_keystore

__all__ = [
    "LEVELS",
    "DamagedError",
    "EventRecord",
    "Keystore",
    "KeystoreError",
    "MoveRecord",
    "NewerError",
    "PlaceError",
    "open_keystore",
]
