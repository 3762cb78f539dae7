"""Objectives on the response: the distribution over the next token. Each is a row rule of the fused sweep."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from potstill.objectives.base import VocabularyObjective
from potstill.objectives.divergences import temperature_gain
from potstill.objectives.rows import Rows
from potstill.recipe.response import ForwardKL, HardCE
from potstill.recipe.schedules import value_at
from potstill.registry import implements


class ForwardKLRule:
    """KL(teacher ‖ student) at a temperature over the shared tokens; ∂/∂z = gain · (q − p) / T.

    Held equal to `divergences.forward_kl`.
    """

    needs_teacher = True

    def __init__(self, temperature: float = 1.0, *, scale_by_temperature_squared: bool = False) -> None:
        self.temperature = temperature
        self.gain = temperature_gain(temperature, scale_by_temperature_squared)

    def __call__(self, rows: Rows, coefficient: Float[Tensor, "R 1"]) -> Float[Tensor, " R"]:
        at, shared = self.temperature, rows.shared
        student, teacher = rows.student[:, :shared], rows.teacher_logits[:, :shared]
        p = rows.teacher_softmax(at, shared)
        # Σ p (log p − log q), with log p − log q = (z_teacher − z_student) / T less the difference of log partitions.
        difference = torch.sub(teacher, student, out=rows.scratch.take("difference", *p.shape))
        values = difference.mul_(p).sum(-1).div_(at)
        values -= (rows.teacher_log_partition(at, shared) - rows.student_log_partition(at, shared)).squeeze(-1)
        if rows.wants_gradient:
            # Of the difference, not term by term: it is exactly zero where student and teacher agree.
            torch.sub(rows.student_softmax(at, shared), p, out=difference)
            rows.add_gradient(coefficient * (self.gain / at), difference)
        return values * self.gain


class HardCERule:
    """−log q[target] over all rows of the student's head; ∂/∂z = q − onehot(target).

    Held equal to `divergences.hard_ce`.
    """

    needs_teacher = False

    def __call__(self, rows: Rows, coefficient: Float[Tensor, "R 1"]) -> Float[Tensor, " R"]:
        at_target = rows.student.gather(1, rows.target_ids[:, None])
        values = (rows.student_log_partition() - at_target).squeeze(1)
        if rows.wants_gradient:
            rows.add_gradient(coefficient, rows.student_softmax())
            rows.add_gradient_at(rows.target_ids, -coefficient)
        return values


@implements(ForwardKL)
class ForwardKLLoss(VocabularyObjective[ForwardKL]):
    """KL(teacher ‖ student). Hinton et al. 2015, §2."""

    def row_rule(self, progress: float = 0.0) -> ForwardKLRule:
        temperature = value_at(self.settings.temperature, progress)
        return ForwardKLRule(temperature, scale_by_temperature_squared=self.settings.scale_by_temperature_squared)


@implements(HardCE)
class HardCELoss(VocabularyObjective[HardCE]):
    """Cross-entropy against the tokens of the text."""

    def row_rule(self, progress: float = 0.0) -> HardCERule:
        return HardCERule()
