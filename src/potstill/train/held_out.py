"""Held-out KL, NLL, top-1 agreement and accuracy per target, without materialising a batch's logits; for models
without logits, the objectives themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from potstill.errors import DataError
from potstill.recipe import value_at
from potstill.signals import Batch
from potstill.train.module import DistillModule
from potstill.train.rows import Row, length_of


def batches_by_length(rows: Sequence[Row], size: int) -> list[list[Row]]:
    """Every row once, in batches of similar length, longest first."""
    longest_first = sorted(rows, key=lambda row: -length_of(row))
    return [longest_first[start : start + size] for start in range(0, len(longest_first), size)]


def measure_held_out(
    module: DistillModule,
    wrapped: Any,
    inputs: Iterable[Mapping[str, Any]],
    *,
    precision: Callable[[], AbstractContextManager[Any]],
    sum_over_processes: Callable[[Tensor], Tensor],
) -> dict[str, float]:
    """The mean of each of the module's statistics over all targets, and `targets`, their number. A module without
    statistics (a sentence embedding) gives `objectives`, Σ weight · Σ values ÷ count over all rows.

    The module runs without dropout; its mode is restored (rule 8).

    Args:
        wrapped: the module with its wrapper for several processes.
        inputs: the collated batches of this process, on the module's device.
        precision: the autocast context of training.
        sum_over_processes: collective: called once on every process.

    Raises:
        DataError: there are no targets.
    """
    training = wrapped.training
    wrapped.eval()
    try:
        of_batch = _statistics_of(module, wrapped) if module.statistics else _objectives_of(module, wrapped)
        totals: Tensor | None = None
        for batch in inputs:
            with torch.no_grad(), precision():
                found = of_batch(batch)
            totals = found if totals is None else totals + found
    finally:
        wrapped.train(training)
    if totals is None:  # a process without rows
        totals = torch.zeros(len(module.statistics) + 1 if module.statistics else 2 * len(module.names)).double()
    totals = sum_over_processes(totals)
    if not module.statistics:
        sums, counts = totals.view(2, -1)
        weights = torch.tensor([value_at(o.settings.weight, module.progress) for o in module.objectives])
        return {"objectives": float((weights * sums / counts.clamp(min=1)).sum())}
    targets, *sums_of = totals.tolist()
    if not targets:
        raise DataError("no held-out token is learned, so nothing can be measured", where="eval_dataset")
    return {n: total / targets for n, total in zip(module.statistics, sums_of, strict=True)} | {"targets": targets}


def _statistics_of(module: DistillModule, wrapped: Any) -> Callable[[Mapping[str, Any]], Tensor]:
    def of_batch(inputs: Mapping[str, Any]) -> Tensor:
        found = wrapped(inputs)
        columns = [torch.ones_like(found["nll"]), *(found[name] for name in module.statistics)]
        return torch.stack([column.double().sum().cpu() for column in columns])

    return of_batch


def _objectives_of(module: DistillModule, wrapped: Any) -> Callable[[Mapping[str, Any]], Tensor]:
    def of_batch(inputs: Mapping[str, Any]) -> Tensor:
        counts = module.counts(Batch.from_inputs(inputs))
        sums = wrapped(inputs, torch.ones_like(counts))["sums"]
        return torch.cat([sums.double().cpu(), counts.double().cpu()])

    return of_batch
