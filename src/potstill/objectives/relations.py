"""Objectives on how the examples of a batch stand to each other: distances, angles, similarities.

They need no equal widths and train no projection. Each is defined on the micro-batch (scope `batch`): a value is an
example's share, so that the sum of values over the number of examples is the paper's mean; over several micro-batches
it is their mean, weighted by their examples. A micro-batch of one example gives 0.
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
    """Euclidean distances of all pairs, divided by the mean of those that are not 0. Park et al. 2019, §3.2.1.

    The gradient flows through that mean too, and is 0 between points that coincide. Where all do, distances are 0.
    The authors' code raises squared distances to at least 1e-12, so that points that coincide are 1e-6 apart and count
    in the mean, which is smaller then; here they do not count.
    """
    vectors = widened(vectors_ND)
    # By differences: |a|² + |b|² − 2a·b, as the authors' code has it, loses near points to cancellation.
    distances = torch.cdist(vectors, vectors, compute_mode="donot_use_mm_for_euclid_dist")
    mean = distances.sum() / (distances > 0).sum().clamp(min=1)
    return distances / torch.where(mean > 0, mean, 1.0)


def rkd_distance(student_ND: Float[Tensor, "N D"], teacher_NC: Float[Tensor, "N C"]) -> Float[Tensor, " N"]:
    """Smooth L1 (δ = 1) between relative distances, the mean over a row's N pairs (itself included). Their mean is the
    loss of Park et al. 2019, §3.2.1, as the mean over N².

    The gradient flows to the student only.
    """
    ours, theirs = relative_distances(student_ND), relative_distances(teacher_NC.detach())
    return smooth_l1_loss(ours, theirs, reduction="none").mean(1)


def similarities(vectors_ND: Float[Tensor, "N D"]) -> Float[Tensor, "N N"]:
    """G = Q·Qᵀ with each row divided by its length. Tung & Mori 2019. A row that is 0 stays 0."""
    vectors = widened(vectors_ND)
    with torch.autocast(vectors.device.type, enabled=False):
        return unit(vectors @ vectors.mT)


def similarity_preserving(student_ND: Float[Tensor, "N D"], teacher_NC: Float[Tensor, "N C"]) -> Float[Tensor, " N"]:
    """Mean over a row of the squared difference of similarities. Their mean is ‖G_teacher − G_student‖² / N².

    Tung & Mori 2019. The gradient flows to the student only.
    """
    return (similarities(student_ND) - similarities(teacher_NC.detach())).square().mean(1)


P = TypeVar("P", bound=PooledSettings)


class PooledObjective(TappedObjective[P]):
    """Base of those on one vector per example: pooled from a pair of hidden states, or what a module of each gives."""

    @abstractmethod
    def relation(self, student_ND: Float[Tensor, "N D"], teacher_NC: Float[Tensor, "N C"]) -> Float[Tensor, " N"]:
        """Of the examples of a micro-batch, a share per example."""

    def names(self, dims: Dims) -> tuple[tuple[str, ...], tuple[str, ...]]:
        at = self.settings.at
        if isinstance(at, Modules):
            return (f"module:{at.student}",), (f"module:{at.teacher}",)
        ((ours, theirs),) = state_pairs(at if at == "last" else (at,), dims)
        return (f"hidden.{ours}",), (f"hidden.{theirs}",)

    def values(self, student: Signals, teacher: Signals, batch: Batch, module: nn.Module | None) -> Float[Tensor, " E"]:
        ((ours,), (theirs,)) = self.names(dims_of(student, teacher))
        pooling = self.settings.pooling
        return self.relation(
            one_vector_each(tap(student, ours, "student"), batch.student, pooling),
            one_vector_each(tap(teacher, theirs, "teacher"), batch.teacher, pooling),
        )


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
