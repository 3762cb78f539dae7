"""The objectives' metrics since the last log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


class StepMetrics:
    """Sums over the micro-batches of this process, until they are logged.

    An objective's value is the mean over the steps of Σ values ÷ count, both over the whole step and all processes, as
    in the loss. Its count is the sum over the steps.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self.steps = self.targets = 0
        self.counts = torch.zeros(len(names), dtype=torch.long)
        self.gradient_norms: Tensor | None = None
        self._of_step = self.counts
        self._values = torch.zeros(len(names), dtype=torch.float64)
        self._metrics: dict[str, Tensor] = {}
        self._batches = 0

    def begin_step(self, targets: int, counts: Tensor) -> None:
        """Begin an optimiser step, with its number of targets and each objective's count."""
        self.steps += 1
        self.targets += targets
        self.counts += counts
        self._of_step, self._batches = counts, 0

    @property
    def at_first_batch(self) -> bool:
        """Whether no micro-batch of the step has been computed yet."""
        return self._batches == 0

    def add(self, sums: Tensor, metrics: Mapping[str, Tensor]) -> None:
        """Add one micro-batch: Σ values per objective, and metrics summed over its targets."""
        self._batches += 1
        counts = self._of_step.clamp(min=1)
        # Keep them on their device: reading them at every micro-batch would make an accelerator wait.
        self._values = self._values.to(sums.device) + sums.detach() / counts.to(sums.device)
        for name, value in metrics.items():
            self._metrics[name] = self._metrics.get(name, 0) + value.detach()

    def summary(self, weights: Sequence[float], accelerator: Any) -> dict[str, float]:
        """The metrics to log, over all processes. Collective: call on every rank."""
        several = accelerator.num_processes > 1
        reduced = accelerator.reduce(self._values, "sum") if several else self._values
        values = (reduced.double() / self.steps).tolist()
        logs: dict[str, float] = {}
        for name, value, count, weight in zip(self.names, values, self.counts.tolist(), weights, strict=True):
            logs |= {f"{name}/value": value, f"{name}/count": count, f"{name}/weight": weight}
        if self.gradient_norms is not None:
            norms = accelerator.reduce(self.gradient_norms, "mean") if several else self.gradient_norms
            logs |= {f"{name}/grad_norm": norm for name, norm in zip(self.names, norms.tolist(), strict=True)}
        for name in sorted(self._metrics):
            total = accelerator.reduce(self._metrics[name], "sum") if several else self._metrics[name]
            logs[name] = float(total) / max(self.targets, 1)
        return logs
