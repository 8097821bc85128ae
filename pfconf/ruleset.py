"""What must be true of a ruleset that redirectd did not write: checks of pf.conf text or
of ``pfctl -sr`` output.  Nothing is ever read back to learn what redirectd itself installed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_COMMENT = re.compile(r'^((?:[^"#]|"[^"]*")*)#.*$')
_ANCHOR = re.compile(r'\banchor\s+"?redirect(/\*)?"?(?=[\s{]|$)')
_RESERVED = re.compile(r'\banchor\s+"?redirect-reserved"?(?=[\s{]|$)')
_NAT = re.compile(r"\b(nat-to|binat-to|af-to)\b")
_NUMBERED = re.compile(r"^@\d+\s+")
_OFFSETS = re.compile(r"\bmodulate\s+state\b|\bsynproxy\s+state\b|\breassemble\s+tcp\b")


@dataclass(frozen=True, slots=True)
class Finding:
    """fatal: redirectd must not start with this; ``line`` 0: the whole text."""

    line: int
    fatal: bool
    problem: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.problem}; {self.remedy}"


def logical_lines(text: str) -> list[tuple[int, str]]:
    """(line where it begins, rule) without comments, continuation lines joined."""
    found: list[tuple[int, str]] = []
    begun, parts = 0, []
    for number, raw in enumerate(text.splitlines(), 1):
        match = _COMMENT.match(raw)
        line = (match[1] if match else raw).rstrip()
        begun = begun or number
        if line.endswith("\\"):
            parts.append(line[:-1].strip())
            continue
        parts.append(line.strip())
        rule = _NUMBERED.sub("", " ".join(part for part in parts if part))
        if rule and not rule.startswith("["):  # pfctl -v prints counters in brackets
            found.append((begun, rule))
        begun, parts = 0, []
    rest = " ".join(part for part in parts if part)
    return [*found, (begun, rest)] if rest else found


def check_ruleset(text: str) -> list[Finding]:
    """Findings in the order of their lines; empty: redirectd can work with it."""
    anchor = nat = reserved = 0
    findings: list[Finding] = []
    for number, rule in logical_lines(text):
        if _ANCHOR.search(rule) and not anchor:
            anchor = number
        if _RESERVED.search(rule) and not reserved:
            reserved = number
        if _NAT.search(rule) and not nat:
            nat = number
        if _OFFSETS.search(rule):
            findings.append(
                Finding(
                    number,
                    False,
                    "pf changes sequence numbers or timestamps here",
                    "connections through this rule can't be kept: use plain 'keep state'",
                )
            )
    if not anchor:
        findings.append(
            Finding(
                0,
                True,
                'the ruleset has no anchor "redirect/*"',
                "add it before the first rule with nat-to and load with pfctl -f /etc/pf.conf",
            )
        )
    elif nat and nat < anchor:
        findings.append(
            Finding(
                anchor,
                True,
                f'anchor "redirect/*" stands after the NAT rule of line {nat}',
                "move it before: after it, what the LAN sends first leaks with its own source",
            )
        )
    if anchor and nat and reserved < nat:
        findings.append(
            Finding(
                reserved,
                False,
                'no anchor "redirect-reserved" stands after the NAT rule',
                "add it: it keeps new connections off ports that moved connections hold",
            )
        )
    return sorted(findings, key=lambda finding: finding.line)
