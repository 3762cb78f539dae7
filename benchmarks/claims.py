"""What the benchmarks are asked to show, and whether they did.

    python -m benchmarks.claims                         the table of all kept results
    python -m benchmarks.claims --results DIR

A benchmark declares its aims (`AIMS`), and its last line of JSON has `claims: [{name, aim, value, met, unit}]`, one for
each. Results are kept as that line in a file of `benchmarks/results/`, several to a file if need be:

    python -m benchmarks.kd_loss --json >> benchmarks/results/kd_loss.jsonl

An aim without a value, because it was not measured or nothing was kept, is not met. No torch.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
BENCHMARKS = (
    "kd_loss",
    "train_step",
    "generate",
    "rouge",
    "promptness",
    "busy",
    "signal_store",
    "offline_kd",
    "studio",
    "labs",
    "few_rows",
    "planted",
    "coverage",
    "evaluation",
    "export",
    "speculate",
    "advice",
    "draft_training",
)
"""Modules that declare `AIMS`. Comparisons (`potstill sweep`) have one claim each, made from their result."""

Claim = dict[str, Any]
"""`name`, `aim` (as text, e.g. `≤ 1.2`), `value` (None: not measured), `met`, `unit`."""


@dataclass(frozen=True)
class Aim:
    """A required figure: at most `most`, or at least `least`."""

    name: str
    unit: str
    most: float | None = None
    least: float | None = None

    def claim(self, value: float | None) -> Claim:
        """The claim for a value."""
        met = value is not None
        if value is not None and self.most is not None:
            met = met and value <= self.most
        if value is not None and self.least is not None:
            met = met and value >= self.least
        return {"name": self.name, "aim": self.text, "value": value, "met": met, "unit": self.unit}

    @property
    def text(self) -> str:
        """The aim as text, e.g. `≤ 1.2`."""
        parts = [
            f"≥ {self.least:g}" if self.least is not None else "",
            f"≤ {self.most:g}" if self.most is not None else "",
        ]
        return ", ".join(filter(None, parts))


def claims_of(aims: Iterable[Aim], values: Mapping[str, float | None]) -> list[Claim]:
    """One claim for each aim, by name. A missing value is not met."""
    return [aim.claim(values.get(aim.name)) for aim in aims]


def kept_results(folder: Path) -> list[dict[str, Any]]:
    """All results in a folder: JSON objects, one a line, or one a file.

    Raises:
        ValueError: a line is no JSON object with `claims`.
    """
    found = []
    for path in sorted([*folder.glob("*.json"), *folder.glob("*.jsonl")]):
        text = path.read_text(encoding="utf-8")
        for line in [text] if path.suffix == ".json" else filter(str.strip, text.splitlines()):
            result = json.loads(line)
            if not isinstance(result, dict) or "claims" not in result:
                raise ValueError(f"{path}: a result has `claims`; this one is from an earlier benchmark, or none")
            found.append(result)
    return found


def declared_aims() -> dict[str, list[Aim]]:
    """The aims of every benchmark, by its name."""
    return {name: list(import_module(f"benchmarks.{name}").AIMS) for name in BENCHMARKS}


def rows_of(results: Sequence[Mapping[str, Any]], declared: Mapping[str, Sequence[Aim]]) -> list[dict[str, Any]]:
    """A row for each claim of each result, and one for each declared aim without a value."""
    rows, valued = [], set()
    for result in results:
        benchmark = str(result.get("benchmark") or result.get("sweep"))
        processor = str(result.get("machine", {}).get("processor", ""))
        for claim in result["claims"]:
            if claim["value"] is not None:
                valued.add((benchmark, claim["name"]))
                rows.append({"benchmark": benchmark, "processor": processor, **claim})
    for benchmark, aims in declared.items():
        rows += [
            {"benchmark": benchmark, "processor": "", **aim.claim(None)}
            for aim in aims
            if (benchmark, aim.name) not in valued
        ]
    return rows


def table_of(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table as text."""
    lines = [["benchmark", "claim", "aim", "value", "unit", "met", "processor"]]
    for row in rows:
        value = "–" if row["value"] is None else f"{row['value']:g}"
        met = "yes" if row["met"] else "NO"
        lines.append([row["benchmark"], row["name"], row["aim"], value, row["unit"], met, row["processor"]])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def command_line(module: str, description: str | None, *, workers: bool = False) -> argparse.ArgumentParser:
    """The arguments that benchmarks share; each adds its own. (Here and not in `harness`, which loads torch.)

    Args:
        module: as given to `python -m`.
        description: the docstring of the benchmark.
        workers: whether the benchmark is called again with `--worker`, by `harness.run_interleaved`.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m {module}", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print the JSON object alone")
    if workers:
        parser.add_argument("--worker", help=argparse.SUPPRESS)
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table; the last line is one JSON object."""
    parser = command_line("benchmarks.claims", __doc__)
    parser.add_argument("--results", type=Path, default=RESULTS, help="the folder of kept results")
    options = parser.parse_args(arguments)
    rows = rows_of(kept_results(options.results), declared_aims())
    if not options.json:
        print(table_of(rows))
    print(json.dumps({"benchmark": "claims", "met": sum(row["met"] for row in rows), "of": len(rows), "rows": rows}))


if __name__ == "__main__":
    main()
