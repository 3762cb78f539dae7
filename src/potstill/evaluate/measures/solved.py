"""The share of held-out problems that models solve: their greedy answers, judged by a verifier.

All models get the same token ids, by the student's tokenizer and chat template. An answer that was cut short counts as
not solved, whatever it says (cut chains are never learned from either), and so does one that the verifier cannot judge.
Both are counted.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from transformers import PreTrainedModel

from potstill.artifacts import Work
from potstill.data import ChatTokenizer, read_sides
from potstill.data.thinking import split_reasoning
from potstill.evaluate.accuracies import losses_of
from potstill.evaluate.answers import Written, confidence_in, write_answers, writer_of
from potstill.evaluate.bootstrap import FEW_GROUPS
from potstill.evaluate.held_out import reported_on
from potstill.evaluate.measures.base import Asked, AsksAlone, Draws, Found, Pass, Setting, Table
from potstill.evaluate.measures.fidelity import SOLVED
from potstill.evaluate.questions import SOLVE, Problem, problems_of
from potstill.evaluate.scores import Scores
from potstill.evaluate.summary import find
from potstill.measures import MODELS, Solving
from potstill.quantities import counted
from potstill.recipe import Recipe
from potstill.recipe.evaluate import SolveSettings
from potstill.recipe.measures import WrittenTask
from potstill.recipe.verify import workers_of
from potstill.registry import implements
from potstill.types import Answer, Record, Verdict
from potstill.verify import open_verifier, verdicts


def read_problems(recipe: Recipe, settings: SolveSettings, chat: ChatTokenizer, work: Work) -> list[Problem]:
    """The held-out problems of a recipe's data, in order, without repeated prompts.

    They come from the recipe's own data, not from `generate`: after rejection sampling, its records hold only what the
    teacher solved, which would flatter, and would differ between the arms of a comparison. Raises as `problems_of`.
    """
    held_out = reported_on(read_sides(recipe.data).held_out, recipe, work)
    records = [record for record in held_out if isinstance(record, Record)]
    return problems_of(records, settings, chat, work.count, SOLVE)


Outcome = Literal["accept", "reject", "cannot_judge", "unfinished", "too_long"]


@dataclass(frozen=True)
class Solution:
    """A model's answer, its outcome, and how sure the model is of it (0 to 1; of students that finished)."""

    text: str
    outcome: Outcome
    reason: str = ""
    confidence: float = 0.0

    @property
    def solved(self) -> bool:
        return self.outcome == "accept"


@implements(SolveSettings)
class SolvedMeasure(AsksAlone):
    """The share of held-out problems that models solve."""

    def __init__(self, settings: SolveSettings) -> None:
        self.settings = settings

    def begin(self, setting: Setting) -> Pass:
        """The held-out problems. Raises as `read_problems` and `Solvers`."""
        problems = read_problems(setting.recipe, self.settings, setting.chat, setting.work)
        return Solvers(self.settings, setting, problems)


class Solvers:
    """The solutions of the models asked so far.

    Args:
        settings: how problems are put and judged.
        setting: recipe, tokenizer, and what takes counts, facts and warnings.
        problems: of two groups at least.

    Raises:
        RecipeError, MissingExtra: the verifier cannot be opened.
    """

    def __init__(self, settings: SolveSettings | WrittenTask, setting: Setting, problems: Sequence[Problem]) -> None:
        self.settings, self.chat, self.work, self.console = settings, setting.chat, setting.work, setting.console
        with open_verifier(self.settings.verify) as verifier:
            self.verifier = dict(verifier.identity)
        self.problems = problems
        self.groups = [problem.record.group for problem in self.problems]
        self.work.facts["verifier"] = self.verifier
        self.by_seed: dict[str, list[list[Solution]]] = {}
        self.notes: list[str] = []

    @property
    def identity(self) -> Any:
        """The problems in tokens, with their references, and how they are judged."""
        asked = [[list(p.ids), p.record.metadata.get(self.settings.reference)] for p in self.problems]
        return json.loads(json.dumps(["solved 1", asked, self.settings.key_fields(), self.verifier], default=str))

    @property
    def by_model(self) -> dict[str, list[Solution]]:
        """The solutions of each model, of its first seed."""
        return {name: seeds[0] for name, seeds in self.by_seed.items()}

    # ---- one model -----------------------------------------------------------------------------------------------

    def ask(self, asked: Asked) -> list[dict[str, Any]] | None:
        """Put every problem to a model. One that does not write by itself (an ensemble) is left out, with a note."""
        model = writer_of(asked.model)
        if model is None:
            self.notes.append(f"What the {asked.name} solves was not measured: it is no single model that writes.")
            return None
        count, label = len(self.problems), asked.name.replace("_", " ")
        with self.console.task(f"problems of {label}", count, "problems") as task:
            written = self._written(model, asked.positions, task.advance)
            answers = {i: _answer(self.problems[i], found) for i, found in written.items() if found.finished}
            judged = dict(zip(answers, self._verdicts(answers), strict=True))
        solutions = [_solution(written.get(i), answers.get(i), judged.get(i)) for i in range(count)]
        if asked.name == "student":
            for i in answers:
                sure = confidence_in(model, self.problems[i].ids, written[i].ids)
                solutions[i] = replace(solutions[i], confidence=sure)
        return [asdict(solution) for solution in solutions]

    def take(self, name: str, answers: Sequence[Mapping[str, Any]]) -> None:
        """Solutions of a model."""
        solutions = [Solution(**answer) for answer in answers]
        self.by_seed.setdefault(name, []).append(solutions)
        solved = sum(solution.solved for solution in solutions)
        label = name.replace("_", " ")
        self.console.say(f"the {label} solves {solved} of {counted(len(solutions), 'problem')}", solved=solved)

    def _written(
        self, model: PreTrainedModel, positions: int | None, advance: Callable[[float], None]
    ) -> dict[int, Written]:
        """The answers to all problems that leave room for one. Problems with less room than `max_new_tokens` form
        batches of their own, so that they do not shorten other answers."""
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
        """The verdict on each answer; None for one that is all reasoning."""
        items = [(self.problems[i].record, answer) for i, answer in answers.items() if answer is not None]
        with open_verifier(self.settings.verify) as verifier:
            found = iter(list(verdicts(verifier, items, workers_of(self.settings.verify))))
        return [None if answer is None else next(found) for answer in answers.values()]

    # ---- all of them ---------------------------------------------------------------------------------------------

    def found(self, draws: Draws, table: Table) -> Found:
        """The share of problems solved by each model, over groups of problems; why answers are not solved; and notes
        for the reader. Notes that qualify the figures are also warnings."""
        bootstrap = draws.of(self.groups)
        chance = np.zeros(len(self.groups))
        scores = {
            name: [
                Scores(correct=np.array([solution.solved for solution in seed]), more={"chance": chance})
                for seed in self.by_seed[name]
            ]
            for name in MODELS
            if name in self.by_seed
        }
        solving = Solving(
            problems=len(self.problems),
            groups=bootstrap.groups,
            verifier=f"{self.verifier['name']}@{self.verifier['version']}",
            max_new_tokens=self.settings.max_new_tokens,
            unfinished=self._counts("unfinished"),
            unjudged=self._counts("cannot_judge"),
            too_long=self._counts("too_long"),
        )
        notes = [self._how(solving), *self.notes, *self._unsolved(solving)]
        if bootstrap.groups < FEW_GROUPS:
            notes.append(f"Only {bootstrap.groups} groups of problems: the intervals of what is solved are rough.")
        losses = losses_of("held-out problems", "solved", scores, bootstrap) if "student" in scores else ()
        return Found((solving,), losses, tuple(notes), find(scores, (SOLVED,), bootstrap))

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

    def _unsolved(self, solving: Solving) -> list[str]:
        """Answers that count as not solved for reasons other than being wrong."""
        notes = []
        for what, counts in (
            (f"were not finished within {solving.max_new_tokens} tokens", solving.unfinished),
            ("could not be judged", solving.unjudged),
            ("were not given, the prompt being too long for the model", solving.too_long),
        ):
            reported = {name: amount for name, amount in counts.items() if amount}
            if not reported:
                continue
            listed = ", ".join(f"{amount} of the {name}" for name, amount in reported.items())
            text = f"Of {solving.problems} answers {what}, and count as not solved: {listed}."
            notes.append(text)
            if set(reported) != {"untrained"}:  # the untrained model is not expected to stop
                self.work.warn(text)
        return notes

    def save(self, out: Path, table: str = "solved.parquet", answers: str = "solutions.jsonl") -> None:
        """Write `solved.parquet` and `solutions.jsonl` (or files of other names), a row per problem, in order of the
        data.

        Columns of the table: `record_id`, `group`, for each model `solved_<model>`, and `confidence_student`: how sure
        the student is of its answer, 0 where it was cut or none was given, which a cascade sees too. A line of the JSON
        file has the problem, its reference, and each model's answer with its outcome (`accept`, `reject`,
        `cannot_judge`, `unfinished`, `too_long`), reason and confidence.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        columns: dict[str, Any] = {"record_id": [problem.id for problem in self.problems], "group": self.groups}
        for name, seeds in self.by_seed.items():
            for number, solutions in enumerate(seeds):
                column = f"solved_{name}" + (f"_seed{number}" if number else "")
                columns[column] = [solution.solved for solution in solutions]
        if "student" in self.by_model:
            columns["confidence_student"] = [solution.confidence for solution in self.by_model["student"]]
        pq.write_table(pa.table(columns), out / table)
        # Half of a surrogate pair, which data may hold, is written as JSON's own escape.
        with (out / answers).open("w", encoding="utf-8", errors="backslashreplace") as file:
            for i, problem in enumerate(self.problems):
                by_model = {name: asdict(solutions[i]) for name, solutions in self.by_model.items()}
                line = {
                    "record_id": problem.id,
                    "group": problem.record.group,
                    "row": problem.record.row,
                    "problem": problem.text,
                    "reference": problem.record.metadata.get(self.settings.reference),
                    "answers": by_model,
                }
                file.write(json.dumps(line, ensure_ascii=False, default=str) + "\n")


def _answer(problem: Problem, written: Written) -> Answer | None:
    """A finished answer as verifiers see it, with its reasoning split off; None if the reasoning does not end."""
    return split_reasoning(Answer(written.text, "stop", len(problem.ids), written.tokens))


def _solution(written: Written | None, answer: Answer | None, verdict: Verdict | None) -> Solution:
    if written is None:
        return Solution("", "too_long", "the prompt leaves no room for an answer")
    if not written.finished:
        return Solution(written.text, "unfinished", f"cut after {written.tokens} tokens")
    if answer is None or verdict is None:
        return Solution(written.text, "reject", "the reasoning has no end")
    return Solution(written.text, verdict.outcome, verdict.reason)
