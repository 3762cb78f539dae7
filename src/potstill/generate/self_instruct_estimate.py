"""What `self_instruct` asks at most. Prompts are not known before the answers: the longest seeds stand for them."""

from __future__ import annotations

import math
from collections.abc import Iterable

from potstill.generate.demand import Demand, Reads, of_judges
from potstill.generate.self_instruct import SHOWN_EXAMPLES, seed_of
from potstill.generate.self_instruct_prompts import (
    classification_prompt,
    examples_prompt,
    instructions_prompt,
    labelled_examples_prompt,
    tasks_prompt,
)
from potstill.recipe.programs import SelfInstructProgram
from potstill.types import Record, Request, Sampling

_EXAMPLES = 8


def most_asked(settings: SelfInstructProgram, records: Iterable[Record], *, reads: Reads) -> tuple[Demand, ...]:
    """An upper bound of a whole run: every call made, every answer as long as it may be, every round asking for as many
    examples as are wanted in all, every task judged (of style `self_instruct` with at most eight examples each). A
    generated task that is shown again is taken to have four bytes a token, or to be as long as the longest seed."""
    seeds = [seed for record in records if (seed := seed_of(record)) is not None]
    own_words = "x" * 12 * settings.most_words
    make = tasks_prompt if settings.style == "alpaca" else instructions_prompt
    sized = sorted(seeds, key=lambda seed: len(make([seed], settings.tasks).encode()), reverse=True)
    shown = sized[: settings.shown]
    generated = 4 * settings.max_new_tokens * settings.shown_generated
    longest = sorted(seeds, key=lambda s: len(f"{s.instruction}{s.input}{s.output}".encode()), reverse=True)
    wanted = settings.target * math.ceil(settings.calls / settings.calls_per_round)
    answers, written = settings.calls, settings.calls * settings.max_new_tokens
    read = settings.calls * (len(make(shown, settings.tasks).encode()) + generated)
    if settings.style == "self_instruct":
        examples = max(
            len(examples_prompt(own_words, longest[:SHOWN_EXAMPLES]).encode()),
            len(labelled_examples_prompt(own_words).encode()),
        )
        answers += wanted
        written += wanted * settings.max_new_tokens
        read += wanted * examples
        if settings.classification:
            answers, written = answers + wanted, written + 3 * wanted
            read += wanted * len(classification_prompt(own_words).encode())
    # What is around a prompt in the body of a request is counted with each.
    read += answers * reads(settings.teacher, Request(Sampling(settings.max_new_tokens), prompt=""))
    writes = Demand(settings.teacher, answers, written, read)
    task = Record(prompt=own_words + "x" * 4 * settings.max_new_tokens)  # an instruction, and its input
    judged = [(settings.target if settings.style == "alpaca" else _EXAMPLES * wanted, task)]
    return writes, *of_judges(settings.verify, settings.teacher, judged, longest=settings.max_new_tokens, reads=reads)
