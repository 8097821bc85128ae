"""The effective policy in sentences, from the settings that the daemon reports."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_FIRST_CONTACT = {
    "tofu": "A host seen for the first time is trusted at once, as ssh does with host keys it has "
    "not met before. A key that changes later is an alert, never accepted.",
    "ask": "A host seen for the first time waits under Known hosts until you accept it. Until "
    "then nothing is protected with it.",
    "strict": "Only hosts that were introduced beforehand are spoken to. Everybody else is "
    "refused without a word.",
}


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {str(key).replace("_", "-"): value for key, value in settings.items()}


def _after(value: Any) -> str:
    if value in ("off", None, False):
        return "is never protected"
    if isinstance(value, int | float):
        return f"is protected once it is {value:g} s old"
    return f"is protected once it is {value} old"


def explain(settings: Mapping[str, Any]) -> list[str]:
    """One sentence or two for each setting that matters; unknown settings are left out."""
    plain = _plain(settings)
    sentences = []
    if plain.get("first-contact") in _FIRST_CONTACT:
        sentences.append(_FIRST_CONTACT[plain["first-contact"]])
    match plain.get("discover"):
        case "any":
            sentences.append(
                "The far end of every long-lived connection is asked once whether it runs "
                "redirectd."
            )
        case "known":
            sentences.append("Only hosts that are already known are asked for redirectd.")
        case [*prefixes] if prefixes:
            names = ", ".join(map(str, prefixes))
            sentences.append(f"Only far ends within {names} are asked whether they run redirectd.")
    if "long-lived-after" in plain:
        sentences.append(
            f"A connection {_after(plain['long-lived-after'])}, unless a rule says else."
        )
    rules = plain.get("rule", plain.get("rules"))
    if isinstance(rules, list):
        sentences += [_rule(_plain(rule)) for rule in rules if isinstance(rule, Mapping)]
    return sentences


def _rule(rule: Mapping[str, Any]) -> str:
    what = []
    ports = rule.get("ports") or rule.get("port")
    if ports:
        listed = ports if isinstance(ports, list) else [ports]
        what.append(f"{'ports' if len(listed) > 1 else 'port'} {', '.join(map(str, listed))}")
    if rule.get("prefix"):
        what.append(f"addresses in {rule['prefix']}")
    if rule.get("peer"):
        what.append(f"the host {rule['peer']}")
    sentence = f"Rule for {' and '.join(what) or 'everything'}: a connection "
    parts = []
    if rule.get("long-lived-after") is not None:
        parts.append(_after(rule["long-lived-after"]))
    if rule.get("path"):
        parts.append(
            "takes its packets through the kernel"
            if rule["path"] == "kernel"
            else "takes its packets through the daemon"
        )
    if rule.get("integrity"):
        parts.append(
            {
                "off": "carries no integrity code",
                "prefer": "carries an integrity code when the far end can do it",
                "require": "must carry an integrity code",
            }.get(str(rule["integrity"]), f"has integrity {rule['integrity']}")
        )
    return sentence + (", ".join(parts) or "is treated like all others") + "."
