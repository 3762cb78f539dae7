"""What `reasoning` asks at most: every sample, every hint, and every question of a judge about each."""

from __future__ import annotations

from collections.abc import Iterable

from potstill.data.problems import as_prompt, with_reference
from potstill.generate.chains_record import put_by, reference_of
from potstill.generate.demand import Demand, Reads, of_judges
from potstill.recipe.reasoning import ReasoningProgram
from potstill.types import Record, Sampling


def most_asked(
    settings: ReasoningProgram, records: Iterable[Record], *, turns: bool, reads: Reads
) -> tuple[Demand, ...]:
    """An upper bound of a whole run: no sample saved, no problem solved without its hint, every answer judged.

    Args:
        settings: of the program.
        records: whose problems are put.
        turns: whether a plain prompt becomes the user's turn.
        reads: of a request.
    """
    sampling = Sampling(settings.max_new_tokens, settings.temperature, settings.top_p, settings.top_k)
    judged: list[tuple[int, Record]] = []
    chains = read = 0
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
        read += sum(samples * reads(settings.teacher, request) for samples, request in put)
        judged.append((answers, prompt))
    writes = Demand(settings.teacher, chains, chains * settings.max_new_tokens, read)
    judging = of_judges(settings.verify, settings.teacher, judged, longest=settings.max_new_tokens, reads=reads)
    return writes, *judging
