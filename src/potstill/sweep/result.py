"""Results of a sweep: means, paired differences with their intervals, the capacity of students, a picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from potstill.artifacts import read_artifact
from potstill.errors import RunError
from potstill.measures import Interval, Measures
from potstill.report.figures import large
from potstill.sweep.beside import Beside
from potstill.sweep.capacity import Abstention, Point, fit_capacity, smallest_student
from potstill.sweep.file import Run, Sweep
from potstill.sweep.paired import Difference, Table, difference, mean_over, read_table, value_of
from potstill.tasks import SPECS

# ---- the picture: every seed a dot, the mean with its interval over seeds beside them --------------------------------


BASELINE, OTHER, LINE, INK, SOFT, GRID = "#3b3b3b", "#0072b2", "#d55e00", "#111111", "#777777", "#dddddd"
_WIDTH, _ROW, _HEIGHT = 560, 44, 300
_DOTS, _DOT_OPACITY = 28, 0.45


@dataclass(frozen=True)
class Shown:
    """One arm: its values by seed, their mean and its interval over seeds, and its position on the axis (None if the
    axis does not apply to it)."""

    name: str
    values: Sequence[float]
    mean: float
    interval: Interval | None
    at: float | None = None
    baseline: bool = False


def arms_svg(title: str, axis: str, arms: Sequence[Shown], reference: tuple[str, float] | None = None) -> str:
    """A row for each arm. `reference` is a name and a value that a line is drawn at (the teacher's)."""
    import altair as alt

    order = [arm.name for arm in arms]
    rows = alt.Y("arm:N", sort=order, title=None, axis=alt.Axis(ticks=False, domain=False, labelColor=INK))
    x = alt.X("value:Q", title=axis, scale=_scale(), axis=alt.Axis(tickCount=6))
    colour = alt.Color("colour:N", scale=None)
    dots, means = _dots(arms), _means(arms)
    layers = [
        alt.Chart(dots).mark_point(filled=True, size=_DOTS, opacity=_DOT_OPACITY).encode(x=x, y=rows, color=colour),
        alt.Chart(means).mark_rule(strokeWidth=2).encode(x="low:Q", x2="high:Q", y=rows, color=colour),
        alt.Chart(means).mark_point(filled=True, size=90, opacity=1).encode(x=x, y=rows, color=colour),
        alt.Chart(means).mark_text(dy=-12, fontSize=11, color=INK).encode(x=x, y=rows, text="text:N"),
    ]
    if reference is not None:
        layers += _reference(reference, "x")
    return _svg(alt.layer(*layers), title, _ROW * len(arms) + 20)


def along_svg(
    title: str, axis: str, along: str, arms: Sequence[Shown], reference: tuple[str, float] | None, *, log: bool
) -> str:
    """The arms of one axis along it, all others as lines across. `along` names the axis."""
    import altair as alt

    swept = [arm for arm in arms if arm.at is not None]
    scale = alt.Scale(type="log" if log else "linear", nice=False, padding=10)
    ticks = alt.Axis(values=[arm.at for arm in swept if arm.at is not None], format="~g", grid=False)
    x = alt.X("at:Q", title=along, scale=scale, axis=ticks)
    y = alt.Y("value:Q", title=axis, scale=_scale(), axis=alt.Axis(tickCount=7))
    colour = alt.Color("colour:N", scale=None)
    means = _means(swept)
    layers = [
        alt.Chart(_dots(swept))
        .mark_point(filled=True, size=_DOTS, opacity=_DOT_OPACITY)
        .encode(x=x, y=y, color=colour),
        alt.Chart(means).mark_line(strokeWidth=2, color=OTHER).encode(x=x, y=y),
        alt.Chart(means).mark_rule(strokeWidth=2).encode(x=x, y="low:Q", y2="high:Q", color=colour),
        alt.Chart(means).mark_point(filled=True, size=70, opacity=1).encode(x=x, y=y, color=colour),
    ]
    lines = [(arm.name, arm.mean) for arm in arms if arm.at is None]
    for name, value in [*lines, *([reference] if reference is not None else [])]:
        layers += _reference((name, value), "y")
    return _svg(alt.layer(*layers), title, _HEIGHT)


def _dots(arms: Sequence[Shown]) -> Any:
    return _inline([_of(arm) | {"value": value} for arm in arms for value in arm.values])


def _means(arms: Sequence[Shown]) -> Any:
    rows = []
    for arm in arms:
        low, high = (arm.interval.low, arm.interval.high) if arm.interval is not None else (arm.mean, arm.mean)
        rows.append(_of(arm) | {"value": arm.mean, "low": low, "high": high, "text": f"{arm.mean:.4g}"})
    return _inline(rows)


def _of(arm: Shown) -> dict[str, Any]:
    return {"arm": arm.name, "at": arm.at, "colour": BASELINE if arm.baseline else OTHER}


def _reference(line: tuple[str, float], channel: str) -> list[Any]:
    """A dashed line across, with its name at the end."""
    import altair as alt

    name, value = line
    at = _inline([{"value": value, "text": name}])
    base = alt.Chart(at).encode(**{channel: "value:Q"})
    words: dict[str, Any] = {"align": "right", "dy": -6} if channel == "y" else {"align": "right", "dx": -4}
    edge = {"x": alt.value(_WIDTH - 60)} if channel == "y" else {"y": alt.value(8)}
    rule = base.mark_rule(strokeDash=[5, 4], color=LINE)
    return [rule, base.mark_text(fontSize=11, color=LINE, **words).encode(text="text:N", **edge)]


def _scale() -> Any:
    import altair as alt

    return alt.Scale(zero=False, nice=False, padding=14)


def _inline(values: list[dict[str, Any]]) -> Any:
    import altair as alt

    return alt.InlineData(values=values)


def _svg(chart: Any, title: str, height: int) -> str:
    import vl_convert

    chart = (
        chart.properties(
            title={"text": title, "anchor": "start", "fontSize": 14, "fontWeight": "normal", "color": INK},
            width=_WIDTH,
            height=height,
            background="white",
            autosize={"type": "fit", "contains": "padding"},
            padding={"left": 8, "right": 16, "top": 8, "bottom": 8},
        )
        .configure_view(stroke=None)
        .configure_axis(
            labelColor=SOFT, titleColor=SOFT, gridColor=GRID, domainColor=SOFT, tickColor=SOFT, titleFontWeight="normal"
        )
    )
    return str(vl_convert.vegalite_to_svg(chart.to_dict()))


RESAMPLES = 2000


@dataclass(frozen=True)
class Arm:
    """What an arm came to: by measure its values by seed, their mean, Student's interval, and the difference from the
    baseline (None for the baseline itself, and where no seed is in both)."""

    name: str
    values: Mapping[str, Mapping[int, float]]
    means: Mapping[str, float]
    intervals: Mapping[str, Interval | None]
    differences: Mapping[str, Difference | None]
    at: float | None = None


def gather(sweep: Sweep, runs: Sequence[Run], *, resamples: int = RESAMPLES) -> list[Arm]:
    """What the runs that are there came to, in the order of the arms.

    Raises:
        RunError: the measure that decides is not there, or arms were measured on different records.
    """
    values: dict[str, dict[str, dict[int, float]]] = {arm: {} for arm in sweep.all_arms}
    tables: dict[str, dict[str, dict[int, Table]]] = {arm: {} for arm in sweep.all_arms}
    for made in runs:
        file = made.folder / "evaluate" / "measures.json"
        measured = Measures.load(file)
        for measure in sweep.measures:
            found = value_of(measured, "student", measure)
            if found is None and measure == sweep.measure:
                why = "; ".join(note for note in measured.notes if "compared with the teacher" in note)
                raise RunError(
                    f"{measure} was not measured{f': {why}' if why else f' (task {measured.task})'}",
                    where=str(file),
                    fix="set evaluate.solve in the recipe" if measure == "solved" else "choose another measure",
                )
            if found is None:
                continue
            each = measured.models["student"].by_seed.get(measure, (found,))
            for number, (seed, value) in enumerate(zip(made.training_seeds, each, strict=False)):
                values[made.arm].setdefault(measure, {})[seed] = value
                if (table := read_table(file.parent, measure, number)) is not None:
                    tables[made.arm].setdefault(measure, {})[seed] = table
    arms = []
    at = {along.name(v): v for v in along.values} if (along := sweep.along) is not None else {}
    base = sweep.baseline
    for name in sweep.all_arms:
        found_values = values[name]
        differences = {}
        if base is not None and name != base:
            differences = {
                measure: difference(
                    by_seed,
                    values[base].get(measure, {}),
                    _pairs(tables[name].get(measure, {}), tables[base].get(measure, {})),
                    measure=measure,
                    confidence=sweep.confidence,
                    resamples=resamples,
                )
                for measure, by_seed in found_values.items()
            }
        means = {measure: sum(by_seed.values()) / len(by_seed) for measure, by_seed in found_values.items()}
        spread = {m: mean_over(list(by_seed.values()), sweep.confidence) for m, by_seed in found_values.items()}
        arms.append(Arm(name, found_values, means, spread, differences, at.get(name)))
    return arms


def _pairs(ours: Mapping[int, Table], theirs: Mapping[int, Table]) -> dict[int, tuple[Table, Table]]:
    return {seed: (ours[seed], theirs[seed]) for seed in ours if seed in theirs}


def teachers_value(runs: Sequence[Run], measure: str) -> float | None:
    """The teacher's, where it is measured: it is the same in all arms that have one."""
    for made in runs:
        file = made.folder / "evaluate" / "measures.json"
        if (found := value_of(Measures.load(file), "teacher", measure)) is not None:
            return found
    return None


def points_of(sweep: Sweep, runs: Sequence[Run]) -> list[Point]:
    """What the capacity of students is fitted to: parameters, training tokens (images; of every epoch) and loss of each
    run."""
    points = []
    for made in runs:
        measures = Measures.load(made.folder / "evaluate" / "measures.json")
        train, loss = read_artifact(made.folder / "train"), value_of(measures, "student", sweep.measure)
        if train is not None and loss is not None:
            tokens = float(train.manifest["counts"][SPECS[measures.task].trained_unit])
            points.append(Point(float(measures.models["student"].parameters), tokens, loss))
    return points


def largest_student(runs: Sequence[Run]) -> float:
    """The parameters of the teacher, which no student needs more of; infinite where none was measured."""
    found = [Measures.load(made.folder / "evaluate" / "measures.json").models.get("teacher") for made in runs]
    return float(min((teacher.parameters for teacher in found if teacher is not None), default=math.inf))


def capacity_of(sweep: Sweep, runs: Sequence[Run]) -> dict[str, Any] | None:
    """The law and the answers to the questions of the file, as they are printed and kept; None where it asks none."""
    if not sweep.capacity:
        return None
    points, largest = points_of(sweep, runs), largest_student(runs)
    unit = SPECS[runs[0].recipe.task].trained_unit if runs else "tokens"
    fit = fit_capacity(points, tolerance=sweep.tolerance, confidence=sweep.confidence, largest=largest, unit=unit)
    if isinstance(fit, Abstention):
        return {"runs": len(points), "unit": unit, "law": None, "abstains": asdict(fit), "answers": []}
    answers = []
    for question in sweep.capacity:
        found = smallest_student(fit, question.loss, question.tokens)
        name = "abstains" if isinstance(found, Abstention) else "parameters"
        answers.append({"loss": question.loss, "tokens": question.tokens, name: asdict(found)})
    return {
        "runs": len(points),
        "unit": unit,
        "form": str(fit.form),
        "law": {**asdict(fit.law), "start": fit.law.start if fit.form.starts else None},
        "largest_run": {**asdict(fit.held_out), "predicted": asdict(fit.predicted), "error": fit.error},
        "predicts": fit.predicts,
        "answers": answers,
    }


def capacity_text(found: Mapping[str, Any], measure: str) -> str:
    """The same for a person."""
    unit = found["unit"]
    if found["law"] is None:
        return f"capacity: no law: {_abstention(found['abstains'], unit)}"
    largest = found["largest_run"]
    low, high = largest["predicted"]["low"], largest["predicted"]["high"]
    lines = [
        f"capacity: of the forms of the law, {found['form']} predicts runs that are left out best",
        f"capacity: the largest run ({large(largest['parameters'])} parameters, {largest['tokens']:,.0f} {unit}) "
        f"has a {measure} of {largest['loss']:.4g}; the law of the others predicts {largest['predicted']['value']:.4g} "
        f"[{low:.4g}, {high:.4g}], {largest['error']:+.1%}",
    ]
    for answer in found["answers"]:
        asks = f"{measure} ≤ {answer['loss']:g} with {answer['tokens']:,} {unit}: "
        if "abstains" in answer:
            lines.append(f"{asks}no answer: {_abstention(answer['abstains'], unit)}")
        else:
            lines.append(f"{asks}{_size(answer['parameters'], unit)}")
    return "\n".join(lines)


def _size(found: Mapping[str, Any], unit: str) -> str:
    low, high, value = (None if found[name] is None else large(found[name]) for name in ("low", "high", "value"))
    if low is not None and high is not None:
        return f"{value} parameters [{low}, {high}]"
    best = "" if value is None else f", {value} by the law"
    said = f"more than {low} parameters{best}" if low is not None else f"at most {high} parameters{best}"
    parameters, tokens = found["settle"]
    return f"{said}. The run that would give the other end: {large(parameters)} parameters, {tokens:,.0f} {unit}"


def _abstention(found: Mapping[str, Any], unit: str) -> str:
    if found["run"] is None:
        return str(found["why"])
    parameters, tokens = found["run"]
    return f"{found['why']}. The run that would help most: {large(parameters)} parameters, {tokens:,.0f} {unit}"


def result_of(
    sweep: Sweep,
    arms: Sequence[Arm],
    teacher: float | None,
    missing: Mapping[str, str],
    capacity: Mapping[str, Any] | None = None,
    beside: Sequence[Beside] = (),
) -> dict[str, Any]:
    """The result as it is printed and kept. `missing` says why, by the name of the run."""

    def described(arm: Arm, measure: str) -> dict[str, Any]:
        interval, against = arm.intervals[measure], arm.differences.get(measure)
        return {
            "seeds": {str(seed): value for seed, value in arm.values[measure].items()},
            "mean": arm.means[measure],
            "interval_over_seeds": None if interval is None else [interval.low, interval.high],
            "difference": None if against is None else asdict(against),
        }

    return {
        "sweep": sweep.name,
        "claim": sweep.claim,
        "measure": sweep.measure,
        "baseline": sweep.baseline,
        "confidence": sweep.confidence,
        "teacher": teacher,
        "beside": [one.as_json() for one in beside],
        "arms": [{"arm": a.name, **{m: described(a, m) for m in sweep.measures if m in a.values}} for a in arms],
        "missing": dict(missing),
        "capacity": capacity,
        "claims": claims_of(sweep, arms),
    }


def claims_of(sweep: Sweep, arms: Sequence[Arm]) -> list[dict[str, Any]]:
    """One claim for each arm but the baseline: its interval of differences lies on the better side of 0. In the form of
    `benchmarks/claims.py`."""
    if sweep.baseline is None:
        return []
    claims = []
    for arm in (arm for arm in arms if arm.name != sweep.baseline):
        found = arm.differences.get(sweep.measure)
        claims.append(
            {
                "name": f"{sweep.name}: {arm.name} is better than {sweep.baseline}",
                "aim": "interval excludes 0",
                "value": None if found is None else found.value,
                "met": found is not None and found.verdict == "better",
                "unit": sweep.measure,
            }
        )
    return claims


def table_of(sweep: Sweep, arms: Sequence[Arm], teacher: float | None) -> str:
    """The result for a person."""
    measure = sweep.measure
    less_baseline = "" if sweep.baseline is None else f"less {sweep.baseline}"
    over = ("", "") if sweep.baseline is None else ("over seeds", "over records")
    rows = [["arm", measure, "seeds", less_baseline, *over]]
    for arm in arms:
        if measure not in arm.values:
            rows.append([arm.name, "-", "0", "", "", ""])
            continue
        against = arm.differences.get(measure)
        known = () if against is None else (against.over_seeds, against.over_records)
        words = [f"[{i.low:+.4f}, {i.high:+.4f}]" if i is not None else "-" for i in known] or ["", ""]
        less = "" if against is None else f"{against.value:+.4f} {against.verdict}"
        rows.append([arm.name, f"{arm.means[measure]:.4f}", str(len(arm.values[measure])), less, *words])
    if teacher is not None:
        rows.append(["teacher", f"{teacher:.4f}", "", "", "", ""])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def picture_of(sweep: Sweep, arms: Sequence[Arm], teacher: float | None) -> str:
    """The SVG: along an axis if there is one, else a row for each arm."""
    measure = sweep.measure
    shown = [
        Shown(a.name, list(a.values[measure].values()), a.means[measure], a.intervals[measure], a.at)
        for a in arms
        if measure in a.values
    ]
    title = sweep.claim or sweep.name
    axis = f"{measure.replace('_', ' ')}, held out"
    reference = None if teacher is None else ("teacher", teacher)
    if (along := sweep.along) is not None:
        return along_svg(title, axis, along.axis or along.key, shown, reference, log=along.log)
    of_baseline = [Shown(**{**vars(s), "baseline": s.name == sweep.baseline}) for s in shown]
    return arms_svg(title, axis, of_baseline, reference)
