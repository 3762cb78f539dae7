"""The held-out problems that are put to models, with their reference answers. No torch.

They are the held-out side of the recipe's own data, and not of what `generate` made of them: after rejection sampling
that holds only what the teacher solved, which would flatter, and be other problems in every arm of a comparison.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from potstill.artifacts import Work
from potstill.data import ChatTokenizer, prompt_ids, read_sides
from potstill.data.problems import as_prompt, prompt_hash, with_reference
from potstill.errors import DataError
from potstill.evaluate.held_out import reported_on
from potstill.recipe import Recipe
from potstill.recipe.evaluate import SolveSettings
from potstill.types import Record, digest
from potstill.verify.preconditions import refuse_unjudgeable


@dataclass(frozen=True)
class Problem:
    """A held-out problem. `record` is the prompt, with its reference answer in its metadata; `id` and `group` are those
    of the record in the data, and `ids` are what a model is given."""

    id: str
    record: Record
    ids: tuple[int, ...]

    @property
    def text(self) -> str:
        """The last turn, for a person."""
        messages = self.record.messages
        return str(messages[-1].get("content")) if messages else str(self.record.prompt)


def read_problems(recipe: Recipe, settings: SolveSettings, chat: ChatTokenizer, work: Work) -> list[Problem]:
    """The held-out problems of a recipe's data, in their order; each prompt once.

    Args:
        recipe: says where the data are, and which are held out.
        settings: where the reference answer stands, and how many problems at most: those of the smallest hashes, so
            that they do not depend on their order or on a seed.
        chat: the student's tokenizer.
        work: takes the counts of what is left out.

    Raises:
        DataError: there is none, none has a reference that the verifier compares with, or the prompts are messages
            and there is no chat template.
    """
    left_out: Counter[str] = Counter()
    seen: set[str] = set()
    problems = []
    for record in reported_on(read_sides(recipe.data).held_out, recipe, work):
        if not isinstance(record, Record):
            continue
        prompt = as_prompt(record, chat.template is not None)
        if isinstance(prompt, str):
            left_out[prompt] += 1
            continue
        hashed = prompt_hash(prompt)
        if hashed in seen:
            left_out["same prompt as an earlier record"] += 1
            continue
        try:
            asked = prompt.messages if prompt.messages is not None else prompt.prompt or ""
            ids = prompt_ids(asked, chat, prompt.tools)
        except DataError as refusal:
            if refusal.fix is not None:
                raise  # the fix is in the recipe, not in this record
            left_out["the chat template refuses it"] += 1
            continue
        seen.add(hashed)
        problems.append(Problem(record.id, with_reference(prompt, record, settings.reference), tuple(ids)))
    for reason, amount in left_out.items():
        work.count(f"no problem: {reason}", amount)
    if not problems:
        reasons = "; ".join(f"{reason} {amount}" for reason, amount in left_out.items())
        raise DataError(
            f"no held-out record is a problem ({reasons})" if reasons else "there are no held-out records",
            where="evaluate.solve",
            fix="give data with prompts, or hold out a larger share (data.held_out)",
        )
    refuse_unjudgeable(
        settings.verify,
        [problem.record for problem in problems],
        called=f"{len(problems)} held-out problems",
        where="evaluate.solve",
    )
    if settings.limit is not None and settings.limit < len(problems):
        work.count("problems beyond evaluate.solve.limit", len(problems) - settings.limit)
        first = sorted(range(len(problems)), key=lambda i: digest([problems[i].id]))[: settings.limit]
        problems = [problems[i] for i in sorted(first)]
    work.count("problems", len(problems))
    return problems
