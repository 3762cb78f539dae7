"""What an objective is.

An objective is built from its settings (`potstill.registry.build`), says what its values are counted by, and is one of
two things: a *vocabulary* objective, a row rule that runs with all others of its kind in one sweep over each head; or a
*direct* one, a function of the signals.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
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
    """Base of both sorts. Subclass `VocabularyObjective` or `DirectObjective`."""

    def __init__(self, settings: S) -> None:
        self.settings = settings

    @property
    def scope(self) -> Scope:
        """What one value is about, as its settings say."""
        return self.settings.scope

    @property
    def over(self) -> Over:
        """The selection that values and count are over."""
        return "targets" if self.scope == "token" else "examples"

    def ask(self, dims: Dims) -> Mapping[Side, Ask]:
        """What it reads of either model, given their sizes.

        Raises:
            ModelError: these models have no such layer, or sizes that do not fit each other.
        """
        return {}

    def build(self, dims: Dims) -> nn.Module | None:
        """A module that is trained along with the student and stripped at export, or None."""
        return None

    def initialise(self, module: nn.Module, student: Signals, teacher: Signals | None, batch: Batch) -> None:
        """Gives what `build` returned its first weights, of the first batch's signals; called once, without gradient,
        and only where training begins. By default they stay as they were built."""

    def count(self, batch: Batch) -> Int[Tensor, ""]:
        """What the sum of values is divided by, of one micro-batch. Needs no model output: the trainer sums it over
        the micro-batches of the step and the ranks, and divides once (rule 1)."""
        return batch.count(self.over)


class VocabularyObjective(Objective[S]):
    """One whose values are over the vocabulary (or the classes), always at targets: a row rule and its settings.

    `rule_of(settings, progress)` gives the rule. `build` makes one of the settings that `row_rule` binds a rule to.
    """

    def __init__(self, rule_of: Callable[[S, float], RowRule], settings: S) -> None:
        super().__init__(settings)
        self.rule_of = rule_of

    def ask(self, dims: Dims) -> Mapping[Side, Ask]:
        """The response of the student, and of the teacher where it needs one."""
        asks: dict[Side, Ask] = {"student": Ask(response=True)}
        if self.settings.needs().teacher:
            asks["teacher"] = Ask(response=True)
        return asks

    def row_rule(self, progress: float = 0.0) -> RowRule:
        """What it does to a tile of rows, at a progress of training in [0, 1]."""
        return self.rule_of(self.settings, progress)


def row_rule(settings: type[S]) -> Callable[[type[R]], type[R]]:
    """Class decorator: bind a row rule to the settings of an objective. The rule has a class method `of(settings,
    progress)`, which gives the rule at a progress of training in [0, 1], where temperatures that change are read."""
    return implements(settings, make=lambda rule, its_settings: VocabularyObjective(rule.of, its_settings))


class DirectObjective(Objective[S]):
    """One that reads the signals themselves."""

    @abstractmethod
    def __call__(
        self, student: Signals, teacher: Signals | None, batch: Batch, module: nn.Module | None = None
    ) -> Term:
        """Values per row of its selection, never a mean. `module` is what `build` returned."""


class TappedObjective(DirectObjective[S]):
    """One that holds inner tensors of the student against the teacher's: it says which, and what it makes of them."""

    @abstractmethod
    def names(self, dims: Dims) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The taps of student and of teacher that it reads, by the names of `Signals.taps`.

        Raises:
            ModelError: these models have no such tensor, or sizes that do not fit each other.
        """

    @abstractmethod
    def values(self, student: Signals, teacher: Signals, batch: Batch, module: nn.Module | None) -> Float[Tensor, " N"]:
        """Values per row of its selection."""

    def ask(self, dims: Dims) -> Mapping[Side, Ask]:
        """Its taps of either side."""
        ours, theirs = self.names(dims)
        return {"student": Ask(taps=frozenset(ours)), "teacher": Ask(taps=frozenset(theirs))}

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
    """The sizes of the two models that gave these signals.

    Raises:
        ValueError: they do not say.
    """
    if student.dims is None or teacher.dims is None:
        raise ValueError("signals of inner tensors come with the sizes (dims) of their model")
    return Dims(student.dims, teacher.dims)


def tap(signals: Signals, name: str, side: Side) -> Tensor:
    """An inner tensor by name.

    Raises:
        ValueError: it is not among the signals; those that are there are named.
    """
    if name not in signals.taps:
        raise ValueError(f"the {side} gives no {name}; it gives {sorted(signals.taps) or 'no taps'}")
    return signals.taps[name]


def widened(tensor: Tensor) -> Tensor:
    """In fp32, or fp64 where it is that: values are computed in no less, whatever the models' dtype."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
