"""Divergences from a mixture m of teacher p and student q: generalised JSD and DistiLLM's skewed KLs.

m is positive wherever p or q is, so both ratios are bounded and no logarithm diverges, which is the purpose of these
methods. Here that also holds in floating point: probabilities that have underflowed count as the smallest normal
number, and the mixture is computed by interpolation, q + share · (p − q), which is exactly q where p = q. Means under
q divide by q's own sum, which rounding leaves close to but not at 1: where p and q are far apart, a gradient is a
small difference from such a mean.
"""

from __future__ import annotations

from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from potstill.objectives.base import row_rule
from potstill.objectives.soft import SoftRule, smallest, softening
from potstill.objectives.sweep.rows import RowRule, Rows
from potstill.recipe.response import JSD, SkewedKL, SkewedReverseKL


@row_rule(JSD)
class JSDRule(SoftRule[JSD]):
    """β · KL(p ‖ m) + (1−β) · KL(q ‖ m), m = β·p + (1−β)·q; ∂/∂z = gain · (1−β) · q (log(q/m) − KL(q ‖ m)) / T.
    Agarwal et al. 2023 (GKD), eq. 1.

    Two logarithms per entry and no log partition: the ratios are of probabilities.
    """

    def __init__(
        self, beta: float = 0.5, temperature: float = 1.0, *, scale_by_temperature_squared: bool = False
    ) -> None:
        super().__init__(temperature, scale_by_temperature_squared=scale_by_temperature_squared)
        self.beta = beta

    @classmethod
    def of(cls, settings: JSD, progress: float = 0.0) -> RowRule:
        """The rule of these settings, at a progress of training in [0, 1]."""
        return cls(settings.beta, **softening(settings, progress))

    def __call__(self, rows: Rows, coefficient: Float[Tensor, "R 1"]) -> Float[Tensor, " R"]:
        at, shared, beta = self.temperature, rows.shared, self.beta
        p, q = rows.teacher_exponentials(at, shared), rows.student_exponentials(at, shared)
        shape = q.values.shape
        of_p, of_q, mixture = (rows.scratch.take(name, *shape) for name in ("difference", "product", "mixture"))
        # p and q, both times q's total; their ratios to the mixture are the same.
        torch.mul(p.values, q.total / p.total, out=of_p).clamp_min_(smallest(of_p))
        torch.clamp_min(q.values, smallest(of_q), out=of_q)
        torch.lerp(of_q, of_p, beta, out=mixture)
        # log(p/m) and log(q/m), then each times its probability.
        kl_p = of_p.div_(mixture).log_().mul_(p.values).sum(-1, keepdim=True) / p.total
        weighted = of_q.div_(mixture).log_().mul_(q.values)
        kl_q = weighted.sum(-1, keepdim=True) / q.total
        if rows.wants_gradient:
            factor = coefficient * (self.factor * (1 - beta))
            rows.add_gradient(factor / q.total, weighted.addcmul_(q.values, -kl_q))
        return (beta * kl_p + (1 - beta) * kl_q).squeeze(-1) * self.gain


K = TypeVar("K", SkewedKL, SkewedReverseKL)


class _SkewedRule(SoftRule[K]):
    """Base of both skewed KLs, KL(f ‖ α·f + (1−α)·g), through r = (f − g)/m: log(f/m) = log(1 + (1−α) r)."""

    def __init__(
        self, alpha: float = 0.1, temperature: float = 1.0, *, scale_by_temperature_squared: bool = False
    ) -> None:
        super().__init__(temperature, scale_by_temperature_squared=scale_by_temperature_squared)
        self.alpha = alpha

    @classmethod
    def of(cls, settings: K, progress: float = 0.0) -> RowRule:
        """The rule of these settings, at a progress of training in [0, 1]."""
        return cls(settings.alpha, **softening(settings, progress))

    def _ratios(self, rows: Rows, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(r, log(f/m), m) of each entry. Rounding could make 1 + (1−α) r zero; its logarithm is kept finite."""
        ratio, mixture, logs = (rows.scratch.take(name, *first.shape) for name in ("difference", "mixture", "product"))
        torch.lerp(second, first, self.alpha, out=mixture).clamp_min_(smallest(first))
        torch.sub(first, second, out=ratio).div_(mixture)
        torch.mul(ratio, 1 - self.alpha, out=logs)
        return ratio, logs.clamp_min_(torch.finfo(first.dtype).eps / 2 - 1).log1p_(), mixture


@row_rule(SkewedKL)
class SkewedKLRule(_SkewedRule[SkewedKL]):
    """KL(p ‖ m), m = α·p + (1−α)·q; ∂/∂z = gain · (1−α) · q (Σ q s − s) / T with s = p/m. Ko et al. 2024
    (DistiLLM), eq. 4.

    Where p is far from q, s is near 0 for all entries that are likely under q, and the subtraction is between small
    numbers. With (p − q)/m, which equals s up to constants, it would be a difference of large terms. Where p = q, s is
    1, and so is its mean by q's own sum.
    """

    def __call__(self, rows: Rows, coefficient: Float[Tensor, "R 1"]) -> Float[Tensor, " R"]:
        at, shared = self.temperature, rows.shared
        p, q = rows.teacher_softmax(at, shared), rows.student_softmax(at, shared)
        _, logs, mixture = self._ratios(rows, p, q)
        values = logs.mul_(p).sum(-1)
        if rows.wants_gradient:
            weighted = torch.div(p, mixture, out=mixture).mul_(q)
            mean = weighted.sum(-1, keepdim=True).div_(q.sum(-1, keepdim=True))
            factor = -self.factor * (1 - self.alpha)
            rows.add_gradient(coefficient * factor, weighted.addcmul_(q, -mean))
        return values * self.gain


@row_rule(SkewedReverseKL)
class SkewedReverseKLRule(_SkewedRule[SkewedReverseKL]):
    """KL(q ‖ m), m = α·q + (1−α)·p; ∂/∂z = gain · q (h − Σ q h) / T with h = log(q/m) − α(1−α)(q − p)/m.
    Ko et al. 2024 (DistiLLM), §3.1."""

    def __call__(self, rows: Rows, coefficient: Float[Tensor, "R 1"]) -> Float[Tensor, " R"]:
        at, shared, alpha = self.temperature, rows.shared, self.alpha
        p, q = rows.teacher_softmax(at, shared), rows.student_softmax(at, shared)
        ratio, logs, _ = self._ratios(rows, q, p)
        weighted = logs.mul_(q)
        values = weighted.sum(-1)
        if rows.wants_gradient:
            weighted.addcmul_(ratio, q, value=-alpha * (1 - alpha))
            mean = weighted.sum(-1, keepdim=True).div_(q.sum(-1, keepdim=True))
            rows.add_gradient(coefficient * self.factor, weighted.addcmul_(q, -mean))
        return values * self.gain
