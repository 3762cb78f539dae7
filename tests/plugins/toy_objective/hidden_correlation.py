"""A custom objective: Pearson's correlation of hidden states."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from potstill.errors import ModelError
from potstill.objectives import DirectObjective
from potstill.recipe import Needs, ObjectiveSettings
from potstill.registry import implements
from potstill.signals import Ask, Batch, Dims, ModelDims, Side, Signals, Term


class HiddenCorrelation(ObjectiveSettings):
    """1 − ρ of the last hidden states, with Pearson's correlation ρ over the width: it ignores a state's mean and norm.
    Huang et al. (2022, arXiv 2205.10536) use correlation in place of KL, on predictions."""

    kind: Literal["hidden_correlation"] = "hidden_correlation"

    def needs(self) -> Needs:
        return Needs(teacher=(frozenset({"taps"}),), student=frozenset({"states"}))


def correlation_distance(student_NH: Tensor, teacher_NH: Tensor) -> Tensor:
    """1 − ρ per row [N], in [0, 2]. The gradient flows to the student only."""
    student_centred = student_NH - student_NH.mean(-1, keepdim=True)
    teacher_centred = teacher_NH.detach() - teacher_NH.detach().mean(-1, keepdim=True)
    return 1.0 - torch.cosine_similarity(student_centred, teacher_centred, dim=-1)


@implements(HiddenCorrelation)
class HiddenCorrelationLoss(DirectObjective[HiddenCorrelation]):
    """A value per target, from the last states of both models."""

    def ask(self, dims: Dims) -> Mapping[Side, Ask]:
        if dims.student.hidden != dims.teacher.hidden:
            raise ModelError(
                f"hidden_correlation compares states of one width, and these have {dims.student.hidden} and "
                f"{dims.teacher.hidden}",
                fix="use hidden_cosine, which learns a projection",
            )
        return {"student": Ask(taps=_last(dims.student)), "teacher": Ask(taps=_last(dims.teacher))}

    def __call__(
        self, student: Signals, teacher: Signals | None, batch: Batch, module: nn.Module | None = None
    ) -> Term:
        assert teacher is not None
        return Term(correlation_distance(_targets(student, batch, "student"), _targets(teacher, batch, "teacher")))


def _last(dims: ModelDims) -> frozenset[str]:
    return frozenset({f"hidden.{dims.layers}"})


def _targets(signals: Signals, batch: Batch, side: Side) -> Tensor:
    """The rows [N,H] of the last state. `signals` may hold other states for other objectives."""
    assert signals.dims is not None
    (name,) = _last(signals.dims)
    return signals.taps[name].flatten(0, 1)[batch.positions("targets", side)]
