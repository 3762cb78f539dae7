"""The parts that all row rules between two softened distributions share.

With p and q the softmax of teacher and student at T, and f the value as a function of q alone, the gradient with
respect to the student's logits is gain · q (∂f/∂q − Σ q ∂f/∂q) / T. Every rule here computes the bracket from a
quantity that is exactly zero where p = q, so that a student equal to its teacher gets exactly no gradient.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Generic, Literal, TypedDict, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from potstill.objectives.divergences import temperature_gain
from potstill.objectives.sweep.rows import RowRule, Rows
from potstill.recipe.response import SoftSettings
from potstill.recipe.schedules import value_at

TakesSparse = Literal["none", "linear", "bounded_tail"]
"""Which sparse signals a rule accepts: `linear` in p (exact in expectation on any unbiased sample, with a stated bias
on a truncated one); `bounded_tail` (truncated ones only); `none` (the bias would be unbounded)."""


S = TypeVar("S", bound=SoftSettings)


class SoftRule(ABC, Generic[S]):
    """Base of rules at a temperature. Their value is multiplied by `gain`, their gradient by `factor` = gain / T."""

    needs_teacher = True
    sparse: ClassVar[TakesSparse] = "none"

    def __init__(self, temperature: float = 1.0, *, scale_by_temperature_squared: bool = False) -> None:
        self.temperature = temperature
        self.gain = temperature_gain(temperature, scale_by_temperature_squared)
        self.factor = self.gain / temperature

    @classmethod
    def of(cls, settings: S, progress: float = 0.0) -> RowRule:
        """The rule of these settings, at a progress of training in [0, 1]."""
        return cls(**softening(settings, progress))

    @abstractmethod
    def __call__(self, rows: Rows, coefficient: Float[Tensor, "R 1"]) -> Float[Tensor, " R"]:
        """Values of a tile's rows, and their gradient: see `RowRule`."""


class Softening(TypedDict):
    """The arguments of every rule at a temperature."""

    temperature: float
    scale_by_temperature_squared: bool


def softening(settings: SoftSettings, progress: float) -> Softening:
    """The arguments in an objective's settings, at a training progress."""
    return {
        "temperature": value_at(settings.temperature, progress),
        "scale_by_temperature_squared": settings.scale_by_temperature_squared,
    }


def smallest(like: Tensor) -> float:
    """The smallest normal number of a dtype: replaces an underflowed probability under a logarithm or in a divisor. V
    of them do not change a sum."""
    return torch.finfo(like.dtype).tiny


def linear_values(
    rows: Rows, coefficient: Float[Tensor, "R 1"], rule: SoftRule[Any], *, less_entropy: bool
) -> Float[Tensor, " R"]:
    """Σ w (−log q) of a tile, minus the teacher's entropy if requested; adds coefficient × gain / T × ((Σ w) q − w).

    Tests hold it equal to `divergences.sparse_soft_ce` and `sparse_forward_kl`.
    """
    sparse, at, shared = rows.sparse, rule.temperature, rows.shared
    if sparse is None:
        raise ValueError("a rule asks for the stored distribution, and this sweep has none")
    q = rows.student_exponentials(at, shared)
    log_q = rows.student[sparse.row_of, sparse.ids] / at - q.log_partition.squeeze(1)[sparse.row_of]
    values, mass, entropy = -sparse.summed(sparse.weights * log_q), sparse.mass, sparse.entropy
    if sparse.cut:
        # With every token stored there is no tail, whatever the rounding of Σ w.
        remaining = (1 - mass).clamp_min(0) if sparse.left is None else sparse.left
        left = torch.where(sparse.kept >= shared, 0, remaining)
        tail = rows.scratch.take("difference", *q.values.shape).copy_(q.values)
        tail[sparse.row_of, sparse.ids] = 0
        student_left = (tail.sum(-1) / q.total.squeeze(1)).clamp_min(smallest(tail))
        values = values - left * student_left.log()
        stored = torch.special.xlogy(sparse.weights, sparse.weights)
        entropy = -sparse.summed(stored) - torch.special.xlogy(left, left)
    if rows.wants_gradient:
        scaled = coefficient * rule.factor
        of_q = scaled / q.total
        total = mass[:, None]
        if sparse.cut:
            total = total + left[:, None]
            rows.add_gradient(-of_q * (left / student_left)[:, None], tail)
        rows.add_gradient(of_q * total, q.values)
        rows.add_gradient_entries(sparse.row_of, sparse.ids, -scaled.squeeze(1)[sparse.row_of] * sparse.weights)
    return (values - entropy if less_entropy else values) * rule.gain
