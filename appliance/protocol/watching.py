"""Which connections are watched for acknowledgments, and by whom."""

from __future__ import annotations

from collections.abc import Callable

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
        self._observed: tuple[Flow, ...] = ()

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
        flows = tuple(self._samples)
        if flows != self._observed:
            self._observed = flows
            self.world.emit(Observe(flows))
