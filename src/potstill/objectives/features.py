"""Objectives on features: hidden states of student and teacher."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from potstill.objectives.base import DirectObjective
from potstill.objectives.layers import state_pairs
from potstill.recipe.features import HiddenCosine
from potstill.registry import implements
from potstill.signals import Ask, Batch, Dims, Over, Side, Signals, Term


def hidden_cosine(
    student_hidden_NH: Float[Tensor, "N H"], teacher_hidden_NH: Float[Tensor, "N H"]
) -> Float[Tensor, " N"]:
    """1 − cos(student, teacher) per row, in [0, 2], in fp32 (fp64 for fp64 states). Sanh et al. 2019, §3.

    The gradient flows to the student only. A state of zero length has cosine 0.
    """
    wide = torch.promote_types(student_hidden_NH.dtype, torch.float32)
    cosine = torch.cosine_similarity(student_hidden_NH.to(wide), teacher_hidden_NH.detach().to(wide), dim=-1)
    return 1.0 - cosine


@implements(HiddenCosine)
class HiddenCosineLoss(DirectObjective[HiddenCosine]):
    """1 − cos of hidden states, the mean over its pairs of layers. Sanh et al. 2019, §3.

    Where the widths differ, the student's states go through a learned linear projection, one per pair of layers. The
    term is *positive*: it falls as the states align.
    """

    @property
    def over(self) -> Over:
        return self.settings.over

    def ask(self, dims: Dims) -> Mapping[Side, Ask]:
        pairs = state_pairs(self.settings.layers, dims)
        return {
            "student": Ask(taps=frozenset(f"hidden.{ours}" for ours, _ in pairs)),
            "teacher": Ask(taps=frozenset(f"hidden.{theirs}" for _, theirs in pairs)),
        }

    def build(self, dims: Dims) -> nn.Module | None:
        """[H_student → H_teacher] projections without bias, one per pair of layers, or None where the widths agree."""
        if dims.student.hidden == dims.teacher.hidden:
            return None
        pairs = len(state_pairs(self.settings.layers, dims))
        return nn.ModuleList(nn.Linear(dims.student.hidden, dims.teacher.hidden, bias=False) for _ in range(pairs))

    def __call__(
        self, student: Signals, teacher: Signals | None, batch: Batch, module: nn.Module | None = None
    ) -> Term:
        if teacher is None:
            raise ValueError("hidden_cosine needs a teacher")
        assert student.dims is not None and teacher.dims is not None
        pairs = state_pairs(self.settings.layers, Dims(student.dims, teacher.dims))
        projections = list(module.children()) if module is not None else [None] * len(pairs)
        terms = []
        for (student_layer, teacher_layer), project in zip(pairs, projections, strict=True):
            states = _states(student, student_layer, batch, self.over, "student")
            aims = _states(teacher, teacher_layer, batch, self.over, "teacher")
            terms.append(hidden_cosine(states if project is None else project(states), aims))
        return Term(torch.stack(terms).mean(0))


def _states(signals: Signals, layer: int, batch: Batch, over: Over, side: Side) -> Float[Tensor, "N H"]:
    """The rows of one hidden state that a selection names."""
    name = f"hidden.{layer}"
    if name not in signals.taps:
        raise ValueError(f"the {side} gives no {name}; it gives {sorted(signals.taps) or 'no taps'}")
    return signals.taps[name].flatten(0, 1)[batch.positions(over, side)]
