"""Shapes of decoders that can be pruned by width: what each axis of a weight counts, the number of parameters of a
shape, and candidate shapes of a given size. Reads a model's sizes alone: no torch, no weights.

A width has four axes: *hidden* (the residual stream), *channels* (inside the feed-forward layers), *queries* and *keys*
(the heads, in whole groups of one key-value head and the query heads that share it).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from potstill.errors import ModelError, RecipeError
from potstill.models.facts import ModelFacts, size_in

Axis = Literal["vocabulary", "hidden", "queries", "keys", "channels", "head"]

PRUNED_BY_WIDTH = ("granite", "llama", "mistral", "qwen2", "qwen3")
"""Families (`model_type`) that are pruned by width: their forward pass reads widths only through shapes of weights.
Gemma scales its embeddings by √hidden, Cohere's norms subtract the mean over the width, GPT-2 and Phi-3 store several
matrices in one."""

_BY_MODULE: Mapping[str, tuple[Axis, ...]] = {
    "embed_tokens": ("vocabulary", "hidden"),
    "lm_head": ("vocabulary", "hidden"),
    "q_proj": ("queries", "hidden"),
    "k_proj": ("keys", "hidden"),
    "v_proj": ("keys", "hidden"),
    "o_proj": ("hidden", "queries"),
    "gate_proj": ("channels", "hidden"),
    "up_proj": ("channels", "hidden"),
    "down_proj": ("hidden", "channels"),
    "q_norm": ("head",),
    "k_norm": ("head",),
    "input_layernorm": ("hidden",),
    "post_attention_layernorm": ("hidden",),
    "norm": ("hidden",),
}

NEAR = 0.03
"""A candidate differs from the asked size by at most this share of it."""

_BALANCE = 2.0
"""The feed-forward width over the hidden width is that of the teacher within this factor."""

_LEAST_WIDTH = 4
"""No candidate has less than the teacher's hidden width divided by this."""


def axes_of(name: str) -> tuple[Axis, ...] | None:
    """What the axes of a weight count, by its name (`model.layers.3.mlp.up_proj.weight`); a bias has the first axis of
    its weight. None for an unknown one."""
    path, _, which = name.rpartition(".")
    axes = _BY_MODULE.get(path.rpartition(".")[2])
    return axes[:1] if axes is not None and which == "bias" else axes


@dataclass(frozen=True)
class Shape:
    """The sizes of a decoder: layers, hidden width, groups of heads, feed-forward channels."""

    layers: int
    hidden: int
    groups: int
    channels: int

    def __str__(self) -> str:
        return f"{self.layers} layers, width {self.hidden}, {self.groups} head groups, {self.channels} channels"


@dataclass(frozen=True)
class Widths:
    """A decoder's shape, and what stays as it is when it is pruned.

    Attributes:
        shape: of the whole model.
        heads_per_group: query heads that share one key-value head.
        head_dim: the width of a head.
        outside: the axes of every weight outside the layers.
        inside: the axes of every weight of one layer.
        vocabulary: rows of the embeddings.
    """

    shape: Shape
    heads_per_group: int
    head_dim: int
    outside: tuple[tuple[Axis, ...], ...]
    inside: tuple[tuple[Axis, ...], ...]
    vocabulary: int

    def parameters(self, shape: Shape) -> int:
        """The number of parameters of a shape of this family; tied weights count once."""
        sizes = self.sizes(shape)

        def count(weights: Sequence[tuple[Axis, ...]]) -> int:
            return sum(math.prod(sizes[axis] for axis in axes) for axes in weights)

        return count(self.outside) + shape.layers * count(self.inside)

    def sizes(self, shape: Shape) -> Mapping[Axis, int]:
        """The length of every axis in a shape."""
        keys = shape.groups * self.head_dim
        return {
            "vocabulary": self.vocabulary,
            "hidden": shape.hidden,
            "queries": keys * self.heads_per_group,
            "keys": keys,
            "channels": shape.channels,
            "head": self.head_dim,
        }

    @cached_property
    def hidden_step(self) -> int:
        """Hidden widths of candidates are multiples of this."""
        return _step(self.shape.hidden)

    @cached_property
    def channel_step(self) -> int:
        """Feed-forward widths of candidates are multiples of this."""
        return _step(self.shape.channels)


def _step(size: int) -> int:
    """32, which blocks of quantised weights need; less for models too small to be cut so coarsely."""
    return min(32, max(1, size // 16))


def widths_of(facts: ModelFacts) -> Widths:
    """The widths of a model on disk.

    Raises:
        ModelError: its family is not pruned by width, or a weight has a name or a shape that is not known.
    """
    config = facts.config
    family = str(config.get("model_type"))
    where = "student.width"
    if family not in PRUNED_BY_WIDTH:
        raise ModelError(
            f"models of the family {family!r} cannot be pruned by width (only {', '.join(PRUNED_BY_WIDTH)})",
            where=where,
            fix="set student.width: false, which leaves out whole layers",
        )
    layers, hidden, channels = facts.layers, facts.hidden, size_in(config, "intermediate_size")
    heads = facts.heads
    groups = size_in(config, "num_key_value_heads") or heads
    if not (layers and hidden and channels and heads and groups):
        raise ModelError("its configuration does not state layers, widths and heads", where=where)
    head_dim = size_in(config, "head_dim") or hidden // heads
    first = [name for name in facts.shapes if facts.layer_of(name) == 0]
    outside = [name for name in facts.shapes if facts.layer_of(name) is None]
    if config.get("tie_word_embeddings") and "lm_head.weight" in outside:
        outside.remove("lm_head.weight")
    found = Widths(
        Shape(layers, hidden, groups, channels),
        heads // groups,
        head_dim,
        tuple(axes_of(name) or () for name in outside),
        tuple(axes_of(name) or () for name in first),
        facts.shapes[outside[0]][0] if outside else 0,
    )
    sizes = found.sizes(found.shape)
    for name in (*outside, *first):
        axes = axes_of(name)
        if axes is None or facts.shapes[name] != tuple(sizes[axis] for axis in axes):
            raise ModelError(
                f"{name} of shape {facts.shapes[name]} is not known, so the model cannot be pruned by width",
                where=where,
                fix="set student.width: false, which leaves out whole layers",
            )
    return found


# ---- candidates ------------------------------------------------------------------------------------------------------


def candidate_shapes(widths: Widths, parameters: int, count: int) -> list[Shape]:
    """Shapes of about `parameters` parameters, from the widest and shallowest to the narrowest and deepest.

    For each hidden width, the head groups are in proportion to it, as nearly as the heads divide the width (Llama's
    configuration asks for that, although its heads may have any width); the number of layers is the one whose
    feed-forward width is nearest in proportion too, and that width makes up the size.

    Args:
        widths: the teacher's.
        parameters: the size asked for; candidates are within `NEAR` of it.
        count: the most that are returned, evenly spaced among all.

    Raises:
        RecipeError: no shape has this size.
    """
    whole, step = widths.shape, widths.hidden_step
    narrower = range((whole.hidden - 1) // step * step, 0, -step)
    found = [
        shape
        for hidden in (whole.hidden, *narrower)
        if hidden * _LEAST_WIDTH >= whole.hidden and (shape := _balanced(widths, hidden, parameters)) is not None
    ]
    if not found or parameters >= widths.parameters(whole):
        refuse_size(parameters, least=_least(widths), most=widths.parameters(whole))
    if count >= len(found):
        return found
    places = [round(i * (len(found) - 1) / (count - 1)) for i in range(count)] if count > 1 else [len(found) // 2]
    return [found[place] for place in places]


def refuse_size(parameters: int, *, least: int, most: int) -> None:
    """Raises RecipeError: no student of this teacher has so many parameters."""
    raise RecipeError(
        f"the teacher ({most:,} parameters) cannot be pruned to {parameters:,}",
        where="student.parameters",
        fix=f"ask for {least:,} to {most:,}",
    )


def _least(widths: Widths) -> int:
    whole = widths.shape
    return widths.parameters(Shape(1, whole.hidden // _LEAST_WIDTH, 1, widths.channel_step))


def _balanced(widths: Widths, hidden: int, parameters: int) -> Shape | None:
    """The shape of this hidden width and size whose other widths are nearest in proportion; None if none is near."""
    whole, step = widths.shape, widths.channel_step
    dividing = [n for n in range(1, whole.groups + 1) if hidden % (n * widths.heads_per_group) == 0]
    if not dividing:
        return None
    groups = min(dividing, key=lambda n: abs(n / whole.groups - hidden / whole.hidden))
    best, best_distance = None, math.log(_BALANCE)
    for layers in range(1, whole.layers + 1):
        without = widths.parameters(Shape(layers, hidden, groups, 0))
        each = widths.parameters(Shape(layers, hidden, groups, 1)) - without
        channels = min(whole.channels, round((parameters - without) / each / step) * step)
        if channels <= 0:
            break
        shape = Shape(layers, hidden, groups, channels)
        distance = abs(math.log(channels * whole.hidden / (whole.channels * hidden)))
        if distance < best_distance and abs(widths.parameters(shape) - parameters) <= NEAR * parameters:
            best, best_distance = shape, distance
    return best


def depth_of_size(facts: ModelFacts, parameters: int) -> int | None:
    """The number of layers with which a model of any family has nearest to `parameters` parameters; None if its layers
    are not found.

    Raises:
        RecipeError: one layer is too many, or the whole model too small.
    """
    sizes = [facts.parameters_of_layers(range(count)) for count in range(1, (facts.layers or 0) + 1)]
    known = [size for size in sizes if size is not None]
    if not known:
        return None
    if not known[0] * (1 - NEAR) <= parameters < known[-1]:
        refuse_size(parameters, least=known[0], most=known[-1])
    return min(range(len(known)), key=lambda i: abs(known[i] - parameters)) + 1
