"""Checks of rulesets that were written by hand, or that pfctl prints."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pfconf.ruleset import check_ruleset, logical_lines

from ..openbsd import fixtures

ANCHOR = 'anchor "redirect/*"'
NAT = "match out on em0 inet from 192.168.1.0/24 to any nat-to (em0:0)"
RESERVED = 'anchor "redirect-reserved"'


def fatal(text: str) -> list[tuple[int, str]]:
    return [(f.line, f.problem) for f in check_ruleset(text) if f.fatal]


def test_anchor_before_nat_is_right() -> None:
    assert check_ruleset(f"{ANCHOR}\n{NAT}\n{RESERVED}\npass\n") == []


def test_anchor_after_nat_is_refused_with_both_lines() -> None:
    ((line, problem),) = fatal(f"# comment\n{NAT}\npass\n{ANCHOR}\n")
    assert line == 4
    assert "line 2" in problem


@pytest.mark.parametrize(
    "text",
    [
        "pass\n",
        "",
        '# anchor "redirect/*"\n',
        'anchor "redirected/*"\n',
        "pass # anchor redirect\n",
    ],
)
def test_missing_anchor_is_refused(text: str) -> None:
    ((line, problem),) = fatal(text)
    assert line == 0
    assert "no anchor" in problem


@pytest.mark.parametrize("form", ["anchor redirect/* all", 'anchor "redirect" {', ANCHOR + " all"])
def test_anchor_is_recognised_in_its_forms(form: str) -> None:
    assert fatal(f"{form}\n{NAT}\n") == []


def test_nat_in_a_continued_line_counts_where_it_begins() -> None:
    ((line, problem),) = fatal(
        f"match out on em0 \\\n  from any to any \\\n nat-to em0\n{ANCHOR}\n"
    )
    assert (line, "line 1" in problem) == (4, True)


def test_missing_reservation_anchor_is_a_warning() -> None:
    (finding,) = check_ruleset(f"{ANCHOR}\n{NAT}\n")
    assert not finding.fatal
    assert "redirect-reserved" in str(finding)


@pytest.mark.parametrize(
    "rule", ["pass modulate state", "pass in synproxy state", "match scrub (reassemble tcp)"]
)
def test_rules_whose_states_can_not_be_kept_are_named(rule: str) -> None:
    (finding,) = check_ruleset(f"{ANCHOR}\n{rule}\n")
    assert (finding.line, finding.fatal) == (2, False)


def test_recorded_pfctl_output_is_right() -> None:
    text = fixtures.transcript("pfctl -vvsr")
    assert fatal(text) == []
    assert [rule.split()[0] for _, rule in logical_lines(text)] == [
        "pass", "anchor", "match", "pass",
    ]  # fmt: skip


def test_recorded_output_with_the_anchor_moved_is_refused() -> None:
    blocks = fixtures.transcript("pfctl -vvsr").split("@")[1:]
    text = "".join(f"@{blocks[n]}" for n in (0, 2, 1, 3))
    ((_, problem),) = fatal(text)
    assert "after the NAT rule" in problem


def test_last_line_may_be_continued_into_nothing() -> None:
    assert logical_lines("pass \\\n") == [(1, "pass")]


@given(st.text(max_size=300))
def test_any_text_is_checked_without_a_fault(text: str) -> None:
    for finding in check_ruleset(text):
        assert 0 <= finding.line <= len(text.splitlines())
