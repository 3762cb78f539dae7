"""From the settings of an estimator to what is kept of some rows of a distribution."""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from potstill.errors import RecipeError
from potstill.recipe import HiddenCapture, SampledCapture, ThresholdCapture, TopKCapture
from potstill.registry import implements
from potstill.signals import ModelDims, Sparse
from potstill.store.codec import Grid
from potstill.store.estimators import sampled, threshold, topk


class Estimator(Protocol):
    """What is kept of p. `draws` is the uniform numbers that a row takes."""

    draws: int
    hidden: bool
    """Whether the input of the output layer is kept, which must be there."""

    def grid(self, dims: ModelDims) -> Grid:
        """How entries of a teacher of these sizes are quantised."""
        ...

    def keep(self, log_p: Float[Tensor, "N V"], uniforms: Float[Tensor, "N D"]) -> Sparse:
        """The entries of some rows."""
        ...


@implements(ThresholdCapture)
class ThresholdEstimator:
    """`store.estimators.threshold` at a τ that is known."""

    draws, hidden = 1, False

    def __init__(self, settings: ThresholdCapture) -> None:
        if settings.tau is None:
            raise RecipeError("tau is not known yet", where="capture.tau", fix="give it, or find it on a sample")
        self.tau = settings.tau

    def grid(self, dims: ModelDims) -> Grid:
        """As `Grid.threshold`."""
        return Grid.threshold(dims.vocab, self.tau)

    def keep(self, log_p: Float[Tensor, "N V"], uniforms: Float[Tensor, "N D"]) -> Sparse:
        """As `store.estimators.threshold`."""
        return threshold(log_p, self.tau, uniforms[:, 0])


@implements(SampledCapture)
class SampledEstimator:
    """`store.estimators.sampled`."""

    hidden = False

    def __init__(self, settings: SampledCapture) -> None:
        self.draws = settings.draws

    def grid(self, dims: ModelDims) -> Grid:
        """As `Grid.sampled`."""
        return Grid.sampled(dims.vocab, self.draws)

    def keep(self, log_p: Float[Tensor, "N V"], uniforms: Float[Tensor, "N D"]) -> Sparse:
        """As `store.estimators.sampled`."""
        return sampled(log_p, uniforms)


@implements(TopKCapture)
class TopKEstimator:
    """`store.estimators.topk`."""

    draws, hidden = 1, False

    def __init__(self, settings: TopKCapture) -> None:
        self.k, self.top_p = settings.k, settings.top_p

    def grid(self, dims: ModelDims) -> Grid:
        """As `Grid.topk`."""
        return Grid.topk(dims.vocab)

    def keep(self, log_p: Float[Tensor, "N V"], uniforms: Float[Tensor, "N D"]) -> Sparse:
        """As `store.estimators.topk`, with the remaining mass."""
        sparse, rest = topk(log_p, self.k, self.top_p)
        return replace(sparse, rest=rest)


@implements(HiddenCapture)
class HiddenEstimator:
    """No entries: the input of the output layer says all."""

    draws, hidden = 1, True

    def __init__(self, settings: HiddenCapture) -> None:
        self.dtype = settings.dtype

    def grid(self, dims: ModelDims) -> Grid:
        """As `Grid.hidden`."""
        return Grid.hidden(dims.vocab, dims.hidden, self.dtype)

    def keep(self, log_p: Float[Tensor, "N V"], uniforms: Float[Tensor, "N D"]) -> Sparse:
        """The entropy alone."""
        rows = log_p.shape[0]
        entropy = -torch.nan_to_num(log_p.exp() * log_p).sum(1)
        none = torch.zeros(0, device=log_p.device)
        return Sparse(
            torch.zeros(rows + 1, dtype=torch.long), none.int(), none, entropy, "unbiased", vocab=log_p.shape[1]
        )
