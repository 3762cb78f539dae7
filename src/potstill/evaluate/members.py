"""The response of a model, or of an ensemble's members together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import nn

from potstill.models.live import live_signals
from potstill.signals import Ask, Batch, Dense, Head, Side
from potstill.teachers.ensemble import average


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


def response(model: nn.Module, batch: Batch, side: Side) -> Head | Dense:
    """What a model says at the targets of a batch, under the caller's modes."""
    if isinstance(model, Members):
        parts = [response(member, batch, side) for member in model.models]
        logits = [part.logits if isinstance(part, Dense) else part.logits() for part in parts]
        return Dense(average([part.float() for part in logits], model.average))
    signals = live_signals(model, batch, side, Ask(response=True))
    signal = signals.head if signals.head is not None else signals.dense
    assert signal is not None
    return signal
