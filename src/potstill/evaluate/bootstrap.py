"""Confidence intervals of statistics over held-out targets: by group, paired between models, and over training seeds.
No torch.

Tokens of one prompt are correlated, so groups are resampled, not tokens (a cluster bootstrap). Every statistic is a
function of sums over the drawn groups: a mean is Σ values ÷ Σ targets, a calibration error a function of the sums of
its bins. All statistics use the same draws.

**Over groups**, an interval is the studentised bootstrap's (Davison & Hinkley 1997, § 5.2.1) with the jackknife's
standard error. Its tails are α/2 · E/(E + 20), E being the effective number of groups (Kish 1965), (Σ sizes)² ÷ Σ
sizes²: few groups seldom hold the largest losses that there are, and at α/2 the interval covers 88 to 93 % of skewed
ones with 30 groups. The 20 was chosen on worlds of log-normal, gamma and |t| losses (`docs/log.md`), of which
`benchmarks.coverage` keeps three.

Where fewer than eight groups differ from the most common group mean (a rare event; two models that seldom disagree),
some draws have none of them, and a studentised end is then anything. Such a share has Wilson's interval, for as many
independent targets as have its standard error, or fewer: how alike the targets of a group are is not known from k
groups that differ. Of the variance, 1/(2k + 1) is therefore that of groups that are wholly alike (`docs/log.md` has the
coverage). Any other such mean has Student's interval.

Where no group differs, the next one may: with G groups, up to a share 1 − (α/2)^(1/G) of all (Clopper & Pearson 1934),
which may have the smallest or the largest value that the statistic can have.

A statistic that takes signs from noise (debiased ECE) has Student's interval with an error of its own (`Roughness`).

Percentile intervals, BCa included, are too narrow for skewed losses of few groups: asked for 95 %, they cover 83 to
91 % at 20 groups. `docs/evaluate.md` has the coverage of both, and the tests of this file measure it.

**Over seeds** (`train.seeds`), the variance of the mean over the seeds is added to that over groups, end by end, with
Satterthwaite's degrees of freedom (1946). With two seeds these are too few (it covers 87 %), and the half widths of two
intervals are added in quadrature instead (MOVER; Zou & Donner 2008), which covers 96 to 99 %: that over groups, of the
statistic averaged over the seeds, and Student's over the seeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.stats import norm, rankdata, t

from potstill.errors import DataError
from potstill.measures import Interval

FEW_GROUPS = 20
"""Below this number of groups, intervals of skewed losses cover less than stated, and a note says so."""

Values = NDArray[np.floating] | NDArray[np.bool_] | NDArray[np.integer]
"""One number, or one boolean, per target."""

Floats = NDArray[np.float64]
Bounds = tuple[float, float]
UNBOUNDED: Bounds = (-np.inf, np.inf)
NOT_NEGATIVE: Bounds = (0.0, np.inf)
SHARE: Bounds = (0.0, 1.0)

_FEW_THAT_DIFFER = 8
"""The studentised bootstrap needs this many groups that differ from the others: a draw has none of eight in 3 of 10,000
cases."""
_WIDENED = 20
"""At this effective number of groups the tails of the studentised bootstrap are half of what is asked for."""
_CELLS_AT_ONCE = 4_000_000
_CELLS_KEPT = 16_000_000
"""Draws of up to this many counts are kept, mostly of one byte each."""
_STEP = 1e-6
"""Relative step of numeric gradients."""


@dataclass(frozen=True)
class Roughness:
    """What the delta method does not see of a statistic.

    Attributes:
        factor: by which its variance exceeds that of the delta method; NaN where it cannot be known.
        below: how far the truth may lie below the statistic's mean.
        above: how far it may lie above it.
    """

    factor: float
    below: float = 0.0
    above: float = 0.0


@dataclass(frozen=True)
class Statistic:
    """A statistic of per-group sums.

    Attributes:
        columns: K values per target [N, K], dense or sparse; they are summed over the targets of each group.
        of: from sums [..., K] to the statistic [...]. It must be invariant to a common factor of all sums.
        gradient: from sums [..., K] to ∂of/∂sums [..., K]; None for a numeric gradient.
        bounds: its smallest and largest possible value.
        values: one value per target [N] if the statistic is their mean, else None.
        roughness: of a statistic that is no smooth function of sums, from the sums of each group [G, K].
    """

    columns: Floats | csr_array
    of: Callable[[Floats], Floats]
    gradient: Callable[[Floats], Floats] | None = None
    bounds: Bounds = UNBOUNDED
    values: Floats | None = None
    roughness: Callable[[Floats], Roughness] | None = None


@dataclass(frozen=True)
class Ranks:
    """Spearman's correlation of two values per unit [P]. Units must be independent, and are resampled individually."""

    a: Values
    b: Values


def mean_of(values: Values, bounds: Bounds | None = None) -> Statistic:
    """The mean of one value per target [N]. The mean of booleans is a share, with bounds 0 and 1."""
    if bounds is None:
        bounds = SHARE if np.asarray(values).dtype == np.bool_ else UNBOUNDED
    column = np.asarray(values, dtype=np.float64)
    return Statistic(np.stack([column, np.ones_like(column)], -1), _quotient, _quotient_gradient, bounds, column)


def ratio_of(values: Values, against: Values) -> Statistic:
    """Mean of `values` ÷ mean of `against`, both non-negative; infinite if the denominator is 0."""
    columns = np.stack([np.asarray(values, dtype=np.float64), np.asarray(against, dtype=np.float64)], -1)
    return Statistic(columns, _quotient, _quotient_gradient, (0.0, np.inf))


def difference_of(left: Statistic, right: Statistic) -> Statistic:
    """`left` minus `right`, over the same targets."""
    (low, high), (other_low, other_high) = left.bounds, right.bounds
    bounds = (low - other_high, high - other_low)
    if left.values is not None and right.values is not None:
        return mean_of(left.values - right.values, bounds)
    return _combined((left, right), (1.0, -1.0), bounds)


def within(statistic: Statistic, inside: NDArray[np.bool_]) -> Statistic:
    """The same statistic of some of the targets [N], which stand beside the others for the sake of their groups: with
    it, statistics of seeds that have targets of their own can be averaged."""
    if inside.all():
        return statistic
    columns = statistic.columns
    if isinstance(columns, csr_array):
        return replace(statistic, columns=csr_array(columns.multiply(inside[:, None])), values=None)
    return replace(statistic, columns=columns * inside[:, None], values=None)


def average_of(several: Sequence[Statistic]) -> Statistic:
    """The mean of several statistics over the same targets (of students with different seeds, say)."""
    if len(several) == 1:
        return several[0]
    means = [one.values for one in several if one.values is not None]
    if len(means) == len(several):
        return mean_of(np.mean(means, axis=0), several[0].bounds)
    return _combined(several, [1 / len(several)] * len(several), several[0].bounds)


def _combined(parts: Sequence[Statistic], weights: Sequence[float], bounds: Bounds) -> Statistic:
    """A weighted sum of statistics, as one statistic of all their columns."""
    ends = np.cumsum([0, *(part.columns.shape[1] for part in parts)])
    slices = [slice(begin, end) for begin, end in pairwise(ends)]

    def of(sums: Floats) -> Floats:
        found = [w * part.of(sums[..., s]) for part, w, s in zip(parts, weights, slices, strict=True)]
        return np.asarray(sum(found))

    def gradient(sums: Floats) -> Floats:
        found = [w * _gradient(part, sums[..., s]) for part, w, s in zip(parts, weights, slices, strict=True)]
        return np.concatenate(found, -1)

    def roughness(sums: Floats) -> Roughness:
        factor, below, above = 1.0, 0.0, 0.0
        for part, weight, at in zip(parts, weights, slices, strict=True):
            found = Roughness(1.0) if part.roughness is None else part.roughness(sums[:, at])
            down, up = (found.below, found.above) if weight > 0 else (found.above, found.below)
            factor = float(np.maximum(factor, found.factor))
            below, above = below + abs(weight) * down, above + abs(weight) * up
        return Roughness(factor, below, above)

    rough = roughness if any(part.roughness is not None for part in parts) else None
    if any(isinstance(part.columns, csr_array) for part in parts):
        from scipy.sparse import hstack

        columns = csr_array(hstack([csr_array(part.columns) for part in parts]))
        return Statistic(columns, of, gradient, bounds, roughness=rough)
    return Statistic(np.concatenate([part.columns for part in parts], -1), of, gradient, bounds, roughness=rough)


def _quotient(sums: Floats) -> Floats:
    with np.errstate(divide="ignore", invalid="ignore"):
        found = sums[..., 0] / sums[..., 1]
    # Like 1 ÷ 0, 0 ÷ 0 is infinite.
    return np.where(np.isnan(found) & ~np.isnan(sums[..., 0]), np.inf, found)


def _quotient_gradient(sums: Floats) -> Floats:
    with np.errstate(divide="ignore", invalid="ignore"):
        inverse = 1 / sums[..., 1]
        return np.stack([inverse, -sums[..., 0] * inverse**2], -1)


def _gradient(statistic: Statistic, sums: Floats) -> Floats:
    """∂of/∂sums [..., K]."""
    if statistic.gradient is not None:
        return statistic.gradient(sums)
    found = np.empty_like(sums)
    steps = _STEP * np.maximum(np.abs(sums), 1e-3 * np.abs(sums).max(-1, keepdims=True))
    for k in range(sums.shape[-1]):
        step = steps[..., k]
        up, down = sums.copy(), sums.copy()
        up[..., k] += step
        down[..., k] -= step
        with np.errstate(divide="ignore", invalid="ignore"):
            found[..., k] = np.where(step > 0, (statistic.of(up) - statistic.of(down)) / (2 * step), 0.0)
    return found


def _is_share(statistic: Statistic) -> bool:
    """Whether it is a share of targets, or the mean of such shares over seeds: one value in [0, 1] per target."""
    return statistic.bounds == SHARE and statistic.values is not None


def _few_that_differ(sums: Floats) -> int | None:
    """How many groups differ from the most common group mean, if several groups have that and fewer than eight
    differ."""
    _, counts = np.unique(sums[:, 0] / sums[:, 1], return_counts=True)
    differ = int(len(sums) - counts.max())
    return differ if counts.max() > 1 and differ < _FEW_THAT_DIFFER else None


def _wilson(share: float, targets: float, t: float) -> Interval:
    """Wilson's interval (1927) of a share of so many independent targets."""
    weight = t**2 / (targets + t**2)
    middle = (1 - weight) * share + weight / 2
    reach = t * math.sqrt(share * (1 - share) * targets + t**2 / 4) / (targets + t**2)
    return Interval(share, max(0.0, middle - reach), min(1.0, middle + reach))


class PairedBootstrap:
    """Intervals over one set of targets; all calls use the same draws.

    Args:
        groups: the group of each target [N].
        resamples: number of draws of G groups.
        confidence: of the intervals.
        seed: of the draws.

    Raises:
        DataError: fewer than two groups: no interval is possible, and no figure is given without one.
    """

    def __init__(self, groups: Sequence[str], *, resamples: int, confidence: float, seed: int) -> None:
        # A dictionary takes a tenth of the time of sorting a million names.
        numbers = {name: number for number, name in enumerate(sorted(set(groups)))}
        self._group_of_target = np.fromiter(map(numbers.__getitem__, groups), np.int64, len(groups))
        self.groups = len(numbers)
        if self.groups < 2:
            raise DataError(
                f"an interval needs two held-out groups at least, and there are {self.groups}",
                where="data.held_out",
                fix="hold out a larger share, or give more prompts",
            )
        sizes = np.bincount(self._group_of_target).astype(np.float64)
        self.effective_groups = float(sizes.sum() ** 2 / np.square(sizes).sum())
        self.resamples, self.seed, self.confidence = resamples, seed, confidence
        self._kept: list[NDArray[np.unsignedinteger]] | None = None
        self._t = float(t.ppf((1 + confidence) / 2, self.groups - 1))

    # ---- statistics ----------------------------------------------------------------------------------------------

    def interval(self, statistics: Statistic | Sequence[Statistic]) -> Interval:
        """A statistic with its interval. For several statistics, one for each seed, their mean, with an interval that
        includes the variation over seeds.

        Raises:
            ValueError: no statistic.
        """
        several = [statistics] if isinstance(statistics, Statistic) else list(statistics)
        if not several:
            raise ValueError("an interval of no statistic")
        averaged = average_of(several)
        found = self._over_groups(averaged)
        if len(several) > 1:
            values = [self.value(one) for one in several]
            found = _over_seeds(found, values, self.confidence, self.groups - 1)
        low, high = averaged.bounds
        return Interval(found.value, max(found.low, low), min(found.high, high))

    def value(self, statistic: Statistic) -> float:
        """A statistic of all targets, without an interval."""
        return float(statistic.of(np.asarray(self._sums(statistic).sum(0))))

    def sums_of(self, values: Values) -> Floats:
        """The sum of one value per target [N] over each group [G]."""
        column = np.asarray(values, dtype=np.float64)
        return np.bincount(self._group_of_target, column, self.groups).astype(np.float64)

    def error(self, statistic: Statistic) -> float:
        """The jackknife's standard error over groups."""
        sums = self._sums(statistic)
        left_out = self._jackknife(statistic, sums, np.asarray(sums.sum(0)))
        return float(np.sqrt(np.square(left_out - left_out.mean()).sum() * (self.groups - 1) / self.groups))

    def rank_correlation(self, several: Sequence[Ranks]) -> Interval | None:
        """The correlation, with an interval over units instead of groups; for several seeds the mean, with an interval
        that includes the variation over seeds (its half widths over units are the means of the seeds', which is never
        too narrow). None if undefined."""
        one_by_one = [
            rank_correlation(ranks.a, ranks.b, resamples=self.resamples, confidence=self.confidence, seed=self.seed)
            for ranks in several
        ]
        found = [interval for interval in one_by_one if interval is not None]
        if len(found) < len(several):
            return None
        value, low, high = np.mean([(i.value, i.low, i.high) for i in found], axis=0).tolist()
        if len(found) == 1:
            return found[0]
        units = min(len(ranks.a) for ranks in several)
        over = _over_seeds(Interval(value, low, high), [i.value for i in found], self.confidence, units - 1)
        return Interval(value, max(over.low, -1.0), min(over.high, 1.0))

    def mean(self, values: Values, bounds: Bounds | None = None) -> Interval:
        """The mean of one value per target [N], with its interval."""
        return self.interval(mean_of(values, bounds))

    def difference(self, values: Values, against: Values) -> Interval:
        """Mean of `values` minus mean of `against`, over the same targets [N]."""
        return self.interval(difference_of(mean_of(values), mean_of(against)))

    def ratio(self, values: Values, against: Values) -> Interval:
        """Mean of `values` divided by mean of `against`, over the same targets [N], both non-negative. A draw whose
        denominator is 0 has an infinite ratio."""
        return self.interval(ratio_of(values, against))

    # ---- over groups ---------------------------------------------------------------------------------------------

    def _over_groups(self, statistic: Statistic) -> Interval:
        sums = self._sums(statistic)
        total = sums.sum(0)
        value = float(statistic.of(total))
        influence = sums @ _gradient(statistic, total)
        error = float(np.sqrt(np.square(influence).sum() * self.groups / (self.groups - 1)))
        left_out = self._jackknife(statistic, sums, total)
        if not np.isfinite([value, error]).all() or not np.isfinite(left_out).all():
            return self._percentiles(statistic, sums, value)
        jackknife = float(np.sqrt(np.square(left_out - left_out.mean()).sum() * (self.groups - 1) / self.groups))
        if error <= 1e-12 * max(abs(value), 1e-300) and jackknife <= 1e-12 * max(abs(value), 1e-300):
            return _without_variation(value, statistic.bounds, self.confidence, self.groups)
        if statistic.roughness is not None and math.isfinite((rough := statistic.roughness(sums)).factor):
            reach = self._t * math.sqrt(rough.factor) * error
            return Interval(value, value - reach - rough.below, value + reach + rough.above)
        if statistic.values is not None and (differ := _few_that_differ(sums)) is not None:
            if not _is_share(statistic):
                return Interval(value, value - self._t * jackknife, value + self._t * jackknife)
            return _wilson(value, self._independent(value, jackknife, float(sums[:, 1].sum()), differ), self._t)
        drawn, variances = self._studentised(statistic, sums, total, value, influence)
        if not np.isfinite(drawn).all():
            return self._percentiles(statistic, sums, value)
        # A draw of identical groups has no variance; its standard error is at least 1/G of that of the whole.
        errors = np.sqrt(np.maximum(variances, np.square(error / self.groups)))
        tail = (1 - self.confidence) / 2 * self.effective_groups / (self.effective_groups + _WIDENED)
        # Of R draws the quantile p is the one in place (R + 1)·p, which is below what is estimated with probability p.
        low, high = np.quantile((drawn - value) / np.maximum(errors, 1e-300), (tail, 1 - tail), method="weibull")
        return Interval(value, value - max(0.0, float(high)) * jackknife, value + max(0.0, -float(low)) * jackknife)

    def _independent(self, share: float, error: float, targets: float, differ: int) -> float:
        """How many independent targets a share with this standard error is worth, if so few groups differ: between
        those that have this error and, with a weight of 1/(2 · differ + 1), one for each group."""
        seen = min(targets, share * (1 - share) / error**2)
        weight = 1 / (2 * differ + 1)
        return 1 / (weight / min(self.effective_groups, seen) + (1 - weight) / seen)

    def _jackknife(self, statistic: Statistic, sums: Any, total: Floats) -> Floats:
        """The statistic without each group [G]."""
        found = []
        for start in range(0, self.groups, max(1, _CELLS_AT_ONCE // len(total))):
            part = sums[start : start + max(1, _CELLS_AT_ONCE // len(total))]
            found.append(statistic.of(total - (part.toarray() if isinstance(part, csr_array) else part)))
        return np.concatenate(found)

    def _studentised(
        self, statistic: Statistic, sums: Any, total: Floats, value: float, influence: Floats
    ) -> tuple[Floats, Floats]:
        """The statistic of each draw [resamples], and its variance there by the delta method."""
        drawn, variances = [], []
        scale = self.groups / (self.groups - 1)
        # A mean has few sums, so squares are cheap: influence e and targets n, divided by all targets.
        targets = sums[:, 1] / total[1] if statistic.values is not None else None
        products = None if targets is None else np.stack([influence**2, influence * targets, targets**2], -1)
        for counts in self._draws():
            drawn_sums = np.asarray((sums.T @ counts.T).T)
            found = statistic.of(drawn_sums)
            drawn.append(found)
            if products is not None and targets is not None:
                away = found - value
                squares = counts @ products
                part = squares[:, 0] - 2 * away * squares[:, 1] + away**2 * squares[:, 2]
                variances.append(scale * np.maximum(part, 0) / np.square(counts @ targets))
            else:
                gradients = _gradient(statistic, drawn_sums)
                variances.append(scale * (counts * np.square((sums @ gradients.T).T)).sum(1))
        return np.concatenate(drawn), np.concatenate(variances)

    def _percentiles(self, statistic: Statistic, sums: Any, value: float) -> Interval:
        """Expanded percentiles, for statistics that can be infinite and have no standard error."""
        drawn = np.concatenate([statistic.of(np.asarray((sums.T @ counts.T).T)) for counts in self._draws()])
        # Between a number and infinity no interpolation is possible.
        method: Literal["linear", "inverted_cdf"] = "linear" if np.isfinite(drawn).all() else "inverted_cdf"
        levels = expanded_levels(self.confidence, self.groups)
        low, high = np.quantile(np.where(np.isnan(drawn), np.inf, drawn), levels, method=method)
        return Interval(value, float(low), float(high))

    def _sums(self, statistic: Statistic) -> Any:
        """Sums per group [G, K]; sparse if the columns are."""
        columns = statistic.columns
        if isinstance(columns, csr_array):
            targets = len(self._group_of_target)
            chosen = csr_array(
                (np.ones(targets), (self._group_of_target, np.arange(targets))), shape=(self.groups, targets)
            )
            return csr_array(chosen @ columns)
        return np.stack(
            [np.bincount(self._group_of_target, weights=column, minlength=self.groups) for column in columns.T], -1
        )

    def _draws(self) -> Iterator[Floats]:
        """The count of each group in each draw [≤ resamples, G]: multinomial. They are kept, in the smallest integers
        that hold them, unless they are many: then they are generated anew each time from the same seed."""
        if self._kept is not None:
            yield from (counts.astype(np.float64) for counts in self._kept)
            return
        kept: list[NDArray[np.unsignedinteger]] | None = [] if self.groups * self.resamples <= _CELLS_KEPT else None
        random = np.random.default_rng(self.seed)
        even = np.full(self.groups, 1 / self.groups)
        at_once = max(1, _CELLS_AT_ONCE // self.groups)
        for start in range(0, self.resamples, at_once):
            counts = random.multinomial(self.groups, even, size=min(at_once, self.resamples - start))
            if kept is not None:
                kept.append(counts.astype(np.min_scalar_type(int(counts.max()))))
            yield counts.astype(np.float64)
        self._kept = kept


def _without_variation(value: float, bounds: Bounds, confidence: float, groups: int) -> Interval:
    """The interval if all groups are equal. The next group may differ, with a probability of up to Clopper and
    Pearson's bound 1 − (α/2)^(1/G), and then be at either bound of the statistic. The interval of one without bounds is
    the value itself."""
    low, high = bounds
    if not math.isfinite(low) or not math.isfinite(high):
        return Interval(value, value, value)
    others = 1 - float(((1 - confidence) / 2) ** (1 / groups))
    return Interval(value, value - others * (value - low), value + others * (high - value))


def _over_seeds(found: Interval, values: Sequence[float], confidence: float, freedom: int) -> Interval:
    """Add the variation over seeds to an interval.

    Args:
        found: of the mean over the seeds, over groups or units.
        values: by seed, two at least.
        confidence: of both intervals.
        freedom: degrees of freedom of the standard error over groups or units.
    """
    level, count = (1 + confidence) / 2, len(values)
    of_seeds = float(np.var(values, ddof=1)) / count

    def reach(of_groups: float) -> float:
        if of_seeds == 0 or not math.isfinite(of_groups):
            return of_groups
        if count == 2:
            return math.hypot(of_groups, float(t.ppf(level, 1)) * math.sqrt(of_seeds))
        variance = (of_groups / float(t.ppf(level, freedom))) ** 2
        both = variance + of_seeds
        satterthwaite = both**2 / (variance**2 / freedom + of_seeds**2 / (count - 1))
        return float(t.ppf(level, satterthwaite)) * math.sqrt(both)

    return Interval(
        found.value, found.value - reach(found.value - found.low), found.value + reach(found.high - found.value)
    )


def rank_correlation(a: Values, b: Values, *, resamples: int, confidence: float, seed: int) -> Interval | None:
    """Spearman's correlation of two values per unit [P], with an interval over resamples of the units, which must be
    independent (expanded percentiles). None if undefined: fewer than three units, or one side constant."""
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


def _spearman(a: Floats, b: Floats) -> float:
    ranks = [rankdata(side) - (len(a) + 1) / 2 for side in (a, b)]
    below = np.sqrt((ranks[0] @ ranks[0]) * (ranks[1] @ ranks[1]))
    return float(ranks[0] @ ranks[1] / below) if below > 0 else float("nan")


def expanded_levels(confidence: float, groups: int) -> tuple[float, float]:
    """The quantiles of an expanded percentile interval (Hesterberg 2015, § 5.3): Φ(∓√(G/(G−1))·t), with t from
    Student's distribution with G−1 degrees of freedom."""
    reach = np.sqrt(groups / (groups - 1)) * t.ppf((1 + confidence) / 2, groups - 1)
    return float(norm.cdf(-reach)), float(norm.cdf(reach))
