"""What the default measures add to an evaluation: processor seconds and peak memory; and how fast their table loads.

    python -m benchmarks.evaluation --json --run runs/demo

The run is a finished one of `recipes/demo.yaml`. `without` has no measure: NLL, KL and agreement of every model are
computed, and nothing is made of them. `default` has all default measures. Both without rates and shown answers, which
would be the same in both, and with a teacher that is not remembered. Every evaluation is in a fresh process. The table
is one of a million targets of three models, written and read as an evaluation and its report do.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import potstill  # noqa: F401 - before torch: it says how OpenMP's threads wait
from benchmarks.claims import Aim, claims_of, command_line

MODULE = "benchmarks.evaluation"
RECIPE = Path(__file__).parents[1] / "recipes" / "demo.yaml"
TARGETS, PER_ROW = 1_000_000, 100
STAGES = ("generate", "train", "train.text_only")
AIMS = [
    Aim("default / without", "×", most=1.3),
    Aim("peak memory: default / without", "×", most=1.02),
    Aim("a table of a million targets loads", "s", most=1.0),
]


def evaluate(run: Path, overrides: Sequence[str], *, peak: bool) -> dict[str, Any]:
    """One evaluation of a run, in this process."""
    import torch

    from benchmarks.harness import PeakMemory
    from potstill.artifacts import Work, read_artifact
    from potstill.console import Console
    from potstill.evaluate.stage import stage
    from potstill.recipe import load_recipe
    from potstill.stage import Context

    recipe = load_recipe(RECIPE, overrides)
    inputs = {name: found for name in STAGES if (found := read_artifact(run / name)) is not None}
    with tempfile.TemporaryDirectory() as folder:
        context = Context(recipe, run, inputs, Work(Path(folder), resumed=False), Console("quiet"))
        memory = PeakMemory(torch.device("cpu"))
        memory.start()
        start = time.process_time()
        stage(recipe).write(context)
        seconds = time.process_time() - start
    return {"seconds": [seconds], "peak_bytes": memory.bytes() if peak else None}


def load_table() -> dict[str, Any]:
    """Write a table of many targets, and read it as a report does."""
    import numpy as np

    from potstill.data import Tokenized
    from potstill.evaluate.documents import save_tokens
    from potstill.evaluate.held_out import of_tokens
    from potstill.evaluate.scores import Scores
    from potstill.report.findings import read_values

    rng = np.random.default_rng(0)
    rows = [
        Tokenized(ids, ids, record_id=f"{n:016x}", group=f"{n:016x}")
        for n, ids in enumerate(rng.integers(0, 49_152, (TARGETS // PER_ROW, PER_ROW)).tolist())
    ]
    values = rng.random((3, TARGETS)).astype(np.float32)
    agree = values[0] > 0.5
    scores = {
        name: Scores(nll=values[0], kl=values[1], agree=agree, probability=values[2], hit=agree)
        for name in ("teacher", "student", "text_only")
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokens.parquet"
        save_tokens(path, of_tokens([], rows, 0), scores)
        start = time.perf_counter()
        found = read_values(path)
        seconds = time.perf_counter() - start
    if any(len(column) != TARGETS for column in found.values()):
        raise RuntimeError("the table does not have the targets that were written")
    return {"seconds": [seconds], "peak_bytes": None, "columns": len(found)}


def measure(settings: Mapping[str, Any]) -> dict[str, Any]:
    """One variant, in this process."""
    if settings["variant"] == "table":
        return load_table()
    from potstill.models.cache import cache_dir

    models = cache_dir() / "models"
    with tempfile.TemporaryDirectory() as cache:
        (Path(cache) / "models").symlink_to(models)
        os.environ["POTSTILL_CACHE"] = cache
        return evaluate(Path(settings["run"]), settings["overrides"], peak=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print; the last line is one JSON object."""
    parser = command_line(MODULE, __doc__, workers=True)
    parser.add_argument("--run", type=Path, default=Path("runs/demo"), help="a finished run of recipes/demo.yaml")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(arguments)
    if options.worker:
        print(json.dumps(measure(json.loads(options.worker))), flush=True)
        return

    import torch

    from benchmarks.harness import Variant, machine, print_result, ratio, run_interleaved

    about = machine(torch.device("cpu"))
    shared = {"run": str(options.run.resolve())}
    plain = ["evaluate.speed=false", "evaluate.samples_shown=0"]
    variants = [
        Variant("without", {**shared, "overrides": [*plain, "evaluate.measures=[]"]}),
        Variant("default", {**shared, "overrides": plain}),
        Variant("table", {}, rounds=1),
    ]
    rows = run_interleaved(MODULE, variants, options.rounds)
    table = next(row["seconds"] for row in rows if row["variant"] == "table")
    ratios = {
        "default / without": ratio(rows, "default", "without"),
        "peak memory: default / without": ratio(rows, "default", "without", "peak_bytes"),
    }
    claims = claims_of(AIMS, {**ratios, "a table of a million targets loads": table})
    print_result("evaluation", about, rows, ratios, only_json=options.json, claims=claims)


if __name__ == "__main__":
    main()
