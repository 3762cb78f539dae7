"""From values per target to `measures.json`: every metric of every model with its interval, and paired differences.
No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from potstill.evaluate.bootstrap import FEW_GROUPS, PairedBootstrap, Ranks, Statistic, difference_of, mean_of
from potstill.evaluate.measures.base import Compared, Draws, Found, Measure, Metric, Table, Values, first_half
from potstill.evaluate.scores import Scores, chance_of
from potstill.measures import MODELS, Comparison, Interval, Measures, MetricSpec, ModelMeasures, Speed
from potstill.tasks import SPECS, Task

PAIRS = (
    ("student", "teacher"),
    ("student", "text_only"),
    ("student", "text_only_equal_seconds"),
    ("student", "rounded_afterwards"),
    ("student", "untrained"),
    ("text_only", "untrained"),
)
"""A model, and the model that it is compared with."""

T = TypeVar("T")
Seeds = Sequence[Scores]
"""The scores of one model, one entry per training seed (the teacher has one)."""


@dataclass(frozen=True)
class Size:
    """The size of a model. Tied weights count once; `bytes` are those of its weights on the user's disk. An ensemble is
    the sum of its members. `layers` is 0 for a plain module whose layers are unknown. `positions` is the maximum length
    of a sequence in tokens (None: unlimited)."""

    parameters: int
    bytes: int
    layers: int
    positions: int | None = None


def find(
    scores: Mapping[str, Seeds],
    metrics: Sequence[Metric],
    bootstrap: PairedBootstrap,
    *,
    above_chance: bool = False,
    first: NDArray[np.bool_] | None = None,
) -> Values:
    """Metrics of all models, and the differences of `PAIRS`.

    Args:
        scores: per model and seed, per target [N].
        metrics: those that do not apply to a model are left out.
        bootstrap: over the groups of the targets.
        above_chance: whether the teacher's accuracy is shown to be above chance.
        first: mask of the targets in one half of the groups [N].
    """
    teacher = scores["teacher"][0] if "teacher" in scores else None
    specs: dict[str, MetricSpec] = {}
    values: dict[str, dict[str, Interval]] = {name: {} for name in scores}
    by_seed: dict[str, dict[str, tuple[float, ...]]] = {name: {} for name in scores}
    statistics: dict[tuple[str, str], list[Statistic]] = {}
    for metric in metrics:
        for name, seeds in scores.items():
            beside = None if name == "teacher" else teacher
            made = [metric.of(Compared(mine, beside, above_chance, first)) for mine in seeds]
            several = [one for one in made if isinstance(one, Statistic)]
            ranks = [one for one in made if isinstance(one, Ranks)]
            if len(several) == len(seeds):
                interval = bootstrap.interval(several)
                statistics[name, metric.spec.name] = several
                single = [bootstrap.value(one) for one in several]
            elif len(ranks) == len(seeds) and (found := bootstrap.rank_correlation(ranks)) is not None:
                interval, single = found, []
            else:
                continue
            through = metric.through or float
            specs[metric.spec.name] = metric.spec
            values[name][metric.spec.name] = Interval(*map(through, (interval.value, interval.low, interval.high)))
            if len(single) > 1:
                by_seed[name][metric.spec.name] = tuple(map(through, single))
    comparisons = tuple(
        Comparison(model, against, metric.spec.name, bootstrap.interval(_differences(left, right)))
        for model, against in PAIRS
        for metric in metrics
        if metric.paired
        and (left := statistics.get((model, metric.spec.name))) is not None
        and (right := statistics.get((against, metric.spec.name))) is not None
    )
    return Values(specs, values, by_seed, comparisons)


def _differences(left: Sequence[Statistic], right: Sequence[Statistic]) -> list[Statistic]:
    """Pairs of scores by seed; a model with a single measurement is paired with every seed of the other."""
    others = list(right) * len(left) if len(right) == 1 else right
    return [difference_of(one, other) for one, other in zip(left, others, strict=True)]


def summarise(
    scores: Mapping[str, Seeds],
    sizes: Mapping[str, Size],
    speeds: Mapping[str, Speed],
    groups: Sequence[str],
    *,
    task: Task = "causal_lm",
    labels: NDArray[np.int64] | None = None,
    records: int,
    draws: Draws,
    notes: Sequence[str],
    measures: Sequence[Measure] = (),
    table: Table | None = None,
    asked: Sequence[Found] = (),
) -> Measures:
    """The measures of all models.

    Args:
        scores: per model and training seed, per target [N].
        sizes: per model.
        speeds: per model whose rates were measured.
        groups: the group of each target [N].
        task: the task of the models.
        labels: the class of each target [N], −1 if it has none; for classes and embeddings only.
        records: the number of records.
        draws: of the bootstrap.
        notes: what a reader must know; what is found here is added.
        measures: which metrics and findings there are.
        table: all that was computed per target, for findings.
        asked: what passes of measures found, on questions of their own.

    Raises:
        DataError: fewer than two groups.
    """
    bootstrap = draws.of(groups)
    chance = None if labels is None else chance_of(labels, task)
    teacher = scores["teacher"][0] if "teacher" in scores else None
    above_chance = teacher is not None and _above(teacher, chance, bootstrap)
    ordered = {name: scores[name] for name in MODELS if name in scores}
    metrics = [metric for measure in measures for metric in measure.metrics(SPECS[task])]
    found = find(ordered, metrics, bootstrap, above_chance=above_chance, first=first_half(groups))
    others = [*asked, *([measure.findings(table) for measure in measures] if table is not None else [])]
    models = {
        name: ModelMeasures(
            name=name,
            parameters=sizes[name].parameters,
            bytes=sizes[name].bytes,
            layers=sizes[name].layers,
            metrics=_merged([*(one.values.values.get(name, {}) for one in asked), found.values[name]]),
            by_seed=_merged([*(one.values.by_seed.get(name, {}) for one in asked), found.by_seed[name]]),
            speed=speeds.get(name),
        )
        for name in ordered
    }
    shown = list(notes)
    if chance is not None and teacher is not None and teacher.correct is not None and not above_chance:
        shown.append(
            f"The teacher is not shown to be better than chance ({100 * float(chance.mean()):.1f} %), so no share of "
            "its accuracy is given."
        )
    shown += [note for other in others for note in other.notes]
    if bootstrap.groups < FEW_GROUPS:
        shown.append(
            f"Only {bootstrap.groups} held-out groups: intervals of skewed losses cover less often than they say."
        )
    return Measures(
        models=models,
        metrics=_merged([*(one.values.specs for one in asked), found.specs]),
        comparisons=(*(c for one in asked for c in one.values.comparisons), *found.comparisons),
        groups=bootstrap.groups,
        records=records,
        targets=len(groups),
        confidence=draws.confidence,
        resamples=draws.resamples,
        notes=tuple(shown),
        task=task,
        chance=None if chance is None else float(chance.mean()),
        seeds=max(map(len, scores.values())),
        findings=tuple(finding for other in others for finding in other.findings),
        losses=tuple(loss for other in others for loss in other.losses),
    )


def _merged(parts: Sequence[Mapping[str, T]]) -> dict[str, T]:
    return {name: value for part in parts for name, value in part.items()}


def _above(teacher: Scores, chance: NDArray[np.float64] | None, bootstrap: PairedBootstrap) -> bool:
    """Whether the interval of the teacher's accuracy lies above chance (rule 10)."""
    if teacher.correct is None or chance is None:
        return False
    return bootstrap.interval(difference_of(mean_of(teacher.correct), mean_of(chance))).low > 0
