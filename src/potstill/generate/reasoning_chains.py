"""Properties of chains (length, repetition, languages, paragraphs, code), the next samples to request, and the choice
among accepted ones. Pure functions of text."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from potstill.recipe.reasoning import ChainFilters
from potstill.recipe.verify import Language
from potstill.types import Answer, Reason, Record
from potstill.verify import open_verifier

_CJK = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
_WORD = re.compile(rf"[{_CJK}]|[^\W{_CJK}]+|[^\w\s]")
_FENCE = re.compile(r"^\s*(?:```|~~~)", re.MULTILINE)
_PARAGRAPHS = re.compile(r"\n\s*\n")


def words_of(text: str) -> list[str]:
    """The words of a text: runs of letters and digits, single punctuation marks, and single characters of scripts
    without spaces."""
    return _WORD.findall(text)


def repeated_share(words: list[str], run: int) -> float:
    """The share, in [0, 1), of runs of `run` words that occurred earlier in the text; 0 if there is no run."""
    runs = [tuple(words[start : start + run]) for start in range(len(words) - run + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


class ChainFilter:
    """Finds why an answer's chain is left out, cheap tests first. Does not judge correctness."""

    def __init__(self, settings: ChainFilters) -> None:
        self.settings = settings
        self._language = None
        if settings.languages is not None:
            self._language = open_verifier(
                Language(kind="language", languages=settings.languages, other_share=settings.other_share, of="both")
            )

    def fault(self, record: Record, answer: Answer) -> tuple[str, str] | None:
        """The reason and a detail; None if there is none.

        A chain that was cut short is rejected first: an answer in it may be there by chance.
        """
        of = self.settings
        if answer.finish != "stop":
            return Reason.TRUNCATED_CHAIN, f"{answer.completion_tokens} tokens"
        if not answer.text.strip():
            return Reason.EMPTY, ""
        if of.most_tokens is not None and answer.completion_tokens > of.most_tokens:
            return "chain too long", f"{answer.completion_tokens} tokens, at most {of.most_tokens}"
        chain = chain_of(answer)
        words = words_of(chain)
        if len(words) < of.least_words:
            return "chain too short", f"{len(words)} words, at least {of.least_words}"
        if of.most_words is not None and len(words) > of.most_words:
            return "chain too long", f"{len(words)} words, at most {of.most_words}"
        if of.repetition is not None and (share := repeated_share(words, of.repeated_words)) > of.repetition:
            return "chain repeats itself", f"{100 * share:.0f} % of its runs of {of.repeated_words} words"
        if not of.code and _FENCE.search(chain):
            return "code in the chain", ""
        if of.paragraph_words is not None:
            longest = max(len(words_of(part)) for part in _PARAGRAPHS.split(chain))
            if longest > of.paragraph_words:
                return "long paragraph", f"{longest} words, at most {of.paragraph_words}"
        if self._language is not None:
            verdict = self._language.verify_answer(record, answer)
            if verdict.outcome == "reject":
                return "mixed languages", verdict.reason
        return None


def chain_of(answer: Answer) -> str:
    """Reasoning and answer, as one text."""
    return answer.text if not answer.reasoning else f"{answer.reasoning}\n\n{answer.text}"


T = TypeVar("T")
_RUN = 3
"""Length of the word runs by which chains are compared."""


@dataclass(frozen=True)
class Chain:
    """A chain that may be kept: its sample number, its text, its length in the teacher's tokens, whether it was
    accepted (with `accept_all` others may be kept too), and the score of its verdict, if any."""

    sample: int
    text: str
    tokens: int
    accepted: bool = True
    score: float | None = None


def next_samples(asked: int, accepted: int, *, samples: int, at_once: int | None, stop_at: int | None) -> range:
    """The next samples to request; empty once there are `samples` of them, or `stop_at` accepted ones."""
    if stop_at is not None and accepted >= stop_at:
        return range(asked, asked)
    return range(asked, min(samples, asked + (at_once or samples)))


def choose(
    chains: Sequence[Chain], keep: Literal["all", "shortest", "diverse", "best"], kept: int | None
) -> tuple[list[int], list[int]]:
    """The samples that are kept and those that are not, in order of sample.

    `all`: the first `kept`, or all. `shortest`: the `kept` (default 1) with fewest tokens. `diverse`: the shortest,
    then repeatedly the chain that is farthest from its nearest chosen one; the distance is 1 minus the share of
    three-word runs that two chains have in common (Jaccard). `best`: those with the highest scores, those without a
    score last. Ties go to the earlier sample.
    """
    ordered = sorted(chains, key=lambda c: c.sample)
    by_length = sorted(ordered, key=lambda c: (c.tokens, c.sample))
    if keep == "all":
        chosen = ordered[:kept]
    elif keep == "shortest":
        chosen = by_length[: kept or 1]
    elif keep == "best":
        chosen = best(ordered, [c.score for c in ordered], kept or 1)
    else:
        chosen = _spread(by_length, kept or 1)
    samples = {c.sample for c in chosen}
    return sorted(samples), [c.sample for c in ordered if c.sample not in samples]


def best(items: Sequence[T], scores: Sequence[float | None], count: int) -> list[T]:
    """The `count` items with the highest scores, the highest first; ties go to the earlier item, and items without a
    score come last."""
    ranked = sorted(zip(items, scores, strict=True), key=lambda pair: math.inf if pair[1] is None else -pair[1])
    return [item for item, _ in ranked[:count]]


def distance(one: str, other: str) -> float:
    """1 − |A ∩ B| / |A ∪ B| of the runs of three words of two texts, in [0, 1]."""
    return _apart(_runs(one), _runs(other))


def _spread(chains: Sequence[Chain], count: int) -> list[Chain]:
    """`chains` begin with the shortest."""
    left = {c.sample: (c, _runs(c.text)) for c in chains}
    nearest = dict.fromkeys(left, 2.0)
    chosen: list[Chain] = []
    while left and len(chosen) < count:
        first = not chosen
        sample = chains[0].sample if first else min(left, key=lambda s: (-nearest[s], s))
        chain, runs = left.pop(sample)
        chosen.append(chain)
        for other, (_, other_runs) in left.items():
            nearest[other] = min(nearest[other], _apart(runs, other_runs))
    return chosen


def _runs(text: str) -> frozenset[tuple[str, ...]]:
    words = words_of(text)
    return frozenset(tuple(words[at : at + _RUN]) for at in range(max(1, len(words) - _RUN + 1)))


def _apart(one: frozenset[tuple[str, ...]], other: frozenset[tuple[str, ...]]) -> float:
    return 1 - len(one & other) / len(one | other)
