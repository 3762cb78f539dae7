"""What a program asks of teachers at most: answers, tokens written, and tokens read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from potstill.recipe.verify import VerifierSettings, judges_of
from potstill.types import Record, Request
from potstill.verify.judge import asking, questions_of

Reads = Callable[[str, Request], int]
"""At least as many tokens as the teacher of that name reads for a request."""


@dataclass(frozen=True)
class Demand:
    """What one teacher is asked at most, for what it writes or for what it judges."""

    teacher: str
    answers: int
    written: int
    read: int
    judges: bool = False


def of_judges(
    verify: VerifierSettings | None,
    writer: str,
    judged: Iterable[tuple[int, Record]],
    *,
    longest: int,
    reads: Reads,
) -> Iterator[Demand]:
    """What the judges of a verifier are asked, one after the other.

    Args:
        verify: its settings.
        writer: the name of the teacher that writes, which a judge without one is.
        judged: how many answers of how many prompts: (answers, prompt with its reference) each.
        longest: tokens of the longest answer, taken to have four bytes each.
        reads: of a request.
    """
    judges, text = tuple(judges_of(verify)), "x" * 4 * longest
    prompts = list(judged) if judges else []
    for judge in judges:
        name = judge.teacher or writer
        asked = read = 0
        for answers, prompt in prompts:
            questions = [asking(judge, question) for question in questions_of(judge, prompt, text)]
            asked += answers * len(questions)
            read += answers * sum(reads(name, question) for question in questions)
        yield Demand(name, asked, asked * judge.max_new_tokens, read, judges=True)
