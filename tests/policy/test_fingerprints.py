"""A licence is known by its text: under another layout, header or year, and never as another version."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest
from policy.licence_texts import all_texts, read_by_source

from potstill.policy.fingerprints import known_texts, nearest

ROOT = Path(__file__).parents[2]
WORDS = "copper still spirit cask barley malt peat water yeast wash".split()


def changed(text: str, luck: random.Random) -> str:
    """The text as people keep it: wrapped anew, indented, with other years, a header, other quotes."""
    paragraphs = re.split(r"\n\s*\n", text.strip())
    width = luck.randrange(40, 140)
    lines = []
    for paragraph in paragraphs:
        row = ""
        for word in paragraph.split():
            if len(row) + len(word) > width:
                lines.append(row)
                row = ""
            row += (" " * luck.choice((1, 1, 1, 2)) if row else "") + word
        lines += [row] + [""] * luck.randrange(1, 3)
    indent = luck.choice(("", "", "  ", "\t", "# ", "> "))
    made = luck.choice(("\n", "\r\n")).join(indent + line for line in lines)
    made = re.sub(r"\b(19|20)\d\d\b", lambda _: str(luck.randrange(1990, 2030)), made)
    if luck.random() < 0.5:
        made = made.replace("“", '"').replace("”", '"').replace("’", "'")
    if luck.random() < 0.5:
        holder = " ".join(luck.sample(WORDS, 3)).title()
        made = f"{holder}\n\nCopyright (c) {luck.randrange(1990, 2030)} {holder}. All rights reserved.\n\n{made}"
    return made.upper() if luck.random() < 0.1 else made


def is_named(text: str) -> str | None:
    match = nearest(text)
    return match.source if match is not None and match.exact else None


def test_the_licence_of_this_project_is_known_under_any_layout() -> None:
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    luck = random.Random(0)
    assert {is_named(changed(text, luck)) for _ in range(20)} == {"apache-2.0"}
    assert is_named(text.partition("END OF TERMS")[0]) == "apache-2.0"


def test_a_clause_more_is_another_text_and_resembles_the_licence() -> None:
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    clause = "The Work may not be used to train any model that competes with the products of the Licensor."
    match = nearest(text.replace("END OF TERMS", f"{clause}\n\nEND OF TERMS"))
    assert match is not None
    assert (match.source, match.exact) == ("apache-2.0", False)


def test_a_holders_name_in_a_disclaimer_changes_nothing() -> None:
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert is_named(text.replace("the copyright owner or entity", "Copper Still Incorporated")) == "apache-2.0"


@pytest.mark.parametrize(
    ("old", "new"), [("You may reproduce", "You may not reproduce"), ("shall not include", "shall include")]
)
def test_a_word_that_restricts_makes_another_text_and_so_does_its_absence(old: str, new: str) -> None:
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert old in text
    assert is_named(text.replace(old, new)) is None


@pytest.mark.parametrize("text", ["", "hello", "copper still spirit cask " * 1000, "\0" * 100])
def test_other_text_is_no_licence(text: str) -> None:
    assert nearest(text) is None


def test_every_text_that_was_read_has_a_digest() -> None:
    assert set(known_texts()) == set(read_by_source())
    assert all(re.fullmatch("[0-9a-f]{64}", known.sha256) for known in known_texts().values())


@pytest.mark.peers
@pytest.mark.needs("licence texts")
def test_changed_texts_are_recognised_and_no_version_is_taken_for_another() -> None:
    luck, right, wrong, all_in_all = random.Random(20261127), 0, [], 0
    for source, name in read_by_source().items():
        for _ in range(20 if name in all_texts() else 0):
            found = is_named(changed(all_texts()[name], luck))
            right += found == source
            all_in_all += 1
            if found not in (source, None):
                wrong.append((source, found))
    assert wrong == []
    assert all_in_all >= 1000
    assert right >= 0.98 * all_in_all


@pytest.mark.peers
@pytest.mark.needs("licence texts")
def test_no_other_licence_is_taken_for_one_of_the_table() -> None:
    """2,600 other texts: one that differs in nothing but its address or its name is the same text."""
    read = set(read_by_source().values())
    taken = {name: is_named(text) for name, text in all_texts().items() if name not in read and text.strip()}
    mistaken = {name: source for name, source in taken.items() if source is not None}
    assert mistaken == SAME_TEXT
    assert len(taken) > 2500


SAME_TEXT = {
    "odc-1.0": "odc-by-1.0",  # without its title
    "x11-r75": "mit",  # "(including the next paragraph)"
}


LIMITS = (
    ("free of charge, to any person", "free of charge, for research purposes, to any person"),
    ("free of charge, to any person", "free of charge, to any academic person"),
    ("sublicense, and/or sell", "and/or sublicense"),
)


@pytest.mark.parametrize(("old", "new"), LIMITS)
def test_a_word_that_says_who_may_do_what_makes_another_text(old: str, new: str) -> None:
    assert is_named(MIT) == "mit"
    assert old in MIT
    assert is_named(MIT.replace(old, new)) is None


def test_what_stands_behind_the_longest_text_is_not_overlooked() -> None:
    assert is_named(MIT + " " * 500_000) is None


@pytest.mark.peers
@pytest.mark.needs("licence texts")
def test_a_clause_within_a_long_text_makes_another_text() -> None:
    """In ordinary words, none of which turns a sentence round."""
    clause = "Each use of the Work in a product needs a separate written agreement with the Licensor and a fee."
    for source, name in read_by_source().items():
        if name in all_texts():
            paragraphs = all_texts()[name].split("\n\n")
            half = len(paragraphs) // 2
            assert is_named("\n\n".join([*paragraphs[:half], clause, *paragraphs[half:]])) is None, source


MIT = """\
Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
documentation files (the "Software"), to deal in the Software without restriction, including without limitation the
rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit
persons to whom the Software is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the
Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""
