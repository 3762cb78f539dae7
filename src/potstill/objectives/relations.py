"""Objectives on relations between the examples of a batch: distances, angles, similarities.

They need no equal widths and no projection. Each is defined on the micro-batch (scope `batch`): a value is an
example's share, so that the sum of values divided by the number of examples is the paper's mean; over several
micro-batches it is their mean weighted by examples. A micro-batch of one example gives 0.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import smooth_l1_loss

from potstill.objectives.angles import rkd_angle
from potstill.objectives.base import TappedObjective, dims_of, tap, widened
from potstill.objectives.layers import state_pairs
from potstill.objectives.norms import unit
from potstill.objectives.pooling import one_vector_each
from potstill.recipe.features import Modules
from potstill.recipe.relations import PooledSettings, RKDAngle, RKDDistance, SimilarityPreserving
from potstill.registry import implements
from potstill.signals import Batch, Dims, Signals


def relative_distances(vectors_ND: Float[Tensor, "N D"]) -> Float[Tensor, "N N"]:
    """Euclidean distances of all pairs, divided by the mean of the nonzero ones. Park et al. 2019, §3.2.1.

    The gradient also flows through that mean, and is 0 between coinciding points. If all coincide, distances are 0.
    The authors' code clamps squared distances to at least 1e-12, so that coinciding points are 1e-6 apart and count in
    the mean, which is then smaller; here they do not count.
    """
    vectors = widened(vectors_ND)
    # From differences: |a|² + |b|² − 2a·b, as in the authors' code, loses nearby points to cancellation.
    distances = torch.cdist(vectors, vectors, compute_mode="donot_use_mm_for_euclid_dist")
    mean = distances.sum() / (distances > 0).sum().clamp(min=1)
    return distances / torch.where(mean > 0, mean, 1.0)


def rkd_distance(student_ND: Float[Tensor, "N D"], teacher_NC: Float[Tensor, "N C"]) -> Float[Tensor, " N"]:
    """Smooth L1 (δ = 1) between relative distances, the mean over a row's N pairs (itself included). The mean over
    rows is the loss of Park et al. 2019, §3.2.1, as the mean over N².

    The gradient flows to the student only.
    """
    student_NN, teacher_NN = relative_distances(student_ND), relative_distances(teacher_NC.detach())
    return smooth_l1_loss(student_NN, teacher_NN, reduction="none").mean(1)


def similarities(vectors_ND: Float[Tensor, "N D"]) -> Float[Tensor, "N N"]:
    """G = Q·Qᵀ with each row divided by its norm. Tung & Mori 2019. A zero row stays 0."""
    vectors = widened(vectors_ND)
    with torch.autocast(vectors.device.type, enabled=False):
        return unit(vectors @ vectors.mT)


def similarity_preserving(student_ND: Float[Tensor, "N D"], teacher_NC: Float[Tensor, "N C"]) -> Float[Tensor, " N"]:
    """Mean over a row of the squared difference of similarities. The mean over rows is ‖G_teacher − G_student‖² / N².

    Tung & Mori 2019. The gradient flows to the student only.
    """
    return (similarities(student_ND) - similarities(teacher_NC.detach())).square().mean(1)


P = TypeVar("P", bound=PooledSettings)


class PooledObjective(TappedObjective[P]):
    """Base of objectives on one vector per example: pooled from a pair of hidden states, or a module's output."""

    @abstractmethod
    def relation(self, student_ND: Float[Tensor, "N D"], teacher_NC: Float[Tensor, "N C"]) -> Float[Tensor, " N"]:
        """The value of each example in a micro-batch."""

    def names(self, dims: Dims) -> tuple[tuple[str, ...], tuple[str, ...]]:
        at = self.settings.at
        if isinstance(at, Modules):
            return (f"module:{at.student}",), (f"module:{at.teacher}",)
        ((student_state, teacher_state),) = state_pairs(at if at == "last" else (at,), dims)
        return (f"hidden.{student_state}",), (f"hidden.{teacher_state}",)

    def kept(self, dims: Dims) -> frozenset[str]:
        """The pooled state instead of one for every token; a module's output as it is."""
        _, (name,) = self.names(dims)
        return frozenset({self._pooled(name) or name})

    def values(self, student: Signals, teacher: Signals, batch: Batch, module: nn.Module | None) -> Float[Tensor, " E"]:
        ((student_name,), (teacher_name,)) = self.names(dims_of(student, teacher))
        pooling = self.settings.pooling
        mine = one_vector_each(tap(student, student_name, "student"), batch.student, pooling)
        pooled = teacher.taps.get(self._pooled(teacher_name) or "")
        if pooled is None:
            pooled = one_vector_each(tap(teacher, teacher_name, "teacher"), batch.teacher, pooling)
        return self.relation(mine, pooled)

    def _pooled(self, name: str) -> str | None:
        """The name under which a store keeps a pooled state; None for a module's output, which is not pooled there."""
        return f"pooled.{name.removeprefix('hidden.')}.{self.settings.pooling}" if name.startswith("hidden.") else None


@implements(RKDDistance)
class RKDDistanceLoss(PooledObjective[RKDDistance]):
    """Relational KD by distances. Park et al. 2019, §3.2.1."""

    def relation(self, student_ND: Float[Tensor, "N D"], teacher_NC: Float[Tensor, "N C"]) -> Float[Tensor, " N"]:
        return rkd_distance(student_ND, teacher_NC)


@implements(RKDAngle)
class RKDAngleLoss(PooledObjective[RKDAngle]):
    """Relational KD by angles. Park et al. 2019, §3.2.2."""

    def relation(self, student_ND: Float[Tensor, "N D"], teacher_NC: Float[Tensor, "N C"]) -> Float[Tensor, " N"]:
        return rkd_angle(student_ND, teacher_NC)


@implements(SimilarityPreserving)
class SimilarityPreservingLoss(PooledObjective[SimilarityPreserving]):
    """Similarity-preserving KD. Tung & Mori 2019."""

    def relation(self, student_ND: Float[Tensor, "N D"], teacher_NC: Float[Tensor, "N C"]) -> Float[Tensor, " N"]:
        return similarity_preserving(student_ND, teacher_NC)
