"""Which connections are watched for acknowledgments, and by whom."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from ..rewrite.flow import Flow
from .binding import Sample, Seen
from .commands import Observe, Prompt
from .inputs import Segment
from .world import World


class Watching:
    """seen: called with the birth flow after each acknowledgment."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.seen: Callable[[Flow], None] = lambda birth: None
        self._samples: dict[Flow, list[Sample]] = {}
        self._guarded: dict[Flow, None] = {}
        self._observed: tuple[Flow, ...] = ()

    def guard(self, births: Iterable[Flow]) -> None:
        """These wait for a silent peer: what our end says first, when it is heard again, is
        wanted (its newest timestamp, RFC 7323 5.3)."""
        self._guarded = dict.fromkeys(births)

    def start(self, birth: Flow) -> Sample:
        sample = Sample(self.world.now)
        self._samples.setdefault(birth, []).append(sample)
        return sample

    def stop(self, birth: Flow, sample: Sample) -> None:
        samples = self._samples[birth]
        samples[:] = [s for s in samples if s is not sample]
        if not samples:
            del self._samples[birth]

    def segment(self, segment: Segment) -> None:
        seen = Seen(segment.direction == "out", segment.seq, segment.ack)
        for sample in self._samples.get(segment.flow, ()):
            sample.add(seen, self.world.now)
        self.seen(segment.flow)

    def prompt(self, birth: Flow) -> None:
        """Make our end of the connection speak."""
        known = self.world.table.known.get(birth)
        if known is not None:
            self.world.emit(Prompt(known.c.inside, known.c.local))

    def flush(self) -> None:
        """Tell the surroundings what to report, if that changed."""
        flows = tuple(self._guarded | dict.fromkeys(self._samples))
        if flows != self._observed:
            self._observed = flows
            self.world.emit(Observe(flows))
