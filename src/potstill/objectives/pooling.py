"""From the outputs of a model for a batch to one vector per example."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from potstill.errors import ModelError
from potstill.objectives.base import widened
from potstill.recipe.relations import Pooling
from potstill.signals import ImageView, View


def pool(
    states_BTH: Float[Tensor, "B T H"], example_ids_BT: Int[Tensor, "B T"], pooling: Pooling
) -> Float[Tensor, "E H"]:
    """One vector per example: the mean or the maximum of its tokens' states, or that of its first or last token.

    In fp32 (fp64 for fp64 states). In packed rows an example is a segment; padding has no effect. Tokens that share a
    maximum share its gradient.
    """
    real = (example_ids_BT.flatten() >= 0).nonzero().squeeze(-1)
    ids = example_ids_BT.flatten()[real]
    states = widened(states_BTH).flatten(0, 1)[real]
    examples = int(ids.max()) + 1 if ids.numel() else 0
    if pooling == "mean":
        sums = states.new_zeros(examples, states.shape[1]).index_add(0, ids, states)
        return sums / torch.bincount(ids, minlength=examples)[:, None]
    if pooling == "max":
        start = states.new_zeros(examples, states.shape[1])
        return start.scatter_reduce(0, ids[:, None].expand_as(states), states, "amax", include_self=False)
    order = torch.arange(len(ids), device=ids.device)
    end = torch.zeros(examples, dtype=torch.long, device=ids.device)
    return states[end.scatter_reduce(0, ids, order, "amin" if pooling == "first" else "amax", include_self=False)]


def one_vector_each(output: Float[Tensor, "B ..."], view: View | ImageView, pooling: Pooling) -> Float[Tensor, "E D"]:
    """One vector per example from a hidden state or a module's output: [B,T,H] over a view's tokens is pooled, any
    other shape flattened after its first axis.

    Raises:
        ModelError: it does not have one row per example.
    """
    if isinstance(view, View) and output.ndim == 3 and output.shape[:2] == view.input_ids.shape:
        return pool(output, view.example_ids, pooling)
    if output.shape[0] != view.examples:
        raise ModelError(
            f"an output of shape {list(output.shape)} for {view.examples} examples: rows and examples do not match",
            where="at",
            fix="set train.packing: false, or name a module that gives a state for each token",
        )
    return widened(output).flatten(1)
