"""The contract of an objective.

An objective is built from its settings (`potstill.registry.build`), defines its divisor (`count`), and is one of two
kinds: a *vocabulary* objective, a row rule that runs with all others in one sweep over each head; or a *direct*
objective, a function of the signals.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Generic, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from potstill.objectives.sweep.rows import RowRule
from potstill.recipe.objectives import ObjectiveSettings, Scope
from potstill.registry import implements
from potstill.signals import Ask, Batch, Dims, Over, Side, Signals, Term

S = TypeVar("S", bound=ObjectiveSettings)
R = TypeVar("R")


class Objective(ABC, Generic[S]):
    """Base of both kinds. Subclass `VocabularyObjective` or `DirectObjective`."""

    def __init__(self, settings: S) -> None:
        self.settings = settings

    @property
    def scope(self) -> Scope:
        """What one value belongs to, from the settings."""
        return self.settings.scope

    @property
    def over(self) -> Over:
        """The selection that values and count are over."""
        return "targets" if self.scope == "token" else "examples"

    def ask(self, dims: Dims) -> Mapping[Side, Ask]:
        """What it reads of each model, given their sizes.

        Raises:
            ModelError: a layer does not exist, or the models' sizes do not match.
        """
        return {}

    def kept(self, dims: Dims) -> frozenset[str]:
        """The teacher's inner tensors that a store keeps for it: those that it asks for, or smaller ones that say as
        much to it. Raises as `ask`."""
        return self.ask(dims).get("teacher", Ask()).taps

    def survey(self, texts: Iterable[Sequence[int]]) -> None:
        """See the token ids of all training rows once, before `build`. By default nothing is read."""

    def build(self, dims: Dims) -> nn.Module | None:
        """A module that is trained along with the student and removed at export, or None."""
        return None

    def initialise(self, module: nn.Module, student: Signals, teacher: Signals | None, batch: Batch) -> None:
        """Give the module from `build` its initial weights, from the first batch's signals. Called once, without
        gradient, when training starts. By default they stay as they were built."""

    def count(self, batch: Batch) -> Int[Tensor, ""]:
        """The divisor of the sum of values, of one micro-batch. Needs no model output: the trainer sums it over the
        step's micro-batches and the ranks, and divides once (rule 1)."""
        return batch.count(self.over)


class VocabularyObjective(Objective[S]):
    """An objective over the vocabulary (or the classes), always at targets: a row rule with its settings.

    `rule_of(settings, progress)` returns the rule. `registry.build` makes one for settings bound by `row_rule`.
    """

    def __init__(self, rule_of: Callable[[S, float], RowRule], settings: S) -> None:
        super().__init__(settings)
        self.rule_of = rule_of

    def ask(self, dims: Dims) -> Mapping[Side, Ask]:
        """The response of the student, and of the teacher if needed."""
        asks: dict[Side, Ask] = {"student": Ask(response=True)}
        if self.settings.needs().teacher:
            asks["teacher"] = Ask(response=True)
        return asks

    def row_rule(self, progress: float = 0.0) -> RowRule:
        """The row rule at a training progress in [0, 1]."""
        return self.rule_of(self.settings, progress)


def row_rule(settings: type[S]) -> Callable[[type[R]], type[R]]:
    """Class decorator: bind a row rule to the settings of an objective. The rule has a class method `of(settings,
    progress)`, which returns the rule at a training progress in [0, 1], with the values of schedules at that point."""
    return implements(settings, make=lambda rule, its_settings: VocabularyObjective(rule.of, its_settings))


class DirectObjective(Objective[S]):
    """An objective that reads the signals itself."""

    @abstractmethod
    def __call__(
        self, student: Signals, teacher: Signals | None, batch: Batch, module: nn.Module | None = None
    ) -> Term:
        """Values per row of its selection, never a mean. `module` is the one from `build`."""


class TappedObjective(DirectObjective[S]):
    """An objective that compares inner tensors of student and teacher: names of taps, and a function of them."""

    @abstractmethod
    def names(self, dims: Dims) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The names (as in `Signals.taps`) of the student's and the teacher's tensors that it reads.

        Raises:
            ModelError: a tensor does not exist, or the models' sizes do not match.
        """

    @abstractmethod
    def values(self, student: Signals, teacher: Signals, batch: Batch, module: nn.Module | None) -> Float[Tensor, " N"]:
        """Values per row of its selection."""

    def ask(self, dims: Dims) -> Mapping[Side, Ask]:
        """Its taps of each model."""
        student_names, teacher_names = self.names(dims)
        return {"student": Ask(taps=frozenset(student_names)), "teacher": Ask(taps=frozenset(teacher_names))}

    def __call__(
        self, student: Signals, teacher: Signals | None, batch: Batch, module: nn.Module | None = None
    ) -> Term:
        """Its values.

        Raises:
            ValueError: there is no teacher, or a tensor is missing from the signals.
        """
        return Term(self.values(student, self.taught(teacher), batch, module))

    def taught(self, teacher: Signals | None) -> Signals:
        """The teacher's signals.

        Raises:
            ValueError: there are none.
        """
        if teacher is None:
            raise ValueError(f"{self.settings.kind} needs a teacher")
        return teacher


def dims_of(student: Signals, teacher: Signals) -> Dims:
    """The sizes of the two models that the signals come from.

    Raises:
        ValueError: the signals have none.
    """
    if student.dims is None or teacher.dims is None:
        raise ValueError("signals of inner tensors come with the sizes (dims) of their model")
    return Dims(student.dims, teacher.dims)


def tap(signals: Signals, name: str, side: Side) -> Tensor:
    """An inner tensor by name.

    Raises:
        ValueError: the signals lack it; the error lists those they have.
    """
    if name not in signals.taps:
        raise ValueError(f"the {side} gives no {name}; it gives {sorted(signals.taps) or 'no taps'}")
    return signals.taps[name]


def widened(tensor: Tensor) -> Tensor:
    """In fp32, or fp64 for fp64: values are computed in no lower precision, whatever the models' dtype."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
