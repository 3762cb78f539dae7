"""How small a student may be: a law of size and data, fitted to the runs of a sweep.

    L(N, D) = E + A / N^α + B / D^β

with L the loss of a run on held-out records (KL to the teacher, or NLL), N the student's parameters and D the tokens it
was trained on (Hoffmann et al. 2022, arXiv 2203.15556, eq. 2; for distilled students Busbridge et al. 2025, arXiv
2502.08606). The law is fitted without the largest run, which says whether it predicts; then to all runs, from which the
answers are taken. Where it does not predict, or an answer lies far from what was run, there is no answer but the run
that would give one.

Pure functions of numbers; no torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from potstill.measures import Interval
from potstill.report.figures import large

LEAST_RUNS = 8
"""Fewer do not fix five unknowns and leave one run to predict."""
FARTHEST = 2.0
"""An answer may lie this many times outside the sizes that were run."""
_POWERS = (0.02, 6.0)
_STARTS = ((0.0, 0.5, 0.5), (0.5, 1.0, 1.0), (0.9, 0.3, 1.5), (0.9, 1.5, 0.3))
"""Where the search begins: share of the least loss that is the floor, α, β."""


@dataclass(frozen=True)
class Point:
    """One run: parameters of the student, tokens that it was trained on, loss on held-out records (positive)."""

    parameters: float
    tokens: float
    loss: float


@dataclass(frozen=True)
class Law:
    """E + a · (N / N₀)^−α + b · (D / D₀)^−β. With N₀ and D₀ the geometric means of the runs, a and b are losses: what
    a student of the middle size loses for its size, and for its data. `size_loss` or `data_loss` is 0 where all runs
    have one size, or one amount of data; the floor E then contains that term."""

    floor: float
    size_loss: float
    size_power: float
    data_loss: float
    data_power: float
    parameters: float
    tokens: float

    def loss(self, parameters: float, tokens: float) -> float:
        """The loss that the law predicts."""
        of_size = self.size_loss * math.pow(parameters / self.parameters, -self.size_power)
        return self.floor + of_size + self.of_data(tokens)

    def of_data(self, tokens: float) -> float:
        """The part of the loss that more data would take away."""
        return self.data_loss * math.pow(tokens / self.tokens, -self.data_power)

    def smallest(self, loss: float, tokens: float) -> float:
        """Parameters of the smallest student with at most this loss from so many tokens; infinite where no size has
        it, 0 where any has."""
        left = loss - self.floor - self.of_data(tokens)
        if self.size_loss == 0:
            return 0.0 if left >= 0 else math.inf
        if left <= 0:
            return math.inf
        return self.parameters * math.exp(math.log(self.size_loss / left) / self.size_power)


@dataclass(frozen=True)
class Fit:
    """A law with its uncertainty.

    Attributes:
        law: fitted to all runs.
        draws: laws of bootstrap resamples of the residuals.
        held_out: the largest run, which `predicted` is the loss of, by the law of all others.
        predicted: with its bootstrap interval.
        predicts: whether the prediction is as near as `tolerance`, in relative terms.
        largest: parameters that no student may have more of: its teacher's.
        unit: what data are counted in.
    """

    points: tuple[Point, ...]
    law: Law
    draws: tuple[Law, ...]
    held_out: Point
    predicted: Interval
    tolerance: float
    confidence: float
    largest: float = math.inf
    unit: str = "tokens"

    @property
    def error(self) -> float:
        """Of the prediction of the largest run, relative to its loss."""
        return self.predicted.value / self.held_out.loss - 1

    @property
    def predicts(self) -> bool:
        """Whether that error is within the tolerance."""
        return abs(self.error) <= self.tolerance

    def interval(self, of: Callable[[Law], float]) -> Interval:
        """A figure of the law, with the percentiles of the draws."""
        return _interval(of, self.law, self.draws, self.confidence)


@dataclass(frozen=True)
class Abstention:
    """Why there is no answer, and the run that would help most: parameters and tokens (None: more than one run)."""

    why: str
    run: tuple[float, float] | None = None


def fit_capacity(
    points: Sequence[Point],
    *,
    tolerance: float = 0.1,
    confidence: float = 0.95,
    draws: int = 200,
    seed: int = 0,
    largest: float = math.inf,
    unit: str = "tokens",
) -> Fit | Abstention:
    """Fits the law, or says what is missing.

    Args:
        points: one a run; runs that differ by their seed alone are points of their own.
        tolerance: largest relative error of the held-out prediction with which the law counts as predicting.
        draws: bootstrap resamples.
        largest: parameters of the teacher: no larger student is proposed.
        unit: what data are counted in.
    """
    sizes, amounts = sorted({p.parameters for p in points}), sorted({p.tokens for p in points})
    if without := sum(not (math.isfinite(p.loss) and p.loss > 0) for p in points):
        return Abstention(f"{_count(without, 'run')} of {len(points)} lost nothing: a law needs losses above 0")
    if len(points) < LEAST_RUNS + 1:
        return Abstention(f"{len(points)} runs are too few for a law: {LEAST_RUNS + 1} or more are needed")
    if len(sizes) < 3:
        return Abstention(
            f"{_count(len(sizes), 'size')} of students cannot show a curve: three or more are needed",
            _run_of_another_size(sizes, amounts[-1], largest),
        )
    if len(amounts) == 2:
        return Abstention(
            "two amounts of data cannot show a curve: one, or three or more", (sizes[-1], _beyond(amounts))
        )
    last = max(points, key=lambda p: (p.parameters * p.tokens, p.parameters))
    kept = [p for p in points if (p.parameters, p.tokens) != (last.parameters, last.tokens)]
    there = [p.loss for p in points if p not in kept]
    held_out = Point(last.parameters, last.tokens, math.fsum(there) / len(there))
    if len({p.parameters for p in kept}) < 3 or len({p.tokens for p in kept}) == 2:
        return Abstention(
            "the law is fitted without the largest run, and then has too few sizes or amounts of data",
            _run_of_another_size(sizes, amounts[-1], largest),
        )
    random = np.random.default_rng(seed)
    first = _fit(kept)
    first_draws = _bootstrap(first, kept, draws, random)
    predicted = _interval(lambda law: law.loss(held_out.parameters, held_out.tokens), first, first_draws, confidence)
    law = _fit(points)
    drawn = _bootstrap(law, points, draws, random)
    return Fit(tuple(points), law, drawn, held_out, predicted, tolerance, confidence, largest, unit)


def smallest_student(fit: Fit, loss: float, tokens: float) -> Interval | Abstention:
    """Parameters of the smallest student with at most this loss from so many tokens, with its interval."""
    sizes, amounts = [p.parameters for p in fit.points], [p.tokens for p in fit.points]
    if not fit.predicts:
        return Abstention(
            f"the law misses the largest run by {fit.error:+.0%}: it predicts {fit.predicted.value:.3g}, "
            f"and {fit.held_out.loss:.3g} was measured",
            next_run(fit),
        )
    if not min(amounts) / FARTHEST <= tokens <= max(amounts) * FARTHEST:
        return Abstention(
            f"{tokens:,.0f} {fit.unit} are far from what was run ({min(amounts):,.0f} to {max(amounts):,.0f})",
            (max(sizes), tokens),
        )
    found = fit.interval(lambda law: law.smallest(loss, tokens))
    if math.isinf(found.value):
        least = fit.law.floor + fit.law.of_data(tokens)
        return Abstention(
            f"no size reaches {loss:.3g} with {tokens:,.0f} {fit.unit}: by this law the best students end at "
            f"{least:.3g}",
            (max(sizes), max(amounts) * FARTHEST),
        )
    low, high = min(sizes) / FARTHEST, min(max(sizes) * FARTHEST, fit.largest)
    if not low <= found.value <= high:
        nearest = min(max(found.value, low), high)
        return Abstention(
            f"the answer, {large(found.value)} parameters, is far from what was run "
            f"({large(min(sizes))} to {large(max(sizes))})",
            (nearest, tokens),
        )
    if found.high > high:
        return Abstention(
            f"the answer, {large(found.value)} parameters, has no upper end: its interval reaches beyond {large(high)}",
            (max(sizes), tokens),
        )
    return found


def next_run(fit: Fit) -> tuple[float, float]:
    """The run, at the edge of those that were done, on whose loss the resampled laws disagree most."""
    sizes, amounts = sorted({p.parameters for p in fit.points}), sorted({p.tokens for p in fit.points})
    some = len(amounts) > 1
    candidates = [
        (size, amount)
        for size in (sizes[0] / FARTHEST, *sizes, _beyond(sizes))
        if size <= fit.largest
        for amount in ((amounts[0] / FARTHEST, *amounts, _beyond(amounts)) if some else amounts)
        if not any((p.parameters, p.tokens) == (size, amount) for p in fit.points)
    ]

    def spread(candidate: tuple[float, float]) -> float:
        return float(np.std([math.log(law.loss(*candidate)) for law in fit.draws]))

    # Where all students are much larger than the largest that makes sense, that size is what to try.
    return max(candidates, key=spread, default=(min(fit.largest, sizes[0]), amounts[-1]))


def _beyond(values: Sequence[float]) -> float:
    return values[-1] * FARTHEST


def _run_of_another_size(sizes: Sequence[float], tokens: float, largest: float) -> tuple[float, float]:
    """A run of a size that is not there yet: a larger one, or where that is more than a student may have, a smaller."""
    return (_beyond(sizes) if _beyond(sizes) <= largest else sizes[0] / FARTHEST, tokens)


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


# ---- the fit -----------------------------------------------------------------------------------------------------


def _fit(points: Sequence[Point], starts: Sequence[NDArray[np.float64]] | None = None) -> Law:
    """Least squares of log losses, Huber's loss as in Hoffmann et al. 2022, appendix D.3; the best of some starts."""
    sizes = np.array([p.parameters for p in points])
    amounts = np.array([p.tokens for p in points])
    losses = np.array([p.loss for p in points])
    middle_size, middle_amount = (float(np.exp(np.log(v).mean())) for v in (sizes, amounts))
    of_size, of_amount = np.log(sizes / middle_size), np.log(amounts / middle_amount)
    has_data = len(set(amounts.tolist())) > 1
    tiny = 1e-9 * float(losses.min())

    def predicted(x: NDArray[np.float64]) -> NDArray[np.float64]:
        made = np.exp(x[0]) + np.exp(x[1] - x[2] * of_size)
        found: NDArray[np.float64] = made + np.exp(x[3] - x[4] * of_amount) if has_data else made
        return found

    def residuals(x: NDArray[np.float64]) -> NDArray[np.float64]:
        found: NDArray[np.float64] = np.log(predicted(x)) - np.log(losses)
        return found

    top = math.log(float(losses.max()) * 10)
    low = np.array([math.log(tiny), math.log(tiny), _POWERS[0], math.log(tiny), _POWERS[0]])
    high = np.array([math.log(float(losses.min())), top, _POWERS[1], top, _POWERS[1]])
    middle = float(np.median(losses))
    guesses = starts or [
        np.array(
            [
                math.log(max(share * float(losses.min()), 10 * tiny)),
                math.log(max(middle - share * float(losses.min()), 10 * tiny) / (1 + has_data)),
                alpha,
                math.log(max(middle - share * float(losses.min()), 10 * tiny) / 2),
                beta,
            ]
        )
        for share, alpha, beta in _STARTS
    ]
    used = 5 if has_data else 3
    found = [
        least_squares(
            residuals,
            np.clip(guess[:used], low[:used] + 1e-9, high[:used] - 1e-9),
            bounds=(low[:used], high[:used]),
            loss="huber",
            f_scale=0.05,
        )
        for guess in guesses
    ]
    x = min(found, key=lambda result: float(result.cost)).x
    data = (float(np.exp(x[3])), float(x[4])) if has_data else (0.0, 1.0)
    return Law(float(np.exp(x[0])), float(np.exp(x[1])), float(x[2]), *data, middle_size, middle_amount)


def _bootstrap(law: Law, points: Sequence[Point], draws: int, random: np.random.Generator) -> tuple[Law, ...]:
    """Laws of losses with resampled residuals, of logarithms.

    Their scale is not known well from few runs: each draw has a scale of its own, √(ν / χ²_ν) with ν runs beyond the
    unknowns, as Student's t has. Without it intervals of 9 runs covered 82 % at a nominal 95.
    """
    unknowns = 5 if law.data_loss else 3
    free = max(1, len(points) - unknowns)
    fitted = np.array([law.loss(p.parameters, p.tokens) for p in points])
    residuals = np.log([p.loss for p in points]) - np.log(fitted)
    residuals = (residuals - residuals.mean()) * math.sqrt(len(points) / free)
    start = np.array(
        [
            math.log(max(law.floor, 1e-300)),
            math.log(max(law.size_loss, 1e-300)),
            law.size_power,
            math.log(max(law.data_loss, 1e-300)),
            law.data_power,
        ]
    )
    made = []
    for _ in range(draws):
        scale = math.sqrt(free / random.chisquare(free))
        losses = fitted * np.exp(scale * random.choice(residuals, len(points)))
        again = [Point(p.parameters, p.tokens, float(loss)) for p, loss in zip(points, losses, strict=True)]
        made.append(_fit(again, [start]))
    return tuple(made)


def _interval(of: Callable[[Law], float], law: Law, draws: Sequence[Law], confidence: float) -> Interval:
    values = [of(drawn) for drawn in draws]
    tail = (1 - confidence) / 2
    # By order, not by interpolation: some may be infinite.
    low, high = (float(np.quantile(values, q, method="nearest")) for q in (tail, 1 - tail))
    return Interval(of(law), low, high)
