"""The table gives the answers of the texts: 97 situations, 90 of them written before the code."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from policy.licence_texts import all_texts

from potstill.policy.page import table_page
from potstill.policy.recognise import identify
from potstill.policy.table import ANSWERS, Route, decide, table, worst_of
from potstill.recipe.policy import Purpose

ROOT = Path(__file__).parents[2]
SITUATIONS: list[dict[str, Any]] = [
    json.loads(line) for line in (Path(__file__).parent / "situations.jsonl").read_text(encoding="utf-8").splitlines()
]


@pytest.mark.parametrize("situation", SITUATIONS, ids=lambda situation: str(situation["id"]))
def test_the_answer_is_that_of_the_text(situation: dict[str, Any]) -> None:
    decision = decide(situation["source"], situation["route"], situation["purpose"], situation.get("student_of"))
    assert (decision.answer, decision.clause) == (situation["answer"], situation["clause"])


def test_there_are_ninety_of_all_routes_purposes_and_answers() -> None:
    assert len(SITUATIONS) == 97
    for key, values in (("route", get_args(Route)), ("purpose", get_args(Purpose)), ("answer", ANSWERS)):
        assert {situation[key] for situation in SITUATIONS} == set(values)


@pytest.mark.peers
@pytest.mark.needs("licence texts")
def test_every_situation_quotes_the_text_that_its_source_was_read_from() -> None:
    for situation in SITUATIONS:
        source = table().sources.get(situation["source"])
        name = situation["read"]
        if name is None or name not in all_texts():
            continue  # not read; or a text that is in no package
        assert source is not None
        assert source.text == name
        assert plain(situation["quote"]) in plain(all_texts()[name]), situation["id"]


def plain(text: str) -> str:
    text = re.sub(r"[“”‘’]", "'", text.replace('"', "'"))
    return " ".join(re.sub(r"[*>#\\]", " ", text).split()).casefold()


@given(st.text(max_size=40), st.sampled_from(get_args(Route)), st.sampled_from(get_args(Purpose)))
def test_what_is_not_known_is_never_allowed(name: str, route: Route, purpose: Purpose) -> None:
    for source in (name, None, ""):
        if source not in table().sources:
            assert decide(source, route, purpose).answer == "warn"


@given(st.text(max_size=40))
def test_a_stated_licence_leads_to_a_source_of_the_table_or_to_none(stated: str) -> None:
    assert all(source == "" or source in table().sources for source in identify(stated))


def test_an_entry_that_was_not_read_says_so_and_allows_nothing() -> None:
    unread = [source for source in table().sources.values() if not source.text and source.id != "own"]
    assert len(unread) > 10
    for source in unread:
        answers = [decide(source.id, route, purpose) for route in source.routes for purpose in get_args(Purpose)]
        assert {(answer.answer, answer.why) for answer in answers} == {("warn", "its text was not read")}


def test_every_entry_that_was_read_answers_every_question() -> None:
    for source in (source for source in table().sources.values() if source.was_read):
        for route in source.routes:
            for purpose in get_args(Purpose):
                for of in (None, source.id):
                    assert decide(source.id, route, purpose, of).why == "", (source.id, route, purpose)


def test_every_entry_has_an_address_a_date_and_a_digest_of_what_was_read() -> None:
    for source in table().sources.values():
        assert source.address.startswith("https://") or source.id == "own"
        assert bool(source.text) == bool(source.read_on) == bool(source.sha256)
        assert all(rule.clause for rule in source.rules)


def test_no_two_entries_have_an_alias_in_common() -> None:
    aliases = [alias for source in table().sources.values() for alias in source.aliases]
    assert len(aliases) == len(set(aliases))


@pytest.mark.parametrize(
    ("stated", "sources"),
    [
        ("Apache-2.0", ("apache-2.0",)),
        ("MIT AND CC0-1.0", ("mit", "cc0-1.0")),
        ("(MIT OR GPL-3.0-only)", ("mit", "gpl-3.0")),
        ("llama3.1", ("llama-3.1",)),
        ("MIT and my own", ("mit", "")),
        ("see the web site", ("",)),
        ("", ("",)),
    ],
)
def test_a_stated_licence_is_read_as_an_expression(stated: str, sources: tuple[str, ...]) -> None:
    assert identify(stated) == sources


def test_the_worst_answer_holds() -> None:
    assert worst_of(["allow", "block", "warn"]) == "block"
    assert worst_of([]) == "allow"


def test_the_page_is_the_table() -> None:
    page = (ROOT / "docs" / "sources.md").read_text(encoding="utf-8")
    assert page == table_page(), "python -m potstill.policy.page > docs/sources.md"


def test_the_page_counts_what_is_there() -> None:
    page = (Path(__file__).parents[2] / "docs" / "policy.md").read_text(encoding="utf-8")
    sources = table().sources.values()
    read, unread = sum(bool(source.text) for source in sources), sum(not source.was_read for source in sources)
    assert f"{read} texts were read, and {unread} entries are there by name only" in page
    situations = Path(__file__).with_name("situations.jsonl").read_text(encoding="utf-8").count("\n")
    assert f"has {situations} situations" in page
