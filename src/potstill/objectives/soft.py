"""What all row rules between two softened distributions have in common.

With p and q the softmax of teacher and student at T, and f the value as a function of q alone, a gradient with respect
to the student's logits is gain · q (∂f/∂q − Σ q ∂f/∂q) / T. Every rule here forms the bracket from a quantity that is
exactly zero where p = q, so that a student like its teacher gets exactly no gradient.
"""

from __future__ import annotations

from typing import ClassVar, Literal, TypedDict

import torch
from torch import Tensor

from potstill.objectives.divergences import temperature_gain
from potstill.recipe.response import SoftSettings
from potstill.recipe.schedules import value_at

TakesSparse = Literal["none", "linear", "bounded_tail"]
"""What a rule may be given of a sparse signal: `linear` in p, so right on any unbiased sample and biased by a stated
amount on a cut one; `bounded_tail` cut ones only; `none`, where it would be biased without bound."""


class SoftRule:
    """Base of rules at a temperature. Their value is multiplied by `gain`, their gradient by `factor` = gain / T."""

    needs_teacher = True
    sparse: ClassVar[TakesSparse] = "none"

    def __init__(self, temperature: float = 1.0, *, scale_by_temperature_squared: bool = False) -> None:
        self.temperature = temperature
        self.gain = temperature_gain(temperature, scale_by_temperature_squared)
        self.factor = self.gain / temperature


class Softening(TypedDict):
    """The arguments that every rule at a temperature takes."""

    temperature: float
    scale_by_temperature_squared: bool


def softening(settings: SoftSettings, progress: float) -> Softening:
    """Those of an objective's settings, at a progress of training."""
    return {
        "temperature": value_at(settings.temperature, progress),
        "scale_by_temperature_squared": settings.scale_by_temperature_squared,
    }


def smallest(like: Tensor) -> float:
    """The smallest normal number of a dtype: what a probability that has underflowed is taken for under a logarithm or
    in a divisor. V of them do not move a sum."""
    return torch.finfo(like.dtype).tiny
