"""One temperature for all logits: the one with the smallest NLL, and the NLL there, from the NLL at a few. No torch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline

from potstill.evaluate.bootstrap import Floats, Statistic, mean_of
from potstill.evaluate.scores import Scores

_FINE = 400
"""Number of temperatures, between the smallest and the largest, at which the fitted curve is evaluated."""


def temperature_of(scores: Scores) -> Statistic:
    """The temperature with the smallest mean NLL, by a cubic spline through the computed ones."""
    grid, columns = _grid(scores)
    logs = np.log(grid)
    fine = np.linspace(logs[0], logs[-1], _FINE)

    def of(sums: Floats) -> Floats:
        means = sums[..., :-1] / sums[..., -1:]
        curve = CubicSpline(logs, means, axis=-1)
        least = np.clip(curve(fine).argmin(-1), 1, _FINE - 2)
        # The vertex of the parabola through the smallest value and its neighbours.
        around = np.stack([np.take_along_axis(curve(fine), (least + d)[..., None], -1)[..., 0] for d in (-1, 0, 1)], -1)
        bend = around[..., 0] - 2 * around[..., 1] + around[..., 2]
        with np.errstate(invalid="ignore", divide="ignore"):
            shift = np.where(bend > 0, (around[..., 0] - around[..., 2]) / (2 * bend), 0.0)
        return np.asarray(np.exp(fine[least] + np.clip(shift, -1, 1) * (fine[1] - fine[0])))

    return Statistic(np.concatenate([columns, np.ones((len(columns), 1))], -1), of, None, (grid[0], grid[-1]))


def nll_at(scores: Scores, temperature: float) -> Floats:
    """The NLL of each target [N] at a temperature between the computed ones."""
    grid, columns = _grid(scores)
    return np.asarray(CubicSpline(np.log(grid), columns, axis=-1)(np.log(temperature)))


def gain_of(scores: Scores, temperature: float) -> Statistic:
    """Mean NLL at temperature 1 minus that at another temperature; nats."""
    grid, columns = _grid(scores)
    return mean_of(columns[:, int(np.flatnonzero(grid == 1.0)[0])] - nll_at(scores, temperature))


def part_of(scores: Scores, mask: NDArray[np.bool_]) -> Scores:
    """The NLL of some targets, at all temperatures."""
    if scores.nll is None:
        return scores
    return Scores(nll=scores.nll[mask], nll_at={t: values[mask] for t, values in scores.nll_at.items()})


def _grid(scores: Scores) -> tuple[Floats, Floats]:
    """The temperatures [K], with 1 among them, and the NLL at each [N, K]."""
    if scores.nll is None:
        raise ValueError("a temperature is fitted to losses, and there are none")
    known = {**scores.nll_at, 1.0: scores.nll}
    grid = np.array(sorted(known))
    return grid, np.stack([known[t].astype(np.float64) for t in grid.tolist()], -1)
