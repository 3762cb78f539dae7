"""Input and output of a measure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from potstill.artifacts import Work
from potstill.console import Console
from potstill.data import ChatTokenizer
from potstill.evaluate.bootstrap import PairedBootstrap, Ranks, Statistic
from potstill.evaluate.scores import Scores
from potstill.measures import Comparison, Finding, Interval, Loss, MetricSpec
from potstill.recipe import Recipe
from potstill.tasks import TaskSpec
from potstill.types import digest

if TYPE_CHECKING:
    from potstill.evaluate.held_out import HeldOut
    from potstill.teachers.base import OpenTeacher


@dataclass(frozen=True)
class Compared:
    """One model and its teacher: the input of a metric.

    Attributes:
        mine: the model's scores.
        teacher: the teacher's; None for the teacher itself, and if none was measured.
        above_chance: whether the teacher's accuracy is shown to be above chance (rule 10).
        first: mask of the targets in the first of two halves of the groups [N].
    """

    mine: Scores
    teacher: Scores | None = None
    above_chance: bool = False
    first: NDArray[np.bool_] | None = None


@dataclass(frozen=True)
class Metric:
    """A metric and its function.

    Attributes:
        spec: its name, unit and direction.
        of: the statistic of a model; None if it does not apply to that model.
        through: an increasing function applied to the value and both ends of the interval.
        paired: whether models are compared by it.
        column: the column of the table of values whose mean it is; None if it is not such a mean.
    """

    spec: MetricSpec
    of: Callable[[Compared], Statistic | Ranks | None]
    through: Callable[[float], float] | None = None
    paired: bool = True
    column: str | None = None


@dataclass(frozen=True)
class Draws:
    """Settings of the intervals."""

    resamples: int
    confidence: float
    seed: int

    def of(self, groups: Sequence[str]) -> PairedBootstrap:
        """The draws over the groups of N targets.

        Raises:
            DataError: fewer than two groups.
        """
        return PairedBootstrap(groups, resamples=self.resamples, confidence=self.confidence, seed=self.seed)


class Texts(Protocol):
    """The targets as text, for people and for slices."""

    def column(self, name: str) -> NDArray[np.object_]:
        """The value of a column of the data, as text, of each target's record [N]; empty where it has none.

        Raises:
            DataError: no record has that column.
        """
        ...

    def words(self) -> list[str]:
        """The word that each target is (a part of) [N]; empty where it is no word."""
        ...

    def shown(self, index: int) -> tuple[str, str]:
        """The text before one target, and the target; of an example its text, and its class."""
        ...


@dataclass(frozen=True)
class Table:
    """All values that were computed per target.

    Attributes:
        task: the task of the models.
        groups: the group of each target [N].
        ids: the token or class of each target [N].
        names: of the classes, by number; empty for tokens.
        positions: position of the target in its row [N]; 0 for an example.
        lengths: number of targets in its row [N].
        scores: per model and training seed.
        draws: of intervals.
        counts: number of occurrences of each token or class among the training targets [V]; called at most once.
        texts: of the targets; None for targets without any (images).
    """

    task: TaskSpec
    groups: Sequence[str]
    ids: NDArray[np.int64]
    names: Sequence[str]
    positions: NDArray[np.int64]
    lengths: NDArray[np.int64]
    scores: Mapping[str, Sequence[Scores]]
    draws: Draws
    counts: Callable[[], NDArray[np.int64]]
    texts: Texts | None = None

    @cached_property
    def halves(self) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Two halves of the groups, as masks of the targets [N]: one for exploration, one for reporting."""
        first = first_half(self.groups)
        return first, ~first

    @cached_property
    def group_numbers(self) -> NDArray[np.int64]:
        """The number of each target's group [N], from 0."""
        return np.unique(np.asarray(self.groups, dtype=np.str_), return_inverse=True)[1].astype(np.int64)

    @cached_property
    def frequency(self) -> NDArray[np.int64]:
        """How often each target's token or class is a target in training [N]."""
        counts = self.counts()
        if not len(counts):
            return np.zeros(len(self.ids), dtype=np.int64)
        return np.where(self.ids < len(counts), counts[np.minimum(self.ids, len(counts) - 1)], 0)

    def bands(self, share: float) -> dict[str, NDArray[np.bool_]]:
        """Bands of frequency, as masks of the targets [N]: those that training does not have, the rarest `share` of the
        targets (and all that are as rare), the others of the rarer half, and the rest. The first two are one band
        where they are the same targets."""
        rare = self.frequency <= np.quantile(self.frequency, share, method="higher")
        common = self.frequency >= np.quantile(self.frequency, 0.5)
        absent = self.frequency == 0
        rarest = f"rarest {100 * float(rare.mean()):.0f} %"
        bands = {"middle": ~rare & ~common, "most common half": common & ~rare}
        if (absent == rare).all():
            return {f"{rarest}, untrained": rare, **bands}
        return {"not in training": absent, rarest: rare, **bands}

    def within(self, mask: NDArray[np.bool_]) -> PairedBootstrap | None:
        """The draws over the groups of some targets; None if there are fewer than two groups."""
        groups = [group for group, inside in zip(self.groups, mask, strict=True) if inside]
        return self.draws.of(groups) if len(set(groups)) > 1 else None


def first_half(groups: Sequence[str]) -> NDArray[np.bool_]:
    """The targets [N] whose group is in the first half, by the order of the groups' hashes."""
    ordered = sorted(set(groups), key=lambda group: digest([group]))
    first = set(ordered[: len(ordered) // 2])
    return np.array([group in first for group in groups])


@dataclass(frozen=True)
class Values:
    """Metrics of models on one set of targets."""

    specs: Mapping[str, MetricSpec] = field(default_factory=dict)
    values: Mapping[str, Mapping[str, Interval]] = field(default_factory=dict)
    """By model and metric."""
    by_seed: Mapping[str, Mapping[str, tuple[float, ...]]] = field(default_factory=dict)
    comparisons: tuple[Comparison, ...] = ()


def joined(one: Values, other: Values) -> Values:
    """Metrics on two sets of targets."""
    names = {*one.values, *other.values}

    def both(a: Mapping[str, Mapping[str, Any]], b: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
        return {name: {**a.get(name, {}), **b.get(name, {})} for name in names}

    return Values(
        {**one.specs, **other.specs},
        both(one.values, other.values),
        both(one.by_seed, other.by_seed),
        (*one.comparisons, *other.comparisons),
    )


@dataclass(frozen=True)
class Found:
    """The findings of a measure, losses that the verdict may name, notes for the reader, and `values` of metrics on
    targets of its own (problems, prompts)."""

    findings: tuple[Finding, ...] = ()
    losses: tuple[Loss, ...] = ()
    notes: tuple[str, ...] = ()
    values: Values = Values()


class Measure(Protocol):
    """A measure; built from its settings by `registry.build`."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Values per target that it needs beyond NLL, KL and agreement (`objectives.statistics.Column`)."""
        ...

    def metrics(self, task: TaskSpec) -> tuple[Metric, ...]:
        """The metrics of every model."""
        ...

    def findings(self, table: Table) -> Found:
        """Findings, losses and notes."""
        ...


# ---- measures that put questions of their own to every model -----------------------------------------------------


@dataclass(frozen=True)
class Asked:
    """A model that a pass puts its questions to.

    Attributes:
        name: one of `potstill.measures.MODELS`.
        positions: how many tokens it takes, question and answer together (None: any number).
    """

    name: str
    model: OpenTeacher
    positions: int | None


@dataclass(frozen=True)
class Setting:
    """The inputs of a pass.

    Attributes:
        chat: the student's tokenizer; all models are asked in its tokens.
        work: takes counts, facts and warnings.
        held_out: the held-out records, in tokens.
        folder: takes temporary files.
        run: the folder of the run, with its journal.
        generated: `records.parquet` of the stage `generate`, if the recipe has one.
    """

    recipe: Recipe
    chat: ChatTokenizer
    work: Work
    console: Console
    held_out: HeldOut
    folder: Path
    run: Path
    generated: Path | None = None


class Pass(Protocol):
    """Questions that are put to one model after the other, and the findings from their answers.

    Answers are plain data (JSON). Those of the teacher are kept by `identity` and the teacher's weights, and come back
    in another run without the teacher being asked again.
    """

    @property
    def identity(self) -> Any:
        """Everything that the answers of a model depend on besides the model: plain data."""
        ...

    def ask(self, asked: Asked) -> Any:
        """One model's answers; None if it cannot be asked, with a note."""
        ...

    def take(self, name: str, answers: Any) -> None:
        """Take the answers of a model: the teacher's first, and of several seeds one after the other."""
        ...

    def found(self, draws: Draws, table: Table) -> Found:
        """What all answers together show, beside what was computed per held-out target."""
        ...

    def save(self, out: Path) -> None:
        """Write the answers into the artifact."""
        ...


@runtime_checkable
class Rereads(Protocol):
    """A pass in which the teacher reads at the end what the other models answered."""

    def reread(self, teacher: Asked) -> None:
        """Read with the teacher, after all other models have been asked."""
        ...


@runtime_checkable
class Settles(Protocol):
    """A pass that asks another teacher (a judge) about the answers, after all models have been asked and closed."""

    def settle(self) -> None:
        """Ask. What was asked before a kill is not asked again.

        Raises:
            PotstillError: that teacher does not answer.
        """
        ...


@runtime_checkable
class Asks(Protocol):
    """A measure with a pass of its own."""

    def begin(self, setting: Setting) -> Pass:
        """Read the questions.

        Raises:
            DataError: there are none, or too few.
        """
        ...


class AsksAlone:
    """Base of measures that use no values of the held-out targets, and ask questions of their own (`begin`)."""

    columns: tuple[str, ...] = ()

    def metrics(self, task: TaskSpec) -> tuple[Metric, ...]:
        """None of held-out targets."""
        return ()

    def findings(self, table: Table) -> Found:
        """None of held-out targets."""
        return Found()
