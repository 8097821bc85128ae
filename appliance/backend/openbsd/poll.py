"""One descriptor that becomes readable when any of several does."""

from __future__ import annotations

import select
from collections.abc import Iterable
from typing import Any, Protocol, cast


class HasFileno(Protocol):
    def fileno(self) -> int: ...


def nested(sources: Iterable[HasFileno]) -> HasFileno:
    """kqueue(2) can itself be waited for; elsewhere epoll can."""
    several = list(sources)
    if len(several) == 1:
        return several[0]
    if hasattr(select, "kqueue"):
        kq: Any = select
        queue = kq.kqueue()
        queue.control([kq.kevent(s.fileno(), kq.KQ_FILTER_READ) for s in several], 0)
        return cast(HasFileno, queue)
    ep: Any = select
    poller = ep.epoll()
    for source in several:
        poller.register(source.fileno(), ep.EPOLLIN)
    return cast(HasFileno, poller)
