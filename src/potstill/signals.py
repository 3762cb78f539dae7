"""The tensor records that cross rooms: batch, views, signals, terms.

Shape legend, used as a name suffix where it helps:

    B batch    T time (padded)    N selected rows (B·T less the masked)    V vocabulary    H hidden width
    L layers   A heads            K kept entries per token                 C rows of one chunk

Positions in a batch are *flat*: row `b`, time `t` is `b·T + t`. A position is a target when its **next**
token is learned, so the logits at a target position are scored against `target_ids`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

IGNORE = -100
"""The label of a token that is not learned (the convention of `transformers`)."""

Over = Literal["targets", "tokens", "examples"]
"""A selection: positions whose next token is learned, all non-pad tokens, or whole examples."""

Side = Literal["student", "teacher"]


@dataclass(frozen=True)
class View:
    """One model's view of a batch. Padding is on the right and is known by `segment_ids == 0`, never by a
    token id: a pad token that is also the end token must still be learned as one.

    Packed rows hold several segments (1, 2, …); `position_ids` restart at 0 in each, which is how
    `transformers` keeps their attention apart (with no attention mask and no cache).
    """

    input_ids: Int[Tensor, "B T"]
    position_ids: Int[Tensor, "B T"]
    segment_ids: Int[Tensor, "B T"]
    byte_offsets: Int[Tensor, "B T"] | None = None

    @property
    def attention_mask(self) -> Int[Tensor, "B T"]:
        """1 on real tokens, 0 on padding (for encoders; causal models need none with right padding)."""
        return (self.segment_ids > 0).long()


@dataclass(frozen=True)
class Batch:
    """One micro-batch: a view per model, and selections into them.

    `target_positions[side]` are flat positions [N] in that side's view; they align across sides, and
    `target_ids` [N] are the tokens they predict, the same in both (rule 7).
    """

    student: View
    teacher: View
    target_ids: Int[Tensor, " N"]
    target_positions: Mapping[Side, Int[Tensor, " N"]]

    def view(self, side: Side) -> View:
        return self.student if side == "student" else self.teacher

    @property
    def same_view(self) -> bool:
        """Whether student and teacher see the very same tokens."""
        return self.student is self.teacher

    def positions(self, over: Over, side: Side) -> Int[Tensor, " N"]:
        """Flat positions of a selection in one side's view.

        Raises:
            ValueError: `tokens` where the views differ (the rows would not align), or `examples` (which
                are not positions).
        """
        if over == "targets":
            return self.target_positions[side]
        if over == "tokens":
            if not self.same_view:
                raise ValueError(
                    "objectives over 'tokens' need student and teacher to see the same tokens; use over: targets"
                )
            return (self.view(side).segment_ids > 0).flatten().nonzero().squeeze(-1)
        raise ValueError("examples are not token positions")

    def count(self, over: Over) -> Int[Tensor, ""]:
        """Size of a selection; needs no model output."""
        if over == "targets":
            return torch.tensor(self.target_ids.shape[0], device=self.target_ids.device)
        if over == "tokens":
            return (self.student.segment_ids > 0).sum()
        segments = self.student.segment_ids
        return torch.stack([row[row > 0].unique().numel() * segments.new_ones(()) for row in segments]).sum()

    @classmethod
    def from_inputs(cls, inputs: Mapping[str, Tensor]) -> Batch:
        """The batch of a collated dictionary.

        Keys: `input_ids`, `labels`, `position_ids`, `segment_ids` [B,T], and, where the teacher's prompt is
        rendered differently, the same with the prefix `teacher_`. `labels[b, t]` is the token at `t` if it
        is learned, else IGNORE; the shift by one happens here, in one place.

        Raises:
            ValueError: the completions of the two views differ (rule 7).
        """
        student, student_positions, target_ids = _view_and_targets(inputs, "")
        if "teacher_input_ids" not in inputs:
            return cls(student, student, target_ids, {"student": student_positions, "teacher": student_positions})
        teacher, teacher_positions, teacher_ids = _view_and_targets(inputs, "teacher_")
        if not torch.equal(target_ids, teacher_ids):
            raise ValueError("the learned tokens differ between the student's and the teacher's view of this batch")
        return cls(student, teacher, target_ids, {"student": student_positions, "teacher": teacher_positions})


def _view_and_targets(inputs: Mapping[str, Tensor], prefix: str) -> tuple[View, Tensor, Tensor]:
    ids = inputs[prefix + "input_ids"]
    segments, labels = inputs[prefix + "segment_ids"], inputs[prefix + "labels"]
    following = torch.full_like(labels, IGNORE)
    following[:, :-1] = labels[:, 1:]
    # The last token of a segment does not predict the first of the next one, and padding predicts nothing.
    inside = torch.zeros_like(segments, dtype=torch.bool)
    inside[:, :-1] = (segments[:, 1:] == segments[:, :-1]) & (segments[:, :-1] > 0)
    positions = (inside & (following != IGNORE)).flatten().nonzero().squeeze(-1)
    view = View(ids, inputs[prefix + "position_ids"], segments)
    return view, positions, following.flatten()[positions]


# ---- signals ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Head:
    """Logits that are never materialised: `softcap·tanh(scale·(hidden @ weightᵀ + bias) / softcap)`.

    `weight` is the *effective* output weight (an adapter on the head merged in, differentiably).
    """

    hidden: Float[Tensor, "N H"]
    weight: Float[Tensor, "V H"]
    bias: Float[Tensor, " V"] | None = None
    softcap: float | None = None
    scale: float = 1.0

    def logits(self, rows: slice = slice(None)) -> Float[Tensor, "n V"]:
        """The logits of some rows: for tests, `Dense` fall-backs and small selections only."""
        z = torch.nn.functional.linear(self.hidden[rows], self.weight, self.bias) * self.scale
        return z if self.softcap is None else self.softcap * torch.tanh(z / self.softcap)


@dataclass(frozen=True)
class Dense:
    """Whole logits, for classifiers and vision, and for heads that cannot be taken apart."""

    logits: Float[Tensor, "N V"]


@dataclass(frozen=True)
class Sparse:
    """A stored or sampled distribution, ragged over tokens. `weights` are never renormalised: their sum over
    a token's entries may differ from 1. Row n holds entries `offsets[n]:offsets[n + 1]`.
    """

    offsets: Int[Tensor, " N1"]
    ids: Int[Tensor, " E"]
    weights: Float[Tensor, " E"]
    entropy: Float[Tensor, " N"]
    estimator: Literal["unbiased", "top_k"]
    temperature: float = 1.0


@dataclass(frozen=True)
class Signals:
    """What one model gives for a batch. Rows of `head`, `dense` and `sparse` are the batch's targets, in
    order. `taps` are whole tensors by name; `hidden.k` is [B,T,H], 0 the embeddings and `hidden.L` the last
    state, after the final norm.
    """

    head: Head | None = None
    dense: Dense | None = None
    sparse: Sparse | None = None
    taps: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class ModelDims:
    """The sizes of one model that an objective may ask about."""

    vocab: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int


@dataclass(frozen=True)
class Dims:
    """Student's and teacher's sizes, side by side."""

    student: ModelDims
    teacher: ModelDims


@dataclass(frozen=True)
class Term:
    """What an objective returns: values per row of its selection, **never** a mean, and metrics to log."""

    values: Float[Tensor, " N"]
    metrics: Mapping[str, Tensor] = field(default_factory=dict)
