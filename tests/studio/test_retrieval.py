"""The tutor finds the passage that answers, and knows what the course does not cover."""

from __future__ import annotations

from pathlib import Path

import yaml

from potstill.studio.retrieval import Passage, _index, search, sections

QUESTIONS = yaml.safe_load((Path(__file__).parent / "questions.yaml").read_text(encoding="utf-8"))


def test_every_expected_passage_exists() -> None:
    keys = {passage.key for passage in _index().passages}
    expected = {answer for question in QUESTIONS["course"] for answer in question["answers"]}
    first = {question["answers"][0] for question in QUESTIONS["course"]}
    assert len(QUESTIONS["course"]) == 40
    assert first <= keys, first - keys
    assert len(expected & keys) > 0.8 * len(expected)


def test_the_answer_is_among_the_first_three_for_nine_of_ten_questions() -> None:
    missed = []
    for question in QUESTIONS["course"]:
        found = [f.passage.key for f in search(question["ask"])]
        if not set(found) & set(question["answers"]):
            missed.append((question["ask"], found))
    assert len(missed) <= 4, missed


def test_what_the_course_does_not_cover_is_declined() -> None:
    assert len(QUESTIONS["outside"]) == 20
    found = {question: [f.passage.key for f in search(question)] for question in QUESTIONS["outside"]}
    assert not any(found.values()), {q: f for q, f in found.items() if f}


def test_a_page_is_cut_at_its_headings_and_code_is_no_heading() -> None:
    page = "# Page\nintro\n\n## One `thing`\ntext\n\n```yaml\n# no heading\n```\n\n### Deeper\nmore"
    made = sections("page", page)
    assert [p.anchor for p in made] == ["page", "one-thing", "deeper"]
    assert made[1] == Passage("page", "one-thing", "Page: One thing", "text\n\n```yaml\n# no heading\n```")


def test_a_question_without_words_finds_nothing() -> None:
    assert search("") == search("what is the") == search("???") == []
