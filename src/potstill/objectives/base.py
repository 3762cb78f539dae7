"""What an objective is.

An objective is built from its settings (`potstill.registry.build`), says what its values are counted by, and is one of
two things: a *vocabulary* objective, a row rule that runs with all others of its kind in one sweep over each head; or a
*direct* one, a function of the signals.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Generic, Literal, TypeVar

from jaxtyping import Int
from torch import Tensor, nn

from potstill.objectives.rows import RowRule
from potstill.recipe.objectives import ObjectiveSettings
from potstill.signals import Batch, Dims, Over, Signals, Term

Scope = Literal["token", "example", "batch"]
"""What one value is about. With `token` and `example`, splitting a batch differently changes nothing; `batch` is
defined on the micro-batch."""

S = TypeVar("S", bound=ObjectiveSettings)


class Objective(ABC, Generic[S]):
    """Base of both sorts. Subclass `VocabularyObjective` or `DirectObjective`."""

    scope: Scope = "token"

    def __init__(self, settings: S) -> None:
        self.settings = settings

    @property
    def over(self) -> Over:
        """The selection that values and count are over."""
        return "targets"

    def build(self, dims: Dims) -> nn.Module | None:
        """A module that is trained along with the student and stripped at export, or None."""
        return None

    def count(self, batch: Batch) -> Int[Tensor, ""]:
        """What the sum of values is divided by, of one micro-batch. Needs no model output: the trainer sums it over
        the micro-batches of the step and the ranks, and divides once (rule 1)."""
        return batch.count(self.over)


class VocabularyObjective(Objective[S]):
    """One whose values are over the vocabulary, always at targets."""

    @abstractmethod
    def row_rule(self) -> RowRule:
        """What it does to a tile of rows."""


class DirectObjective(Objective[S]):
    """One that reads the signals themselves."""

    @abstractmethod
    def __call__(
        self, student: Signals, teacher: Signals | None, batch: Batch, module: nn.Module | None = None
    ) -> Term:
        """Values per row of its selection, never a mean. `module` is what `build` returned."""
