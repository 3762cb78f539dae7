"""Objectives on features: hidden states of student and teacher."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from potstill.objectives.base import DirectObjective
from potstill.recipe.objectives import HiddenCosine
from potstill.registry import implements
from potstill.signals import Batch, Dims, Over, Side, Signals, Term


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

    def build(self, dims: Dims) -> nn.Module | None:
        """[H_student → H_teacher] projections without bias, one per pair of layers, or None where the widths agree."""
        if dims.student.hidden == dims.teacher.hidden:
            return None
        pairs = 1 if self.settings.layers == "last" else len(self.settings.layers)
        return nn.ModuleList(nn.Linear(dims.student.hidden, dims.teacher.hidden, bias=False) for _ in range(pairs))

    def __call__(
        self, student: Signals, teacher: Signals | None, batch: Batch, module: nn.Module | None = None
    ) -> Term:
        if teacher is None:
            raise ValueError("hidden_cosine needs a teacher")
        layers = self.settings.layers
        pairs: Sequence[tuple[int | None, int | None]] = ((None, None),) if layers == "last" else layers
        projections = list(module.children()) if module is not None else [None] * len(pairs)
        terms = []
        for (student_layer, teacher_layer), project in zip(pairs, projections, strict=True):
            states = _states(student, student_layer, batch, self.over, "student")
            aims = _states(teacher, teacher_layer, batch, self.over, "teacher")
            terms.append(hidden_cosine(states if project is None else project(states), aims))
        return Term(torch.stack(terms).mean(0))


def _states(signals: Signals, layer: int | None, batch: Batch, over: Over, side: Side) -> Float[Tensor, "N H"]:
    """The rows of one hidden state (None: the last) that a selection names. The last one at targets is what the head
    reads."""
    if layer is None:
        if over == "targets" and signals.head is not None:
            return signals.head.hidden
        # `hidden.L` is asked for by whoever needs "last", and no state is beyond it.
        layer = max((int(name.removeprefix("hidden.")) for name in signals.taps if _is_state(name)), default=-1)
    name = f"hidden.{layer}"
    if name not in signals.taps:
        raise ValueError(f"the {side} gives no {name}; it gives {sorted(signals.taps) or 'no taps'}")
    return signals.taps[name].flatten(0, 1)[batch.positions(over, side)]


def _is_state(name: str) -> bool:
    return name.startswith("hidden.") and name.removeprefix("hidden.").isdigit()
