"""Memorisation: how much nearer to its teacher a student is on the text that it was trained on than on new text.

What is learned holds on new text too; what is memorised does not. Both samples are of the same data, so that a model
that memorised nothing loses as much to its teacher on either.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from potstill.data import Tokenized, load_records, read_sides
from potstill.data.reader import CausalReader
from potstill.errors import DataError
from potstill.evaluate.bootstrap import Statistic, difference_of, mean_of
from potstill.evaluate.fidelity import Batches, measure
from potstill.evaluate.held_out import of_tokens
from potstill.evaluate.measures.base import Asked, AsksAlone, Draws, Found, Pass, Setting, Table
from potstill.measures import MODELS, Figures, Interval, Loss, MetricSpec
from potstill.recipe.measures import Memorisation
from potstill.registry import implements
from potstill.types import Record, digest

_SECTION = "memorisation"


@implements(Memorisation)
class MemorisationMeasure(AsksAlone):
    """The gap between new and trained text."""

    def __init__(self, settings: Memorisation) -> None:
        self.settings = settings

    def begin(self, setting: Setting) -> Pass:
        """A sample of the training records. Raises as `Trained`."""
        return Trained(self.settings, setting)


class Trained:
    """A sample of the training records, and the losses of each model on it.

    Raises:
        DataError: fewer than two groups can be measured.
    """

    def __init__(self, settings: Memorisation, setting: Setting) -> None:
        self.setting = setting
        train = setting.recipe.required_train
        found: Sequence[Any]
        if setting.generated is None:
            found = read_sides(setting.recipe.data).train
        else:
            found = load_records(setting.generated, side="train")
        records = [record for record in found if isinstance(record, Record)]
        records = sorted(records, key=lambda record: digest([record.group, record.id]))[: settings.sample]
        reader = CausalReader(setting.chat, train.max_length, train.teacher_system)
        rows = [(record, row) for record in records if isinstance(row := reader.row(record), Tokenized)]
        if len({record.group for record, _ in rows}) < 2:
            raise DataError(
                "an interval needs two training records at least that can be measured",
                where="evaluate.measures memorisation",
                fix="give more data, or drop memorisation",
            )
        sample = of_tokens([r for r, _ in rows], [row for _, row in rows], setting.chat.pad_id, train.max_length)
        self.batches = Batches(sample, setting.recipe.required_evaluate.tokens_per_batch)
        self.groups = sample.target_groups
        setting.work.count("training records measured", len(rows))
        self.by_seed: dict[str, list[np.ndarray[Any, np.dtype[np.float64]]]] = {}

    @property
    def identity(self) -> Any:
        """The rows, in tokens, and their batches."""
        rows = self.batches.held_out.rows
        return ["trained 1", [[row.input_ids, row.labels] for row in rows], self.batches.rows]

    def ask(self, asked: Asked) -> list[float] | None:
        """The losses of one model on the sample."""
        if asked.name == "untrained":
            return None
        label = asked.name.replace("_", " ")
        with self.setting.console.task(f"training text of {label}", self.batches.targets, "tokens") as task:
            scores = measure(asked.model, self.batches, None, task.advance, asked.name)
        return [] if scores.nll is None else scores.nll.astype(float).tolist()

    def take(self, name: str, answers: Sequence[float]) -> None:
        """Losses of a model."""
        self.by_seed.setdefault(name, []).append(np.asarray(answers, dtype=np.float64))

    def found(self, draws: Draws, table: Table) -> Found:
        """The losses on trained text, and the gap to new text, less the teacher's."""
        trained = draws.of(self.groups)
        nll = {
            name: trained.interval([mean_of(one) for one in self.by_seed[name]])
            for name in MODELS
            if name in self.by_seed
        }
        rows = [(MetricSpec("trained_nll", "NLL of trained text", "NLL", "nats", False, "token"), nll)]
        if "teacher" not in nll:
            return Found(
                (_figures(rows),), notes=("Memorisation was not measured: there is no teacher to compare with.",)
            )
        new = draws.of(table.groups)
        gaps: dict[str, Interval] = {
            name: gap_of(
                new.interval(_excess([s.nll for s in table.scores[name]], table.scores["teacher"][0].nll)),
                trained.interval(_excess(self.by_seed[name], self.by_seed["teacher"][0])),
            )
            for name in ("student", "text_only")
            if name in self.by_seed and name in table.scores
        }
        rows.insert(0, (MetricSpec("memorised", "Memorised", "memorised", "nats", False, "token"), gaps))
        control = f"; the control by {gaps['text_only'].value:.2f}" if "text_only" in gaps else ""
        loss = Loss(
            _SECTION,
            f"has memorised: on the text that it was trained on it is nearer to its teacher by "
            f"{gaps['student'].value:.2f} nats than on new text{control}",
            gaps["student"],
            "train on more text, for fewer epochs",
        )
        return Found((_figures(rows),), (loss,))

    def save(self, out: Path) -> None:
        """Nothing: the losses are in the measures."""


def _figures(rows: Sequence[tuple[MetricSpec, Mapping[str, Interval]]]) -> Figures:
    return Figures(
        "Trained text and new text",
        "NLL on a sample of the training records; memorised is what a model loses to its teacher on new text (the "
        "held-out records) less what it loses on the text that it was trained on.",
        _SECTION,
        tuple(rows),
    )


def _excess(mine: Sequence[Any], teacher: Any) -> list[Statistic]:
    return [difference_of(mean_of(one.astype(np.float64)), mean_of(teacher.astype(np.float64))) for one in mine]


def gap_of(new: Interval, trained: Interval) -> Interval:
    """The difference of two estimates from different records; half widths add in squares, end by end (Zou & Donner
    2008)."""
    value = new.value - trained.value
    return Interval(
        value,
        value - math.hypot(new.value - new.low, trained.high - trained.value),
        value + math.hypot(new.high - new.value, trained.value - trained.low),
    )
