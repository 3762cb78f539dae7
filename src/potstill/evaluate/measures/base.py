"""Input and output of a measure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from potstill.evaluate.bootstrap import PairedBootstrap, Ranks, Statistic
from potstill.evaluate.scores import Scores
from potstill.measures import Finding, Loss, MetricSpec
from potstill.tasks import TaskSpec
from potstill.types import digest


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

    @cached_property
    def halves(self) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Two halves of the groups, as masks of the targets [N]: one for exploration, one for reporting."""
        first = first_half(self.groups)
        return first, ~first

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
class Found:
    """The findings of a measure, losses for the verdict, and notes for the reader."""

    findings: tuple[Finding, ...] = ()
    losses: tuple[Loss, ...] = ()
    notes: tuple[str, ...] = field(default=())


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
