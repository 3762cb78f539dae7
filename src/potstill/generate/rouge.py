"""ROUGE-L between an instruction and a pool of tens of thousands, exactly, in a few milliseconds.

Lin 2004 (ROUGE: A Package for Automatic Evaluation of Summaries, §3.1, sentence level, β = 1): with the longest common
subsequence LCS of two texts of m and n tokens, F = 2·LCS / (m + n).

Only texts that can reach the threshold are compared. The number of tokens that two texts share, as multisets, is an
upper bound on any common subsequence; so if 2·shared / (m + n) does not exceed the threshold, F does not either. Bound
and F are the same floating-point expression of a whole number, which never decreases as the number grows: skipping
texts never changes a result. (`shared` is at most the shorter length, so a bound by lengths is included.)
"""

from __future__ import annotations

import re
from array import array
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np

from potstill.errors import MissingExtra

_WORDS = re.compile(r"[぀-ヿ㐀-䶿一-鿿]|[^\W_぀-ヿ㐀-䶿一-鿿]+")


def rouge_tokens(text: str) -> list[str]:
    """Words as ROUGE counts them: lower case, without punctuation. For ASCII as in the package `rouge-score` without
    stemming, which drops all other scripts. In scripts without spaces, every character is a word."""
    return _WORDS.findall(text.lower())


def rouge_l(one: str, other: str) -> float:
    """F of ROUGE-L, in [0, 1]; 0 if either has no word.

    Raises:
        MissingExtra: rapidfuzz is not installed.
    """
    a, b = rouge_tokens(one), rouge_tokens(other)
    return _f(_lcs_of()(a, b), len(a) + len(b)) if a and b else 0.0


@dataclass(frozen=True)
class Similar:
    """A similar text of the pool: its number (from 0, in order of arrival), and F."""

    index: int
    f: float


class Pool:
    """A pool of texts, with a search for texts too similar to a new one.

    Raises:
        MissingExtra: rapidfuzz is not installed.
    """

    def __init__(self) -> None:
        self._lcs = _lcs_of()
        self._ids: dict[str, int] = {}
        self._texts: list[str] = []  # token ids as characters: rapidfuzz compares texts fastest
        self._lengths = array("i")
        self._holding: dict[tuple[int, int], array[int]] = {}  # (token, occurrence number) → the texts that contain it

    def __len__(self) -> int:
        return len(self._texts)

    def add(self, text: str) -> None:
        """Add a text, similar or not."""
        tokens = [self._ids.setdefault(token, len(self._ids)) for token in rouge_tokens(text)]
        for feature in _counted(tokens):
            self._holding.setdefault(feature, array("i")).append(len(self._texts))
        self._texts.append(_as_text(tokens))
        self._lengths.append(len(tokens))

    def most_similar(self, text: str, above: float) -> Similar | None:
        """The text of the pool with the greatest F, the first of ties, if F > `above`; else None.

        Args:
            text: the new text.
            above: the threshold, in [0, 1).
        """
        # Tokens that are not in the pool match nothing: they only count in the length.
        new = len(self._ids)
        tokens = [self._ids.get(token, new + place) for place, token in enumerate(rouge_tokens(text))]
        best: Similar | None = None
        if not tokens or not self._texts:
            return None
        as_text = _as_text(tokens)
        for index in self._candidates(tokens, above):
            f = _f(self._lcs(as_text, self._texts[index]), len(tokens) + self._lengths[index])
            if f > above and (best is None or f > best.f):
                best = Similar(int(index), f)
        return best

    def _candidates(self, tokens: list[int], above: float) -> Any:
        """Numbers of the texts whose bound exceeds the threshold, in increasing order."""
        shared = np.zeros(len(self._texts), dtype=np.int32)
        for feature in _counted(tokens):
            if (holding := self._holding.get(feature)) is not None:
                shared[np.frombuffer(holding, dtype=np.int32)] += 1  # a text contains each feature at most once
        lengths = np.frombuffer(self._lengths, dtype=np.int32)
        return np.flatnonzero(_f(shared, lengths + len(tokens)) > above)


def _f(common: Any, lengths: Any) -> Any:
    """F for a common number of tokens: from the LCS it is ROUGE-L, from the shared tokens its bound."""
    return 2.0 * common / lengths


def _counted(tokens: list[int]) -> list[tuple[int, int]]:
    """Each token with its occurrence number: the intersection of such sets is as large as that of the multisets."""
    before: dict[int, int] = {}
    features = []
    for token in tokens:
        count = before.get(token, 0)
        features.append((token, count))
        before[token] = count + 1
    return features


def _as_text(tokens: list[int]) -> str:
    """Raises ValueError beyond 1,114,111 different words, where code points end: no pool here has so many."""
    return "".join(map(chr, tokens))


def _lcs_of() -> Any:
    if find_spec("rapidfuzz") is None:
        raise MissingExtra("rapidfuzz", "generate", "ROUGE-L")
    from rapidfuzz.distance import LCSseq

    return LCSseq.similarity
