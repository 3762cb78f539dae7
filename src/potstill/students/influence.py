"""How much each layer of a model changes the hidden state, on a few batches."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from potstill.console import Console
from potstill.errors import DataError
from potstill.models.anatomy import model_layers
from potstill.models.live import run_inside
from potstill.signals import Batch, View


@torch.no_grad()
def layer_influence(model: nn.Module, batches: Iterable[Batch], *, records: int, console: Console) -> list[float]:
    """1 − cos(input, output) of each layer, the mean over all real tokens; 0 means no change of direction.
    Block influence of Men et al. 2024 (ShortGPT, arXiv 2403.03853), eq. 1.

    Args:
        model: in evaluation mode; its mode is unchanged.
        batches: their teacher's view is read, up to `records` rows.
        records: the number of rows to read.
        console: shows progress.

    Returns:
        One number per layer, in [0, 2].

    Raises:
        DataError: there are no tokens.
    """
    layers = model_layers(model)
    device = next(model.parameters()).device
    sums = torch.zeros(len(layers), dtype=torch.float64)
    real = torch.zeros(0, dtype=torch.bool)
    tokens = rows = 0

    def measure(index: int) -> Any:
        def hook(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            before = args[0] if args else kwargs["hidden_states"]
            after = output[0] if isinstance(output, tuple) else output
            sums[index] += _turned(before[real], after[real])

        return hook

    handles = [layer.register_forward_hook(measure(i), with_kwargs=True) for i, layer in enumerate(layers)]
    try:
        with console.task("measuring the layers", total=records, unit="records") as task:
            for batch in batches:
                left = slice(records - rows)
                view = batch.text("teacher")
                few = View(*(t[left].to(device) for t in (view.input_ids, view.position_ids, view.segment_ids)))
                real = few.segment_ids > 0
                run_inside(model, few)
                tokens += int(real.sum())
                rows += few.input_ids.shape[0]
                task.advance(few.input_ids.shape[0])
                if rows >= records:
                    break
    finally:
        for handle in handles:
            handle.remove()
    if tokens == 0:
        raise DataError("there are no records to measure the layers' influence on", where="student.layers.by_influence")
    return [float(total) / tokens for total in sums]


def _turned(before: Tensor, after: Tensor) -> float:
    """Σ (1 − cos) over rows."""
    return float((1 - torch.nn.functional.cosine_similarity(before.float(), after.float(), dim=-1)).double().sum())
