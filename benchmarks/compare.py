"""Compares arms of one recipe over the same seeds: means, paired differences with their intervals, and a picture.

    python -m benchmarks.compare benchmarks/comparisons/hinton_digits.yaml
    python -m benchmarks.compare … --dry-run          # what is there, what would run
    python -m benchmarks.compare … --only kd          # that arm alone
    python -m benchmarks.compare … --json             # nothing but the result on standard output

Every arm with every seed is an ordinary run in a folder of its own, `runs/compare/<name>/<arm>-<seed>`, so that
`potstill show` opens it and its report is there. What is fresh is skipped, and what was killed goes on from its
checkpoint: the same command continues. Recipes under `before` (those that make teachers) run first, in their own
folders. That no seed pays for the teacher's outputs in training again is up to the recipe: `teacher: {…, cache: true}`.
The teacher is measured on the held-out side in every run, as every model is.

The last line of the output is the result, one JSON object; it is also in the comparison's folder, as `result.json`,
with the picture beside it, `plot.svg`. What the two intervals of a difference mean is said in `benchmarks/paired.py`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.claims import Claim
from benchmarks.comparison import RUNS, Comparison, Run, first_runs_of, load_comparison, runs_of
from benchmarks.comparison_chart import Shown, arms_svg, sweep_svg
from benchmarks.paired import Difference, Table, difference, mean_over, read_table, value_of
from potstill.artifacts import write_atomically
from potstill.console import Console
from potstill.errors import PotstillError, RecipeError, RunError, did_you_mean
from potstill.measures import Interval, Measures
from potstill.pipeline import plan, run_recipe
from potstill.recipe import Recipe

RESAMPLES = 2000
FOLDER = RUNS / "compare"

Runner = Callable[[Recipe, Path, Console], None]
"""Runs a recipe into a folder; what is fresh costs it nothing."""


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


def run(recipe: Recipe, folder: Path, console: Console) -> None:
    """Every stage of a recipe."""
    run_recipe(recipe, folder, console=console)


def is_fresh(made: Run) -> bool:
    """Whether a run is done as its recipe says it now."""
    try:
        return all(status.state == "fresh" for status in plan(made.recipe, made.folder))
    except PotstillError:
        return False  # what it reads (its teacher, say) is not there yet


def run_all(
    runs: Sequence[Run],
    before: Sequence[tuple[Recipe, Path]],
    console: Console,
    *,
    runner: Runner = run,
    fresh: Callable[[Run], bool] = is_fresh,
) -> None:
    """Does what is not there yet, saying how much is left. Whatever a run raises stops it; what is done stays done."""
    for recipe, folder in before:
        console.say(f"before: {folder.name}")
        runner(recipe, folder, console)
    waiting = [made for made in runs if not fresh(made)]
    console.say(f"{len(runs)} runs: {len(runs) - len(waiting)} are there, {len(waiting)} to do")
    started = time.monotonic()
    for done, made in enumerate(waiting):
        left = (time.monotonic() - started) / done * (len(waiting) - done) if done else None
        says = f", about {_minutes(left)} left" if left is not None else ""
        console.say(f"[{done + 1}/{len(waiting)}] {made.arm}, seed {made.seed}{says}", arm=made.arm, seed=made.seed)
        runner(made.recipe, made.folder, console)


def gather(comparison: Comparison, runs: Sequence[Run], *, resamples: int = RESAMPLES) -> list[Arm]:
    """What the runs that are there came to, in the order of the arms.

    Raises:
        RunError: the measure that decides is not there, or arms were measured on different records.
    """
    values: dict[str, dict[str, dict[int, float]]] = {arm: {} for arm in comparison.all_arms}
    tables: dict[str, dict[str, dict[int, Table]]] = {arm: {} for arm in comparison.all_arms}
    for made in runs:
        file = made.folder / "evaluate" / "measures.json"
        measured = Measures.load(file)
        for measure in comparison.measures:
            found = value_of(measured, "student", measure)
            if found is None and measure == comparison.measure:
                why = "; ".join(note for note in measured.notes if "compared with the teacher" in note)
                raise RunError(
                    f"{measure} was not measured{f': {why}' if why else f' (task {measured.task})'}",
                    where=str(file),
                    fix="set evaluate.solve in the recipe" if measure == "solved" else "choose another measure",
                )
            if found is None:
                continue
            values[made.arm].setdefault(measure, {})[made.seed] = found
            if (table := read_table(file.parent, measure)) is not None:
                tables[made.arm].setdefault(measure, {})[made.seed] = table
    arms = []
    at = {sweep.name(v): v for v in sweep.values} if (sweep := comparison.sweep) is not None else {}
    base = comparison.baseline
    for name in comparison.all_arms:
        found_values = values[name]
        differences = {
            measure: difference(
                by_seed,
                values[base].get(measure, {}),
                _pairs(tables[name].get(measure, {}), tables[base].get(measure, {})),
                measure=measure,
                confidence=comparison.confidence,
                resamples=resamples,
            )
            for measure, by_seed in found_values.items()
            if name != base
        }
        means = {measure: sum(by_seed.values()) / len(by_seed) for measure, by_seed in found_values.items()}
        spread = {m: mean_over(list(by_seed.values()), comparison.confidence) for m, by_seed in found_values.items()}
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


def result_of(
    comparison: Comparison, arms: Sequence[Arm], teacher: float | None, missing: Sequence[Run]
) -> dict[str, Any]:
    """The result as it is printed and kept."""

    def said(arm: Arm, measure: str) -> dict[str, Any]:
        interval, against = arm.intervals[measure], arm.differences.get(measure)
        return {
            "seeds": {str(seed): value for seed, value in arm.values[measure].items()},
            "mean": arm.means[measure],
            "interval_over_seeds": None if interval is None else [interval.low, interval.high],
            "difference": None if against is None else asdict(against),
        }

    return {
        "comparison": comparison.name,
        "claim": comparison.claim,
        "measure": comparison.measure,
        "baseline": comparison.baseline,
        "confidence": comparison.confidence,
        "teacher": teacher,
        "arms": [{"arm": a.name, **{m: said(a, m) for m in comparison.measures if m in a.values}} for a in arms],
        "missing": [f"{made.arm}-{made.seed}" for made in missing],
        "claims": claims_of(comparison, arms),
    }


def claims_of(comparison: Comparison, arms: Sequence[Arm]) -> list[Claim]:
    """One claim for each arm but the baseline: its interval of differences lies on the better side of 0."""
    claims = []
    for arm in (arm for arm in arms if arm.name != comparison.baseline):
        found = arm.differences.get(comparison.measure)
        claims.append(
            {
                "name": f"{comparison.name}: {arm.name} is better than {comparison.baseline}",
                "aim": "interval excludes 0",
                "value": None if found is None else found.value,
                "met": found is not None and found.verdict == "better",
                "unit": comparison.measure,
            }
        )
    return claims


def table_of(comparison: Comparison, arms: Sequence[Arm], teacher: float | None) -> str:
    """The result for a person."""
    measure = comparison.measure
    rows = [["arm", measure, "seeds", f"less {comparison.baseline}", "over seeds", "over records"]]
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


def picture_of(comparison: Comparison, arms: Sequence[Arm], teacher: float | None) -> str:
    """The SVG: along the sweep if there is one, else a row for each arm."""
    measure = comparison.measure
    shown = [
        Shown(a.name, list(a.values[measure].values()), a.means[measure], a.intervals[measure], a.at)
        for a in arms
        if measure in a.values
    ]
    title = comparison.claim or comparison.name
    axis = f"{measure.replace('_', ' ')}, held out"
    reference = None if teacher is None else ("teacher", teacher)
    if (sweep := comparison.sweep) is not None:
        return sweep_svg(title, axis, sweep.axis or sweep.key, shown, reference, log=sweep.log)
    of_baseline = [Shown(**{**vars(s), "baseline": s.name == comparison.baseline}) for s in shown]
    return arms_svg(title, axis, of_baseline, reference)


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    says = "Compares arms of one recipe over the same seeds."
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=says)
    parser.add_argument("comparison", type=Path, help="a YAML file; those shipped are in benchmarks/comparisons")
    parser.add_argument("--run", type=Path, metavar="DIR", help="where its runs are [runs/compare/<name>]")
    parser.add_argument("--only", metavar="ARM", help="run this arm alone; give the result of all that is there")
    parser.add_argument("--dry-run", action="store_true", help="say what is there and what would run")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write the picture there as well")
    parser.add_argument("--json", action="store_true", help="no table, nothing but the JSON object")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> int:
    """The program. Returns its exit code; mistakes of the user print no traceback."""
    asked = arguments(given)
    try:
        return _main(asked)
    except PotstillError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted: the same command continues", file=sys.stderr)
        return 130


def _main(asked: argparse.Namespace) -> int:
    comparison = load_comparison(asked.comparison)
    folder = asked.run or FOLDER / comparison.name
    before = first_runs_of(comparison)
    runs = runs_of(comparison, folder)
    if asked.only is not None and asked.only not in comparison.all_arms:
        raise RecipeError(f"no arm {asked.only!r}{did_you_mean(asked.only, comparison.all_arms)}", where="--only")
    chosen = [made for made in runs if asked.only in (None, made.arm)]
    if asked.dry_run:
        for _, first in before:
            print(f"before: {first}")
        for made in chosen:
            print(f"{made.arm}, seed {made.seed}: {'is there' if is_fresh(made) else 'would run'}")
        return 0
    console = Console("quiet" if asked.quiet else "lines" if asked.json else None)
    run_all(chosen, before, console)
    there = [made for made in runs if made in chosen or is_fresh(made)]
    arms = gather(comparison, there)
    teacher = teachers_value(there, comparison.measure)
    result = result_of(comparison, arms, teacher, [made for made in runs if made not in there])
    picture = picture_of(comparison, arms, teacher)
    write_atomically(folder / "result.json", json.dumps(result, indent=1))
    for file in (folder / "plot.svg", *([asked.plot] if asked.plot else [])):
        write_atomically(file, picture)
    if not asked.json:
        print(table_of(comparison, arms, teacher))
    print(json.dumps(result), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
