"""The response of a model, or of an ensemble's members together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from potstill.models.live import live_signals
from potstill.signals import Ask, Batch, Dense, Head, Side


class Members(nn.Module):
    """The members of an ensemble as one model to measure: all of them run, and their logits become one.

    Args:
        models: two or more.
        average: of `logits`, or of `probabilities` (as in the recipe).
    """

    def __init__(self, models: Sequence[nn.Module], average: Literal["logits", "probabilities"]) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)
        self.average = average

    def together(self, logits: Sequence[Tensor]) -> Tensor:
        """One [N,V] of the members' [N,V]: their mean, or the logarithm of the mean of their probabilities."""
        stacked = torch.stack([part.float() for part in logits])
        if self.average == "logits":
            return stacked.mean(0)
        return stacked.log_softmax(-1).logsumexp(0) - torch.log(torch.tensor(float(len(logits))))


def response(model: nn.Module, batch: Batch, side: Side) -> Head | Dense:
    """What a model says at the targets of a batch, under the caller's modes."""
    if isinstance(model, Members):
        parts = [response(member, batch, side) for member in model.models]
        return Dense(model.together([part.logits if isinstance(part, Dense) else part.logits() for part in parts]))
    signals = live_signals(model, batch, side, Ask(response=True))
    signal = signals.head if signals.head is not None else signals.dense
    assert signal is not None
    return signal
