"""Objectives on hidden states, the mean over pairs of layers."""

from __future__ import annotations

from abc import abstractmethod
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from potstill.objectives.base import TappedObjective, dims_of, tap, widened
from potstill.objectives.layers import state_pairs
from potstill.objectives.projections import linear_projections, start_at_principal_directions
from potstill.recipe.features import HiddenCosine, HiddenMSE, HiddenSettings, HiddenSmoothL1
from potstill.registry import implements
from potstill.signals import Batch, Dims, Over, Side, Signals


def hidden_cosine(
    student_hidden_NH: Float[Tensor, "N H"], teacher_hidden_NH: Float[Tensor, "N H"]
) -> Float[Tensor, " N"]:
    """1 − cos(student, teacher) per row, in [0, 2], in fp32 (fp64 for fp64 states). Sanh et al. 2019, §3.

    The gradient flows to the student only. A state of zero length has cosine 0.
    """
    student, teacher = widened(student_hidden_NH), widened(teacher_hidden_NH.detach())
    return 1.0 - torch.cosine_similarity(student, teacher, dim=-1)


def hidden_mse(student_hidden_NH: Float[Tensor, "N H"], teacher_hidden_NH: Float[Tensor, "N H"]) -> Float[Tensor, " N"]:
    """Mean over the width of (student − teacher)² per row, in fp32 (fp64 for fp64 states). Jiao et al. 2020, eq. 8, 9.

    The gradient flows to the student only.
    """
    return (widened(student_hidden_NH) - widened(teacher_hidden_NH.detach())).square().mean(-1)


def hidden_smooth_l1(
    student_hidden_NH: Float[Tensor, "N H"], teacher_hidden_NH: Float[Tensor, "N H"], delta: float = 1.0
) -> Float[Tensor, " N"]:
    """Mean over the width of ½d²/δ where |d| < δ and |d| − ½δ elsewhere, d = student − teacher, per row; in fp32 (fp64
    for fp64 states).

    Large differences have a constant gradient, so that a few outlying dimensions do not dominate. The gradient flows
    to the student only.
    """
    student, teacher = widened(student_hidden_NH), widened(teacher_hidden_NH.detach())
    return torch.nn.functional.smooth_l1_loss(student, teacher, reduction="none", beta=delta).mean(-1)


H = TypeVar("H", bound=HiddenSettings)


class HiddenObjective(TappedObjective[H]):
    """Base of objectives that compare hidden states row by row.

    If the widths differ, or with `project: always`, the student's states first go through a learned linear projection,
    one per pair of layers or one for all.
    """

    @abstractmethod
    def distance(self, student_NH: Float[Tensor, "N H"], teacher_NH: Float[Tensor, "N H"]) -> Float[Tensor, " N"]:
        """The distance between states of equal width, per row."""

    @property
    def over(self) -> Over:
        return self.settings.over

    def names(self, dims: Dims) -> tuple[tuple[str, ...], tuple[str, ...]]:
        pairs = state_pairs(self.settings.layers, dims)
        return tuple(f"hidden.{state}" for state, _ in pairs), tuple(f"hidden.{state}" for _, state in pairs)

    def build(self, dims: Dims) -> nn.ModuleList | None:
        """[H_student → H_teacher] projections without bias: one per pair of layers, one in all if shared, or None."""
        if dims.student.hidden == dims.teacher.hidden and self.settings.project == "where_needed":
            return None
        number = 1 if self.settings.share_projection else len(state_pairs(self.settings.layers, dims))
        return linear_projections(dims.student.hidden, dims.teacher.hidden, number)

    def initialise(self, module: nn.Module, student: Signals, teacher: Signals | None, batch: Batch) -> None:
        """With `projection_init: pca`, set each projection to the principal directions of its teacher states (of all
        of them, if shared). Random ones stay as they were drawn."""
        if self.settings.projection_init == "random":
            return
        teacher = self.taught(teacher)
        _, teacher_names = self.names(dims_of(student, teacher))
        aims = [self._rows(teacher, name, batch, "teacher") for name in teacher_names]
        if self.settings.share_projection:
            aims = [torch.cat(aims)]
        for projection, states in zip(module.children(), aims, strict=True):
            assert isinstance(projection, nn.Linear)
            start_at_principal_directions(projection, states)

    def values(self, student: Signals, teacher: Signals, batch: Batch, module: nn.Module | None) -> Float[Tensor, " N"]:
        student_names, teacher_names = self.names(dims_of(student, teacher))
        projections = list(module.children()) if module is not None else [nn.Identity()]
        if len(projections) == 1:
            projections *= len(student_names)
        found = []
        for student_name, teacher_name, project in zip(student_names, teacher_names, projections, strict=True):
            states = project(widened(self._rows(student, student_name, batch, "student")))
            found.append(self.distance(states, self._rows(teacher, teacher_name, batch, "teacher")))
        return torch.stack(found).mean(0)

    def _rows(self, signals: Signals, name: str, batch: Batch, side: Side) -> Float[Tensor, "N H"]:
        """The selected rows of one hidden state."""
        return tap(signals, name, side).flatten(0, 1)[batch.positions(self.over, side)]


@implements(HiddenCosine)
class HiddenCosineLoss(HiddenObjective[HiddenCosine]):
    """1 − cos of hidden states, the mean over pairs of layers. Sanh et al. 2019, §3.

    The term is *positive*: it falls as the states align.
    """

    def distance(self, student_NH: Float[Tensor, "N H"], teacher_NH: Float[Tensor, "N H"]) -> Float[Tensor, " N"]:
        return hidden_cosine(student_NH, teacher_NH)


@implements(HiddenMSE)
class HiddenMSELoss(HiddenObjective[HiddenMSE]):
    """Mean squared difference of hidden states. Jiao et al. 2020, eq. 8, and eq. 9 for `layers: embeddings`.

    The mean over pairs of layers, where the paper has the sum: for the paper's balance, multiply the weight by their
    number.
    """

    def distance(self, student_NH: Float[Tensor, "N H"], teacher_NH: Float[Tensor, "N H"]) -> Float[Tensor, " N"]:
        return hidden_mse(student_NH, teacher_NH)


@implements(HiddenSmoothL1)
class HiddenSmoothL1Loss(HiddenObjective[HiddenSmoothL1]):
    """Smooth L1 distance of hidden states, the mean over pairs of layers."""

    def distance(self, student_NH: Float[Tensor, "N H"], teacher_NH: Float[Tensor, "N H"]) -> Float[Tensor, " N"]:
        return hidden_smooth_l1(student_NH, teacher_NH, self.settings.delta)
