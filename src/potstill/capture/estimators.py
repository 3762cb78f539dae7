"""From the settings of an estimator to what is kept of some rows of a distribution."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Protocol

from jaxtyping import Float
from torch import Tensor

from potstill.errors import RecipeError
from potstill.recipe import SampledCapture, ThresholdCapture, TopKCapture
from potstill.registry import implements
from potstill.signals import Sparse
from potstill.store.codec import Grid
from potstill.store.estimators import sampled, threshold, topk

_BITS, _BITS_OF_TOPK, _FLOOR_OF_TOPK = 8, 16, -24.0


class Estimator(Protocol):
    """What is kept of p. `draws` is the uniform numbers that a row takes."""

    draws: int

    def grid(self, vocab: int) -> Grid:
        """How entries are quantised."""
        ...

    def keep(self, log_p: Float[Tensor, "N V"], uniforms: Float[Tensor, "N D"]) -> Sparse:
        """The entries of some rows."""
        ...


@implements(ThresholdCapture)
class ThresholdEstimator:
    """`store.estimators.threshold` at a τ that is known."""

    draws = 1

    def __init__(self, settings: ThresholdCapture) -> None:
        if settings.tau is None:
            raise RecipeError("tau is not known yet", where="capture.tau", fix="give it, or find it on a sample")
        self.tau = settings.tau

    def grid(self, vocab: int) -> Grid:
        """8 bits from τ to 1; the others weigh τ."""
        return Grid(vocab, _BITS, min(math.log(self.tau), -1.0), self.tau)

    def keep(self, log_p: Float[Tensor, "N V"], uniforms: Float[Tensor, "N D"]) -> Sparse:
        """As `store.estimators.threshold`."""
        return threshold(log_p, self.tau, uniforms[:, 0])


@implements(SampledCapture)
class SampledEstimator:
    """`store.estimators.sampled`."""

    def __init__(self, settings: SampledCapture) -> None:
        self.draws = settings.draws

    def grid(self, vocab: int) -> Grid:
        """8 bits from 1 / N to 1; tokens drawn once weigh 1 / N."""
        return Grid(vocab, _BITS, min(-math.log(self.draws), -1.0), 1 / self.draws)

    def keep(self, log_p: Float[Tensor, "N V"], uniforms: Float[Tensor, "N D"]) -> Sparse:
        """As `store.estimators.sampled`."""
        return sampled(log_p, uniforms)


@implements(TopKCapture)
class TopKEstimator:
    """`store.estimators.topk`."""

    draws = 1

    def __init__(self, settings: TopKCapture) -> None:
        self.k, self.top_p = settings.k, settings.top_p

    def grid(self, vocab: int) -> Grid:
        """16 bits down to exp(−24)."""
        return Grid(vocab, _BITS_OF_TOPK, _FLOOR_OF_TOPK, 0.0)

    def keep(self, log_p: Float[Tensor, "N V"], uniforms: Float[Tensor, "N D"]) -> Sparse:
        """As `store.estimators.topk`, with the remaining mass."""
        sparse, rest = topk(log_p, self.k, self.top_p)
        return replace(sparse, rest=rest)
