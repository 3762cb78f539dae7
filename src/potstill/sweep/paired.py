"""Paired comparison of two arms, with intervals over seeds and over records. No torch.

Two things could have been otherwise, and each has an interval of its own:

- *other seeds* (another initialisation, another order of the same data), on the same held-out records. Arms with one
  seed begin alike, so differences are taken seed by seed; their mean has Student's interval, mean ± t(S − 1)·s/√S.
- *other held-out records*, with the same seeds: the difference of each target of each seed, by the paired
  cluster bootstrap that every evaluation here uses (`potstill.evaluate.bootstrap`).

An arm is called better or worse only where both intervals exclude 0; where one cannot be had (a single seed; no table
of single values) the other decides alone. Intervals are for one arm against the baseline: nothing is taken off for
there being several arms.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t

from potstill.errors import RunError
from potstill.evaluate.bootstrap import PairedBootstrap
from potstill.evaluate.measures.fidelity import metrics_of_tables
from potstill.measures import Interval, Measures

_TABLES = ("examples.parquet", "tokens.parquet")
_PROBLEMS = "solved.parquet"

Verdict = Literal["better", "worse", "not told apart"]


@dataclass(frozen=True)
class Table:
    """The single values of one run: which target each is of, its group, and the value of the student."""

    targets: tuple[tuple[str, int], ...]
    groups: tuple[str, ...]
    values: NDArray[np.float64]


@dataclass(frozen=True)
class Difference:
    """An arm minus the baseline: the mean over their common seeds, and both intervals (None if one is not possible)."""

    value: float
    over_seeds: Interval | None
    over_records: Interval | None
    verdict: Verdict


def mean_over(values: Sequence[float], confidence: float) -> Interval | None:
    """The mean with Student's interval; None for a single value, which does not show the variation over seeds."""
    count = len(values)
    if count < 2:
        return None
    mean = math.fsum(values) / count
    reach = float(t.ppf((1 + confidence) / 2, count - 1)) * float(np.std(values, ddof=1)) / math.sqrt(count)
    return Interval(mean, mean - reach, mean + reach)


def difference(
    arm: Mapping[int, float],
    baseline: Mapping[int, float],
    tables: Mapping[int, tuple[Table, Table]],
    *,
    measure: str,
    confidence: float,
    resamples: int,
) -> Difference | None:
    """An arm minus the baseline; None without a common seed.

    Args:
        arm: its value by seed.
        baseline: that of the baseline.
        tables: by seed the single values of both, where there are such.
        measure: says which direction is better.
        confidence: of the intervals.
        resamples: of the bootstrap over records.

    Raises:
        RunError: the tables of an arm and of the baseline are not of the same targets.
    """
    seeds = [seed for seed in arm if seed in baseline]
    if not seeds:
        return None
    differences = [arm[seed] - baseline[seed] for seed in seeds]
    value = math.fsum(differences) / len(differences)
    over_seeds = mean_over(differences, confidence)
    pairs = [tables[seed] for seed in seeds if seed in tables]
    over_records = _over_records(pairs, confidence, resamples) if len(pairs) == len(seeds) else None
    return Difference(value, over_seeds, over_records, _verdict(value, (over_seeds, over_records), measure))


def _over_records(pairs: Sequence[tuple[Table, Table]], confidence: float, resamples: int) -> Interval:
    """The difference over the targets of all seeds, by group.

    A seed may have had texts of its own written for the same prompts; both of its arms have read them.
    """
    for ours, theirs in pairs:
        if ours.targets != theirs.targets:
            raise RunError(
                "arms were measured on different held-out records, and cannot be held against each other",
                fix="leave data, data.split_seed, train.max_length and evaluate.solve out of the arms",
            )
    groups = [group for ours, _ in pairs for group in ours.groups]
    left, right = (np.concatenate([pair[side].values for pair in pairs]) for side in (0, 1))
    return PairedBootstrap(groups, resamples=resamples, confidence=confidence, seed=0).difference(left, right)


def _verdict(value: float, intervals: Sequence[Interval | None], measure: str) -> Verdict:
    known = [interval for interval in intervals if interval is not None]
    if not known or any(interval.low <= 0 <= interval.high for interval in known):
        return "not told apart"
    return "better" if (value > 0) == metrics_of_tables()[measure].spec.higher_is_better else "worse"


def value_of(measures: Measures, model: str, measure: str) -> float | None:
    """A measure of a model; None if the model is missing, or the measure does not apply to it."""
    found = measures.models.get(model)
    interval = found.get(measure) if found is not None else None
    return None if interval is None else float(interval.value)


def read_table(evaluate: Path, measure: str, training: int = 0) -> Table | None:
    """The values per target or problem of the student of one training (`train.seeds`, from 0) in the artifact of a
    stage `evaluate`; None if it has no such values."""
    import pyarrow.parquet as pq

    tables = (_PROBLEMS,) if measure == "solved" else _TABLES
    file = next((evaluate / name for name in tables if (evaluate / name).is_file()), None)
    column = f"{metrics_of_tables()[measure].column}_student" + (f"_seed{training}" if training else "")
    if file is None or column not in (names := pq.read_schema(file).names):
        return None
    table = pq.read_table(file, columns=[n for n in ("record_id", "group", "position", column) if n in names])
    records = table["record_id"].to_pylist()
    positions = table["position"].to_pylist() if "position" in names else [0] * len(records)
    values = np.asarray(table[column].to_pylist(), dtype=np.float64)
    return Table(tuple(zip(records, positions, strict=True)), tuple(table["group"].to_pylist()), values)
