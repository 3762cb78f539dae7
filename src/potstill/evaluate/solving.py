"""The share of held-out problems that models solve: their greedy answers, judged by a verifier.

All models are asked in the same tokens, those of the student's tokenizer and chat template.

An answer that was cut short is not solved, whatever stands in it, as a chain that was cut is never learned; nor is one
that the verifier cannot judge. Both are counted.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import nn
from transformers import PreTrainedModel

from potstill.artifacts import Work
from potstill.data import ChatTokenizer
from potstill.data.thinking import split_reasoning
from potstill.errors import DataError
from potstill.evaluate.answers import Written, write_answers
from potstill.evaluate.bootstrap import FEW_GROUPS, PairedBootstrap
from potstill.evaluate.problems import Problem, read_problems
from potstill.evaluate.summary import Draws
from potstill.measures import MODELS, Comparison, Measures, Solving
from potstill.recipe import Recipe
from potstill.recipe.verify import workers_of
from potstill.types import Answer, Verdict
from potstill.verify import open_verifier, verdicts

Outcome = Literal["accept", "reject", "cannot_judge", "unfinished", "too_long"]

_AGAINST = ("teacher", "text_only", "untrained")
"""What the student is held against."""


@dataclass(frozen=True)
class Solution:
    """What a model wrote, and what became of it."""

    text: str
    outcome: Outcome
    reason: str = ""

    @property
    def solved(self) -> bool:
        return self.outcome == "accept"


class Solvers:
    """The models that were asked so far, and their solutions.

    Args:
        recipe: with `evaluate.solve`.
        chat: the student's tokenizer.
        work: takes counts, facts and warnings.

    Raises:
        DataError: as `read_problems`, or there are fewer than two groups of problems.
        RecipeError, MissingExtra: the verifier cannot be opened.
    """

    def __init__(self, recipe: Recipe, chat: ChatTokenizer, work: Work) -> None:
        assert recipe.evaluate is not None and recipe.required_evaluate.solve is not None
        self.settings, self.chat, self.work = recipe.required_evaluate.solve, chat, work
        with open_verifier(self.settings.verify) as verifier:
            self.identity = dict(verifier.identity)
        self.problems = read_problems(recipe, self.settings, chat, work)
        self.groups = [problem.record.group for problem in self.problems]
        if len(set(self.groups)) < 2:
            raise DataError(
                "an interval needs two held-out problems at least, of two groups",
                where="evaluate.solve",
                fix="hold out a larger share, give more problems, or raise evaluate.solve.limit",
            )
        work.facts["verifier"] = self.identity
        self.by_model: dict[str, list[Solution]] = {}
        self.notes: list[str] = []

    # ---- one model -----------------------------------------------------------------------------------------------

    def ask(self, name: str, model: nn.Module, positions: int | None, advance: Callable[[float], None]) -> None:
        """Put every problem to a model, in evaluation mode.

        Args:
            name: what it is called in the measures.
            model: of this machine; what does not write by itself (an ensemble) is left out, with a note.
            positions: how many tokens it takes, prompt and answer together (None: any number).
            advance: told how many problems were answered.
        """
        if not isinstance(model, PreTrainedModel):
            self.notes.append(f"What the {name} solves was not measured: it is no single model that writes.")
            return
        written = self._written(model, positions, advance)
        answers = {i: _answer(self.problems[i], found) for i, found in written.items() if found.finished}
        judged = dict(zip(answers, self._verdicts(answers), strict=True))
        self.by_model[name] = [
            _solution(written.get(i), answers.get(i), judged.get(i)) for i in range(len(self.problems))
        ]

    def _written(
        self, model: PreTrainedModel, positions: int | None, advance: Callable[[float], None]
    ) -> dict[int, Written]:
        """What is written to each problem that leaves room for an answer. Those with less room than `max_new_tokens`
        are answered apart, so that they cut no other short."""
        limit = self.settings.max_new_tokens
        by_room: dict[int, list[int]] = {}
        for i, problem in enumerate(self.problems):
            room = limit if positions is None else min(limit, positions - len(problem.ids))
            if room > 0:
                by_room.setdefault(room, []).append(i)
            else:
                advance(1)
        written: dict[int, Written] = {}
        for room, several in by_room.items():
            found = write_answers(
                model,
                [self.problems[i].ids for i in several],
                self.chat,
                max_new_tokens=room,
                advance=advance,
                batch_size=self.settings.batch_size,
            )
            written.update(zip(several, found, strict=True))
        return written

    def _verdicts(self, answers: Mapping[int, Answer | None]) -> list[Verdict | None]:
        """The verdict on each answer; None on what is all reasoning and no answer."""
        items = [(self.problems[i].record, answer) for i, answer in answers.items() if answer is not None]
        with open_verifier(self.settings.verify) as verifier:
            found = iter(list(verdicts(verifier, items, workers_of(self.settings.verify))))
        return [None if answer is None else next(found) for answer in answers.values()]

    # ---- all of them ---------------------------------------------------------------------------------------------

    def added_to(self, measures: Measures, draws: Draws) -> Measures:
        """The measures with what was solved: shares with intervals, over groups of problems, and the student's paired
        differences. What a reader must know is among the notes, and what hides something among the warnings."""
        bootstrap = PairedBootstrap(
            self.groups, resamples=draws.resamples, confidence=draws.confidence, seed=draws.seed
        )
        solved = {
            name: np.array([solution.solved for solution in self.by_model[name]])
            for name in MODELS
            if name in self.by_model
        }
        models = {
            name: replace(of_model, solved=bootstrap.mean(solved[name])) if name in solved else of_model
            for name, of_model in measures.models.items()
        }
        compared = tuple(
            Comparison("student", other, "solved", bootstrap.difference(solved["student"], solved[other]))
            for other in _AGAINST
            if other in solved and "student" in solved
        )
        solving = Solving(
            problems=len(self.problems),
            groups=bootstrap.groups,
            verifier=f"{self.identity['name']}@{self.identity['version']}",
            max_new_tokens=self.settings.max_new_tokens,
            unfinished=self._counts("unfinished"),
            unjudged=self._counts("cannot_judge"),
            too_long=self._counts("too_long"),
        )
        notes = [*measures.notes, self._how(solving), *self.notes, *self._said(solving)]
        if bootstrap.groups < FEW_GROUPS:
            notes.append(f"Only {bootstrap.groups} groups of problems: the intervals of what is solved are rough.")
        return replace(
            measures,
            models=models,
            comparisons=(*compared, *measures.comparisons),
            notes=tuple(notes),
            solving=solving,
        )

    def _counts(self, outcome: Outcome) -> dict[str, int]:
        return {
            name: sum(solution.outcome == outcome for solution in self.by_model[name])
            for name in MODELS
            if name in self.by_model
        }

    def _how(self, solving: Solving) -> str:
        return (
            f"Solved: greedy answers of at most {solving.max_new_tokens} tokens to {solving.problems} held-out "
            f"problems of the data, judged by {solving.verifier}; what was cut short, or could not be judged, is not "
            "solved."
        )

    def _said(self, solving: Solving) -> list[str]:
        """Answers that are not solved, and not because they are wrong."""
        said = []
        for what, counts in (
            (f"were not finished within {solving.max_new_tokens} tokens", solving.unfinished),
            ("could not be judged", solving.unjudged),
            ("were not given, the prompt being too long for the model", solving.too_long),
        ):
            told = {name: amount for name, amount in counts.items() if amount}
            if not told:
                continue
            listed = ", ".join(f"{amount} of the {name}" for name, amount in told.items())
            text = f"Of {solving.problems} answers {what}, and count as not solved: {listed}."
            said.append(text)
            if set(told) != {"untrained"}:  # of which nobody expects that it stops
                self.work.warn(text)
        return said

    def save(self, folder: Path) -> None:
        """Write `solved.parquet` and `solutions.jsonl`, a row per problem, in the order of the data.

        Columns of the table: `record_id`, `group`, and of each model `solved_<model>`. A line of the other has the
        problem, its reference, and what each model answered, with the outcome (`accept`, `reject`, `cannot_judge`,
        `unfinished`, `too_long`) and why.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        columns: dict[str, Any] = {"record_id": [problem.id for problem in self.problems], "group": self.groups}
        for name, solutions in self.by_model.items():
            columns[f"solved_{name}"] = [solution.solved for solution in solutions]
        pq.write_table(pa.table(columns), folder / "solved.parquet")
        # Half of a surrogate pair, which data may hold, is written as JSON's own escape.
        with (folder / "solutions.jsonl").open("w", encoding="utf-8", errors="backslashreplace") as file:
            for i, problem in enumerate(self.problems):
                answers = {name: asdict(solutions[i]) for name, solutions in self.by_model.items()}
                line = {
                    "record_id": problem.id,
                    "group": problem.record.group,
                    "row": problem.record.row,
                    "problem": problem.text,
                    "reference": problem.record.metadata.get(self.settings.reference),
                    "answers": answers,
                }
                file.write(json.dumps(line, ensure_ascii=False, default=str) + "\n")


def _answer(problem: Problem, written: Written) -> Answer | None:
    """A finished answer as verifiers see it, its reasoning set apart; None where the reasoning has no end."""
    return split_reasoning(Answer(written.text, "stop", len(problem.ids), written.tokens))


def _solution(written: Written | None, answer: Answer | None, verdict: Verdict | None) -> Solution:
    if written is None:
        return Solution("", "too_long", "the prompt leaves no room for an answer")
    if not written.finished:
        return Solution(written.text, "unfinished", f"cut after {written.tokens} tokens")
    if answer is None or verdict is None:
        return Solution(written.text, "reject", "the reasoning has no end")
    return Solution(written.text, verdict.outcome, verdict.reason)
