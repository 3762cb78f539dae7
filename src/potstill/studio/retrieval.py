"""Finding the passages that answer a question: BM25 over the lessons and the documentation.

A question that the course does not cover is told by what its words find: if too much of what it asks for, by rarity of
the words, is in none of the best passages, nothing is found.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache

import bm25s
import numpy as np
from numpy.typing import NDArray

from potstill.shipped import shipped
from potstill.studio.course import content

LEAST_EVIDENCE = 2.3
"""What the best score, times the share of the question's words (by rarity) that one of the best passages has, must
reach for a question to be of the course. Chosen on tests/studio/questions.yaml: outside ones reach 1.8 there, and the
others 2.9, but for one that is declined."""
LESSONS_FIRST = 1.25
"""What the score of a lesson counts, against the documentation's: the reader is in the course."""
_WORD = re.compile(r"[a-z0-9]+(?:_[a-z0-9]+)*")
_STOP = set(
    """a about above after again all also am an and any are as at be because been before being below between both
    but by can could did do does doing down each few for from further had has have he her here him his how i if
    in into is it its just me more most my no nor not of off on once only or other our out over own same she
    should so some such than that the their them then there these they this those through to too under until up
    us very was we were what when where which while who whom why will with would you your t s explain tell give
    name happen happens mean use used""".split()
)
_LONGEST_WORDS = 260
"""Words of a passage; a longer section is cut at paragraphs."""


@dataclass(frozen=True)
class Passage:
    """A section of a page. `page` is `lesson-1` or a page of the documentation, `anchor` the slug of its heading."""

    page: str
    anchor: str
    title: str
    text: str

    @property
    def key(self) -> str:
        return f"{self.page}/{self.anchor}"


@dataclass(frozen=True)
class Found:
    """A passage that was found, and its score."""

    passage: Passage
    score: float


def search(question: str, count: int = 3) -> list[Found]:
    """The best passages for a question, best first, each section once; none if the course does not cover it."""
    index = _index()
    words = terms(question)
    if not words:
        return []
    scores = index.scores(words)
    order = sorted(range(len(scores)), key=lambda number: -scores[number])
    found: list[Found] = []
    for number in order:
        passage = index.passages[number]
        if scores[number] > 0 and passage.key not in {f.passage.key for f in found}:
            found.append(Found(passage, float(scores[number])))
        if len(found) == count:
            break
    if not found or found[0].score * index.covered(words, [f.passage for f in found]) < LEAST_EVIDENCE:
        return []
    return found


def rarity(word: str) -> float:
    """How much finding a word tells: larger for rarer ones."""
    return _index().rarity(word)


def terms(text: str) -> list[str]:
    """The words of a text that are looked for, reduced to their stems."""
    text = text.lower().replace("t²", "t-squared").replace("’", "'")
    return [_stem(word) for word in _WORD.findall(text) if word not in _STOP]


_ENDINGS = (("isation", 4), ("ization", 4), ("ational", 4), ("ation", 4), ("ing", 4), ("ies", 3), ("ed", 4), ("ly", 4),
            ("es", 4), ("s", 3), ("e", 4))  # fmt: skip
"""Endings, and how many letters must be left."""


def _stem(word: str) -> str:
    """English endings off: plural, past, -ing, -ly, -ation. Crude, and the same for both sides."""
    for ending, least in _ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= least and not word.endswith("ss"):
            return word[: -len(ending)] + ("y" if ending == "ies" else "")
    return word


class _Index:
    def __init__(self, passages: Sequence[Passage]) -> None:
        self.passages = passages
        # What a section is about stands in its heading: counted three times.
        tokens = [terms(f"{p.title} {p.title} {p.title} {p.page} {p.text}") for p in passages]
        self._sets = [set(t) for t in tokens]
        self._bm25 = bm25s.BM25(k1=1.2, b=0.6)
        self._bm25.index(tokens, show_progress=False)
        self._weights = np.array([LESSONS_FIRST if p.page.startswith("lesson-") else 1.0 for p in passages])
        self._vocabulary = set().union(*self._sets)
        self._count = {word: sum(word in s for s in self._sets) for word in self._vocabulary}

    def scores(self, words: Sequence[str]) -> NDArray[np.float64]:
        known = [word for word in words if word in self._vocabulary]
        if not known:
            return np.zeros(len(self.passages))
        scores: NDArray[np.float64] = self._bm25.get_scores(known) * self._weights
        return scores

    def covered(self, words: Sequence[str], passages: Iterable[Passage]) -> float:
        """The largest share of the words, weighted by rarity, that one of the passages has."""
        weights = {word: self.rarity(word) for word in set(words)}
        whole = sum(weights.values())
        sets = [self._sets[self.passages.index(p)] for p in passages]
        return max(sum(weight for word, weight in weights.items() if word in there) / whole for there in sets)

    def rarity(self, word: str) -> float:
        return math.log(1 + len(self.passages) / (0.5 + self._count.get(word, 0)))


@cache
def _index() -> _Index:
    passages = [p for number in content.LESSONS for p in sections(f"lesson-{number}", content.lesson(number))]
    if (folder := shipped("docs")) is not None:
        for file in sorted([*folder.glob("*.md"), *folder.glob("methods/*.md")]):
            page = str(file.relative_to(folder).with_suffix(""))
            if page not in _NOT_FOR_READERS:
                passages += sections(page, file.read_text(encoding="utf-8"))
    return _Index(passages)


_NOT_FOR_READERS = ("log", "design", "contributing", "index")


def sections(page: str, markdown: str) -> list[Passage]:
    """The sections of a page of Markdown, long ones in pieces. Recipes and commands stay, since people ask for keys and
    verbs; programs do not: their words (`return`, `file`) are no answers."""
    made: list[Passage] = []
    title, anchor, lines = page, page, list[str]()
    page_title = ""

    def close() -> None:
        text = "\n".join(lines).strip()
        if text:
            named = title if title == page_title or not page_title else f"{page_title}: {title}"
            made.extend(Passage(page, anchor, named, piece) for piece in _pieces(text))

    fenced = program = False
    for line in markdown.splitlines():
        if line.startswith("```"):
            was_program, fenced, program = program, not fenced, line == "```python"
            if was_program or program:
                continue
        if program:
            continue
        heading = None if fenced else re.match(r"(#{1,3}) (.+)", line)
        if heading is None:
            lines.append(line)
            continue
        close()
        title, lines = heading[2].replace("`", "").strip(), []
        anchor = content.slug(title)
        page_title = page_title or title
    close()
    return made


def _pieces(text: str) -> list[str]:
    pieces: list[str] = []
    for paragraph in re.split(r"\n\s*\n", text):
        if pieces and len(pieces[-1].split()) + len(paragraph.split()) <= _LONGEST_WORDS:
            pieces[-1] += f"\n\n{paragraph}"
        else:
            pieces.append(paragraph)
    return pieces
