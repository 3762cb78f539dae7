"""Further metrics of a sweep, shown beside the one that decides, and read from each run's measures.

Metrics of a measure's own questions (refusals, tasks) have no table of single values. So each value has the interval of
its run, over groups and training seeds; for an arm with several runs, Student's interval over the runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from potstill.errors import did_you_mean
from potstill.measures import Interval, Measures, MetricSpec
from potstill.report.figures import of_metric
from potstill.sweep.file import Run, Sweep
from potstill.sweep.paired import mean_over

_TEACHER = "teacher"


@dataclass(frozen=True)
class Beside:
    """One metric: its value in each arm, and the teacher's in the first run that has it. `near` are the metrics that
    exist, if no run has this one."""

    metric: str
    spec: MetricSpec | None
    values: Mapping[str, Interval]
    near: tuple[str, ...] = ()

    def as_json(self) -> dict[str, object]:
        """For the result."""
        return {"metric": self.metric, "values": {name: asdict(found) for name, found in self.values.items()}}


def beside_of(sweep: Sweep, runs: Sequence[Run]) -> list[Beside]:
    """The metrics that a sweep shows beside the one that decides (`also`, `beside`), from the finished runs."""
    measured = [(made.arm, Measures.load(made.folder / "evaluate" / "measures.json")) for made in runs]
    known = {name: spec for _, measures in measured for name, spec in measures.metrics.items()}
    found = []
    for metric in dict.fromkeys((*sweep.also, *sweep.beside)):
        values = {
            arm: _mean([m for name, m in measured if name == arm], metric, sweep.confidence) for arm in sweep.all_arms
        }
        values[_TEACHER] = next((v for _, m in measured if (v := _of(m, _TEACHER, metric)) is not None), None)
        there = {name: value for name, value in values.items() if value is not None}
        found.append(Beside(metric, known.get(metric), there, () if there else tuple(known)))
    return found


def beside_lines(beside: Sequence[Beside]) -> list[str]:
    """A line for each metric, for a person."""
    lines = []
    for one in beside:
        if not one.values:
            lines.append(f"{one.metric}: no run has it{did_you_mean(one.metric, one.near)}")
            continue
        spec = one.spec or MetricSpec(one.metric, one.metric, one.metric, "number", False)
        shown = ", ".join(f"{name} {of_metric(spec, value)}" for name, value in one.values.items())
        lines.append(f"{spec.label}: {shown}")
    return lines


def _of(measures: Measures, model: str, metric: str) -> Interval | None:
    found = measures.models.get(model)
    return None if found is None else found.get(metric)


def _mean(runs: Sequence[Measures], metric: str, confidence: float) -> Interval | None:
    """The student's value, with the interval of its run, or over several runs."""
    found = [value for measures in runs if (value := _of(measures, "student", metric)) is not None]
    if len(found) < 2:
        return found[0] if found else None
    return mean_over([value.value for value in found], confidence)
