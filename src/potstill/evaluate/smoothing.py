"""A smooth curve through values per target, with a band: their mean at each place along a scale. No torch.

Local linear regression (Fan & Gijbels 1996, § 2.3) with a Gaussian kernel: at each place the intercept of a line that
is fitted to the targets near it. Unlike a moving mean it has no bias at the ends of the scale, where the rarest targets
are. The band is pointwise, by the same bootstrap over groups as every interval here.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from potstill.evaluate.bootstrap import Floats, PairedBootstrap, Statistic
from potstill.measures import Interval

PLACES = 13
"""How many places of the scale the curve is computed at."""
_EDGE = 0.01
"""The share of the targets that lies beyond the first place, and beyond the last."""
_FEW = 5.0
"""The least effective number of groups near a place, and of targets: with fewer it has no value."""


def places_of(x: Floats) -> Floats:
    """Evenly spaced places along a scale [≤ PLACES]; none if almost all values are equal."""
    low, high = np.quantile(x, (_EDGE, 1 - _EDGE))
    return np.linspace(low, high, PLACES) if high > low else np.empty(0)


def width_of(x: Floats, groups: int) -> float:
    """The kernel's standard deviation, by Silverman's rule (1986, eq. 3.31) for as many independent values as there are
    groups, but no less than the distance of two places."""
    low, high = np.quantile(x, (0.25, 0.75))
    spread = min(float(x.std()), float(high - low) / 1.349) or float(x.std())
    places = places_of(x)
    apart = float(places[1] - places[0]) if len(places) > 1 else 0.0
    return max(0.9 * spread * float(groups**-0.2), apart)


def local_linear(x: Floats, y: Floats, at: float, width: float) -> Statistic:
    """The value at one place, Σ-by-group: the intercept of the line through (x − at, y), weighted by a Gaussian kernel.

    Args:
        x: the place of each target [N].
        y: its value [N].
        at: the place.
        width: of the kernel.
    """
    from_here = (x - at) / width
    weight = np.exp(-(from_here**2) / 2)
    columns = np.stack([weight, weight * from_here, weight * from_here**2, weight * y, weight * from_here * y], -1)

    def of(sums: Floats) -> Floats:
        n, first, second, total, moment = np.moveaxis(sums, -1, 0)
        spread = n * second - first**2
        # Where all targets are at one place there is no line, but a mean.
        flat = spread <= 1e-9 * n * second
        with np.errstate(divide="ignore", invalid="ignore"):
            mean = total / n
            line = (second * total - first * moment) / np.where(flat, 1.0, spread)
        return np.asarray(np.where(flat, mean, line))

    return Statistic(columns, of)


def smooth(x: Floats, seeds: Sequence[Floats], bootstrap: PairedBootstrap) -> list[tuple[float, Interval]]:
    """The curve: places, and the value at each with its interval. Places with few groups near them are left out.

    Args:
        x: the place of each target [N].
        seeds: values of each target [N], one array for each training seed.
        bootstrap: over the groups of the targets.
    """
    width, made = width_of(x, bootstrap.groups), []
    for at in places_of(x).tolist():
        weights = bootstrap.sums_of(np.exp(-(((x - at) / width) ** 2) / 2))
        near = float(weights.sum() ** 2 / max(float(np.square(weights).sum()), 1e-300))  # Kish's effective number
        # Kish's number is of ratios: far from all targets, where every weight is next to nothing, it may be large.
        if near >= _FEW and float(weights.sum()) >= _FEW:
            made.append((at, bootstrap.interval([local_linear(x, y, at, width) for y in seeds])))
    return made
