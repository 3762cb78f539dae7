"""Objectives on the response: the distribution over the next token, or over the classes. Each is a row rule of the
fused sweep; tests hold it equal to the function of the same name in `divergences.py`.

Divergences from a mixture of both distributions: `mixtures.py`. Target against all others: `decoupled.py`.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from potstill.objectives.base import row_rule
from potstill.objectives.soft import SoftRule, TakesSparse, linear_values
from potstill.objectives.sweep.rows import Exponentials, RowRule, Rows
from potstill.recipe.response import Acceptance, ForwardKL, HardCE, LogitMSE, ReverseKL, SoftCE, TotalVariation


@row_rule(ForwardKL)
class ForwardKLRule(SoftRule[ForwardKL]):
    """KL(teacher ‖ student) at a temperature over the shared tokens; ∂/∂z = gain · (q − p) / T.
    Hinton et al. 2015, §2."""

    sparse: ClassVar[TakesSparse] = "linear"

    def __call__(self, rows: Rows, coefficient: Float[Tensor, "R 1"]) -> Float[Tensor, " R"]:
        if rows.sparse is not None:
            return linear_values(rows, coefficient, self, less_entropy=True)
        at, shared = self.temperature, rows.shared
        student, teacher = rows.student[:, :shared], rows.teacher_logits[:, :shared]
        p, q = rows.teacher_exponentials(at, shared), rows.student_exponentials(at, shared)
        # Σ p (log p − log q), with log p − log q = (z_teacher − z_student) / T less the difference of log partitions.
        difference = torch.sub(teacher, student, out=rows.scratch.take("difference", *p.values.shape))
        values = difference.mul_(p.values).sum(-1, keepdim=True).div_(p.total * at)
        values -= p.log_partition - q.log_partition
        if rows.wants_gradient:
            _add_difference(rows, coefficient * self.factor, p, q, out=difference)
        return values.squeeze(-1) * self.gain


@row_rule(SoftCE)
class SoftCERule(SoftRule[SoftCE]):
    """−Σ p log q over the shared tokens; ∂/∂z = gain · (q − p) / T. Hinton et al. 2015, §2."""

    sparse: ClassVar[TakesSparse] = "linear"

    def __call__(self, rows: Rows, coefficient: Float[Tensor, "R 1"]) -> Float[Tensor, " R"]:
        if rows.sparse is not None:
            return linear_values(rows, coefficient, self, less_entropy=False)
        at, shared = self.temperature, rows.shared
        p, q = rows.teacher_exponentials(at, shared), rows.student_exponentials(at, shared)
        product = torch.mul(rows.student[:, :shared], p.values, out=rows.scratch.take("product", *p.values.shape))
        values = q.log_partition - product.sum(-1, keepdim=True).div_(p.total * at)
        if rows.wants_gradient:
            _add_difference(rows, coefficient * self.factor, p, q, out=product)
        return values.squeeze(-1) * self.gain


def _add_difference(
    rows: Rows, coefficient: Float[Tensor, "R 1"], p: Exponentials, q: Exponentials, out: Float[Tensor, "R V"]
) -> None:
    """Add coefficient · (q − p), as a difference and not term by term: exactly zero where the two are equal."""
    torch.addcmul(p.values, q.values, p.total / q.total, value=-1, out=out)
    rows.add_gradient(-coefficient / p.total, out)


@row_rule(ReverseKL)
class ReverseKLRule(SoftRule[ReverseKL]):
    """KL(student ‖ teacher) at a temperature over the shared tokens; ∂/∂z = gain · q (log q − log p − value) / T.
    Agarwal et al. 2023, §2."""

    def __call__(self, rows: Rows, coefficient: Float[Tensor, "R 1"]) -> Float[Tensor, " R"]:
        at, shared = self.temperature, rows.shared
        student, teacher = rows.student[:, :shared], rows.teacher_logits[:, :shared]
        p, q = rows.teacher_exponentials(at, shared), rows.student_exponentials(at, shared)
        # From the logits, which are finite where a probability has underflowed.
        difference = torch.sub(student, teacher, out=rows.scratch.take("difference", *student.shape))
        product = torch.mul(difference, q.values, out=rows.scratch.take("product", *student.shape))
        mean = product.sum(-1, keepdim=True) / q.total
        values = (mean / at - (q.log_partition - p.log_partition)).squeeze(-1)
        if rows.wants_gradient:
            # log q − log p − value = (difference − its mean) / T: the partitions cancel.
            rows.add_gradient(coefficient * (self.factor / at) / q.total, difference.sub_(mean).mul_(q.values))
        return values * self.gain


@row_rule(TotalVariation)
class TotalVariationRule(SoftRule[TotalVariation]):
    """½ Σ |p − q| over the shared tokens; ∂/∂z = gain · ½ q (s − Σ q s) / T, s = sign(q − p).
    Wen et al. 2023, §3."""

    def __call__(self, rows: Rows, coefficient: Float[Tensor, "R 1"]) -> Float[Tensor, " R"]:
        at, shared = self.temperature, rows.shared
        p, q = rows.teacher_exponentials(at, shared), rows.student_exponentials(at, shared)
        difference, sign = (rows.scratch.take(name, *q.values.shape) for name in ("difference", "product"))
        torch.addcmul(q.values, p.values, q.total / p.total, value=-1, out=difference)
        torch.sign(difference, out=sign)
        values = difference.mul_(sign).sum(-1, keepdim=True) / (2 * q.total)
        if rows.wants_gradient:
            mean = torch.mul(sign, q.values, out=difference).sum(-1, keepdim=True) / q.total
            rows.add_gradient(coefficient * (0.5 * self.factor) / q.total, difference.addcmul_(q.values, -mean))
        return values.squeeze(-1) * self.gain


@row_rule(Acceptance)
class AcceptanceRule(SoftRule[Acceptance]):
    """−log α with α = Σ min(p, q) over the shared tokens; ∂/∂z = gain · (q Σ q m − q m) / (α T), m = 1 where q < p, ½
    where they are equal, else 0. Leviathan et al. 2022, theorem 3.5."""

    def __call__(self, rows: Rows, coefficient: Float[Tensor, "R 1"]) -> Float[Tensor, " R"]:
        at, shared = self.temperature, rows.shared
        p, q = rows.teacher_exponentials(at, shared), rows.student_exponentials(at, shared)
        # In logarithms: α underflows where student and teacher are far apart, and is divided by.
        log_q, low, m = (rows.scratch.take(name, *q.values.shape) for name in ("difference", "product", "mask"))
        torch.mul(rows.student[:, :shared], 1 / at, out=log_q).sub_(q.log_partition)
        torch.mul(rows.teacher_logits[:, :shared], 1 / at, out=low).sub_(p.log_partition)
        torch.sub(low, log_q, out=m).sign_()
        torch.minimum(low, log_q, out=low)
        # Less that of log q, which is 0 up to rounding: p = q has exactly no loss.
        log_alpha = low.logsumexp(-1, keepdim=True) - log_q.logsumexp(-1, keepdim=True)
        if rows.wants_gradient:
            # The gradient is the same for m less a constant. Near p = q that constant is ½, so that p = q has exactly
            # none; far from it 0, since q/α may be large where q > p.
            near = log_alpha > -math.log(2)
            m.add_(~near).mul_(0.5)
            share = torch.where(near, log_q, low).sub_(log_alpha).exp_().mul_(m)
            total = share.sum(-1, keepdim=True)
            rows.add_gradient(coefficient * self.factor * total / q.total, q.values)
            rows.add_gradient(-coefficient * self.factor, share)
        return -log_alpha.squeeze(-1) * self.gain


@row_rule(LogitMSE)
class LogitMSERule:
    """Mean over the shared tokens of (z_student − z_teacher)²; ∂/∂z = 2 (z_student − z_teacher) / shared tokens.
    Ba & Caruana 2014, eq. 1."""

    needs_teacher = True
    sparse: ClassVar[TakesSparse] = "none"

    @classmethod
    def of(cls, settings: LogitMSE, progress: float = 0.0) -> RowRule:
        """The rule; it has no settings of its own."""
        return cls()

    def __call__(self, rows: Rows, coefficient: Float[Tensor, "R 1"]) -> Float[Tensor, " R"]:
        shared = rows.shared
        student, teacher = rows.student[:, :shared], rows.teacher_logits[:, :shared]
        difference = torch.sub(student, teacher, out=rows.scratch.take("difference", *student.shape))
        square = torch.mul(difference, difference, out=rows.scratch.take("product", *student.shape))
        if rows.wants_gradient:
            rows.add_gradient(coefficient * (2.0 / shared), difference)
        return square.mean(-1)


@row_rule(HardCE)
class HardCERule:
    """−log q[target] over all rows of the student's head; ∂/∂z = q − onehot(target). The target is the next
    token, or the class."""

    needs_teacher = False

    @classmethod
    def of(cls, settings: HardCE, progress: float = 0.0) -> RowRule:
        """The rule; it has no settings of its own."""
        return cls()

    def __call__(self, rows: Rows, coefficient: Float[Tensor, "R 1"]) -> Float[Tensor, " R"]:
        at_target, q = rows.student.gather(1, rows.target_ids[:, None]), rows.student_exponentials()
        values = (q.log_partition - at_target).squeeze(1)
        if rows.wants_gradient:
            rows.add_gradient(coefficient / q.total, q.values)
            rows.add_gradient_at(rows.target_ids, -coefficient)
        return values
