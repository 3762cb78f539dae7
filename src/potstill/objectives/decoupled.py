"""Decoupled knowledge distillation: the target against all others, and the others among themselves."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from potstill.objectives.base import row_rule
from potstill.objectives.soft import SoftRule, softening
from potstill.objectives.sweep.rows import RowRule, Rows, exponentials_into
from potstill.recipe.response import DecoupledKD


@row_rule(DecoupledKD)
class DecoupledKDRule(SoftRule[DecoupledKD]):
    """α · KL(b_p ‖ b_q) + β · KL(p̂ ‖ q̂); tests hold it equal to `divergences.dkd`. Zhao et al. 2022, eq. 7.

    p̂ and q̂ are softmaxes over the logits of the others, and b comes from the log-odds of the target: dividing
    probabilities by 1 − p_target would lose all precision where the teacher is certain.

    If a target is not among the shared tokens, all of these are others: the first term is 0, the second KL(p ‖ q).
    """

    def __init__(
        self,
        alpha: float = 1.0,
        beta: float = 8.0,
        temperature: float = 1.0,
        *,
        scale_by_temperature_squared: bool = False,
    ) -> None:
        super().__init__(temperature, scale_by_temperature_squared=scale_by_temperature_squared)
        self.alpha, self.beta = alpha, beta

    @classmethod
    def of(cls, settings: DecoupledKD, progress: float = 0.0) -> RowRule:
        """The rule of these settings, at a progress of training in [0, 1]."""
        return cls(settings.alpha, settings.beta, **softening(settings, progress))

    def __call__(self, rows: Rows, coefficient: Float[Tensor, "R 1"]) -> Float[Tensor, " R"]:
        shared = rows.shared
        if shared < 2:
            raise ValueError("dkd needs two or more tokens or classes that student and teacher both have")
        student, teacher = rows.student[:, :shared], rows.teacher_logits[:, :shared]
        inside = (rows.target_ids < shared)[:, None]
        target = rows.target_ids.clamp(max=shared - 1)[:, None]
        q_hat, q_level, q_odds = self._others(rows, "student", student, target, inside)
        p_hat, p_level, p_odds = self._others(rows, "teacher", teacher, target, inside)

        difference = torch.sub(teacher, student, out=rows.scratch.take("difference", *q_hat.shape))
        rest = difference.mul_(p_hat).sum(-1, keepdim=True).div_(self.temperature) - (p_level - q_level)
        b_p, b_q = torch.sigmoid(p_odds), torch.sigmoid(q_odds)
        pair = b_p * (logsigmoid(p_odds) - logsigmoid(q_odds))
        pair += torch.sigmoid(-p_odds) * (logsigmoid(-p_odds) - logsigmoid(-q_odds))
        values = self.beta * rest + self.alpha * torch.where(inside, pair, 0)
        if rows.wants_gradient:
            scaled = coefficient * self.factor
            torch.sub(q_hat, p_hat, out=difference)
            rows.add_gradient(scaled * self.beta, difference)
            moved = torch.where(inside, (b_q - b_p) * self.alpha, 0) * scaled
            rows.add_gradient(-moved, q_hat)
            rows.add_gradient_at(target.squeeze(1), moved)
        return values.squeeze(-1) * self.gain

    def _others(
        self, rows: Rows, side: str, logits: Tensor, target: Tensor, inside: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(softmax over the others, 0 at the target; their log partition; log-odds of the target against them)."""
        at_target = logits.gather(1, target)
        hat = rows.scratch.take((side, "others"), *logits.shape).copy_(logits)
        hat.scatter_(1, target, torch.where(inside, -math.inf, at_target))
        powers = exponentials_into(hat, hat, self.temperature)
        level = powers.log_partition
        return hat.div_(powers.total), level, at_target / self.temperature - level
