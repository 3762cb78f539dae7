"""Bootstrap intervals of means per target, by group, and of differences between models, paired. No torch.

Tokens of one prompt are alike, so groups are drawn and not tokens (a cluster bootstrap). A mean is the ratio of two
sums over the groups drawn: a group counts by its targets (tokens, or examples). All models are measured on the same
draws.

The interval is the *expanded percentile* interval (Hesterberg 2015, "What Teachers Should Know About the Bootstrap",
§ 5.3): quantiles of the resampled means, at levels moved outwards by as much as Student's t is wider than the normal
law, √(G/(G−1))·t(G−1), because the plain percentiles are too narrow where groups are few. Asked for 95 %, with ten
skewed groups of unequal size, it covers 90 %, plain percentiles 85 % and BCa 83 % (the long test of this file).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, rankdata, t

from potstill.errors import DataError
from potstill.measures import Interval

FEW_GROUPS = 10
"""Below this many, even the expanded interval is too narrow, and a note says so."""

Values = NDArray[np.floating] | NDArray[np.bool_]
"""One number per target, or whether something is so."""

_CELLS_AT_ONCE = 4_000_000


class PairedBootstrap:
    """Intervals over one set of targets; every call sees the same draws.

    Args:
        groups: the group of each target [N].
        resamples: how many draws of G groups.
        confidence: of the intervals.
        seed: what the draws depend on.

    Raises:
        DataError: fewer than two groups: there is nothing to draw from, and no number goes without its error.
    """

    def __init__(self, groups: Sequence[str], *, resamples: int, confidence: float, seed: int) -> None:
        names, self._group_of_target = np.unique(np.asarray(groups, dtype=np.str_), return_inverse=True)
        self.groups = len(names)
        if self.groups < 2:
            raise DataError(
                f"an interval needs two held-out groups at least, and there are {self.groups}",
                where="data.held_out",
                fix="hold out a larger share, or give more prompts",
            )
        self.resamples, self.seed = resamples, seed
        self.levels = expanded_levels(confidence, self.groups)
        self._targets = self._sums(np.ones(len(self._group_of_target)))

    def mean(self, values: Values) -> Interval:
        """The mean of one value per target [N], with its interval."""
        sums = self._sums(values)
        low, high = np.quantile(self._resampled_means(sums), self.levels)
        return Interval(float(sums.sum() / self._targets.sum()), float(low), float(high))

    def difference(self, values: Values, against: Values) -> Interval:
        """Mean of `values` minus mean of `against`, over the same targets [N]."""
        return self.mean(np.asarray(values, dtype=np.float64) - np.asarray(against, dtype=np.float64))

    def ratio(self, values: Values, against: Values) -> Interval:
        """Mean of `values` divided by mean of `against`, over the same targets [N], neither of them below 0. Where a
        draw's denominator is 0, its ratio is infinite."""
        above, below = self._sums(values), self._sums(against)
        with np.errstate(divide="ignore", invalid="ignore"):
            drawn = self._resampled_means(above) / self._resampled_means(below)
            value = float(np.float64(above.sum()) / below.sum())
        # Between a number and infinity there is nothing to interpolate.
        method: Literal["linear", "inverted_cdf"] = "linear" if np.isfinite(drawn).all() else "inverted_cdf"
        low, high = np.quantile(np.where(np.isnan(drawn), np.inf, drawn), self.levels, method=method)
        return Interval(value, float(low), float(high))

    def _sums(self, values: Values) -> NDArray[np.float64]:
        """Per group [G]."""
        return np.bincount(self._group_of_target, weights=values, minlength=self.groups).astype(np.float64)

    def _resampled_means(self, sums: NDArray[np.float64]) -> NDArray[np.float64]:
        """[resamples]. How often each group is drawn is multinomial; the draws are made anew each time, from the same
        seed, rather than kept."""
        random = np.random.default_rng(self.seed)
        even = np.full(self.groups, 1 / self.groups)
        at_once = max(1, _CELLS_AT_ONCE // self.groups)
        means = []
        for start in range(0, self.resamples, at_once):
            drawn = random.multinomial(self.groups, even, size=min(at_once, self.resamples - start)).astype(np.float64)
            means.append((drawn @ sums) / (drawn @ self._targets))
        return np.concatenate(means)


def rank_correlation(a: Values, b: Values, *, resamples: int, confidence: float, seed: int) -> Interval | None:
    """Spearman's correlation of two values per unit [P], with an interval over resamples of the units, which must not
    depend on each other. None where it is not defined: fewer than three units, or one side all equal."""
    units = len(a)
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if units < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    random = np.random.default_rng(seed)
    found = []
    for _ in range(resamples):
        drawn = random.integers(0, units, units)
        found.append(_spearman(a[drawn], b[drawn]))
    low, high = np.nanquantile(found, expanded_levels(confidence, units))
    return Interval(_spearman(a, b), float(low), float(high))


def _spearman(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    ranks = [rankdata(side) - (len(a) + 1) / 2 for side in (a, b)]
    below = np.sqrt((ranks[0] @ ranks[0]) * (ranks[1] @ ranks[1]))
    return float(ranks[0] @ ranks[1] / below) if below > 0 else float("nan")


def expanded_levels(confidence: float, groups: int) -> tuple[float, float]:
    """The quantiles that bound an interval: Φ(∓√(G/(G−1))·t), t of Student's law with G−1 degrees of freedom."""
    reach = np.sqrt(groups / (groups - 1)) * t.ppf((1 + confidence) / 2, groups - 1)
    return float(norm.cdf(-reach)), float(norm.cdf(reach))
