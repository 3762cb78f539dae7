"""Settings of measures: what an evaluation finds out about held-out targets. No torch.

A measure is a settings class here and an implementation of the same kind in `evaluate/measures/`.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from potstill.recipe.base import KindSettings
from potstill.tasks import TaskSpec


class MeasureSettings(KindSettings):
    """Base of every measure."""

    room: ClassVar[str] = "evaluate.measures"

    def why_not(self, task: TaskSpec) -> str | None:
        """Why a task cannot have this measure, with what to do; None if it can. By default it needs a response."""
        if task.has_response:
            return None
        return f"{self.kind} reads probabilities, and a sentence embedding has none: drop it from evaluate.measures"


class Fidelity(MeasureSettings):
    """NLL, KL, agreement; of classes accuracy, macro-F1 and flips; of embeddings neighbours and similarities."""

    kind: Literal["fidelity"] = "fidelity"

    def why_not(self, task: TaskSpec) -> str | None:
        """Every task has it."""
        return None


class Calibration(MeasureSettings):
    """Whether a model is as often right as it is sure.

    `bins` are of equal mass. `temperatures` are those at which the NLL is computed too, to fit one temperature on one
    half of the groups and report it on the other; each costs a pass over the logits that are made anyway.
    """

    kind: Literal["calibration"] = "calibration"
    bins: int = Field(15, ge=2, le=100)
    temperatures: tuple[float, ...] = Field((0.7, 0.85, 1.2, 1.5, 2.0), min_length=2, max_length=20)


class Tails(MeasureSettings):
    """Where the loss is: by how often the target occurs in training, and by slices of the held-out targets.

    `rare` is the share of the targets, the rarest ones, that is the tail.
    """

    kind: Literal["tails"] = "tails"
    rare: float = Field(0.1, gt=0, lt=0.5)


def default_measures(task: TaskSpec) -> tuple[MeasureSettings, ...]:
    """The measures that fit a task and cost no further pass."""
    return tuple(made for made in (Fidelity(), Calibration(), Tails()) if made.why_not(task) is None)
