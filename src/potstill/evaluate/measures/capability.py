"""Capability: tasks of multiple choice, by the log-probability of each choice, and tasks of written answers, which a
verifier judges.

The teacher, the student and the controls are asked the same questions, so that differences are paired: an interval over
groups of questions, and McNemar's exact test. Of the teacher's accuracy the share above chance is what a student can
keep; it is not given where the teacher is not shown to be above chance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax

from potstill.data import prompt_ids
from potstill.evaluate.accuracies import Row, accuracies_of, right
from potstill.evaluate.answers import writer_of
from potstill.evaluate.bootstrap import mean_of
from potstill.evaluate.continuations import continued
from potstill.evaluate.measures.base import Asked, AsksAlone, Draws, Found, Pass, Setting, Table, Values, joined
from potstill.evaluate.measures.solved import Solvers
from potstill.evaluate.questions import choices_in, task_problems
from potstill.evaluate.scores import Scores
from potstill.measures import MODELS, Example, Examples, Figures, Finding, Loss, MetricSpec
from potstill.quantities import counted
from potstill.recipe.measures import Capability, ChoiceTask, WrittenTask
from potstill.registry import implements

_SECTION = "capability"
_READ, _SHOWN = 20, 240
"""Problems that are shown, and characters of each."""
_NORMALISED = {"none": "as it is", "tokens": "by token", "bytes": "by byte"}


@dataclass(frozen=True)
class Question:
    """A question: tokens of the prompt and of each choice, the bytes of each, and which one is right."""

    prompt: tuple[int, ...]
    choices: tuple[tuple[int, ...], ...]
    bytes: tuple[int, ...]
    right: int
    group: str


@implements(Capability)
class CapabilityMeasure(AsksAlone):
    """Accuracy on tasks of multiple choice, and of written answers."""

    def __init__(self, settings: Capability) -> None:
        self.settings = settings

    def begin(self, setting: Setting) -> Pass:
        """The questions. Raises as `questions_of`."""
        return Choosing(self.settings, setting)


class Choosing:
    """The questions of all tasks, and what each model answers: log-probabilities of choices, or texts, judged."""

    def __init__(self, settings: Capability, setting: Setting) -> None:
        self.settings, self.setting = settings, setting
        self.solvers = {
            task.name: Solvers(task, setting, task_problems(task, setting.chat, setting.work.count))
            for task in settings.written
        }
        self.questions = {task.name: questions_of(task, setting) for task in settings.tasks}
        self.by_seed: dict[str, list[Mapping[str, Any]]] = {}
        self.notes: list[str] = []

    @property
    def identity(self) -> Any:
        """The questions, in tokens."""
        asked = {n: [[list(q.prompt), [list(c) for c in q.choices]] for q in qs] for n, qs in self.questions.items()}
        return ["choices 1", asked, *(solvers.identity for solvers in self.solvers.values())]

    def ask(self, asked: Asked) -> dict[str, list[Any]] | None:
        """Log-probabilities of all choices, and solutions of all problems, by task."""
        model = writer_of(asked.model)
        if model is None:
            self.notes.append(f"What the {asked.name} can do was not measured: it is no single model that writes.")
            return None
        label, count = asked.name.replace("_", " "), sum(map(len, self.questions.values()))
        found: dict[str, list[Any]] = {}
        with self.setting.console.task(f"questions to {label}", count, "questions") as task:
            for name, questions in self.questions.items():
                found[name] = []
                for question in questions:
                    prompt = question.prompt
                    if asked.positions is not None:  # the end of a long passage holds the question
                        room = asked.positions - max(map(len, question.choices))
                        prompt = prompt[-max(1, room) :]
                    found[name].append(continued(model, prompt, question.choices).scores)
                    task.advance(1)
        return found | {name: solvers.ask(asked) or [] for name, solvers in self.solvers.items()}

    def take(self, name: str, answers: Mapping[str, Any]) -> None:
        """Log-probabilities of a model, and its solutions."""
        self.by_seed.setdefault(name, []).append(answers)
        for task, solvers in self.solvers.items():
            solvers.take(name, answers[task])

    def found(self, draws: Draws, table: Table) -> Found:
        """Accuracy by task, what of the teacher's is kept, tests, and losses."""
        findings: list[Finding] = []
        losses: list[Loss] = []
        notes = [*self.notes]
        values = Values()
        for task in self.settings.tasks:
            scores = {
                name: [self._scores(task, answers) for answers in self.by_seed[name]]
                for name in MODELS
                if name in self.by_seed
            }
            if "student" not in scores:
                continue
            made = found_of(task, self.questions[task.name], scores, draws)
            findings += made.findings
            losses += made.losses
            notes += made.notes
            values = joined(values, made.values)
        for written in self.settings.written:
            made = solved_of(written, self.solvers[written.name], draws)
            findings += made.findings
            losses += made.losses
            notes += made.notes
            values = joined(values, made.values)
        return Found(tuple(findings), tuple(losses), tuple(notes), values)

    def _scores(self, task: ChoiceTask, answers: Mapping[str, Any]) -> Scores:
        return scores_of(self.questions[task.name], answers[task.name], task.normalise)

    def save(self, out: Path) -> None:
        """Write `choices.parquet`: a row per question, with its task, group, right choice, and of each model whether
        it chose that; and of each task of written answers `<task>.parquet` and `<task>.jsonl`, as `solved` has them."""
        for name, solvers in self.solvers.items():
            solvers.save(out, f"{name}.parquet", f"{name}.jsonl")
        if not self.settings.tasks:
            return
        import pyarrow as pa
        import pyarrow.parquet as pq

        columns: dict[str, list[Any]] = {"task": [], "group": [], "right": []}
        for task in self.settings.tasks:
            for question in self.questions[task.name]:
                columns["task"].append(task.name)
                columns["group"].append(question.group)
                columns["right"].append(question.right)
            for name, seeds in self.by_seed.items():
                for number, answers in enumerate(seeds):
                    column = f"correct_{name}" + (f"_seed{number}" if number else "")
                    correct = self._scores(task, answers).correct
                    columns.setdefault(column, []).extend([] if correct is None else correct.tolist())
        pq.write_table(pa.table(columns), out / "choices.parquet")


def questions_of(task: ChoiceTask, setting: Setting) -> list[Question]:
    """The questions of a task, in tokens. Raises as `choices_in`."""
    made = []
    chat = setting.chat
    for question in choices_in(task):
        record = question.record
        if task.chat:
            prompt = prompt_ids(record.prompt or "", chat)
        else:
            prompt = [*chat.leading, *chat.encode(record.prompt or "").ids]
        texts = question.texts if task.chat else [f" {choice}" for choice in question.texts]
        ids = tuple(tuple(chat.encode(text).ids) for text in texts)
        sizes = tuple(len(text.encode()) for text in texts)
        made.append(Question(tuple(prompt), ids, sizes, question.right, record.group))
    setting.work.count(f"questions of {task.name}", len(made))
    return made


# ---- statistics ----------------------------------------------------------------------------------------------------


def scores_of(questions: Sequence[Question], logs: Sequence[Sequence[float]], normalise: str) -> Scores:
    """Whether the likeliest choice is the right one, by one normalisation and by all three, and the NLL of the right
    choice among the choices, as they are."""
    more: dict[str, NDArray[Any]] = {}
    for kind in _NORMALISED:
        more[kind] = np.array(
            [
                int(np.argmax(np.asarray(log) / _sizes(question, kind))) == question.right
                for question, log in zip(questions, logs, strict=True)
            ]
        )
    nll = [-log_softmax(np.asarray(log))[q.right] for q, log in zip(questions, logs, strict=True)]
    more["nll"] = np.array(nll, dtype=np.float64)
    more["chance"] = np.array([1 / len(question.choices) for question in questions])
    return Scores(correct=more[normalise], more=more)


def _sizes(question: Question, kind: str) -> NDArray[np.float64]:
    sizes = {"none": [1] * len(question.choices), "tokens": list(map(len, question.choices)), "bytes": question.bytes}
    return np.asarray(sizes[kind], dtype=np.float64)


def found_of(
    task: ChoiceTask, questions: Sequence[Question], scores: Mapping[str, Sequence[Scores]], draws: Draws
) -> Found:
    """What one task of choices shows."""
    bootstrap = draws.of([question.group for question in questions])
    name = task.name
    explanation = (
        f"The share of the {len(questions)} questions of {name} whose right choice is the likeliest "
        f"({_NORMALISED[task.normalise]})."
    )
    found = accuracies_of(name, explanation, _SECTION, scores, bootstrap, draws)
    rows: list[Row] = []
    for kind, label in sorted(_NORMALISED.items(), key=lambda item: item[0] != task.normalise):  # its own first
        shares = {n: bootstrap.interval([mean_of(one.more[kind]) for one in seeds]) for n, seeds in scores.items()}
        rows.append(
            (MetricSpec(f"{name}_{kind}", f"Log-probability {label}", label, "share", True, "questions"), shares)
        )
    figures = Figures(f"{name}: {counted(len(questions), 'question')}", found.text, _SECTION, (*rows, *found.rows))
    return Found((figures,), found.losses, found.notes, found.values)


def solved_of(task: WrittenTask, solvers: Solvers, draws: Draws) -> Found:
    """What one task of written answers shows."""
    bootstrap = draws.of(solvers.groups)
    chance = np.full(len(solvers.groups), task.chance)
    scores = {
        name: [
            Scores(correct=np.array([solution.solved for solution in seed]), more={"chance": chance})
            for seed in solvers.by_seed[name]
        ]
        for name in MODELS
        if name in solvers.by_seed
    }
    if "student" not in scores:
        return Found(notes=tuple(solvers.notes))
    count, judge = len(solvers.problems), solvers.verifier["name"]
    explanation = f"The share of the {count} problems of {task.name} whose written answer {judge} accepts."
    found = accuracies_of(task.name, explanation, _SECTION, scores, bootstrap, draws)
    shares = {n: bootstrap.interval([mean_of(right(one)) for one in seeds]) for n, seeds in scores.items()}
    solved = MetricSpec(f"{task.name}_solved", "Solved", "solved", "share", True, "problems")
    text = f"Greedy answers of at most {task.max_new_tokens} tokens, judged by {judge}. {found.text}"
    figures = Figures(f"{task.name}: {count} problems", text, _SECTION, ((solved, shares), *found.rows))
    notes = (*solvers.notes, *found.notes)
    return Found((figures, *by_teacher_alone(task, solvers)), found.losses, notes, found.values)


def by_teacher_alone(task: WrittenTask, solvers: Solvers) -> tuple[Examples, ...]:
    """Problems that the teacher solves and the students of all seeds do not, in their order."""
    teacher, students = solvers.by_seed.get("teacher"), solvers.by_seed["student"]
    alone = [
        problem
        for i, problem in enumerate(solvers.problems)
        if teacher and teacher[0][i].solved and not any(seed[i].solved for seed in students)
    ]
    if not alone:
        return ()
    by_all = f"all {len(students)} students fail" if len(students) > 1 else "the student fails"
    examples = tuple(
        Example(problem.text[:_SHOWN], str(problem.record.metadata.get(task.reference, ""))[:_SHOWN], {})
        for problem in alone[:_READ]
    )
    title = f"To read: {task.name}, where {by_all} and the teacher does not"
    text = f"{len(alone)} of {counted(len(solvers.problems), 'problem')}, with their reference answers."
    return (Examples(title, text, _SECTION, examples),)
