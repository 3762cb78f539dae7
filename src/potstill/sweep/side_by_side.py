"""Finished runs, set side by side: `potstill report --compare A B …`. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from potstill.errors import RunError
from potstill.evaluate.bootstrap import PairedBootstrap, difference_of, mean_of
from potstill.evaluate.measures.fidelity import metrics_of_tables
from potstill.measures import Interval, Measures
from potstill.report.comparison import ComparedRun, render_comparison
from potstill.sweep.paired import Table, read_table

PAGE = "comparison.html"


def compare_runs(folders: Sequence[Path], out: Path) -> Path:
    """Write the page of several runs into a folder; its path.

    Raises:
        RunError: fewer than two runs, one that is not evaluated, or runs of different tasks.
    """
    if len(folders) < 2:
        raise RunError("there is one run to compare", fix="name two or more: potstill report --compare runs/a runs/b")
    measures = [_measures(folder) for folder in folders]
    if len(tasks := {one.task for one in measures}) > 1:
        raise RunError(
            f"runs of different tasks ({', '.join(sorted(tasks))}) have no measures in common",
            fix="compare runs of one task",
        )
    names = _names(folders)
    runs, warnings = [], []
    for name, folder, one in zip(names, folders, measures, strict=True):
        differences = {} if folder is folders[0] else _differences(folder, folders[0], one, measures[0])
        if differences is None:
            warnings.append(f"{name} was measured on other held-out records than {names[0]}: they are not paired.")
        runs.append(ComparedRun(name, one, differences or {}))
    out.mkdir(parents=True, exist_ok=True)
    page = out / PAGE
    page.write_text(render_comparison(runs, warnings), encoding="utf-8", newline="\n")
    return page


def _measures(folder: Path) -> Measures:
    file = folder / "evaluate" / "measures.json"
    if not file.is_file():
        raise RunError(
            "the run was not evaluated", where=str(folder), fix="give the folder of a run with an evaluation"
        )
    return Measures.load(file)


def _names(folders: Sequence[Path]) -> list[str]:
    """As short as they differ: the folders' own names, else whole paths."""
    short = [folder.resolve().name for folder in folders]
    return short if len(set(short)) == len(short) else [str(folder) for folder in folders]


def _differences(run: Path, first: Path, measures: Measures, of_first: Measures) -> dict[str, Interval] | None:
    """Paired differences of two students, by metric, over the training seeds that both have (a single one is paired
    with every seed of the other); None where they were measured on other targets."""
    found = {}
    for name in metrics_of_tables():
        if name not in measures.metrics:
            continue
        ours, theirs = _tables(run, name, measures), _tables(first, name, of_first)
        if not ours or not theirs:
            continue
        if any(table.targets != ours[0].targets for table in (*ours, *theirs)):
            return None
        drawn = PairedBootstrap(ours[0].groups, resamples=measures.resamples, confidence=measures.confidence, seed=0)
        several = max(len(ours), len(theirs))
        ours, theirs = (side * several if len(side) == 1 else side for side in (ours, theirs))
        pairs = zip(ours, theirs, strict=False)
        found[name] = drawn.interval([difference_of(mean_of(a.values), mean_of(b.values)) for a, b in pairs])
    return found


def _tables(run: Path, metric: str, measures: Measures) -> list[Table]:
    """The student's values by training seed."""
    read = (read_table(run / "evaluate", metric, training) for training in range(measures.seeds))
    return [table for table in read if table is not None]
