"""What must hold before redirectd touches pf; refused with what to do about it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from pfconf.ruleset import check_ruleset

from ..api import BackendError
from .pfctl import Pfctl

_STATUS = re.compile(r"^Status:\s+(\w+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Verdict:
    """refusals: redirectd must not start; warnings: it can, with less."""

    refusals: tuple[str, ...]
    warnings: tuple[str, ...]


def judge(info: str, rules: str) -> Verdict:
    """From ``pfctl -si`` and ``pfctl -sr``."""
    status = _STATUS.search(info)
    if status is None:
        return Verdict(("pfctl -si says no status: is pf in this kernel?",), ())
    if status[1] != "Enabled":
        return Verdict(("pf is off; switch it on with 'pfctl -e' (and pf=YES in rc.conf)",), ())
    findings = check_ruleset(rules)
    return Verdict(
        tuple(str(f) for f in findings if f.fatal),
        tuple(str(f) for f in findings if not f.fatal),
    )


def check(pfctl: Pfctl) -> tuple[str, ...]:
    """Warnings; BackendError when something must be put right first."""
    verdict = judge(pfctl.info(), pfctl.rules())
    if verdict.refusals:
        raise BackendError("; ".join(verdict.refusals))
    return verdict.warnings
