"""What chains are like: length, repetition, languages, paragraphs, code. Functions of text, and what is refused."""

from __future__ import annotations

import re

from potstill.recipe.reasoning import ChainFilters
from potstill.recipe.verify import Language
from potstill.types import Answer, Record
from potstill.verify import open_verifier

_CJK = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
_WORD = re.compile(rf"[{_CJK}]|[^\W{_CJK}]+|[^\w\s]")
_FENCE = re.compile(r"^\s*(?:```|~~~)", re.MULTILINE)
_PARAGRAPHS = re.compile(r"\n\s*\n")


def words_of(text: str) -> list[str]:
    """The words of a text: runs of letters and digits, single signs of punctuation, single signs of scripts that are
    written without spaces."""
    return _WORD.findall(text)


def repeated_share(words: list[str], run: int) -> float:
    """The share, in [0, 1), of runs of `run` words that have stood in the text before. 0 where there is no run."""
    runs = [tuple(words[start : start + run]) for start in range(len(words) - run + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


class ChainFilter:
    """Says of an answer why its chain is left out, cheap looks first. Finds nothing out about whether it is right."""

    def __init__(self, settings: ChainFilters) -> None:
        self.settings = settings
        self._language = None
        if settings.languages is not None:
            self._language = open_verifier(
                Language(kind="language", languages=settings.languages, other_share=settings.other_share, of="both")
            )

    def fault(self, record: Record, answer: Answer) -> tuple[str, str] | None:
        """The reason and a detail; None if there is nothing against it.

        A chain that was cut short is refused before all else: the answer in it may be there by luck.
        """
        of = self.settings
        if answer.finish != "stop":
            return "truncated chain", f"{answer.completion_tokens} tokens"
        if not answer.text.strip():
            return "empty answer", ""
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
