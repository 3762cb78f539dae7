"""Per-token statistics for evaluation, from the same sweep, without gradients."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from potstill.objectives.response import ForwardKLRule, HardCERule
from potstill.objectives.sweep.engine import fused_sweep
from potstill.objectives.sweep.rows import RowRule, Rows
from potstill.signals import Dense, Head


@dataclass(frozen=True)
class TokenStatistics:
    """Per target token, at T = 1, in fp32; nats. Without a teacher the last three are None.

    `top1_agree`: whether student and teacher rank the same token first, among the tokens that both have.
    """

    nll_student: Float[Tensor, " N"]
    nll_teacher: Float[Tensor, " N"] | None = None
    kl: Float[Tensor, " N"] | None = None
    top1_agree: Bool[Tensor, " N"] | None = None


class _TeacherNLL:
    needs_teacher = True

    def __call__(self, rows: Rows, coefficient: Float[Tensor, "R 1"]) -> Float[Tensor, " R"]:
        at_target = rows.teacher_logits.gather(1, rows.target_ids[:, None])
        return (rows.teacher_exponentials().log_partition - at_target).squeeze(1)


class _TopOneAgreement:
    needs_teacher = True

    def __call__(self, rows: Rows, coefficient: Float[Tensor, "R 1"]) -> Float[Tensor, " R"]:
        first_of_student = rows.student[:, : rows.shared].argmax(-1)
        return (first_of_student == rows.teacher_logits[:, : rows.shared].argmax(-1)).to(rows.student.dtype)


def token_statistics(
    student: Head | Dense, teacher: Head | Dense | None, target_ids: Int[Tensor, " N"]
) -> TokenStatistics:
    """NLL of both, KL(teacher ‖ student) and top-1 agreement, computed in chunks, with products in fp32 whatever the
    models' dtype and regardless of autocast.

    `nll_teacher` is over all rows of the teacher's head and `nll_student` over all of the student's; KL and agreement
    are over the shared tokens.
    """
    rules: list[RowRule] = [HardCERule()]
    if teacher is not None:
        rules += [_TeacherNLL(), ForwardKLRule(), _TopOneAgreement()]
    with torch.no_grad():
        swept = fused_sweep(student, teacher, target_ids, [(rule, 0.0) for rule in rules], product_dtype=torch.float32)
    if teacher is None:
        return TokenStatistics(swept.values[0])
    nll_student, nll_teacher, kl, agree = swept.values
    return TokenStatistics(nll_student, nll_teacher, kl, agree > 0.5)
