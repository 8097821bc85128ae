"""Who is signed in: sessions live in this process's memory, the cookie only names one."""

from __future__ import annotations

import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

MAX_SESSIONS = 64


@dataclass(slots=True)
class _Session:
    opened: float
    used: float
    generation: str = field(repr=False)


class Sessions:
    """At most MAX_SESSIONS at once, the longest unused goes first; a restart ends them all.

    ``idle`` and ``longest`` in seconds; ``clock`` counts seconds and never goes back.
    """

    def __init__(self, idle: float, longest: float, clock: Callable[[], float]) -> None:
        self._idle = idle
        self._longest = longest
        self._clock = clock
        self._open: OrderedDict[str, _Session] = OrderedDict()
        self._lock = threading.Lock()

    def open(self, generation: str) -> str:
        """A fresh session's name; ``generation`` stands for the password it was opened with."""
        name = secrets.token_urlsafe(32)
        now = self._clock()
        with self._lock:
            while len(self._open) >= MAX_SESSIONS:
                self._open.popitem(last=False)
            self._open[name] = _Session(now, now, generation)
        return name

    def check(self, name: str, generation: str, touch: bool) -> bool:
        """Whether the session lives. ``touch``: a person did something, idle time starts anew."""
        now = self._clock()
        with self._lock:
            session = self._open.get(name)
            if session is None:
                return False
            if (
                now - session.opened > self._longest
                or now - session.used > self._idle
                or not secrets.compare_digest(session.generation, generation)
            ):
                del self._open[name]
                return False
            if touch:
                session.used = now
                self._open.move_to_end(name)
            return True

    def close(self, name: str) -> None:
        with self._lock:
            self._open.pop(name, None)

    def close_all(self) -> None:
        with self._lock:
            self._open.clear()
