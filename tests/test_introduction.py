"""The text form of a pair: it survives pasting, and damage is noticed."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.introduction import IntroductionError, Pair, read_pair, write_pair

from .keystore.samples import PEERS, peer

TEXT = write_pair(peer(), "introduction")


@settings(max_examples=100, deadline=None)
@given(
    record=PEERS,
    kind=st.sampled_from(["introduction", "backup"]),
    addresses=st.lists(st.ip_addresses().map(str), max_size=16),
    name=st.text(st.characters(categories=["L", "N"]), max_size=64),
)
def test_a_pair_is_read_as_it_was_written(
    record: Any, kind: Any, addresses: list[str], name: str
) -> None:
    record = replace(
        record, addresses=tuple(addresses), name=name, fingerprint="1 2", dns_name=name or None
    )
    assert read_pair(write_pair(record, kind)) == Pair(kind, record)


def test_a_host_that_has_not_told_its_own_id_can_be_backed_up() -> None:
    introduced = replace(peer(), host_id="")
    assert read_pair(write_pair(introduced, "backup")).record == introduced


@pytest.mark.parametrize(
    "pasted",
    [
        lambda t: "Hello,\nhere it is:\n\n" + t + "\nYours, A.: see you\n",
        lambda t: t.replace("\n", "\r\n"),
        lambda t: "".join(f"> {line}\n" for line in t.split("\n")),
        lambda t: "".join(f"> > {line}\n" for line in t.split("\n")),
        lambda t: "".join(f"    {line}   \n" for line in t.split("\n")),
        lambda t: "\ufeff" + t.replace("\n", "\u00a0\n"),
        lambda t: t.rstrip("\n"),
        lambda t: t.replace("\n", "\n\n"),
    ],
    ids=["in-a-letter", "crlf", "quoted", "quoted-twice", "indented", "web-blanks", "no-newline",
         "double-spaced"],
)  # fmt: skip
def test_pasting_does_no_harm(pasted: Callable[[str], str]) -> None:
    assert read_pair(pasted(TEXT)).record == peer()


@pytest.mark.parametrize("length", [1, 19, 75])
def test_other_line_lengths_do_no_harm(length: int) -> None:
    head, _, rest = TEXT.partition("\n\n")
    body, _, tail = rest.partition("\n=")
    letters = body.replace("\n", "")
    short = "\n".join(letters[i : i + length] for i in range(0, len(letters), length))
    assert read_pair(f"{head}\n\n{short}\n={tail}").record == peer()


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_a_single_changed_letter_is_noticed(data: st.DataObject) -> None:
    begin = TEXT.index("\n\n") + 2
    end = TEXT.index("\n-----END")
    at = data.draw(st.integers(begin, end - 1).filter(lambda i: TEXT[i] != "\n"))
    new = data.draw(st.sampled_from("ABCabc019+/=-").filter(lambda c: c != TEXT[at]))
    with pytest.raises(IntroductionError):
        read_pair(TEXT[:at] + new + TEXT[at + 1 :])


@settings(max_examples=100, deadline=None)
@given(cut=st.integers(0, len(TEXT) - 3))
def test_a_text_cut_short_is_noticed(cut: int) -> None:
    with pytest.raises(IntroductionError):
        read_pair(TEXT[:cut])


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=100), st.text(max_size=100))
def test_any_text_is_a_pair_or_an_introduction_error(before: str, inside: str) -> None:
    text = f"{before}\n-----BEGIN REDIRECTD PAIR-----\n{inside}\n-----END REDIRECTD PAIR-----"
    with pytest.raises(IntroductionError):
        read_pair(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "paste the whole output"),
        ("x" * 70000, "longer than"),
        (TEXT + TEXT, "more than one"),
        (TEXT.replace("-----END REDIRECTD PAIR-----", ""), "end is missing"),
        (TEXT.replace("Version: 1", "Version: 2"), "update this one"),
        (TEXT.replace("Version: 1\n", ""), "no version"),
        (TEXT.replace("Version: 1", "Version: ²"), "no version"),
        (TEXT.replace("\n=", "\n=="), "damaged"),
    ],
)
def test_what_is_wrong_is_told_with_a_remedy(text: str, words: str) -> None:
    with pytest.raises(IntroductionError, match=words):
        read_pair(text)


def forged(**changes: Any) -> str:
    """A text whose checksum is right and whose content is not."""
    body = TEXT.split("\n\n")[1].split("\n=")[0]
    values = {**json.loads(base64.b64decode(body)), **changes}
    payload = json.dumps({k: v for k, v in values.items() if v is not ...}).encode()
    checksum = base64.b64encode(hashlib.sha256(payload).digest()[:6]).decode()
    head = TEXT.split("\n\n")[0]
    return (
        f"{head}\n\n{base64.b64encode(payload).decode()}\n={checksum}\n-----END REDIRECTD PAIR-----"
    )


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"kind": "gift"}, "kind"),
        ({"peer_id": "AB" * 16}, "peer_id"),
        ({"root": "00"}, "root"),
        ({"chain": 5}, "chain"),
        ({"previous": None}, "previous"),
        ({"initiator": 1}, "initiator"),
        ({"host_id": "x" * 32}, "host_id"),
        ({"name": "a\u001b[2J"}, "name"),
        ({"name": "x" * 65}, "name"),
        ({"fingerprint": ["1"]}, "fingerprint"),
        ({"state": "friend"}, "state"),
        ({"state": []}, "state"),
        ({"first_contact": True}, "first_contact"),
        ({"last_contact": float("nan")}, "last_contact"),
        ({"last_contact": -1}, "last_contact"),
        ({"addresses": ["home"]}, "addresses"),
        ({"addresses": ["192.0.2.1"] * 17}, "addresses"),
        ({"port": 65536}, "port"),
        ({"dns_name": 5}, "dns_name"),
        ({"extra": 1}, "consists"),
        ({"root": ...}, "consists"),
    ],
)
def test_content_that_makes_no_sense_is_refused_and_named(
    changes: dict[str, Any], named: str
) -> None:
    with pytest.raises(IntroductionError, match=named):
        read_pair(forged(**changes))


def test_no_secret_is_told_in_an_error() -> None:
    for bad in (TEXT.replace("\n=", "\n=A"), forged(root="ab" * 31), forged(extra=1)):
        with pytest.raises(IntroductionError) as raised:
            read_pair(bad)
        assert "abab" not in str(raised.value)
        assert (b"R" * 8).hex() not in str(raised.value)
        assert raised.value.__cause__ is None


def test_lines_are_short_enough_for_mail() -> None:
    assert max(map(len, TEXT.split("\n"))) <= 76
