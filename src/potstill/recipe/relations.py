"""Settings of objectives on relations between examples, or between the tokens of one example."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from potstill.recipe.base import Count
from potstill.recipe.features import Modules
from potstill.recipe.objectives import TAPPED, Needs, ObjectiveSettings, Scope

Pooling = Literal["mean", "first", "last", "max"]
"""How the states of an example's tokens become one vector: their mean or maximum, or the first or last token's
state."""


class PooledSettings(ObjectiveSettings):
    """Base of objectives on one vector per example.

    The vector is pooled from a pair of hidden states (`at: last`, or [student, teacher]), or is the output of a module
    of each model ([B,D] as it is, [B,T,H] of texts pooled, any other shape flattened).
    """

    scope: ClassVar[Scope] = "batch"
    at: Literal["last"] | tuple[int, int] | Modules = "last"
    pooling: Pooling = "mean"

    def needs(self) -> Needs:
        return Needs(teacher=TAPPED, student=frozenset({"modules" if isinstance(self.at, Modules) else "states"}))


class RKDDistance(PooledSettings):
    """Smooth L1 between the pairwise distances in a batch, each model's divided by their mean. Park et al. 2019 (RKD),
    §3.2.1, with weight 1.

    The mean is over pairs that are apart. The authors' code sets examples that coincide 1e-6 apart, so that they count
    in it, and the value of a batch with duplicates differs."""

    kind: Literal["rkd_distance"] = "rkd_distance"
    least_examples: ClassVar[int] = 3


class RKDAngle(PooledSettings):
    """Smooth L1 between the cosines of the angles of all triplets in a batch. Park et al. 2019 (RKD), §3.2.2, with
    weight 2. Cost and memory grow with the cube of the micro-batch. Examples that coincide have no angle and give no
    gradient; the authors' code multiplies theirs by 1e12."""

    kind: Literal["rkd_angle"] = "rkd_angle"
    least_examples: ClassVar[int] = 3


class SimilarityPreserving(PooledSettings):
    """‖G_teacher − G_student‖² / b², with G = Q·Qᵀ of a batch of b flattened outputs, each row divided by its norm.
    Tung & Mori 2019."""

    kind: Literal["similarity_preserving"] = "similarity_preserving"


class MiniLMv1(ObjectiveSettings):
    """KL of the last layer's attention distributions, and of its value relations softmax(V·Vᵀ/√d). Wang et al. 2020
    (MiniLM), §3.1 and 3.2. Needs equal numbers of heads."""

    scope: ClassVar[Scope] = "example"
    kind: Literal["minilm_v1"] = "minilm_v1"

    def needs(self) -> Needs:
        return Needs(teacher=TAPPED, student=frozenset({"attention"}))


class MiniLMv2(ObjectiveSettings):
    """KL of relations softmax(X·Xᵀ/√d_r) for queries, keys and values, whose heads are concatenated and split into
    `relation_heads`. Wang et al. 2021 (MiniLMv2), §3.1, with 48 and 64 relation heads. Any teacher layer (from 0, or
    from the end if negative) against the student's last; numbers of heads may differ."""

    scope: ClassVar[Scope] = "example"
    kind: Literal["minilm_v2"] = "minilm_v2"
    relation_heads: Count = 48
    teacher_layer: int = -1
    relations: Annotated[tuple[Literal["queries", "keys", "values"], ...], Field(min_length=1)] = (
        "queries",
        "keys",
        "values",
    )

    def needs(self) -> Needs:
        return Needs(teacher=TAPPED, student=frozenset({"attention"}))
