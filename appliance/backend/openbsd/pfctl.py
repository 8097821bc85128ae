"""pfctl(8): anchors, kills, and what pf says of itself."""

from __future__ import annotations

import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from pfconf.kill import Kill, KillLabel

from .system import PFCTL, Runner, run

#: pfctl takes one key or label a run ("can only specify -k twice"), so that a thousand
#: connections need as many runs; most of each is the start of a process
AT_ONCE = 4

_KILLED = re.compile(r"killed (\d+) states?")


class Pfctl:
    """Needs root.  Rules are never read back to learn what we installed ourselves: pfctl
    prints but the nat-to of a rule that holds nat-to and rdr-to."""

    def __init__(self, runner: Runner = run) -> None:
        self._run = runner

    def load(self, anchor: str, rules: str) -> None:
        """Replace an anchor live and at once; its states stay."""
        self._run([PFCTL, "-a", anchor, "-f", "-"], rules)

    def kill(self, kills: Iterable[Kill]) -> int:
        """Kill states, in any order; how many died ("killed 0 states" is no fault)."""
        runs = [[PFCTL, *kill.argv()] for kill in dict.fromkeys(kills)]
        if len(runs) > 1:
            with ThreadPoolExecutor(AT_ONCE) as pool:
                said = list(pool.map(lambda argv: self._run(argv, ""), runs))
        else:
            said = [self._run(argv, "") for argv in runs]
        return sum(int(found[1]) for found in map(_KILLED.search, said) if found)

    def flush_label(self, label: str) -> int:
        """Kill whatever rules with this label of the main ruleset let through."""
        return self.kill([KillLabel(label)])

    def info(self) -> str:
        return self._run([PFCTL, "-si"], "")

    def rules(self) -> str:
        """The main ruleset; anchors are shown as calls."""
        return self._run([PFCTL, "-sr"], "")

    def states(self) -> str:
        return self._run([PFCTL, "-ss", "-vv"], "")
