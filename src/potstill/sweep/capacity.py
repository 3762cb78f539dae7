"""How small a student may be: a law of size and data, fitted to the runs of a sweep.

    L(N, D) = E + A / N^α + B / D^β

with L the loss of a run on held-out records (KL to the teacher, or NLL), N the student's parameters and D the tokens it
was trained on (Hoffmann et al. 2022, arXiv 2203.15556, eq. 2; for distilled students Busbridge et al. 2025, arXiv
2502.08606). That size and
data act each for itself is one form of it. In the joint form (Zhang et al. 2024, arXiv 2402.17193, eq. 1, for trained
models that are trained on) larger students gain more from data:

    L(N, D) = E + A / (N^α · D^β)

And a power grows without bound where N or D is small, while a loss begins at some S, that of a student that has learned
nothing, where short trainings leave it for a while. Either form may have that end as well (after Alabdulmohsin et al.
2022, arXiv 2209.06640, § 3, whose loss runs from one end to the other): 1 / S + 1 / L(N, D) is then the inverse of the
loss.

Which form it is, the runs say: the one that predicts each of them best from the others, the largest left out. The law
is then fitted without the largest run, which may refute it, as may runs that differ by their seed alone, if it misses
them by more than these differ; and to all runs, from which answers are taken. An answer is an interval; an end of it
that lies far from what was run is not given. Where the law is refuted, where a run shows what it denies, or where
neither end is known, there is no answer but the run that would give one.

Pure functions of numbers; no torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import f as f_distribution

from potstill.measures import Interval
from potstill.report.figures import large

Floats = NDArray[np.float64]

LEAST_RUNS = 8
"""Fewer do not fix five unknowns and leave one run to predict."""
FARTHEST = 2.0
"""An answer may lie this many times outside the sizes that were run."""
WIDEST = 10.0
"""An interval whose ends are more times apart than this says too little."""
_POWERS = (0.02, 6.0)
_HUBER = 0.05
"""Residuals of log losses count by their square up to this size."""
_FURTHEST_START = 100.0
"""S is at most this many times the largest loss: beyond, the second form is the first."""
_SURE = 0.01
"""The significance at which seeds refute a law."""
_STEPS = 200
_STARTS = ((0.0, 0.5, 0.5), (0.5, 1.0, 1.0), (0.9, 0.3, 1.5), (0.9, 1.5, 0.3))
"""Where the search begins: share of the least loss that is the floor, α, β."""


@dataclass(frozen=True)
class Point:
    """One run: parameters of the student, tokens that it was trained on, loss on held-out records (positive)."""

    parameters: float
    tokens: float
    loss: float


@dataclass(frozen=True)
class Form:
    """What a law looks like.

    Attributes:
        joint: size and data act together, as a product of powers; else each for itself, as a sum.
        starts: the loss begins at some S.
    """

    joint: bool = False
    starts: bool = False

    def __str__(self) -> str:
        """For a reader."""
        law = "E + A / (N^α · D^β)" if self.joint else "E + A / N^α + B / D^β"
        return f"1 / (1 / S + 1 / ({law}))" if self.starts else law


FORMS = (Form(), Form(joint=True), Form(starts=True), Form(joint=True, starts=True))


@dataclass(frozen=True)
class Law:
    """E + a · (N / N₀)^−α + b · (D / D₀)^−β. With N₀ and D₀ the geometric means of the runs, a and b are losses: what
    a student of the middle size loses for its size, and for its data. `size_loss` or `data_loss` is 0 where all runs
    have one size, or one amount of data; the floor E then contains that term. In the joint form there is but one term,
    `size_loss`. `start` is S, infinite in the forms without it."""

    floor: float
    size_loss: float
    size_power: float
    data_loss: float
    data_power: float
    parameters: float
    tokens: float
    start: float = math.inf
    joint: bool = False

    def loss(self, parameters: float, tokens: float) -> float:
        """The loss that the law predicts."""
        of_size = self._of_size(tokens) * math.pow(parameters / self.parameters, -self.size_power)
        return self._begun(self._without_size(tokens) + of_size)

    def end(self, tokens: float) -> float:
        """The loss of the best students from so many tokens, however large."""
        return self._begun(self._without_size(tokens))

    def _of_size(self, tokens: float) -> float:
        return self.size_loss * (math.pow(tokens / self.tokens, -self.data_power) if self.joint else 1.0)

    def _without_size(self, tokens: float) -> float:
        return self.floor + self.data_loss * math.pow(tokens / self.tokens, -self.data_power)

    def _begun(self, power_law: float) -> float:
        return 1 / (1 / self.start + 1 / power_law)

    def smallest(self, loss: float, tokens: float) -> float:
        """Parameters of the smallest student with at most this loss from so many tokens; infinite where no size has
        it, 0 where any has."""
        if loss >= self.start:
            return 0.0
        left = 1 / (1 / loss - 1 / self.start) - self._without_size(tokens)
        if self.size_loss == 0:
            return 0.0 if left >= 0 else math.inf
        if left <= 0:
            return math.inf
        return self.parameters * math.exp(math.log(self._of_size(tokens) / left) / self.size_power)


@dataclass(frozen=True)
class Fit:
    """A law with its uncertainty.

    Attributes:
        law: fitted to all runs.
        draws: laws of bootstrap resamples of the residuals.
        held_out: the largest run, which `predicted` is the loss of, by the law of all others.
        predicted: with its bootstrap interval, the noise of that run included.
        tolerance: relative error of the prediction that does not refute the law, whatever the interval.
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
    form: Form = FORMS[0]
    largest: float = math.inf
    unit: str = "tokens"

    @property
    def error(self) -> float:
        """Of the prediction of the largest run, relative to its loss."""
        return self.predicted.value / self.held_out.loss - 1

    @property
    def predicts(self) -> bool:
        """Whether the largest run does not refute the law: the prediction's interval holds it, or the error is within
        the tolerance."""
        return self.predicted.low <= self.held_out.loss <= self.predicted.high or abs(self.error) <= self.tolerance

    @property
    def refuted_by_seeds(self) -> str | None:
        """That the law misses its runs by more than runs of the same size and data differ (an F test of the lack of
        fit), and by more than the tolerance; None where it does not, or where no two runs differ by their seed
        alone."""
        cells = _cells(self.points)
        of_seeds, of_law = len(self.points) - len(cells), len(cells) - len(_used(self.points, self.form))
        if of_seeds < 1 or of_law < 1:
            return None
        within = sum(float(np.square(np.log(losses) - np.log(losses).mean()).sum()) for losses in cells.values())
        away = [
            (float(np.log(losses).mean()) - math.log(self.law.loss(*at)), len(losses)) for at, losses in cells.items()
        ]
        seeds = within / of_seeds
        missed = sum(count * gap**2 for gap, count in away) / of_law
        rough = math.sqrt(sum(gap**2 for gap, _ in away) / of_law)
        if (
            rough <= math.log1p(self.tolerance)
            or f_distribution.sf(missed / max(seeds, 1e-300), of_law, of_seeds) > _SURE
        ):
            return None
        return (
            f"no law of this form fits the runs: it misses them by {math.expm1(rough):.0%}, and seeds differ by "
            f"{math.expm1(math.sqrt(seeds)):.0%}"
        )

    def interval(self, of: Callable[[Law], float]) -> Interval:
        """A figure of the law, with the percentiles of the draws."""
        return _interval(of(self.law), [of(drawn) for drawn in self.draws], self.confidence)


@dataclass(frozen=True)
class Size:
    """Parameters of the smallest student, with their interval.

    Attributes:
        value: by the law of all runs; None where it is far from what was run.
        low: the lower end; None where it is far from what was run: smaller students may do.
        high: the upper end; None where it is far from what was run: it may take a larger student, or none may do.
        settle: the run that would help most where an end is None.
    """

    value: float | None
    low: float | None
    high: float | None
    settle: tuple[float, float] | None = None


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
    draws: int = 500,
    seed: int = 0,
    largest: float = math.inf,
    unit: str = "tokens",
) -> Fit | Abstention:
    """Fits the law, or says what is missing.

    Args:
        points: one a run; runs that differ by their seed alone are points of their own.
        tolerance: relative error of the held-out prediction that does not refute the law.
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
    form = form_of(kept)
    first = law_of(kept, form)
    first_draws, noise = _bootstrap(first, kept, form, draws, random)
    at = (held_out.parameters, held_out.tokens)
    losses = [
        drawn.loss(*at) * math.exp(off / math.sqrt(len(there)))
        for drawn, off in zip(first_draws, noise.tolist(), strict=True)
    ]
    predicted = _interval(first.loss(*at), losses, confidence)
    law = law_of(points, form)
    drawn, _ = _bootstrap(law, points, form, draws, random)
    return Fit(tuple(points), law, drawn, held_out, predicted, tolerance, confidence, form, largest, unit)


def smallest_student(fit: Fit, loss: float, tokens: float) -> Size | Abstention:
    """Parameters of the smallest student with at most this loss from so many tokens, with their interval, of which at
    least one end is known."""
    sizes, amounts = [p.parameters for p in fit.points], [p.tokens for p in fit.points]
    if not fit.predicts:
        return Abstention(
            f"the largest run refutes the law, which predicts {fit.predicted.value:.3g} "
            f"[{fit.predicted.low:.3g}, {fit.predicted.high:.3g}], and {fit.held_out.loss:.3g} was measured "
            f"({fit.error:+.0%})",
            next_run(fit),
        )
    if (why := fit.refuted_by_seeds) is not None:
        return Abstention(why, next_run(fit))
    if not min(amounts) / FARTHEST <= tokens <= max(amounts) * FARTHEST:
        return Abstention(
            f"{tokens:,.0f} {fit.unit} are far from what was run ({min(amounts):,.0f} to {max(amounts):,.0f})",
            (max(sizes), tokens),
        )
    found = fit.interval(lambda law: law.smallest(loss, tokens))
    if (against := _run_against(fit, found, loss, tokens)) is not None:
        return Abstention(against, next_run(fit))
    least, most = min(sizes) / FARTHEST, min(max(sizes) * FARTHEST, fit.largest)

    def known(end: float) -> float | None:
        return end if least <= end <= most else None

    value, low, high = known(found.value), known(found.low), known(found.high)
    if low is None and high is None:
        why = f"its interval reaches beyond all sizes that were run ({large(min(sizes))} to {large(max(sizes))})"
        if found.low <= least and found.high >= most:
            return Abstention(f"the answer is not known: {why}", next_run(fit))
        if math.isinf(found.value):
            end = fit.interval(lambda law: law.end(tokens))
            return Abstention(
                f"no size reaches {loss:.3g} with {tokens:,.0f} {fit.unit}: by this law the best students end at "
                f"{end.value:.3g} [{end.low:.3g}, {end.high:.3g}]",
                (max(sizes), max(amounts) * FARTHEST),
            )
        return Abstention(
            f"the answer, {large(found.value)} parameters, is far from what was run "
            f"({large(min(sizes))} to {large(max(sizes))})",
            (min(max(found.value, least), most), tokens),
        )
    if low is None or high is None:
        return Size(value, low, high, (most if high is None else least, tokens))
    if high > WIDEST * low:
        return Abstention(
            f"the answer, {large(found.value)} parameters [{large(low)}, {large(high)}], is too uncertain",
            next_run(fit),
        )
    return Size(value, low, high)


def _run_against(fit: Fit, found: Interval, loss: float, tokens: float) -> str | None:
    """The run that shows a student to suffice, or not to, where the law says the opposite; None where there is none.

    More data do no harm: a student that has the loss from fewer tokens suffices, and one that lacks it with more does
    not. Runs that differ by their seed alone count as their mean.

    Args:
        found: the smallest student by the law.
        loss: that it may have.
        tokens: that it is trained on.
    """
    best = fit.law.end(tokens)
    for (size, amount), losses in sorted(_cells(fit.points).items()):
        mean = math.fsum(losses) / len(losses)
        run = f"{large(size)} parameters have {mean:.3g} with {amount:,.0f} {fit.unit}"
        if amount <= tokens and mean <= loss and size < found.low:
            least = "no size" if math.isinf(found.low) else f"no less than {large(found.low)}"
            return f"a run contradicts the law: {run}, and by the law {least} has {loss:.3g} with {tokens:,.0f}"
        if amount >= tokens and mean > loss and size > found.high:
            most = large(found.high)
            return f"a run contradicts the law: {run}, and by the law {most} suffice for {loss:.3g} with {tokens:,.0f}"
        if math.isinf(found.value) and amount <= tokens and mean < best:
            return (
                f"a run contradicts the law: {run}, and by the law no size has less than {best:.3g} with {tokens:,.0f}"
            )
    return None


def _cells(points: Sequence[Point]) -> dict[tuple[float, float], list[float]]:
    """Losses by size and amount of data."""
    cells: dict[tuple[float, float], list[float]] = {}
    for p in points:
        cells.setdefault((p.parameters, p.tokens), []).append(p.loss)
    return cells


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


def law_of(points: Sequence[Point], form: Form) -> Law:
    """Least squares of log losses, Huber's loss as in Hoffmann et al. 2022, appendix D.3; the best of some starts."""
    first = _first_guesses(points)
    losses = np.array([[p.loss for p in points]]).repeat(len(first), 0)
    found, costs = _least_squares(points, losses, first, form)
    return _law(points, found[costs.argmin()], form)


def _first_guesses(points: Sequence[Point]) -> Floats:
    """Unknowns at which the search begins [starts, 6]."""
    losses = np.array([p.loss for p in points])
    least, middle, most = float(losses.min()), float(np.median(losses)), float(losses.max())
    has_data = len({p.tokens for p in points}) > 1
    return np.array(
        [
            [
                math.log(max(share * least, 1e-8 * least)),
                math.log(max(middle - share * least, 1e-8 * least) / (1 + has_data)),
                alpha,
                math.log(max(middle - share * least, 1e-8 * least) / 2),
                beta,
                math.log(times * most),
            ]
            for share, alpha, beta in _STARTS
            for times in (1.1, 3.0)
        ]
    )


def form_of(points: Sequence[Point]) -> Form:
    """The form that predicts each run from the others best: by the mean squared error of log losses, where all runs of
    one size and amount of data are left out together."""
    return min(FORMS, key=lambda form: _error_left_out(points, form))


def _error_left_out(points: Sequence[Point], form: Form) -> float:
    """Infinite where the runs are too few for the form, or have one amount of data and it is joint."""
    at = [(p.parameters, p.tokens) for p in points]
    cells = sorted(set(at))
    if len(cells) - 1 < len(_used(points, form)) or (form.joint and len({p.tokens for p in points}) == 1):
        return 0.0 if form == FORMS[0] else math.inf
    logs, first = np.log([p.loss for p in points]), _first_guesses(points)
    counted = np.array([[float(there != cell) for there in at] for cell in cells]).repeat(len(first), 0)
    losses = np.exp(logs)[None].repeat(len(counted), 0)
    found, costs = _least_squares(points, losses, np.tile(first, (len(cells), 1)), form, counted)
    best = costs.reshape(len(cells), -1).argmin(1) + len(first) * np.arange(len(cells))
    laws = {cell: _law(points, found[n], form) for cell, n in zip(cells, best, strict=True)}
    return float(np.mean([(math.log(laws[cell].loss(*cell)) - log) ** 2 for cell, log in zip(at, logs, strict=True)]))


def _used(points: Sequence[Point], form: Form) -> list[int]:
    """Which of log E, log a, α, log b, β, log S are unknowns."""
    of_data = [] if len({p.tokens for p in points}) == 1 else [4] if form.joint else [3, 4]
    return [0, 1, 2, *of_data, *([5] if form.starts else [])]


def _law(points: Sequence[Point], x: Floats, form: Form) -> Law:
    floor, size_loss, size_power, data_loss, data_power, start = x.tolist()
    has_data = len({p.tokens for p in points}) > 1
    lost = math.exp(data_loss) if has_data and not form.joint else 0.0
    size, amount = _middle(points)
    begin = math.exp(start) if form.starts else math.inf
    power = data_power if has_data else 1.0
    return Law(math.exp(floor), math.exp(size_loss), size_power, lost, power, size, amount, begin, form.joint)


def _middle(points: Sequence[Point]) -> tuple[float, float]:
    """Geometric means of sizes and of amounts."""
    sizes, amounts = (np.log([getattr(p, name) for p in points]) for name in ("parameters", "tokens"))
    return float(np.exp(sizes.mean())), float(np.exp(amounts.mean()))


def _least_squares(
    points: Sequence[Point], losses: Floats, guesses: Floats, form: Form, counted: Floats | None = None
) -> tuple[Floats, Floats]:
    """Laws of several sets of losses at once, by Levenberg and Marquardt's method.

    Args:
        points: their sizes and amounts.
        losses: of each set [M, runs].
        guesses: log E, log a, α, log b, β, log S [M, 6], of which a form uses some (`_used`).
        form: of the laws.
        counted: the weight of each run [M, runs]; None for 1.

    Returns:
        The same unknowns [M, 6], and the cost of each set [M].
    """
    size, amount = _middle(points)
    of_size = np.log([p.parameters / size for p in points])
    of_amount = np.log([p.tokens / amount for p in points])
    used = np.array(_used(points, form))
    least, most = float(losses.min()), float(losses.max())
    tiny, top = math.log(1e-9 * least), math.log(10 * most)
    # Where losses begin somewhere and have hardly begun to fall, the power law is far above them.
    top, floor = (math.log(_FURTHEST_START * most), top) if form.starts else (top, math.log(least))
    low = np.array([tiny, tiny, _POWERS[0], tiny, _POWERS[0], math.log(most)])
    high = np.array([floor, top, _POWERS[1], top, _POWERS[1], math.log(_FURTHEST_START * most)])
    logs = np.log(losses)
    each = np.ones_like(logs) if counted is None else counted

    def at(x: Floats) -> tuple[Floats, Floats]:
        """Residuals [M, runs] and their derivatives [M, runs, unknowns]."""
        floor = np.exp(x[:, :1]) + np.zeros_like(of_size)
        by_size = np.exp(x[:, 1:2] - x[:, 2:3] * of_size - (x[:, 4:5] * of_amount if form.joint else 0.0))
        parts = [floor, by_size, -of_size * by_size]
        whole = floor + by_size
        if form.joint:
            parts.append(-of_amount * by_size)
        elif 3 in used:
            by_amount = np.exp(x[:, 3:4] - x[:, 4:5] * of_amount)
            parts += [by_amount, -of_amount * by_amount]
            whole = whole + by_amount
        slopes = np.stack(parts, -1) / whole[..., None]
        if not form.starts:
            return np.log(whole) - logs, slopes
        left = 1 / (1 + whole * np.exp(-x[:, 5:6]))  # loss ÷ power law; loss ÷ S is the rest
        return np.log(whole * left) - logs, np.concatenate([slopes * left[..., None], 1 - left[..., None]], -1)

    def cost_of(residuals: Floats) -> Floats:
        away = np.abs(residuals)
        return np.asarray((each * np.where(away <= _HUBER, away**2, _HUBER * (2 * away - _HUBER))).sum(1))

    x = np.clip(guesses, low + 1e-9, high - 1e-9)
    low, high = low[used], high[used]
    residuals, slopes = at(x)
    cost, damping = cost_of(residuals), np.full(len(x), 1e-2)
    settled = np.zeros(len(x), dtype=bool)
    for _ in range(_STEPS):
        weights = each * np.minimum(1.0, _HUBER / np.maximum(np.abs(residuals), 1e-300))
        gradient = np.einsum("mrk,mr->mk", slopes, weights * residuals)
        # What lies at its bound and would leave it stays.
        held = ((x[:, used] <= low) & (gradient > 0)) | ((x[:, used] >= high) & (gradient < 0))
        free = np.where(held[:, None, :], 0.0, slopes)
        curvature = np.einsum("mrk,mrl->mkl", free, weights[..., None] * free)
        scale = np.maximum(np.einsum("mkk->mk", curvature), 1e-12)
        curvature += np.eye(len(used)) * (damping[:, None] * scale)[:, None, :]
        step = -np.linalg.solve(curvature, np.where(held, 0.0, gradient)[..., None])[..., 0]
        tried = x.copy()
        tried[:, used] = np.clip(x[:, used] + np.clip(step, -2, 2), low, high)
        new, new_slopes = at(tried)
        new_cost = cost_of(new)
        better = new_cost < cost
        settled |= (better & (cost - new_cost < 1e-8 * cost)) | (np.abs(tried - x).max(1) < 1e-9) | (damping >= 1e9)
        x = np.where(better[:, None], tried, x)
        residuals, slopes = (
            np.where(better[:, None], new, residuals),
            np.where(better[:, None, None], new_slopes, slopes),
        )
        cost = np.where(better, new_cost, cost)
        damping = np.clip(np.where(better, damping / 4, damping * 4), 1e-12, 1e12)
        if settled.all():
            break
    return x, cost


def _bootstrap(
    law: Law, points: Sequence[Point], form: Form, draws: int, random: np.random.Generator
) -> tuple[tuple[Law, ...], Floats]:
    """Laws of losses with resampled residuals, of logarithms, and one more such residual of each draw [draws].

    The scale of residuals is not known well from few runs: each draw has a scale of its own, √(ν / χ²_ν) with ν runs
    beyond the unknowns, as Student's t has. Without it intervals of 9 runs covered 82 % at a nominal 95.
    """
    free = max(1, len(points) - len(_used(points, form)))
    fitted = np.array([law.loss(p.parameters, p.tokens) for p in points])
    residuals = np.log([p.loss for p in points]) - np.log(fitted)
    residuals = (residuals - residuals.mean()) * math.sqrt(len(points) / free)
    scales = np.sqrt(free / random.chisquare(free, draws))
    noise = scales[:, None] * random.choice(residuals, (draws, len(points) + 1))
    start = law.start if form.starts else float(fitted.max())
    of_law = [law.floor, law.size_loss, math.exp(law.size_power), law.data_loss, math.exp(law.data_power), start]
    guess = np.log(np.maximum(of_law, 1e-300))
    found, _ = _least_squares(points, fitted * np.exp(noise[:, :-1]), np.tile(guess, (draws, 1)), form)
    return tuple(_law(points, x, form) for x in found), noise[:, -1]


def _interval(value: float, drawn: Sequence[float], confidence: float) -> Interval:
    """A figure with the interval of its draws, which holds the figure itself."""
    tail = (1 - confidence) / 2
    # By order, not by interpolation: some may be infinite.
    ordered = sorted(drawn)
    at = max(1, math.floor((len(ordered) + 1) * tail))
    return Interval(value, min(value, ordered[at - 1]), max(value, ordered[-at]))
