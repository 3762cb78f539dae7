"""Finished runs, set side by side: `potstill report --compare A B …`. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from potstill.errors import RunError
from potstill.evaluate.bootstrap import PairedBootstrap
from potstill.evaluate.measures.fidelity import metrics_of_tables
from potstill.measures import Interval, Measures
from potstill.report.comparison import ComparedRun, render_comparison
from potstill.sweep.paired import read_table

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
        differences = {} if folder is folders[0] else _differences(folder, folders[0], one)
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


def _differences(run: Path, first: Path, measures: Measures) -> dict[str, Interval] | None:
    """Paired differences of two students, by metric; None where they were measured on other targets."""
    found = {}
    for name in metrics_of_tables():
        if name not in measures.metrics:
            continue
        ours, theirs = (read_table(folder / "evaluate", name) for folder in (run, first))
        if ours is None or theirs is None:
            continue
        if ours.targets != theirs.targets:
            return None
        drawn = PairedBootstrap(ours.groups, resamples=measures.resamples, confidence=measures.confidence, seed=0)
        found[name] = drawn.difference(ours.values, theirs.values)
    return found
