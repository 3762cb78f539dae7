"""MiniLM: self-attention relations of a layer, the student's last against one of the teacher's.

A relation of a tensor X, split into heads, is softmax(X·Xᵀ/√d): the similarity of each token to the others by queries,
keys or values. Relations are token-by-token matrices, so neither widths nor depths need to agree. In a causal model a
token has relations only to tokens that it may see.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from potstill.errors import ModelError
from potstill.objectives.attention import (
    attention_scores,
    check_attention,
    check_equal_heads,
    distribution_kl,
    example_ids_of,
    scores_of,
)
from potstill.objectives.base import TappedObjective, dims_of, tap
from potstill.objectives.layers import attention_pairs
from potstill.recipe.relations import MiniLMv1, MiniLMv2
from potstill.registry import implements
from potstill.signals import Batch, Dims, Side, Signals


def relation_scores(states: Float[Tensor, "B A T d"]) -> Float[Tensor, "B A T T"]:
    """X·Xᵀ/√d of each head, before the softmax. Wang et al. 2020, §3.2."""
    return scores_of(states, states)


def split_anew(states: Float[Tensor, "B A T d"], relation_heads: int) -> Float[Tensor, "B R T e"]:
    """Concatenate the heads to width A·d, and split into relation heads. Wang et al. 2021, §3.1.

    Raises:
        ModelError: the width is not divisible.
    """
    batch, heads, time, size = states.shape
    width = heads * size
    if width % relation_heads:
        raise ModelError(
            f"{width} dimensions ({heads} heads of {size}) cannot be split into {relation_heads} relation heads",
            where="relation_heads",
            fix=f"give a number that divides the width of queries, keys and values of both models; here {width}",
        )
    whole = states.transpose(1, 2).reshape(batch, time, relation_heads, width // relation_heads)
    return whole.transpose(1, 2)


@implements(MiniLMv1)
class MiniLMv1Loss(TappedObjective[MiniLMv1]):
    """KL of the last layers' attention distributions plus KL of their value relations. Wang et al. 2020, §3.1 and 3.2.

    Grouped value heads are repeated, as in attention.
    """

    def names(self, dims: Dims) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Queries, keys and values of the last layers.

        Raises:
            ModelError: numbers of heads differ, attention cannot be compared, or a model has no layers.
        """
        check_attention(dims, self.settings.kind)
        ((student_layer, teacher_layer),) = attention_pairs("last", dims)
        check_equal_heads(dims, self.settings.kind)
        return _parts(student_layer), _parts(teacher_layer)

    def values(self, student: Signals, teacher: Signals, batch: Batch, module: nn.Module | None) -> Float[Tensor, " E"]:
        dims, example_ids = dims_of(student, teacher), example_ids_of(batch)
        ((student_layer, teacher_layer),) = attention_pairs("last", dims)
        attention = distribution_kl(
            attention_scores(student, student_layer, "student"),
            attention_scores(teacher, teacher_layer, "teacher"),
            example_ids,
            dims.student.causal,
        )
        relations = distribution_kl(
            relation_scores(_values(student, student_layer, "student", dims.student.heads)),
            relation_scores(_values(teacher, teacher_layer, "teacher", dims.teacher.heads)),
            example_ids,
            dims.student.causal,
        )
        return attention + relations


@implements(MiniLMv2)
class MiniLMv2Loss(TappedObjective[MiniLMv2]):
    """KL of relations between queries, keys and values, whose heads are concatenated and split into relation heads.
    Wang et al. 2021, §3.1; the sum over the kinds of relations, with weights 1.

    Grouped key and value heads are split as they are, not repeated.
    """

    def names(self, dims: Dims) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The tensors of its relations: the student's last layer, and the chosen layer of the teacher.

        Raises:
            ModelError: the teacher has no such layer, or attention cannot be compared.
        """
        check_attention(dims, self.settings.kind)
        student_layer, teacher_layer = self._layers(dims)
        kinds = self.settings.relations
        return tuple(f"{kind}.{student_layer}" for kind in kinds), tuple(f"{kind}.{teacher_layer}" for kind in kinds)

    def values(self, student: Signals, teacher: Signals, batch: Batch, module: nn.Module | None) -> Float[Tensor, " E"]:
        dims, example_ids = dims_of(student, teacher), example_ids_of(batch)
        student_layer, teacher_layer = self._layers(dims)
        found = [
            distribution_kl(
                relation_scores(
                    split_anew(tap(student, f"{kind}.{student_layer}", "student"), self.settings.relation_heads)
                ),
                relation_scores(
                    split_anew(tap(teacher, f"{kind}.{teacher_layer}", "teacher"), self.settings.relation_heads)
                ),
                example_ids,
                dims.student.causal,
            )
            for kind in self.settings.relations
        ]
        return torch.stack(found).sum(0)

    def _layers(self, dims: Dims) -> tuple[int, int]:
        layer, layers = self.settings.teacher_layer, dims.teacher.layers
        ((student_layer, teacher_layer),) = attention_pairs("last", dims)
        if not -layers <= layer < layers:
            raise ModelError(
                f"attention layer {layer} of the teacher, which has 0 to {teacher_layer}",
                where="teacher_layer",
                fix=f"give one of those, or count from the end: -1 to -{layers}",
            )
        return student_layer, layer % layers


def _parts(layer: int) -> tuple[str, str, str]:
    return f"queries.{layer}", f"keys.{layer}", f"values.{layer}"


def _values(signals: Signals, layer: int, side: Side, heads: int) -> Float[Tensor, "B A T d"]:
    values = tap(signals, f"values.{layer}", side)
    return values.repeat_interleave(heads // values.shape[1], dim=1)
