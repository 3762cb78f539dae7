"""Does the runs of a sweep: skips those that are there, continues those that were killed, notes those that fail.

Every arm with every seed is an ordinary run in a folder of its own, `runs/sweep/<name>/<arm>-<seed>`, so that `potstill
show` opens it and its report is there. Runs share their parts: a stage that another run of the sweep has made with the
same key (the teacher's text, say) is taken over from there.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from potstill.artifacts import write_atomically
from potstill.console import Console
from potstill.errors import PotstillError, RecipeError, did_you_mean
from potstill.pipeline import plan, run_recipe
from potstill.quantities import counted
from potstill.recipe import Recipe
from potstill.sweep.beside import beside_lines, beside_of
from potstill.sweep.capacity import LEAST_RUNS
from potstill.sweep.file import RUNS, Run, Sweep, first_runs_of, runs_of
from potstill.sweep.questions import answers_of, answers_text
from potstill.sweep.result import (
    capacity_of,
    capacity_text,
    gather,
    picture_of,
    result_of,
    table_of,
    teachers_value,
)

FOLDER = RUNS / "sweep"


@dataclass(frozen=True)
class Runner:
    """What runs a recipe into a folder, sharing parts with other folders, and says whether that is done."""

    run: Callable[[Recipe, Path, Console, Sequence[Path]], None]
    fresh: Callable[[Run], bool]


def run(recipe: Recipe, folder: Path, console: Console, shared: Sequence[Path]) -> None:
    """Every stage of a recipe."""
    run_recipe(recipe, folder, console=console, shared=shared)


def is_fresh(made: Run) -> bool:
    """Whether a run is done as its recipe says it now."""
    try:
        return all(status.state == "fresh" for status in plan(made.recipe, made.folder))
    except PotstillError:
        return False  # what it reads (its teacher, say) is not there yet


PIPELINE = Runner(run, is_fresh)


def run_all(
    runs: Sequence[Run],
    before: Sequence[tuple[Recipe, Path]],
    console: Console,
    *,
    runner: Runner = PIPELINE,
    after: Callable[[Mapping[str, str]], object] | None = None,
) -> dict[str, str]:
    """Do what is not there yet, with progress and time left.

    Args:
        runs: in their order.
        before: recipes that run first.
        console: takes the progress.
        runner: does a run.
        after: called after each run that ended well, with what has failed so far.

    Returns:
        Why a run failed, by its name. A failure in `before` is raised: nothing can go on without it.
    """
    for recipe, folder in before:
        console.say(f"before: {folder.name}")
        runner.run(recipe, folder, console, ())
    waiting = [made for made in runs if not runner.fresh(made)]
    console.say(f"{counted(len(runs), 'run')}: {len(runs) - len(waiting)} are there, {len(waiting)} to do")
    started, failed = time.monotonic(), {}
    for done, made in enumerate(waiting):
        left = (time.monotonic() - started) / done * (len(waiting) - done) if done else None
        time_left = f", about {_minutes(left)} left" if left is not None else ""
        console.say(
            f"[{done + 1}/{len(waiting)}] {made.arm}, seed {made.seed}{time_left}", arm=made.arm, seed=made.seed
        )
        try:
            runner.run(made.recipe, made.folder, console, [other.folder for other in runs if other is not made])
        except PotstillError as error:
            failed[made.folder.name] = str(error)
            console.warn(f"{made.folder.name} failed, the others go on: {error}")
        else:
            if after is not None:
                after(failed)
    return failed


def run_sweep(
    sweep: Sweep, console: Console, *, folder: Path | None = None, only: str | None = None, runner: Runner = PIPELINE
) -> tuple[dict[str, Any], str]:
    """Runs a sweep and writes `result.json` and `plot.svg` into its folder, anew after each run: what is there when a
    sweep is stopped can be read.

    Args:
        folder: where its runs are; by default `runs/sweep/<name>`.
        only: run this arm alone; the result is of all that is there.

    Returns:
        The result, and the same as text for a person.

    Raises:
        RecipeError: a recipe is wrong, or there is no such arm.
        PotstillError: nothing could be run.
    """
    folder = folder or FOLDER / sweep.name
    runs, chosen = planned(sweep, folder, only)
    trainings = sum(len(made.training_seeds) for made in runs)
    if sweep.capacity and trainings <= LEAST_RUNS:
        console.warn(
            f"capacity: {trainings} runs are too few for a law, {LEAST_RUNS + 1} are needed: add sizes, amounts of "
            "data, or seeds"
        )

    def settle(failed: Mapping[str, str]) -> tuple[dict[str, Any], str]:
        there = [made for made in runs if made.folder.name not in failed and runner.fresh(made)]
        missing = {made.folder.name: failed.get(made.folder.name, "not run yet") for made in runs if made not in there}
        return settled(sweep, folder, there, missing)

    return settle(run_all(chosen, first_runs_of(sweep), console, runner=runner, after=settle))


def settled(sweep: Sweep, folder: Path, there: Sequence[Run], missing: Mapping[str, str]) -> tuple[dict[str, Any], str]:
    """Writes what the runs that are there come to; the result, and the same as text. `missing` says why the others are
    not there, by their names."""
    arms, teacher = gather(sweep, there), teachers_value(there, sweep.measure)
    capacity = capacity_of(sweep, there)
    beside = beside_of(sweep, there)
    answers = answers_of(sweep, arms)
    result = {**result_of(sweep, arms, teacher, missing, capacity, beside), "questions": answers}
    write_atomically(folder / "result.json", json.dumps(result, indent=1))
    write_atomically(folder / "plot.svg", picture_of(sweep, arms, teacher))
    lines = [table_of(sweep, arms, teacher), *beside_lines(beside)]
    lines += [capacity_text(capacity, sweep.measure)] if capacity is not None else []
    lines += answers_text(answers)
    lines += [f"missing: {name}: {why}" for name, why in missing.items()]
    return result, "\n".join(lines)


def planned(sweep: Sweep, folder: Path, only: str | None) -> tuple[list[Run], list[Run]]:
    """All runs, and those that are asked for.

    Raises:
        RecipeError: a recipe is wrong (also of those that run first), or there is no such arm.
    """
    first_runs_of(sweep)
    if only is not None and only not in sweep.all_arms:
        raise RecipeError(f"no arm {only!r}{did_you_mean(only, sweep.all_arms)}", where="--only")
    runs = runs_of(sweep, folder)
    return runs, [made for made in runs if only in (None, made.arm)]


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
