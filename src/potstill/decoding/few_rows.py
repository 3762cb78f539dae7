"""Linear layers of few rows on a CPU: of several ways to multiply, the one that is fastest on this machine.

Decoding multiplies each weight matrix by few rows: by one for each token alone, by γ + 1 in a block. What it costs is
to read the weights, and a good kernel reads them about once. Which kernel is good depends on the number of rows and on
the processor: `nn.Linear` may take twice as long for two rows as for one, and longer for three than for four. So each
way is timed once per shape, number of rows and process, over matrices that no cache holds, and the fastest is taken.
All of them compute the same product; only rounding differs, as it does between blocks of different lengths anyway.
"""

from __future__ import annotations

import copy
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

Way = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""x [r, K], a weight [N, K] and a bias [N] or None to x · weightᵀ + bias [r, N]."""

LEAST_BYTES = 4 * 2**20
"""Matrices of one shape that are smaller than this all together stay in a cache, and are left alone."""
_TIMED_BYTES = 64 * 2**20
_REPETITIONS = 4
_MARGIN = 0.95
"""Another way than the plain one has to take less than this part of its time."""
_MOST = 8
"""Numbers of rows that are told apart; more are taken for sixteen."""
_MANY = 16


class _Case(NamedTuple):
    """What a choice depends on."""

    shape: tuple[int, int]
    dtype: torch.dtype
    biased: bool
    rows: int
    threads: int


_chosen: dict[_Case, Way] = {}


class FewRows(nn.Linear):
    """A linear layer that shares its weight with another, and multiplies in the fastest way. Without gradients.

    Attributes:
        alike: weights of this shape of the same model, on which ways are timed; its own among them.
    """

    alike: Sequence[Tensor]

    def forward(self, input: Float[Tensor, "*B K"]) -> Float[Tensor, "*B N"]:
        return linear(input, self.weight, self.bias, self.alike)


def linear(
    input: Float[Tensor, "*B K"], weight: Float[Tensor, "N K"], bias: Tensor | None, alike: Sequence[Tensor]
) -> Float[Tensor, "*B N"]:
    """`nn.functional.linear`, in the fastest way where that is known to matter.

    Args:
        input: the rows.
        weight: of the layer.
        bias: of the layer [N].
        alike: weights of the same shape, on which ways are timed.
    """
    rows = input.numel() // weight.shape[1]
    if rows == 0 or weight.device.type != "cpu" or torch.is_grad_enabled():
        return nn.functional.linear(input, weight, bias)
    product = way(weight, bias, rows, alike)(input.reshape(rows, weight.shape[1]), weight, bias)
    return product.view(*input.shape[:-1], weight.shape[0])


def with_few_rows(model: PreTrainedModel) -> PreTrainedModel:
    """A view of a model whose linear layers are `FewRows` of the same weights; the model itself where that is of no use
    (on an accelerator, or small). Modules are those of now: one that is replaced later is replaced in the model alone.
    """
    alike: dict[tuple[int, ...], list[Tensor]] = defaultdict(list)
    for module in model.modules():
        if type(module) is nn.Linear and module.weight.device.type == "cpu":
            alike[tuple(module.weight.shape)].append(module.weight)
    large = {shape: found for shape, found in alike.items() if sum(w.nbytes for w in found) >= LEAST_BYTES}
    return _view(model, large, {}) if large else model


def _view(module: Any, alike: dict[tuple[int, ...], list[Tensor]], made: dict[int, Any]) -> Any:
    if id(module) in made:  # a module that is used twice
        return made[id(module)]
    view = made[id(module)] = copy.copy(module)
    if type(module) is nn.Linear and tuple(module.weight.shape) in alike:
        view.__class__ = FewRows
        view.alike = alike[tuple(module.weight.shape)]
        return view
    view._modules = {
        name: None if child is None else _view(child, alike, made) for name, child in view._modules.items()
    }
    return view


def way(weight: Tensor, bias: Tensor | None, rows: int, alike: Sequence[Tensor]) -> Way:
    """The fastest way to multiply this many rows, timed at the first question.

    Args:
        weight: [N, K].
        bias: [N].
        rows: at least 1.
        alike: weights of the same shape.
    """
    known = rows if rows <= _MOST else _MANY
    case = _Case((weight.shape[0], weight.shape[1]), weight.dtype, bias is not None, known, torch.get_num_threads())
    if case not in _chosen:
        large = sum(other.nbytes for other in alike) >= LEAST_BYTES
        _chosen[case] = _fastest(ways(known), alike, bias, known) if large else nn.functional.linear
    return _chosen[case]


def ways(rows: int) -> list[Way]:
    """All ways to multiply this many rows, the plain one first."""
    found: list[Way] = [nn.functional.linear]
    if hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        found.append(_onednn)
    if rows <= _MOST:
        found += [_turned(width) for width in sorted({rows, 2, 4, 8}) if rows <= width <= 2 * rows]
    return found


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """By oneDNN, which `nn.Linear` asks only in half precision."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return product


def _turned(width: int) -> Way:
    """weight · xᵀ, with x filled up to `width` rows."""

    def multiply(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        rows = len(x)
        if rows < width:
            x = nn.functional.pad(x, (0, 0, 0, width - rows))
        product = torch.mm(weight, x.t())[:, :rows].t().contiguous()
        return product if bias is None else product.add_(bias)

    return multiply


def _fastest(among: Sequence[Way], alike: Sequence[Tensor], bias: Tensor | None, rows: int) -> Way:
    first = alike[0]
    some = list(alike[: max(1, _TIMED_BYTES // first.nbytes)])
    if first.nbytes > _TIMED_BYTES:  # one matrix is large: its first rows, which are a matrix too
        some = [first[: max(1, _TIMED_BYTES // (first.nbytes // len(first)))]]
        bias = None if bias is None else bias[: len(some[0])]
    x = torch.ones(rows, first.shape[1], dtype=first.dtype)
    # Of this thread, if it works alone: what others take from it on a busy machine does not count.
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    seconds: list[float] = []
    for multiply in among:
        try:
            multiply(x, some[0], bias)
        except (RuntimeError, NotImplementedError):  # not in this build of torch, or not in this precision
            seconds.append(float("inf"))
        else:
            seconds.append(1e9)
    for _ in range(_REPETITIONS):  # in turn, so that other load falls on all alike; the least is the quietest
        for number, multiply in enumerate(among):
            if seconds[number] < float("inf"):
                begun = clock()
                for weight in some:
                    multiply(x, weight, bias)
                seconds[number] = min(seconds[number], clock() - begun)
    best = min(range(len(among)), key=seconds.__getitem__)
    return among[best] if seconds[best] < _MARGIN * seconds[0] else among[0]
