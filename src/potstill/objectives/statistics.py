"""Per-token statistics for evaluation, from the same sweep, without gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from potstill.objectives.response import ForwardKLRule, HardCERule, ReverseKLRule, TotalVariationRule
from potstill.objectives.sweep.engine import fused_sweep
from potstill.objectives.sweep.rows import RowRule, Rows, exponentials_into
from potstill.recipe.response import ReverseKL, TotalVariation
from potstill.signals import Dense, Head, Sparse


@dataclass(frozen=True)
class TokenStatistics:
    """Per target token, at T = 1, in fp32; nats. Without a teacher the last three are None; of a stored signal
    `nll_teacher` is.

    `top1_agree`: whether student and teacher rank the same token first, among the tokens that both have.
    """

    nll_student: Float[Tensor, " N"]
    more: Mapping[str, Float[Tensor, " N"]] = field(default_factory=dict)
    """The columns that were asked for beyond these, by name."""
    nll_teacher: Float[Tensor, " N"] | None = None
    kl: Float[Tensor, " N"] | None = None
    top1_agree: Bool[Tensor, " N"] | None = None


Column = Literal["probability", "hit", "entropy", "collision", "reverse_kl", "total_variation"]
"""What can be asked for per target. Of the student alone: the `probability` of its first choice; `hit`, whether the
target is its first choice; its `entropy`; `collision`, Σ q². Beside a teacher: KL(student ‖ teacher), and
½ Σ |p − q|."""

OF_BOTH: frozenset[str] = frozenset({"reverse_kl", "total_variation"})
"""Columns that need a teacher."""


class _First:
    """The probability of the first choice: the largest unnormalised value is 1."""

    needs_teacher = False

    def __call__(self, rows: Rows, coefficient: Float[Tensor, "R 1"]) -> Float[Tensor, " R"]:
        return 1 / rows.student_exponentials().total.squeeze(1)


class _Hit:
    needs_teacher = False

    def __call__(self, rows: Rows, coefficient: Float[Tensor, "R 1"]) -> Float[Tensor, " R"]:
        at_target = rows.student_exponentials().values.gather(1, rows.target_ids[:, None])
        return (at_target == 1).to(rows.student.dtype).squeeze(1)


class _Entropy:
    """−Σ q log q; a logit of −∞ adds nothing."""

    needs_teacher = False

    def __call__(self, rows: Rows, coefficient: Float[Tensor, "R 1"]) -> Float[Tensor, " R"]:
        q = rows.student_exponentials()
        found: Tensor = (q.total.log() + torch.special.entr(q.values).sum(-1, keepdim=True) / q.total).squeeze(1)
        return found


class _Collision:
    needs_teacher = False

    def __call__(self, rows: Rows, coefficient: Float[Tensor, "R 1"]) -> Float[Tensor, " R"]:
        q = rows.student_exponentials()
        squares: Tensor = torch.linalg.vecdot(q.values, q.values)
        return squares / q.total.squeeze(1) ** 2


@dataclass(frozen=True)
class _TemperedNLL:
    """−log softmax(z / T) of the target."""

    temperature: float
    needs_teacher = False

    def __call__(self, rows: Rows, coefficient: Float[Tensor, "R 1"]) -> Float[Tensor, " R"]:
        at_target = rows.student.gather(1, rows.target_ids[:, None]) / self.temperature
        # Not `student_exponentials`, which keeps a buffer for every temperature.
        out = rows.scratch.take("tempered", *rows.student.shape)
        return (exponentials_into(out, rows.student, self.temperature).log_partition - at_target).squeeze(1)


def _rule(column: str) -> RowRule:
    if column.startswith(TEMPERED):
        return _TemperedNLL(float(column.removeprefix(TEMPERED)))
    return _RULES[column]()


TEMPERED = "nll@"
"""Prefix of the columns of NLL at another temperature: `nll@1.5`."""

_RULES: Mapping[str, Callable[[], RowRule]] = {
    "probability": _First,
    "hit": _Hit,
    "entropy": _Entropy,
    "collision": _Collision,
    "reverse_kl": lambda: ReverseKLRule.of(ReverseKL()),
    "total_variation": lambda: TotalVariationRule.of(TotalVariation()),
}


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


class _FirstChoice:
    """The token that the student ranks first among the first `vocab`: exact in fp32 below 2²⁴."""

    needs_teacher = False

    def __init__(self, vocab: int | None) -> None:
        self.vocab = vocab

    def __call__(self, rows: Rows, coefficient: Float[Tensor, "R 1"]) -> Float[Tensor, " R"]:
        return rows.student[:, : self.vocab].argmax(-1).to(rows.student.dtype)


def first_choices(sparse: Sparse) -> Int[Tensor, " N"]:
    """The token with the largest weight in each row of a stored signal; −1 where a row has none."""
    counts = sparse.offsets.diff()
    row_of = torch.repeat_interleave(torch.arange(counts.shape[0], device=counts.device), counts)
    largest = torch.zeros_like(sparse.entropy).scatter_reduce_(0, row_of, sparse.weights, "amax")
    first = torch.full_like(counts, -1)
    at_largest = sparse.weights == largest[row_of]
    first[row_of[at_largest]] = sparse.ids[at_largest].long()
    return first


def token_statistics(
    student: Head | Dense,
    teacher: Head | Dense | Sparse | None,
    target_ids: Int[Tensor, " N"],
    columns: Iterable[str] = (),
) -> TokenStatistics:
    """NLL of both, KL(teacher ‖ student) and top-1 agreement, computed in chunks, with products in fp32 whatever the
    models' dtype and regardless of autocast.

    `nll_teacher` is over all rows of the teacher's head and `nll_student` over all of the student's; KL and agreement
    are over the shared tokens. Of a stored signal at T = 1, KL is Σ w (−log q) less the stored entropy (without bias if
    the store has none; of a top-k store a lower bound), and the teacher's first choice is its largest entry.
    """
    asked = [column for column in columns if teacher is not None or column not in OF_BOTH]
    rules: list[RowRule] = [HardCERule(), *map(_rule, asked)]
    if isinstance(teacher, Sparse):
        rules += [ForwardKLRule(), _FirstChoice(teacher.vocab)]
    elif teacher is not None:
        rules += [_TeacherNLL(), ForwardKLRule(), _TopOneAgreement()]
    with torch.no_grad():
        swept = fused_sweep(student, teacher, target_ids, [(rule, 0.0) for rule in rules], product_dtype=torch.float32)
    nll_student, *others = swept.values
    more = dict(zip(asked, others, strict=False))
    if teacher is None:
        return TokenStatistics(nll_student, more)
    if isinstance(teacher, Sparse):
        kl, first = others[len(asked) :]
        return TokenStatistics(nll_student, more, None, kl, first == first_choices(teacher))
    nll_teacher, kl, agree = others[len(asked) :]
    return TokenStatistics(nll_student, more, nll_teacher, kl, agree > 0.5)
