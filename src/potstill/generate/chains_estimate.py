"""What `reasoning` asks at most: every sample, every hint, and every question of a judge about each."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from potstill.data.problems import as_prompt, with_reference
from potstill.generate.chains_record import put_by, reference_of
from potstill.recipe.reasoning import ReasoningProgram
from potstill.recipe.verify import judges_of
from potstill.types import Record, Request, Sampling
from potstill.verify.judge import asking, questions_of


class Bound(NamedTuple):
    """Answers in all, those of them to a judge's questions, tokens written, and tokens read, at most."""

    answers: int
    judged: int
    written: int
    read: int


def most_asked(
    settings: ReasoningProgram, records: Iterable[Record], *, turns: bool, reads: Callable[[Request], int]
) -> Bound:
    """An upper bound of a whole run: no sample saved, no problem solved without its hint, every answer judged.

    Args:
        settings: of the program.
        records: whose problems are put.
        turns: whether a plain prompt becomes the user's turn.
        reads: at least as many tokens as are read for a request. A judge reads what the same teacher wrote, which is
            taken to have four bytes a token.
    """
    sampling = Sampling(settings.max_new_tokens, settings.temperature, settings.top_p, settings.top_k)
    judges = tuple(judges_of(settings.verify))
    longest = "x" * 4 * settings.max_new_tokens if judges else ""
    chains = judged = read = 0
    written_by_judges = 0
    for record in records:
        prompt = as_prompt(record, turns)
        if isinstance(prompt, str):
            continue
        prompt = with_reference(prompt, record, settings.reference)
        reference = reference_of(prompt, settings.reference)
        try:
            put = [(settings.samples, put_by(settings.instruction, prompt, sampling, 0))]
            if settings.hint is not None and reference is not None:
                put.append((settings.hint_samples, put_by(settings.hint, prompt, sampling, 0, reference)))
        except ValueError:
            continue  # the problem is not a text, and not asked
        answers = sum(samples for samples, _ in put)
        chains += answers
        read += sum(samples * reads(request) for samples, request in put)
        for judge in judges:
            questions = [asking(judge, question) for question in questions_of(judge, prompt, longest)]
            judged += answers * len(questions)
            written_by_judges += answers * len(questions) * judge.max_new_tokens
            read += answers * sum(map(reads, questions))
    return Bound(chains + judged, judged, chains * settings.max_new_tokens + written_by_judges, read)
