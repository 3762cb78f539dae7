"""The estimators of the recipe, each bound to its settings: what is kept of some rows of a distribution."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from potstill.errors import RecipeError
from potstill.recipe import (
    DenseCapture,
    FeaturesCapture,
    HiddenCapture,
    SampledCapture,
    ThresholdCapture,
    TopKCapture,
)
from potstill.registry import implements
from potstill.signals import ModelDims, Sparse
from potstill.store.codec import Grid, TensorPart
from potstill.store.estimators import sampled, threshold, topk

Keeps = Literal["entries", "hidden", "logits", "nothing"]
_ENTRIES: Keeps = "entries"
_HIDDEN: Keeps = "hidden"
_LOGITS: Keeps = "logits"
_NOTHING: Keeps = "nothing"


class Estimator(Protocol):
    """What is kept of a distribution p. `draws` is the number of uniform numbers that a row takes."""

    draws: int
    keeps: Keeps
    """Some entries of p; the whole response, as the input of the output layer or as logits; or nothing."""

    def grid(self, dims: ModelDims, features: tuple[TensorPart, ...] = ()) -> Grid:
        """How entries of a teacher of these sizes are quantised, and the tensors beside them."""
        ...

    def keep(self, log_p: Float[Tensor, "N V"], uniforms: Float[Tensor, "N D"]) -> Sparse:
        """The entries of some rows."""
        ...


@implements(ThresholdCapture)
class ThresholdEstimator:
    """`store.estimators.threshold` at a τ that is known."""

    draws, keeps = 1, _ENTRIES

    def __init__(self, settings: ThresholdCapture) -> None:
        if settings.tau is None:
            raise RecipeError("tau is not known yet", where="capture.tau", fix="give it, or find it on a sample")
        self.tau = settings.tau

    def grid(self, dims: ModelDims, features: tuple[TensorPart, ...] = ()) -> Grid:
        """As `Grid.threshold`."""
        return Grid.threshold(dims.vocab, self.tau, features)

    def keep(self, log_p: Float[Tensor, "N V"], uniforms: Float[Tensor, "N D"]) -> Sparse:
        """As `store.estimators.threshold`."""
        return threshold(log_p, self.tau, uniforms[:, 0])


@implements(SampledCapture)
class SampledEstimator:
    """`store.estimators.sampled`."""

    keeps = _ENTRIES

    def __init__(self, settings: SampledCapture) -> None:
        self.draws = settings.draws

    def grid(self, dims: ModelDims, features: tuple[TensorPart, ...] = ()) -> Grid:
        """As `Grid.sampled`."""
        return Grid.sampled(dims.vocab, self.draws, features)

    def keep(self, log_p: Float[Tensor, "N V"], uniforms: Float[Tensor, "N D"]) -> Sparse:
        """As `store.estimators.sampled`."""
        return sampled(log_p, uniforms)


@implements(TopKCapture)
class TopKEstimator:
    """`store.estimators.topk`."""

    draws, keeps = 1, _ENTRIES

    def __init__(self, settings: TopKCapture) -> None:
        self.k, self.top_p = settings.k, settings.top_p

    def grid(self, dims: ModelDims, features: tuple[TensorPart, ...] = ()) -> Grid:
        """As `Grid.topk`."""
        return Grid.topk(dims.vocab, features)

    def keep(self, log_p: Float[Tensor, "N V"], uniforms: Float[Tensor, "N D"]) -> Sparse:
        """As `store.estimators.topk`, with the remaining mass."""
        sparse, rest = topk(log_p, self.k, self.top_p)
        return replace(sparse, rest=rest)


@implements(HiddenCapture)
class HiddenEstimator:
    """Keeps no entries: the distribution follows from the input of the output layer."""

    draws, keeps = 1, _HIDDEN

    def __init__(self, settings: HiddenCapture) -> None:
        self.dtype = settings.dtype

    def grid(self, dims: ModelDims, features: tuple[TensorPart, ...] = ()) -> Grid:
        """As `Grid.hidden`."""
        return Grid.hidden(dims.vocab, dims.hidden, self.dtype, features)

    def keep(self, log_p: Float[Tensor, "N V"], uniforms: Float[Tensor, "N D"]) -> Sparse:
        """The entropy alone."""
        return _entropy_alone(log_p)


@implements(DenseCapture)
class DenseEstimator:
    """Keeps no entries: the distribution follows from the logits."""

    draws, keeps = 1, _LOGITS

    def __init__(self, settings: DenseCapture) -> None:
        self.dtype = settings.dtype

    def grid(self, dims: ModelDims, features: tuple[TensorPart, ...] = ()) -> Grid:
        """As `Grid.dense`."""
        return Grid.dense(dims.vocab, self.dtype, features)

    def keep(self, log_p: Float[Tensor, "N V"], uniforms: Float[Tensor, "N D"]) -> Sparse:
        """The entropy alone."""
        return _entropy_alone(log_p)


@implements(FeaturesCapture)
class NoEstimator:
    """No response is read, and none is kept."""

    draws, keeps = 1, _NOTHING

    def __init__(self, settings: FeaturesCapture) -> None:
        pass

    def grid(self, dims: ModelDims, features: tuple[TensorPart, ...] = ()) -> Grid:
        """As `Grid.features`."""
        return Grid.features(dims.vocab, features)

    def keep(self, log_p: Float[Tensor, "N V"], uniforms: Float[Tensor, "N D"]) -> Sparse:
        """The entropy alone."""
        return _entropy_alone(log_p)


def _entropy_alone(log_p: Float[Tensor, "N V"]) -> Sparse:
    rows = log_p.shape[0]
    entropy = -torch.nan_to_num(log_p.exp() * log_p).sum(1)
    none, offsets = log_p.new_zeros(0), torch.zeros(rows + 1, dtype=torch.long, device=log_p.device)
    return Sparse(offsets, none.int(), none, entropy, "unbiased", vocab=log_p.shape[1])
