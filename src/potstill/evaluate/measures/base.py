"""What a measure is given, and what it gives."""

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
    """One model beside its teacher: what a metric is computed from.

    Attributes:
        mine: the model's scores.
        teacher: the teacher's; None for the teacher itself, and where none was measured.
        above_chance: whether the teacher's accuracy is shown to be above chance (rule 10).
        first: the targets of the first of two halves of the groups [N].
    """

    mine: Scores
    teacher: Scores | None = None
    above_chance: bool = False
    first: NDArray[np.bool_] | None = None


@dataclass(frozen=True)
class Metric:
    """A metric and its function.

    Attributes:
        spec: how it is called, its unit and direction.
        of: the statistic of a model; None where it means nothing for it.
        through: a rising function that value and ends of the interval go through.
        paired: whether models are compared in it.
        column: the column of the table of values whose mean it is; None where it is no mean of one.
    """

    spec: MetricSpec
    of: Callable[[Compared], Statistic | Ranks | None]
    through: Callable[[float], float] | None = None
    paired: bool = True
    column: str | None = None


@dataclass(frozen=True)
class Draws:
    """How intervals are drawn."""

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
    """Everything that was computed per target.

    Attributes:
        task: what the models are for.
        groups: the group of each target [N].
        ids: the token or class of each target [N].
        names: of the classes, by number; empty of tokens.
        positions: its place in its row [N]; 0 of an example.
        lengths: the targets of its row [N].
        scores: per model and training seed.
        draws: of intervals.
        counts: how often each token or class is a target in training, by its number [V]; called once, if needed.
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
        """Two halves of the groups, as masks of the targets [N]: one to look in, one to report on."""
        first = first_half(self.groups)
        return first, ~first

    def within(self, mask: NDArray[np.bool_]) -> PairedBootstrap | None:
        """The draws over the groups of some targets; None where they are fewer than two."""
        groups = [group for group, inside in zip(self.groups, mask, strict=True) if inside]
        return self.draws.of(groups) if len(set(groups)) > 1 else None


def first_half(groups: Sequence[str]) -> NDArray[np.bool_]:
    """The targets [N] whose group is in the first half, by the order of the groups' hashes."""
    ordered = sorted(set(groups), key=lambda group: digest([group]))
    first = set(ordered[: len(ordered) // 2])
    return np.array([group in first for group in groups])


@dataclass(frozen=True)
class Found:
    """The findings of a measure, losses that the verdict may name, and notes for the reader."""

    findings: tuple[Finding, ...] = ()
    losses: tuple[Loss, ...] = ()
    notes: tuple[str, ...] = field(default=())


class Measure(Protocol):
    """A measure; built from its settings by `registry.build`."""

    @property
    def columns(self) -> tuple[str, ...]:
        """What must be computed per target beyond NLL, KL and agreement (`objectives.statistics.Column`)."""
        ...

    def metrics(self, task: TaskSpec) -> tuple[Metric, ...]:
        """The metrics of every model."""
        ...

    def findings(self, table: Table) -> Found:
        """What else there is to see."""
        ...
