"""pfctl for tests: the arguments that the backend gives act on an evaluated pf."""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

from appliance.backend.api import BackendError
from appliance.rewrite.flow import Endpoint

from ..pfconf.evaluator import Pf

KEY = re.compile(r"tcp (\S+) -> (\S+)\Z")


def key_host(text: str) -> Endpoint:
    """``10.0.0.1:80`` or ``fd07::1[80]``, as ``pfctl -k key`` reads it."""
    if found := re.fullmatch(r"([0-9a-f:]+)\[(\d+)\]", text):
        return Endpoint.parse(f"[{found[1]}]:{found[2]}")
    return Endpoint.parse(text)


@dataclass
class FakePfctl:
    """A Runner; ``said`` keeps every call."""

    pf: Pf
    info: str = "Status: Enabled for 0 days 00:00:25              Debug: err\n"
    rules: str = 'anchor "redirect/*" all\n'
    states: str = ""
    said: list[list[str]] = field(default_factory=list)
    fail: str | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, argv: Sequence[str], stdin: str) -> str:
        with self.lock:  # the kernel's own; pfctl runs several at a time
            return self._run(argv, stdin)

    def _run(self, argv: Sequence[str], stdin: str) -> str:
        words = list(argv[1:])
        self.said.append(words)
        if self.fail is not None and self.fail in words:
            raise BackendError("pfctl: refused by the test")
        if words[0] == "-a":
            assert words[2:] == ["-f", "-"]
            self.pf.load(words[1], stdin)
            return ""
        if words[0] == "-k":
            return f"killed {self._kill(words[1], words[3])} states\n"
        return {"-si": self.info, "-sr": self.rules, "-ss": self.states}[words[0]]

    def _kill(self, how: str, what: str) -> int:
        if how == "label":
            return self.pf.kill_label(what)
        if how == "id":
            return 0
        found = KEY.match(what)
        assert found, what
        return self.pf.kill_key(key_host(found[1]), key_host(found[2]))

    def kills(self) -> list[str]:
        return [words[3] for words in self.said if words[0] == "-k"]

    def loads(self) -> list[str]:
        return [words[1] for words in self.said if words[0] == "-a"]
