"""`potstill show RUN`: print what is in a run."""

from __future__ import annotations

import io
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from potstill.artifacts import MANIFEST, read_artifact, read_attempts
from potstill.console import emit_styled
from potstill.errors import RunError, missing_run, printable
from potstill.measures import MODELS, Interval, Measures
from potstill.quantities import byte_size

_NONE = "–"


def describe_run(run: Path) -> dict[str, Any]:
    """The contents of a run folder: its artifacts, unfinished attempts, and the measures if there are any.

    Raises:
        RunError: there is no such folder, or it is not a run's.
    """
    if not run.exists():
        raise missing_run(run)
    if not (run / "recipe.yaml").is_file():
        raise RunError(
            "not a run's folder (it has no recipe.yaml)", where=str(run), fix="name a folder such as runs/<name>"
        )
    folders = [path.parent for path in sorted(run.glob(f"*/{MANIFEST}")) if not path.parent.name.startswith(".")]
    found = [artifact for folder in folders if (artifact := read_artifact(folder))]
    found.sort(key=lambda artifact: str(artifact.manifest["ended"]))
    stages = [
        {
            "stage": a.manifest["stage"],
            "ended": a.manifest["ended"],
            "seconds": a.manifest["seconds"],
            "bytes": sum(f.stat().st_size for f in a.path.rglob("*") if f.is_file()),
            "counts": a.manifest["counts"],
            "warnings": a.manifest["warnings"],
        }
        for a in found
    ]
    measures = run / "evaluate" / "measures.json"
    return {
        "run": str(run),
        "stages": stages,
        "unfinished": [asdict(attempt) for attempt in read_attempts(run)],
        "measures": Measures.load(measures) if measures.is_file() else None,
        "report": str(run / "report" / "report.html") if (run / "report" / "report.html").is_file() else None,
    }


def print_run(facts: dict[str, Any]) -> None:
    """Print the facts of a run as tables that fit a narrow terminal. Raises: as `console.emit`."""
    from rich.console import Console

    drawn = io.StringIO()
    _draw(facts, Console(file=drawn, force_terminal=sys.stdout is not None and sys.stdout.isatty()))
    emit_styled(drawn.getvalue().rstrip("\n"))


def _draw(facts: dict[str, Any], out: Any) -> None:
    from rich.table import Table

    table = Table("stage", "seconds", "size", "counts", title=_plain(facts["run"]), title_justify="left", box=None)
    for column in (1, 2):
        table.columns[column].justify = "right"
    for stage in facts["stages"]:
        counts = ", ".join(f"{name} {amount}" for name, amount in stage["counts"].items())
        table.add_row(stage["stage"], f"{stage['seconds']:,.0f}", byte_size(stage["bytes"]), _plain(counts))
    out.print(table)
    for attempt in facts["unfinished"]:
        out.print(_plain(_unfinished(attempt)), highlight=False, soft_wrap=True)
    for stage in facts["stages"]:
        for warning in stage["warnings"]:
            out.print(_plain(f"warning: {stage['stage']}: {warning}"), highlight=False)
    if facts["measures"] is not None:
        out.print(_measures_table(facts["measures"], Table))
    if facts["report"]:
        out.print(_plain(f"report: {facts['report']}"), highlight=False, soft_wrap=True)


def _unfinished(attempt: Mapping[str, Any]) -> str:
    """One unfinished stage: its state, since when, and why."""
    began = f"{attempt['stage']}: started {attempt['started']}"
    if attempt["state"] == "running":
        return f"{began}, and still at work, or killed; in the second case the same command continues it"
    if attempt["state"] == "interrupted":
        return f"{began}, interrupted {attempt['ended']}; the same command continues it"
    where = f"{attempt['where']}: " if attempt["where"] else ""
    fix = f"\n  fix: {attempt['fix']}" if attempt["fix"] else ""
    return f"{began}, failed {attempt['ended']}: {where}{attempt['error']}{fix}"


def _plain(text: str) -> str:
    """Text without terminal escapes and without rich's markup."""
    from rich.markup import escape

    return escape(printable(text))


def _measures_table(measures: Measures, table_type: Any) -> Any:
    held_out = (
        f"held out: {measures.groups} groups, {measures.targets:,} targets; intervals at {measures.confidence:.0%}"
    )
    shown = [measures.models[name] for name in MODELS if name in measures.models]
    present = {
        spec.short: [_interval(model.get(spec.name)) for model in shown]
        for spec in measures.metrics.values()
        if spec.charted
    }
    table = table_type("", "M params", *present, title=held_out, title_justify="left", box=None)
    for index, model in enumerate(shown):
        table.add_row(
            _plain(model.name), f"{model.parameters / 1e6:,.1f}", *(cells[index] for cells in present.values())
        )
    return table


def _interval(interval: Interval | None) -> str:
    return _NONE if interval is None else f"{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]"
