"""Expected calibration error: bins, and the error of their sums. No torch.

The gap of a target is whether it was right less the probability that it would be. ECE is Σ over bins of |Σ of their
gaps| ÷ the number of targets (Guo et al. 2017, arXiv 1706.04599, eq. 3).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

BINS = 15
"""The usual number."""


def equal_mass(probability: NDArray[np.floating], bins: int) -> NDArray[np.int64]:
    """The bin of each target [N], from 0, between quantiles of the probabilities. If many probabilities are equal, some
    bins are empty."""
    edges = np.quantile(probability, np.linspace(0, 1, bins + 1)[1:-1])
    return np.searchsorted(edges, probability, side="left")


def equal_width(probability: NDArray[np.floating], bins: int) -> NDArray[np.int64]:
    """The bin of each target [N], from 0: k/bins ≤ probability < (k + 1)/bins, and 1 in the last. Needs no other
    target, so sums of several batches can be added."""
    return np.minimum((probability * bins).astype(np.int64), bins - 1)


def gap_sums(
    probability: NDArray[np.floating], hit: NDArray[Any], bin_of: NDArray[np.int64], bins: int
) -> NDArray[np.float64]:
    """Σ (hit − probability) of each bin [bins]."""
    gaps: NDArray[np.float64] = np.bincount(bin_of, hit.astype(np.float64) - probability, bins).astype(np.float64)
    return gaps


def ece(gaps: NDArray[np.float64], targets: Any) -> NDArray[np.float64]:
    """ECE [...] from the sums of the bins' gaps [..., bins] over so many targets [...], one at least."""
    return np.asarray(np.abs(gaps).sum(-1) / targets)
