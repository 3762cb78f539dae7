"""Objectives on self-attention: its scores before the softmax, and its distributions.

Both compare pairs of tokens (query, key), and only visible pairs: tokens of the same example, and for a causal model
no later ones. Masked pairs are excluded, not compared at some large negative number. Terms that a model adds to its
scores (a relative bias, ALiBi) are not in its queries and keys, and so not included. A sliding window is not known
either: pairs beyond it are compared like others.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from potstill.errors import ModelError
from potstill.objectives.base import TappedObjective, dims_of, tap, widened
from potstill.objectives.layers import attention_pairs
from potstill.recipe.features import AttentionKL, AttentionScores
from potstill.registry import implements
from potstill.signals import Batch, Dims, Side, Signals


def visible_pairs(example_ids_BT: Int[Tensor, "B T"], causal: bool) -> Bool[Tensor, "B T T"]:
    """Whether token t (axis 1) may see token s (axis 2): both are in the same example, neither is padding, and for a
    causal model s is not after t."""
    real = example_ids_BT >= 0
    visible = (example_ids_BT[:, :, None] == example_ids_BT[:, None, :]) & real[:, :, None]
    return visible.tril() if causal else visible


def scores_of(queries: Float[Tensor, "B A T d"], keys: Float[Tensor, "B K T d"]) -> Float[Tensor, "B A T T"]:
    """queries · keysᵀ / √d of each head, before mask and softmax, in fp32 (fp64 for fp64), with or without autocast.

    With grouped heads (K < A), each key head serves A/K consecutive query heads.
    """
    keys = keys.repeat_interleave(queries.shape[1] // keys.shape[1], dim=1)
    with torch.autocast(queries.device.type, enabled=False):
        return widened(queries) @ widened(keys).mT / math.sqrt(queries.shape[-1])


def score_mse(
    student: Float[Tensor, "B A T T"],
    teacher: Float[Tensor, "B A T T"],
    example_ids_BT: Int[Tensor, "B T"],
    causal: bool,
) -> Float[Tensor, " E"]:
    """Mean over heads and visible pairs of (student − teacher)², per example. Jiao et al. 2020 (TinyBERT), eq. 7.

    The gradient flows to the student only. TinyBERT's code sets scores ≤ −100 (the masked ones) to 0 for both models
    and divides by all pairs, padding included; here masked pairs are in neither the sum nor the divisor.
    """
    visible = visible_pairs(example_ids_BT, causal)
    squares = torch.where(visible[:, None], student - teacher.detach(), 0.0).square()
    pairs = per_example(visible.sum(-1).to(squares.dtype), example_ids_BT)
    return per_example(squares.mean(1).sum(-1), example_ids_BT) / pairs


def distribution_kl(
    student: Float[Tensor, "B A T T"],
    teacher: Float[Tensor, "B A T T"],
    example_ids_BT: Int[Tensor, "B T"],
    causal: bool,
) -> Float[Tensor, " E"]:
    """KL(teacher ‖ student) of the softmax of scores over the visible tokens, in nats: the mean over heads and over
    the tokens of an example, per example. Wang et al. 2020 (MiniLM), §3.1.

    The gradient flows to the student only.
    """
    visible = visible_pairs(example_ids_BT, causal)[:, None]
    # Finite, so that fully masked rows of padding give no NaN; they are dropped below.
    hidden = torch.finfo(student.dtype).min / 2
    log_q = student.masked_fill(~visible, hidden).log_softmax(-1)
    log_p = teacher.detach().masked_fill(~visible, hidden).log_softmax(-1)
    terms = torch.where(visible, log_p.exp() * (log_p - log_q), 0.0)
    per_token = terms.sum(-1).mean(1)
    return per_example(per_token, example_ids_BT) / per_example(torch.ones_like(per_token), example_ids_BT)


def per_example(values_BT: Float[Tensor, "B T"], example_ids_BT: Int[Tensor, "B T"]) -> Float[Tensor, " E"]:
    """Sums of a value per token over the tokens of each example, without padding."""
    ids = example_ids_BT.flatten()
    real = ids >= 0
    examples = int(ids.max()) + 1 if ids.numel() else 0
    sums = values_BT.new_zeros(examples)
    return sums.index_add(0, ids[real], values_BT.flatten()[real])


def check_attention(dims: Dims, kind: str) -> None:
    """Check that the attention of two models can be compared.

    Raises:
        ModelError: one is causal and the other bidirectional.
    """
    if dims.student.causal != dims.teacher.causal:
        one, other = ("student", "teacher") if dims.student.causal else ("teacher", "student")
        raise ModelError(
            f"{kind} compares attention; that of the {one} looks back only, that of the {other} both ways",
            fix="use hidden_mse or hidden_cosine, which compare hidden states",
        )


def check_equal_heads(dims: Dims, kind: str) -> None:
    """Check that two models have equal numbers of attention heads.

    Raises:
        ModelError: they differ.
    """
    student_heads, teacher_heads = dims.student.heads, dims.teacher.heads
    if student_heads != teacher_heads:
        raise ModelError(
            f"{kind} compares head with head; the student has {student_heads} attention heads, the teacher "
            f"{teacher_heads}",
            fix="use minilm_v2, which splits heads anew, or a student with as many heads",
        )


def example_ids_of(batch: Batch) -> Int[Tensor, "B T"]:
    """The examples of a batch's tokens, for comparing token by token: both models must see the same tokens.

    Raises:
        ValueError: the views differ, or they are of images.
    """
    if not batch.same_view:
        raise ValueError(
            "objectives that hold token against token need student and teacher to see the same ones; use one over "
            "targets, as hidden_cosine with over: targets"
        )
    return batch.text("student").example_ids


def attention_scores(signals: Signals, layer: int, side: Side) -> Float[Tensor, "B A T T"]:
    """The scores of one attention layer, from its queries and keys, with the model's soft-cap if it has one."""
    scores = scores_of(tap(signals, f"queries.{layer}", side), tap(signals, f"keys.{layer}", side))
    cap = None if signals.dims is None else signals.dims.attention_softcap
    return scores if cap is None else cap * torch.tanh(scores / cap)


A = TypeVar("A", AttentionScores, AttentionKL)


class AttentionObjective(TappedObjective[A]):
    """Base of objectives that compare attention head by head; the value is the mean over pairs of layers."""

    @abstractmethod
    def distance(
        self,
        student: Float[Tensor, "B A T T"],
        teacher: Float[Tensor, "B A T T"],
        example_ids_BT: Int[Tensor, "B T"],
        causal: bool,
    ) -> Float[Tensor, " E"]:
        """The distance between the scores of two layers, per example."""

    def names(self, dims: Dims) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Queries and keys of its layers.

        Raises:
            ModelError: numbers of heads differ, attention cannot be compared, or a layer does not exist.
        """
        pairs = self._pairs(dims)
        student_names, teacher_names = ([name for pair in pairs for name in _names(pair[side])] for side in (0, 1))
        return tuple(student_names), tuple(teacher_names)

    def values(self, student: Signals, teacher: Signals, batch: Batch, module: nn.Module | None) -> Float[Tensor, " E"]:
        dims, example_ids = dims_of(student, teacher), example_ids_of(batch)
        found = [
            self.distance(
                attention_scores(student, student_layer, "student"),
                attention_scores(teacher, teacher_layer, "teacher"),
                example_ids,
                dims.student.causal,
            )
            for student_layer, teacher_layer in self._pairs(dims)
        ]
        return torch.stack(found).mean(0)

    def _pairs(self, dims: Dims) -> tuple[tuple[int, int], ...]:
        check_attention(dims, self.settings.kind)
        pairs = attention_pairs(self.settings.layers, dims)
        check_equal_heads(dims, self.settings.kind)
        return pairs


def _names(layer: int) -> tuple[str, str]:
    return f"queries.{layer}", f"keys.{layer}"


@implements(AttentionScores)
class AttentionScoresLoss(AttentionObjective[AttentionScores]):
    """Mean squared difference of attention scores before the softmax. Jiao et al. 2020 (TinyBERT), eq. 7.

    The mean over pairs of layers, where the paper has the sum: for the paper's balance, multiply the weight by their
    number.
    """

    def distance(
        self,
        student: Float[Tensor, "B A T T"],
        teacher: Float[Tensor, "B A T T"],
        example_ids_BT: Int[Tensor, "B T"],
        causal: bool,
    ) -> Float[Tensor, " E"]:
        return score_mse(student, teacher, example_ids_BT, causal)


@implements(AttentionKL)
class AttentionKLLoss(AttentionObjective[AttentionKL]):
    """KL(teacher ‖ student) of attention distributions. Wang et al. 2020 (MiniLM), §3.1."""

    def distance(
        self,
        student: Float[Tensor, "B A T T"],
        teacher: Float[Tensor, "B A T T"],
        example_ids_BT: Int[Tensor, "B T"],
        causal: bool,
    ) -> Float[Tensor, " E"]:
        return distribution_kl(student, teacher, example_ids_BT, causal)
