"""The tensor records that cross rooms: batch, views, signals, terms.

Shape legend, used as a name suffix where it helps:

    B batch    T time (padded)    N selected rows (B·T less the masked)    V vocabulary    H hidden width
    L layers   A heads            K kept entries per token                 C rows of one chunk

Positions in a batch are *flat*: row `b`, time `t` is `b·T + t`. Of a causal model a position is a target when its
**next** token is learned, so the logits at a target position are scored against `target_ids`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from potstill.frequent import only

IGNORE = -100
"""The label of a token that is not learned (the convention of `transformers`)."""

Over = Literal["targets", "tokens", "examples"]
"""A selection of rows: the targets, all non-pad tokens, or whole examples."""

Side = Literal["student", "teacher"]


@dataclass(frozen=True)
class View:
    """One model's view of a batch of texts. Padding is on the right and marked by `segment_ids == 0`, never by a token
    id: a pad token that is also the end token must still be learned as one.

    Packed rows hold several segments (1, 2, …); `position_ids` restart at 0 in each, which is how
    `transformers` keeps their attention apart (with no attention mask and no cache).
    """

    input_ids: Int[Tensor, "B T"]
    position_ids: Int[Tensor, "B T"]
    segment_ids: Int[Tensor, "B T"]

    @property
    def attention_mask(self) -> Int[Tensor, "B T"]:
        """1 on real tokens, 0 on padding (for encoders; causal models need none with right padding)."""
        return (self.segment_ids > 0).long()

    @property
    def example_ids(self) -> Int[Tensor, "B T"]:
        """The number of each token's example, from 0 in order of rows and segments; −1 on padding."""
        segments = self.segment_ids
        before = torch.zeros_like(segments[:, 0])
        before[1:] = segments.amax(1).cumsum(0)[:-1]
        return torch.where(segments > 0, before[:, None] + segments - 1, -1)

    @property
    def examples(self) -> int:
        """The number of examples: rows, or segments where rows are packed."""
        return int(self.segment_ids.amax(1).sum()) if self.segment_ids.numel() else 0


@dataclass(frozen=True)
class ImageView:
    """One model's view of a batch of images, or of any other array that a plain module takes."""

    pixels: Float[Tensor, "B ..."]

    @property
    def examples(self) -> int:
        """The number of images."""
        return int(self.pixels.shape[0])


@dataclass(frozen=True)
class Batch:
    """One micro-batch: a view per model, and selections into them.

    Targets are what is predicted: positions whose next token (for a masked model: whose own token) is learned, or
    whole examples that have a class; `targets_are` says which. `target_positions[side]` [N] are flat positions b·T + t
    in that side's view, or numbers of examples. They align across sides, and `target_ids` [N] are the tokens or
    classes, the same in both (rule 7). `record_ids` are the ids of the examples, in the order of `View.example_ids`:
    one per row, or per segment where rows are packed; empty where a row has none. `stored` are tensors of a signal
    store for these targets, joined while the batch was collated, by the names that `teachers/stored.py` gives them.
    `target_weights` [N] say how often
    a target counts in the sum of an objective over the vocabulary; its divisor is the number of targets all the same.
    """

    student: View | ImageView
    teacher: View | ImageView
    target_ids: Int[Tensor, " N"]
    target_positions: Mapping[Side, Int[Tensor, " N"]]
    targets_are: Literal["tokens", "examples"] = "tokens"
    record_ids: tuple[str, ...] = ()
    stored: Mapping[str, Tensor] = field(default_factory=dict)
    target_weights: Float[Tensor, " N"] | None = None

    def view(self, side: Side) -> View | ImageView:
        return self.student if side == "student" else self.teacher

    def text(self, side: Side) -> View:
        """One side's view of texts.

        Raises:
            ValueError: it is one of images, which have no tokens.
        """
        view = self.view(side)
        if not isinstance(view, View):
            raise ValueError("images have no tokens: use an objective over examples, or one on a module's output")
        return view

    @property
    def same_view(self) -> bool:
        """Whether student and teacher see the very same tokens."""
        return self.student is self.teacher

    def positions(self, over: Over, side: Side) -> Int[Tensor, " N"]:
        """Flat token positions of a selection in one side's view.

        Raises:
            ValueError: `tokens` where the views differ (the rows would not align), `targets` where these are whole
                examples, or `examples` (which are not positions).
        """
        if over == "targets":
            if self.targets_are == "examples":
                raise ValueError("the targets of a classification are examples, not tokens; use over: tokens")
            return self.target_positions[side]
        if over == "tokens":
            if not self.same_view:
                raise ValueError(
                    "objectives over 'tokens' need student and teacher to see the same tokens; use over: targets"
                )
            return (self.text(side).segment_ids > 0).flatten().nonzero().squeeze(-1)
        raise ValueError("examples are not token positions")

    def count(self, over: Over) -> Int[Tensor, ""]:
        """Size of a selection; needs no model output. Of images, `tokens` are the examples."""
        if over == "targets":
            return torch.tensor(self.target_ids.shape[0], device=self.target_ids.device)
        if over == "tokens" and isinstance(self.student, View):
            return (self.student.segment_ids > 0).sum()
        return torch.tensor(self.student.examples, device=self.target_ids.device)

    @classmethod
    def from_inputs(cls, inputs: Mapping[str, Any], device: torch.device | None = None) -> Batch:
        """The batch of a collated dictionary.

        Keys of texts: `input_ids`, `position_ids`, `segment_ids` [B,T], and, where the teacher's prompt is rendered
        differently, the same with the prefix `teacher_`. Of images: `pixel_values` [B,…]. What is learned is in one of

            labels        [B,T]  the token at `t` if it is learned, else IGNORE; the shift by one happens here, in one
                                 place (each view has its own)
            masked_labels [B,T]  the token that was at `t` before it was masked, else IGNORE; no shift
            classes       [B]    the class of each example, IGNORE where it has none
            (none)               nothing: there are no targets

        `record_ids` are a sequence of texts, one per example; `stored` a mapping of tensors. `weights` [B,T] say how
        often each learned token of a causal model counts.

        Args:
            device: where the tensors are moved first, `stored` excepted.

        Raises:
            ValueError: the completions of the two views differ (rule 7).
        """
        if device is not None:
            inputs = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in inputs.items()}
        batch = cls._of_views(inputs)
        weights = None
        if "weights" in inputs:
            # The logits at a position are scored against the next token, whose weight it is.
            weights = inputs["weights"].flatten()[batch.target_positions["student"] + 1]
        beside = {"record_ids": tuple(inputs.get("record_ids", ())), "stored": inputs.get("stored", {})}
        return replace(batch, **beside, target_weights=weights)

    @classmethod
    def _of_views(cls, inputs: Mapping[str, Any]) -> Batch:
        if "pixel_values" in inputs:
            image = ImageView(inputs["pixel_values"])
            ids, positions = _classes(inputs, image)
            return cls(image, image, ids, {"student": positions, "teacher": positions}, "examples")
        if "labels" in inputs:
            return cls._of_next_tokens(inputs)
        view = View(inputs["input_ids"], inputs["position_ids"], inputs["segment_ids"])
        teacher = view
        if "teacher_input_ids" in inputs:
            teacher = View(*(inputs[f"teacher_{name}"] for name in ("input_ids", "position_ids", "segment_ids")))
        if "masked_labels" in inputs:
            labels = inputs["masked_labels"].flatten()
            positions = (labels != IGNORE).nonzero().squeeze(-1)
            return cls(view, teacher, labels[positions], {"student": positions, "teacher": positions})
        ids, positions = _classes(inputs, view)
        return cls(view, teacher, ids, {"student": positions, "teacher": positions}, "examples")

    @classmethod
    def _of_next_tokens(cls, inputs: Mapping[str, Tensor]) -> Batch:
        student, student_positions, target_ids = _view_and_targets(inputs, "")
        if "teacher_input_ids" not in inputs:
            return cls(student, student, target_ids, {"student": student_positions, "teacher": student_positions})
        teacher, teacher_positions, teacher_ids = _view_and_targets(inputs, "teacher_")
        if not torch.equal(target_ids, teacher_ids):
            raise ValueError("the learned tokens differ between the student's and the teacher's view of this batch")
        return cls(student, teacher, target_ids, {"student": student_positions, "teacher": teacher_positions})


def _classes(inputs: Mapping[str, Tensor], view: View | ImageView) -> tuple[Tensor, Tensor]:
    some = view.pixels if isinstance(view, ImageView) else view.input_ids
    classes = inputs.get("classes")
    if classes is None:
        nothing = torch.zeros(0, dtype=torch.long, device=some.device)
        return nothing, nothing
    positions = (classes != IGNORE).nonzero().squeeze(-1)
    return classes[positions], positions


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
    """Logits that are not materialised: `softcap·tanh(scale·(hidden @ weightᵀ + bias) / softcap)`.

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

    def only(self, tokens: Int[Tensor, " K"]) -> Head:
        """The logits of some tokens, and 0 for all others."""
        bias = None if self.bias is None else only(self.bias, tokens)
        return Head(self.hidden, only(self.weight, tokens), bias, self.softcap, self.scale)

    def part(self, rows: Int[Tensor, " n"], tokens: Int[Tensor, " K"]) -> Head:
        """Of some rows, the logits of some tokens."""
        bias = None if self.bias is None else self.bias[tokens]
        return Head(self.hidden[rows], self.weight[tokens], bias, self.softcap, self.scale)


@dataclass(frozen=True)
class Dense:
    """Materialised logits, for classifiers and vision, and for output layers that cannot be taken apart."""

    logits: Float[Tensor, "N V"]

    def part(self, rows: Int[Tensor, " n"], tokens: Int[Tensor, " K"]) -> Dense:
        """Of some rows, the logits of some tokens."""
        return Dense(self.logits[rows[:, None], tokens])


@dataclass(frozen=True)
class Sparse:
    """A stored or sampled distribution, ragged over tokens. Row n holds entries `offsets[n]:offsets[n + 1]`. `weights`
    are never renormalised: the sum over a token's entries may differ from 1.

    `unbiased`: the weights' expectation is the full distribution at `temperature`. `top_k`: the weights are its largest
    probabilities, each token at most once, and 1 − Σ weights is the remaining mass. `entropy` is that of the full
    distribution, in nats. `vocab` is the number of tokens that it covers (None: the student's). `rest` is the logarithm
    of the remaining mass of a `top_k` signal, where it is known (1 − Σ weights cancels).
    """

    offsets: Int[Tensor, " N1"]
    ids: Int[Tensor, " E"]
    weights: Float[Tensor, " E"]
    entropy: Float[Tensor, " N"]
    estimator: Literal["unbiased", "top_k"]
    temperature: float = 1.0
    vocab: int | None = None
    rest: Float[Tensor, " N"] | None = None


@dataclass(frozen=True)
class Ask:
    """What is requested of one model for a batch: its logits at the targets, and inner tensors by the names in
    `Signals`."""

    response: bool = False
    taps: frozenset[str] = frozenset()

    def __or__(self, other: Ask) -> Ask:
        return Ask(self.response or other.response, self.taps | other.taps)

    def __bool__(self) -> bool:
        return self.response or bool(self.taps)


@dataclass(frozen=True)
class Signals:
    """What one model computes for a batch. Rows of `head`, `dense` and `sparse` are the batch's targets, in order.

    `taps` are whole tensors by name, as inside the model:

        hidden.k        [B,T,H]  state k: 0 the embeddings, L the last, after the final norm
        queries.k       [B,A,T,d] of attention layer k (from 0), after rotary embedding and whatever else the model does
                        to them, and scaled so that queries · keysᵀ / √d are the scores before soft-cap, mask and
                        softmax
        keys.k, values.k [B,A_kv,T,d] of the same layer; A_kv < A where heads are grouped
        module:<path>   the output of a module by its path (`module:layer1.0.conv2`); the first if there are several
        pooled.k.how    [E,H] state k pooled over the tokens of each example (mean, first, last, max), of a store

    `dims` are the sizes of that model.
    """

    head: Head | None = None
    dense: Dense | None = None
    sparse: Sparse | None = None
    taps: Mapping[str, Tensor] = field(default_factory=dict)
    dims: ModelDims | None = None


@dataclass(frozen=True)
class ModelDims:
    """The sizes of one model that an objective may need; 0 where a plain module has no such size. `vocab` is the
    number of rows of its output layer: tokens, or classes. `causal` models attend to earlier positions only.
    `attention_softcap` c bounds attention scores to ±c by c·tanh(score / c) (Gemma 2)."""

    vocab: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    causal: bool = True
    attention_softcap: float | None = None


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
