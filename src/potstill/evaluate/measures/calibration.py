"""Calibration: whether a model's confidence matches its accuracy.

Confidence is the probability of the first choice (top-label calibration), of a token or a class. The student's over-
and under-confidence are shown beside the teacher's and the control's: what the control has too is not caused by the
teacher.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.stats import norm

from potstill.calibration import ece, equal_mass
from potstill.evaluate.bootstrap import SHARE, Floats, PairedBootstrap, Roughness, Statistic, difference_of, mean_of
from potstill.evaluate.measures.base import Compared, Found, Metric, Table
from potstill.evaluate.scores import Scores
from potstill.evaluate.temperatures import gain_of, part_of, temperature_of
from potstill.measures import Band, Bands, Bin, Figures, Finding, Interval, Loss, MetricSpec, Reliability
from potstill.objectives.statistics import TEMPERED
from potstill.recipe.measures import Calibration
from potstill.registry import implements
from potstill.tasks import TaskSpec

Probabilities = NDArray[np.floating]
Mask = NDArray[np.bool_]
_SECTION = "calibration"
_RARE = 0.1
"""The share of the targets, the rarest ones, that is a band of its own."""


@implements(Calibration)
class CalibrationMeasure:
    """ECE, over-confidence, Brier score, entropy, a reliability diagram, and a fitted temperature."""

    def __init__(self, settings: Calibration) -> None:
        self.settings = settings

    @property
    def columns(self) -> tuple[str, ...]:
        """Values beyond NLL, KL and agreement."""
        tempered = (f"{TEMPERED}{temperature:g}" for temperature in self.settings.temperatures)
        return ("probability", "hit", "entropy", "collision", *tempered)

    def metrics(self, task: TaskSpec) -> tuple[Metric, ...]:
        """The metrics of every model."""
        per = "example" if not task.has_vocabulary else "masked token" if task.masks else "token"
        bins = self.settings.bins

        def spec(name: str, label: str, explanation: str, unit: str = "share") -> MetricSpec:
            return MetricSpec(
                name,
                label=label,
                short=label if label[:2].isupper() or label.startswith("Brier") else label[:1].lower() + label[1:],
                unit="nats" if unit == "nats" else "share" if unit == "share" else "number",
                higher_is_better=False,
                per=per if unit == "nats" else f"{per}s",
                explanation=explanation,
                section=_SECTION,
            )

        return (
            Metric(
                spec(
                    "overconfidence",
                    "Over-confidence",
                    "The mean probability of the first choice less the share of first choices that are right; below 0 "
                    "the model is less sure than it could be.",
                ),
                _overconfidence,
                paired=False,
            ),
            Metric(
                spec(
                    "ece",
                    "ECE",
                    f"Expected calibration error: the mean over {bins} bins of equal mass of the distance between "
                    "probability and share of right first choices. Chance alone makes it greater than 0.",
                ),
                lambda c: _if_known(c.mine, lambda p, hit: ece_of(p, hit, bins)),
            ),
            Metric(
                spec(
                    "ece_debiased",
                    "Debiased ECE",
                    "ECE whose direction in each bin is taken from one half of the targets’ groups and whose size from "
                    "the other: 0 on average for a calibrated model, however few targets there are.",
                ),
                lambda c: _if_known(c.mine, lambda p, hit: _debiased(p, hit, c.first, bins)),
            ),
            Metric(
                spec(
                    "brier",
                    "Brier score",
                    "The squared distance between the probabilities and the truth, over all choices.",
                    "number",
                ),
                _brier,
            ),
            *(
                (
                    Metric(
                        spec(
                            "classwise_ece",
                            "Classwise ECE",
                            "The mean over classes of the calibration error of that class’s probability, in as many "
                            "bins of equal mass (Kull et al. 2019).",
                        ),
                        lambda c: _of_classes(c.mine, bins, classwise_ece_of),
                    ),
                    Metric(
                        spec(
                            "full_ece",
                            "Full ECE",
                            "The calibration error of all classes’ probabilities, taken together (Liu et al. 2024).",
                        ),
                        lambda c: _of_classes(c.mine, bins, full_ece_of),
                    ),
                )
                if task.has_classes
                else ()
            ),
            Metric(
                spec("entropy", "Entropy", "Of the model’s distribution: how undecided it is.", "nats"),
                lambda c: None if c.mine.entropy is None else mean_of(c.mine.entropy, (0.0, np.inf)),
                paired=False,
            ),
        )

    def findings(self, table: Table) -> Found:
        """The reliability diagram, debiased ECE, and the fitted temperature with its gain in NLL."""
        known = {name: seeds for name, seeds in table.scores.items() if seeds[0].hit is not None}
        if not known:
            return Found()
        curves = {name: reliability(seeds[0], self.settings.bins, table.within) for name, seeds in known.items()}
        found: list[Finding] = [
            Reliability(
                "Reliability",
                f"How often the first choice is right, by its probability, in {self.settings.bins} bins of equal mass. "
                "On the diagonal a model is calibrated; below it, over-confident.",
                _SECTION,
                {name: curve for name, curve in curves.items() if name != "untrained"},
            )
        ]
        if (bands := self._by_frequency(table, known)) is not None:
            found.append(bands)
        tempered, losses = self._temperature(table, known)
        return Found((*found, *tempered), losses)

    def _by_frequency(self, table: Table, known: dict[str, Sequence[Scores]]) -> Bands | None:
        """Over-confidence by how often the target occurs in training; None where all are equally common."""
        rows = []
        gaps = {
            name: [
                one.probability.astype(np.float64) - one.hit
                for one in seeds
                if one.probability is not None and one.hit is not None
            ]
            for name, seeds in known.items()
            if name != "untrained"
        }
        teacher = gaps.get("teacher")
        for name, inside in table.bands(_RARE).items():
            drawn = table.within(inside)
            if drawn is None:
                continue
            values = {
                n: drawn.interval([mean_of(g[inside], (-1.0, 1.0)) for g in several]) for n, several in gaps.items()
            }
            excess = {
                n: drawn.interval([mean_of(g[inside] - teacher[0][inside]) for g in gaps[n]])
                for n in ("student", "text_only")
                if teacher is not None and n in gaps
            }
            rows.append(Band(name, int(inside.sum()), values, excess.get("student"), excess.get("text_only")))
        if len(rows) < 2:
            return None
        spec = MetricSpec("overconfidence", "Over-confidence", "over-confidence", "share", False, "targets")
        return Bands(
            "By frequency of the target",
            "The mean probability of the first choice less the share of right ones, by how often the target occurs in "
            "training. Rare targets are harder for every model: compare it with its teacher.",
            _SECTION,
            spec,
            "targets",
            tuple(rows),
        )

    def _temperature(
        self, table: Table, known: dict[str, Sequence[Scores]]
    ) -> tuple[tuple[Finding, ...], tuple[Loss, ...]]:
        fit_on, report_on = table.halves
        fitting, reporting = table.within(fit_on), table.within(report_on)
        if fitting is None or reporting is None:
            return (), ()
        temperatures: dict[str, Interval] = {}
        after: dict[str, list[Statistic]] = {}
        for name, seeds in known.items():
            temperatures[name] = fitting.interval([temperature_of(part_of(one, fit_on)) for one in seeds])
            after[name] = [
                gain_of(part_of(one, report_on), fitting.value(temperature_of(part_of(one, fit_on)))) for one in seeds
            ]
        gains = {name: reporting.interval(several) for name, several in after.items()}
        figures = Figures(
            "A fitted temperature",
            "Logits are divided by one temperature, fitted on one half of the groups; what that gains in NLL is "
            "reported on the other half. Above 1 the model is over-confident.",
            _SECTION,
            (
                (MetricSpec("temperature", "Temperature", "temperature", "number", False), temperatures),
                (MetricSpec("gain", "NLL gained by it", "NLL gained", "nats", True, per="target"), gains),
            ),
        )
        lost = after["student"]
        if "teacher" in after:
            lost = [difference_of(mine, after["teacher"][0]) for mine in lost]
        kind = "over-confident" if temperatures["student"].value > 1 else "under-confident"
        control = gains.get("text_only")
        beside = "" if control is None else f"; of the control {_percent(control.value / _nll(known['text_only'][0]))}"
        loss = Loss(
            _SECTION,
            f"is {kind}: dividing its logits by {temperatures['student'].value:.2f} would win back "
            f"{_percent(gains['student'].value / _nll(known['student'][0]))} of its NLL{beside}",
            reporting.interval(lost),
            "divide the logits by the fitted temperature where probabilities matter",
        )
        return (figures,), (loss,)


# ---- statistics ----------------------------------------------------------------------------------------------------


def ece_of(probability: NDArray[np.floating], hit: NDArray[np.bool_], bins: int) -> Statistic:
    """Σ over bins of |Σ (hit − probability)| ÷ N, with bins of equal mass."""
    return ece_in(probability, hit, equal_mass(probability, bins), bins)


def ece_in(
    probability: NDArray[np.floating], hit: NDArray[np.bool_], bin_of: NDArray[np.int64], bins: int
) -> Statistic:
    """As `ece_of`, in given bins [N]."""
    targets = np.arange(len(bin_of))
    gaps = csr_array((hit - probability.astype(np.float64), (targets, bin_of)), shape=(len(bin_of), bins))
    return replace(_absolute(gaps.toarray()), bounds=SHARE)


def full_ece_of(probabilities: Probabilities, labels: NDArray[np.int64], bins: int) -> Statistic:
    """Σ over bins of |Σ (is the class − its probability)| ÷ N, all classes of all examples in common bins of equal
    mass. Full-ECE of Liu et al. 2024 (arXiv 2406.11345), with bins of equal mass instead of equal width,
    and not averaged over classes.

    Args:
        probabilities: of each class [N, C].
        labels: the class of each example [N].
        bins: how many.
    """
    truth = np.arange(probabilities.shape[1]) == labels[:, None]
    flat = probabilities.astype(np.float64)
    bin_of = equal_mass(flat.ravel(), bins).reshape(flat.shape)
    gaps = np.stack([np.where(bin_of == b, truth - flat, 0.0).sum(1) for b in range(bins)], -1)
    return _absolute(gaps)


def classwise_ece_of(probabilities: Probabilities, labels: NDArray[np.int64], bins: int) -> Statistic:
    """The mean over classes of `ece_of` of the class's probability against whether an example is of it. Kull et al.
    2019 (arXiv 1910.12656), § 2, with bins of equal mass. Arguments as for `full_ece_of`."""
    classes = probabilities.shape[1]
    parts = []
    for number in range(classes):
        own = probabilities[:, number].astype(np.float64)
        bin_of = equal_mass(own, bins)
        gap = (labels == number) - own
        parts.append(np.where(bin_of[:, None] == np.arange(bins), gap[:, None], 0.0) / classes)
    return _absolute(np.concatenate(parts, -1))


def _absolute(gaps: Floats) -> Statistic:
    """Σ over columns of |Σ over targets| ÷ N."""
    columns = np.concatenate([gaps, np.ones((len(gaps), 1))], -1)

    def of(sums: Floats) -> Floats:
        return ece(sums[..., :-1], sums[..., -1])

    def gradient(sums: Floats) -> Floats:
        count = sums[..., -1:]
        whole = np.abs(sums[..., :-1]).sum(-1, keepdims=True)
        return np.asarray(np.concatenate([np.sign(sums[..., :-1]) / count, -whole / count**2], -1))

    return Statistic(columns, of, gradient, (0.0, 2.0))


def debiased_ece_of(
    probability: NDArray[np.floating], hit: NDArray[np.bool_], first: NDArray[np.bool_], bins: int
) -> Statistic:
    """ECE without the bias of taking absolute values of noise: in each bin the sign of the gap comes from one half of
    the groups and its size from the other, both ways. Its mean is 0 for a calibrated model; gaps far above noise count
    as in ECE.

    Args:
        probability: of the first choice [N].
        hit: whether it is right [N].
        first: mask of the first half [N]; all targets of a group are in the same half.
        bins: of equal mass.
    """
    bin_of = equal_mass(probability, bins)
    targets = np.arange(len(bin_of))
    gaps: Floats = hit - probability.astype(np.float64)
    place = bin_of + np.where(first, 0, bins)
    split = csr_array((gaps, (targets, place)), shape=(len(bin_of), 2 * bins)).toarray()
    columns = np.concatenate([split, first[:, None], ~first[:, None]], -1).astype(np.float64)

    def of(sums: Floats) -> Floats:
        a, b = sums[..., :bins], sums[..., bins : 2 * bins]
        # A draw may have no group of one half; its sums are then 0, and so is its contribution.
        of_a, of_b = np.maximum(sums[..., -2], 1), np.maximum(sums[..., -1], 1)
        return np.asarray(((np.sign(b) * a).sum(-1) / of_a + (np.sign(a) * b).sum(-1) / of_b) / 2)

    def gradient(sums: Floats) -> Floats:
        a, b = sums[..., :bins], sums[..., bins : 2 * bins]
        of_a, of_b = np.maximum(sums[..., -2:-1], 1), np.maximum(sums[..., -1:], 1)
        by_counts = [
            -(np.sign(b) * a).sum(-1, keepdims=True) / of_a**2,
            -(np.sign(a) * b).sum(-1, keepdims=True) / of_b**2,
        ]
        return np.asarray(np.concatenate([np.sign(b) / of_a, np.sign(a) / of_b, *by_counts], -1) / 2)

    return Statistic(columns, of, gradient, (-1.0, 1.0), roughness=_sign_noise)


def _sign_noise(sums: Floats) -> Roughness:
    """What taking signs from noise does to debiased ECE.

    The gaps a and b of a bin in the two halves are normal, with a common mean δ and variances σ². With q = 2Φ(δ/σ) − 1
    for the half that gives the sign, sign(b)·a has the mean δ·q, the variance σ² + δ²·(1 − q²), and with sign(a)·b the
    covariance E|a|·E|b| − δ²·q². Without a gap the variance is 1 + 2/π times that of known signs; far beyond noise it
    is the same. A gap that is near noise counts as too small by δ·(1 − q), so ECE may lie above by as much. For δ
    stands the gap of both halves together.

    Args:
        sums: of each group [G, 2 · bins + 2], as in `debiased_ece_of`.

    Returns:
        The factor is NaN where a half has fewer than two groups.
    """
    bins = (sums.shape[1] - 2) // 2
    halves = []
    for half, count in ((sums[:, :bins], sums[:, -2]), (sums[:, bins:-2], sums[:, -1])):
        groups = int((count > 0).sum())
        if groups < 2:
            return Roughness(float("nan"))
        away = half - count[:, None] * half.sum(0) / count.sum()
        halves.append(np.square(away).sum(0) * groups / (groups - 1) / count.sum() ** 2)
    variances = np.stack(halves)
    if not variances.any():
        return Roughness(1.0)
    gap = np.abs(sums[:, :bins].sum(0) + sums[:, bins:-2].sum(0)) / sums[:, -2:].sum()
    errors = np.sqrt(np.maximum(variances, 1e-300))
    known = 2 * norm.cdf(gap / errors) - 1
    sizes = errors * math.sqrt(2 / math.pi) * np.exp(-0.5 * np.square(gap / errors)) + gap * known
    signed = variances + np.square(gap) * (1 - np.square(known[::-1]))
    together = sizes.prod(0) - np.square(gap) * known.prod(0)
    factor = float((signed.sum(0) + 2 * together).sum() / variances.sum())
    return Roughness(max(1.0, factor), above=float((gap * (1 - known.mean(0))).sum()))


def reliability(scores: Scores, bins: int, within: Callable[[Mask], PairedBootstrap | None]) -> tuple[Bin, ...]:
    """The non-empty bins of a reliability diagram. Intervals are over the groups in a bin, given by `within`; for a
    single group the interval is [0, 1]."""
    if scores.probability is None or scores.hit is None:
        return ()
    bin_of = equal_mass(scores.probability, bins)
    found = []
    for number in np.unique(bin_of).tolist():
        inside = bin_of == number
        hit, drawn = scores.hit[inside], within(inside)
        right = Interval(float(hit.mean()), 0.0, 1.0) if drawn is None else drawn.mean(hit)
        found.append(Bin(float(scores.probability[inside].mean()), right, int(inside.sum())))
    return tuple(found)


def _percent(share: float) -> str:
    """`1.1 %`, `−0.3 %`; what rounds to 0 has no sign."""
    value = round(100 * share, 1)
    return f"{abs(value):.1f} %" if value >= 0 else f"−{abs(value):.1f} %"


def _nll(scores: Scores) -> float:
    return 1.0 if scores.nll is None else float(scores.nll.mean())


def _if_known(scores: Scores, of: Callable[[Probabilities, Mask], Statistic | None]) -> Statistic | None:
    if scores.probability is None or scores.hit is None:
        return None
    return of(scores.probability, scores.hit)


def _of_classes(
    scores: Scores, bins: int, of: Callable[[Probabilities, NDArray[np.int64], int], Statistic]
) -> Statistic | None:
    if "classes" not in scores.more or scores.labels is None:
        return None
    return of(scores.more["classes"], scores.labels, bins)


def _debiased(probability: Probabilities, hit: Mask, first: Mask | None, bins: int) -> Statistic | None:
    return None if first is None or first.all() or not first.any() else debiased_ece_of(probability, hit, first, bins)


def _overconfidence(compared: Compared) -> Statistic | None:
    mine = compared.mine
    if mine.probability is None or mine.hit is None:
        return None
    return mean_of(mine.probability.astype(np.float64) - mine.hit, (-1.0, 1.0))


def _brier(compared: Compared) -> Statistic | None:
    mine = compared.mine
    if mine.collision is None or mine.nll is None:
        return None
    return mean_of(1 - 2 * np.exp(-mine.nll.astype(np.float64)) + mine.collision, (0.0, 2.0))
