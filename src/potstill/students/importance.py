"""What each part of a decoder contributes, by its activations on some text.

Muralidharan et al. 2024 (Minitron, arXiv 2407.14679), §2.2: a part's score is the mean of its magnitude over the tokens
of a text, and the L2 norm of that over texts. Layers are scored by their influence (`from_teacher.layer_influence`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from potstill.errors import DataError
from potstill.models.anatomy import inner_model, model_layers
from potstill.models.live import run_inside
from potstill.signals import Batch, View

NORMS = ("input_layernorm", "post_attention_layernorm")
"""The norms of a layer, over the hidden width."""


@dataclass(frozen=True)
class Importance:
    """Scores on a sample, larger is more.

    Attributes:
        hidden: [H] of the residual stream's dimensions: magnitudes of the outputs of all norms.
        groups: [L, G] of the groups of heads: L2 norms of the heads' outputs, before the output projection.
        channels: [L, F] of the feed-forward channels: magnitudes of the input of the down projection.
        energy: [2L + 1, H] the share of each hidden dimension in the squared norm of a state, the mean over tokens,
            before each norm in order (the last is the final one). Rows sum to 1.
        rows, tokens: the size of the sample.
    """

    hidden: Float[Tensor, " H"]
    groups: Float[Tensor, "L G"]
    channels: Float[Tensor, "L F"]
    energy: Float[Tensor, "N H"]
    rows: int
    tokens: int


def norms_of(model: nn.Module) -> list[nn.Module]:
    """The norms over the hidden width, in the order of the forward pass."""
    inner: Any = inner_model(model)
    return [getattr(layer, name) for layer in model_layers(model) for name in NORMS] + [inner.norm]


@torch.no_grad()
def measure_importance(
    model: nn.Module, batches: Iterable[Batch], *, groups: int, records: int, advance: Callable[[int], None]
) -> Importance:
    """The scores of a decoder's parts.

    Args:
        model: a family of `shapes.PRUNED_BY_WIDTH`, in evaluation mode.
        batches: their teacher's view is read, up to `records` rows.
        groups: the number of key-value heads.
        records: the number of rows to read.
        advance: called with the number of rows read.

    Raises:
        DataError: there are no tokens.
    """
    layers: list[Any] = list(model_layers(model))
    norms = norms_of(model)
    sums: dict[str, Tensor] = {}
    real = torch.zeros(0, dtype=torch.bool)  # [B, T] of the rows that are running

    def add(name: str, per_row: Tensor) -> None:
        sums[name] = sums.get(name, torch.zeros(per_row.shape[-1], dtype=torch.float64)) + per_row.double().cpu()

    def score(name: str, magnitudes: Float[Tensor, "B T D"]) -> None:
        """Add Σ over rows of (mean over tokens)²."""
        weight = real.unsqueeze(-1).to(magnitudes.dtype)
        means = (magnitudes * weight).sum(1) / weight.sum(1).clamp(min=1)
        add(name, means.square().sum(0))

    def of_heads(index: int) -> Any:
        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            heads = args[0].float().unflatten(-1, (groups, -1))
            score(f"groups {index}", heads.norm(dim=-1))

        return hook

    def of_channels(index: int) -> Any:
        return lambda _, args: score(f"channels {index}", args[0].float().abs())

    def of_norm(index: int) -> Any:
        def hook(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            score("hidden", output.float().abs())
            squares = args[0][real].float().square()
            add(f"energy {index}", (squares / squares.sum(-1, keepdim=True).clamp(min=1e-30)).sum(0))

        return hook

    handles = [norm.register_forward_hook(of_norm(i)) for i, norm in enumerate(norms)]
    for index, layer in enumerate(layers):
        handles.append(layer.self_attn.o_proj.register_forward_pre_hook(of_heads(index)))
        handles.append(layer.mlp.down_proj.register_forward_pre_hook(of_channels(index)))
    rows = tokens = 0
    device = next(model.parameters()).device
    try:
        for texts in first_texts(batches, records, device):
            real = texts.segment_ids > 0
            run_inside(model, texts)
            rows += len(texts.input_ids)
            tokens += int(real.sum())
            advance(len(texts.input_ids))
    finally:
        for handle in handles:
            handle.remove()
    if tokens == 0:
        raise DataError("there are no records to measure the teacher's activations on", where="student.records")
    depth = range(len(layers))
    return Importance(
        sums["hidden"].sqrt(),
        torch.stack([sums[f"groups {i}"].sqrt() for i in depth]),
        torch.stack([sums[f"channels {i}"].sqrt() for i in depth]),
        torch.stack([sums[f"energy {i}"] / tokens for i in range(len(norms))]),
        rows,
        tokens,
    )


def first_texts(batches: Iterable[Batch], records: int, device: torch.device) -> Iterator[View]:
    """The teacher's text of each batch, up to `records` rows in all."""
    for batch in batches:
        view = batch.text("teacher")
        yield View(*(t[:records].to(device) for t in (view.input_ids, view.position_ids, view.segment_ids)))
        records -= len(view.input_ids)
        if records <= 0:
            return
