"""Tasks of EleutherAI's lm-eval, from task files on this machine, put to our models. Its result for each question comes
back into our paired tests.

A task file may name Python functions, which run: it is a plug-in of the recipe's author.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from potstill.data import ChatTokenizer
from potstill.errors import DataError, MissingExtra, did_you_mean_path
from potstill.evaluate.accuracies import accuracies_of, right
from potstill.evaluate.answers import write_answers, writer_of
from potstill.evaluate.bootstrap import mean_of
from potstill.evaluate.continuations import continued
from potstill.evaluate.measures.base import Asked, AsksAlone, Draws, Found, Pass, Setting, Table, Values, joined
from potstill.evaluate.scores import Scores
from potstill.measures import MODELS, Figures, Finding, Loss, MetricSpec
from potstill.quantities import counted
from potstill.recipe.measures import LMEval
from potstill.registry import implements

try:
    from lm_eval import evaluator
    from lm_eval.api.model import LM
    from lm_eval.tasks import TaskManager
except ImportError as error:
    raise MissingExtra("lm-eval", "lm-eval", "the measure lm_eval") from error

_SECTION = "lm_eval"
_MOST_NEW = 256
"""Tokens of an answer where a task does not say."""


@implements(LMEval)
class LMEvalMeasure(AsksAlone):
    """Accuracies on tasks of lm-eval."""

    def __init__(self, settings: LMEval) -> None:
        self.settings = settings

    def begin(self, setting: Setting) -> Pass:
        """The tasks. Raises as `Harness`."""
        return Harness(self.settings, setting)


def tasks_in(settings: LMEval) -> TaskManager:
    """The tasks of a folder.

    Raises:
        DataError: there is no such folder, or it has no such task.
    """
    if not settings.folder.is_dir():
        raise DataError(
            f"there is no such folder{did_you_mean_path(settings.folder)}",
            where=str(settings.folder),
            fix="give a folder with task files (.yaml) of lm-eval",
        )
    manager = TaskManager(include_path=str(settings.folder), include_defaults=False)
    known = sorted(manager.all_tasks)
    if missing := [name for name in settings.tasks if name not in known]:
        raise DataError(
            f"there is no task {missing[0]!r}",
            where=str(settings.folder),
            fix=f"name one of {', '.join(known)}" if known else "give a folder with task files (.yaml) of lm-eval",
        )
    return manager


class Harness:
    """The results of each model, question by question. Raises as `tasks_in`."""

    def __init__(self, settings: LMEval, setting: Setting) -> None:
        self.settings, self.setting = settings, setting
        self.tasks = tasks_in(settings)
        self.by_seed: dict[str, list[Mapping[str, Any]]] = {}
        self.notes: list[str] = []

    @property
    def identity(self) -> Any:
        """The task files, and how many questions of each."""
        return ["lm_eval 1", self.settings.key_fields()]

    def ask(self, asked: Asked) -> dict[str, list[list[Any]]] | None:
        """Of each task, for each question its hash, its result (0 or 1), and the share that guessing solves."""
        model = writer_of(asked.model)
        if model is None:
            self.notes.append(f"The {asked.name} was not put to lm-eval: it is no single model that writes.")
            return None
        adapter = OurModel(model, self.setting.chat, asked.positions)
        label = f"lm-eval of {asked.name.replace('_', ' ')}"
        quiet = contextlib.redirect_stderr(io.StringIO())
        with self.setting.console.task(label, 1, "models") as task, quiet, _asking_no_git():
            found = evaluator.simple_evaluate(
                adapter,
                tasks=list(self.settings.tasks),
                task_manager=self.tasks,
                limit=self.settings.limit,
                log_samples=True,
                bootstrap_iters=0,
            )
            task.advance(1)
        samples = {} if found is None else found["samples"]
        return {name: [self._result(name, sample) for sample in samples[name]] for name in self.settings.tasks}

    def _result(self, name: str, sample: Mapping[str, Any]) -> list[Any]:
        metric = self.settings.metric or next(iter(sample["metrics"]), "")
        value = sample.get(metric)
        if isinstance(value, bool) or value not in (0, 1):
            known = ", ".join(sample["metrics"])
            raise DataError(
                f"the metric {metric!r} of the task {name!r} is not 0 or 1 for each question",
                where="evaluate.measures lm_eval",
                fix=f"set metric to one that is (the task has {known})",
            )
        asked = sample["arguments"]
        choices = len(asked) if len(asked) > 1 else 0
        return [sample["doc_hash"], int(value), 1 / choices if choices else 0.0]

    def take(self, name: str, answers: Mapping[str, Any]) -> None:
        """Results of a model."""
        self.by_seed.setdefault(name, []).append(answers)

    def found(self, draws: Draws, table: Table) -> Found:
        """Accuracy by task, what of the teacher's is kept, and tests of pairs."""
        findings: list[Finding] = []
        losses: list[Loss] = []
        notes, values = [*self.notes], Values()
        for name in self.settings.tasks:
            scores = {
                model: [_scores(answers[name]) for answers in self.by_seed[model]]
                for model in MODELS
                if model in self.by_seed
            }
            if "student" not in scores:
                continue
            questions = self.by_seed["student"][0][name]
            bootstrap = draws.of([question[0] for question in questions])
            explanation = f"The share of the {len(questions)} questions of {name} that lm-eval counts as right."
            made = accuracies_of(name, explanation, _SECTION, scores, bootstrap, draws)
            shares = {n: bootstrap.interval([mean_of(right(one)) for one in seeds]) for n, seeds in scores.items()}
            spec = MetricSpec(f"{name}_right", "Right", "right", "share", True, "questions")
            title = f"{name}: {counted(len(questions), 'question')}"
            findings.append(Figures(title, made.text, _SECTION, ((spec, shares), *made.rows)))
            losses += made.losses
            notes += made.notes
            values = joined(values, made.values)
        return Found(tuple(findings), tuple(losses), tuple(notes), values)

    def save(self, out: Path) -> None:
        """Write `lm_eval.parquet`: a row per question, with its task and hash, and of each model whether it was
        right."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        first = next(iter(self.by_seed.values()), [{}])[0]
        columns: dict[str, list[Any]] = {
            "task": [name for name, questions in first.items() for _ in questions],
            "question": [question[0] for questions in first.values() for question in questions],
        }
        for name, seeds in self.by_seed.items():
            for number, answers in enumerate(seeds):
                column = f"correct_{name}" + (f"_seed{number}" if number else "")
                columns[column] = [bool(question[1]) for questions in answers.values() for question in questions]
        pq.write_table(pa.table(columns), out / "lm_eval.parquet")


@contextlib.contextmanager
def _asking_no_git() -> Iterator[None]:
    """lm-eval asks git for the commit of the current folder, whose "fatal: not a git repository" goes past Python's
    standard error, and reads like the run's end."""
    asks = evaluator.get_git_commit_hash
    evaluator.get_git_commit_hash = lambda: None
    try:
        yield
    finally:
        evaluator.get_git_commit_hash = asks


def _scores(questions: Sequence[Sequence[Any]]) -> Scores:
    correct = np.array([question[1] == 1 for question in questions])
    return Scores(correct=correct, more={"chance": np.array([question[2] for question in questions])})


class OurModel(LM):
    """A model of ours, as lm-eval asks one: log-probabilities of continuations, and greedy answers.

    Args:
        model: in evaluation mode.
        chat: its tokenizer.
        positions: how many tokens it takes (None: any number). Longer questions lose their beginning.
    """

    def __init__(self, model: PreTrainedModel, chat: ChatTokenizer, positions: int | None) -> None:
        super().__init__()
        self.model, self.chat, self.positions = model, chat, positions

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """log p(continuation | context), and whether the continuation is the greedy one."""
        return [self._continued(*self._pair(*request.args)) for request in requests]

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        """log p(text), in pieces of as many tokens as the model takes."""
        found = []
        for request in requests:
            ids = list(self.chat.encode(request.args[0]).ids)
            size = len(ids) if self.positions is None else self.positions - 1
            pieces = [ids[start : start + size] for start in range(0, len(ids), max(1, size))]
            before = [self._prefix, *([piece[-1]] for piece in pieces)]
            found.append(sum(self._continued(b, piece)[0] for b, piece in zip(before, pieces, strict=False)))
        return found

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Greedy answers, up to the first of the texts that end one."""
        found: list[str] = []
        for request in requests:
            context, asked = request.args
            most = int(asked.get("max_gen_toks", _MOST_NEW))
            prompt = [*self.chat.leading, *self.chat.encode(context).ids]
            if self.positions is not None:
                prompt = prompt[-max(1, self.positions - most) :]
            (written,) = write_answers(
                self.model, [prompt or self._prefix], self.chat, max_new_tokens=most, advance=lambda done: None
            )
            until = asked.get("until") or []
            ends = [until] if isinstance(until, str) else until
            text = self.chat.decode(written.ids, skip_special_tokens=True)
            found.append(text[: min((at for end in ends if (at := text.find(end)) >= 0), default=len(text))])
        return found

    @property
    def _prefix(self) -> list[int]:
        """What stands before a text without a beginning."""
        return list(self.chat.leading) or [self.chat.eos_id if self.chat.eos_id is not None else self.chat.pad_id]

    def _pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Tokens of both. The boundary is where the context's own tokens end; its trailing spaces are the
        continuation's, as in lm-eval."""
        spaces = len(context) - len(context.rstrip())
        if spaces:
            context, continuation = context[:-spaces], context[-spaces:] + continuation
        before = list(self.chat.encode(context).ids)
        whole = list(self.chat.encode(context + continuation).ids)
        return ([*self.chat.leading, *before] or self._prefix), whole[len(before) :]

    def _continued(self, before: list[int], ids: list[int]) -> tuple[float, bool]:
        if not ids:
            return 0.0, True
        if self.positions is not None:
            before = before[-max(1, self.positions - len(ids)) :]
        found = continued(self.model, before, [ids])
        return found.scores[0], found.rows.argmax(-1).tolist() == ids
