"""A student of stored distributions beside one whose teacher was there: held-out KL, agreement, NLL, ECE, by seeds.

    python -m benchmarks.offline_kd --json                    60 web texts, 3 seeds; some half an hour on one core
    python -m benchmarks.offline_kd --seeds 1 --records 24    a quick look
    python -m benchmarks.offline_kd --step                    what a step costs alone, in processor time
    python -m benchmarks.offline_kd --memory                  the most memory of a step, in processes of their own

The demo's pair (SmolLM2-135M-Instruct, every other layer of it), forward KL at temperature 1, on web text cut at 96
tokens. All arms have the same student, rows, order and steps, and are measured at one and at three epochs by the
live teacher in fp32. `--lines FILE` keeps each finished training, and goes on with the others.

    online            the teacher's full distributions
    hidden            the teacher's last hidden states in bfloat16, and its output layer
    threshold_20, _40 every p ≥ τ, the rest sampled without bias, at some 20 and 40 bytes a token
    sampled           RS-KD with 50 draws, some 40 bytes
    topk_40, _120     the largest, with their remaining mass
    text              cross-entropy with the text alone

`difference` is an arm's figure less that of `online`, by the same seed: mean, and the half-width of its 95 % interval
over seeds (Student's t). `step_ratio` is the median seconds of a step as a multiple of `text`'s, by the same seed.

`--memory` gives the peak resident memory of processes that take three steps with a built student, and of one in which
the teacher alone reads the same rows; `weights` are the teacher's, in bytes. Of a store its mapped shards count too.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainingArguments

from benchmarks.claims import Aim, claims_of, command_line
from benchmarks.harness import machine
from potstill.console import Console
from potstill.data.reader import Collate, TaskReader, reader_for
from potstill.data.sides import read_sides
from potstill.data.tokenize import Tokenized
from potstill.models import resolve
from potstill.models.live import live_signals
from potstill.models.load import load_tokenizer
from potstill.objectives.statistics import token_statistics
from potstill.peak import watched
from potstill.pipeline import run_recipe
from potstill.recipe import ForwardKL, FromTeacher, HardCE, Recipe
from potstill.registry import build
from potstill.signals import Ask, Batch
from potstill.store.files import SignalStore
from potstill.students import build_student
from potstill.sweep.paired import mean_over
from potstill.teachers import StoredTeacher
from potstill.train import DistillTrainer
from potstill.train.module import DistillModule

TEACHER, LENGTH, BATCH, EPOCHS = "smollm2-135m-instruct", 96, 4, 3
STORES: Mapping[str, Mapping[str, Any]] = {
    "hidden": {"kind": "hidden"},
    "threshold_20": {"kind": "threshold", "bytes_per_token": 20},
    "threshold_40": {"kind": "threshold", "bytes_per_token": 40},
    "sampled": {"kind": "sampled", "draws": 50},
    "topk_40": {"kind": "topk", "k": 8},
    "topk_120": {"kind": "topk", "k": 28},
}
ARMS = ("online", "text", *STORES)
METRICS = ("kl", "agreement", "nll", "ece")
AIMS = [
    Aim("held-out KL of threshold at 40 bytes over online, three epochs", "×", most=1.02),
    Aim("held-out KL of hidden states over online, three epochs", "×", most=1.02),
    Aim("held-out KL of threshold at 40 bytes over topk at 40 bytes", "×", most=1.0),
    Aim("held-out ECE of threshold at 40 bytes over topk at 40 bytes", "×", most=1.0),
    Aim("seconds of a step from the store over one of cross-entropy", "×", most=1.1),
    Aim("memory of a step from the store beyond one of cross-entropy, over the teacher's weights", "×", most=0.1),
    Aim("memory of a step with the teacher beyond one from the store, over its weights", "×", least=0.9),
]
_BINS = 15


class _Clock(TrainerCallback):
    """Seconds of every step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self._began = time.perf_counter()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.seconds.append(time.perf_counter() - self._began)


def recipe_of(records: int, capture: Mapping[str, Any] | None = None) -> Recipe:
    """The recipe of the data, and of a store."""
    data = {"kind": "package", "name": "webtext", "limit": records, "held_out": 0.2}
    teacher = {"kind": "local", "model": TEACHER, "device": "cpu", "dtype": "float32"}
    plain: dict[str, Any] = {"name": "offline-kd", "teacher": teacher, "data": data}
    if capture is not None:
        plain["capture"] = {**capture, "max_length": LENGTH}
    return Recipe.model_validate(plain)


def measured(student: torch.nn.Module, teacher: Any, batches: Sequence[Batch]) -> dict[str, float]:
    """KL, agreement and NLL per held-out token, and the ECE of the student's first choice."""
    student.eval()
    columns: dict[str, list[torch.Tensor]] = {name: [] for name in ("kl", "agreement", "nll", "confidence", "hit")}
    for batch in batches:
        with torch.no_grad():
            ours = live_signals(student, batch, "student", Ask(response=True)).head
            theirs = teacher.signals(batch, Ask(response=True)).head
        assert ours is not None
        found = token_statistics(ours, theirs, batch.target_ids, ("probability", "hit"))
        rows = (found.kl, found.top1_agree, found.nll_student, found.more["probability"], found.more["hit"])
        for name, row in zip(columns, rows, strict=True):
            assert row is not None
            columns[name].append(row.double())
    student.train()
    table = {name: torch.cat(rows) for name, rows in columns.items()}
    bins = (table["confidence"] * _BINS).long().clamp(max=_BINS - 1)
    gaps = torch.zeros(_BINS, dtype=torch.double).index_add_(0, bins, table["confidence"] - table["hit"])
    ece = float(gaps.abs().sum() / table["hit"].numel())
    return {name: float(table[name].mean()) for name in ("kl", "agreement", "nll")} | {"ece": ece}


class _Measure(TrainerCallback):
    """Measures the student at the end of every epoch."""

    def __init__(self, teacher: Any, batches: Sequence[Batch]) -> None:
        self.teacher, self.batches = teacher, batches
        self.found: list[dict[str, float]] = []
        self.student: torch.nn.Module | None = None

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        assert self.student is not None
        if len(self.found) in (0, EPOCHS - 1):
            self.found.append(measured(self.student, self.teacher, self.batches))
        else:
            self.found.append({})


def train(arm: str, seed: int, student: torch.nn.Module, rows: Sequence[Tokenized], context: Mapping[str, Any]) -> Any:
    """One training: figures after one epoch and after all, and the median seconds of a step."""
    live, clock = context["teacher"], _Clock()
    measure = _Measure(live, context["held_out"])
    teacher = {"online": live, "text": None}.get(arm) if arm not in STORES else StoredTeacher(context["stores"][arm])
    args = TrainingArguments(
        str(context["folder"] / "scratch"),
        num_train_epochs=EPOCHS,
        per_device_train_batch_size=BATCH,
        learning_rate=5e-4,
        lr_scheduler_type="cosine",
        warmup_steps=3,
        weight_decay=0.01,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        seed=seed,
    )
    trainer = DistillTrainer(
        model=copy.deepcopy(student),
        teacher=teacher,
        args=args,
        objectives=[HardCE() if arm == "text" else ForwardKL()],
        train_dataset=list(rows),
        processing_class=context["tokenizer"],
        callbacks=[clock, measure],
        max_length=LENGTH,
    )
    measure.student = trainer.student
    trainer.train()
    first, last = measure.found[0], measure.found[-1]
    return {"arm": arm, "seed": seed, "one": first, "three": last, "step_seconds": statistics.median(clock.seconds[2:])}


def main() -> int:
    """The program."""
    parser = command_line("benchmarks.offline_kd", __doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--records", type=int, default=60)
    parser.add_argument("--lines", type=Path, help="keep each training here, and go on")
    parser.add_argument("--folder", type=Path, help="keep the stores here")
    parser.add_argument("--step", action="store_true", help="time a step of each kind alone")
    parser.add_argument("--memory", action="store_true", help="measure the memory of a step of each kind")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.worker:
        print(json.dumps(peak_of_steps(asked.worker[0], Path(asked.worker[1]))), flush=True)
        return 0
    if asked.memory:
        with tempfile.TemporaryDirectory() as scratch:
            print(json.dumps(memory_of_steps(Path(scratch))), flush=True)
        return 0
    if asked.step:
        with tempfile.TemporaryDirectory() as scratch:
            print(json.dumps(step_costs(Path(scratch))), flush=True)
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        folder = asked.folder or Path(scratch)
        runs, sizes = campaign(asked.seeds, asked.records, folder, asked.lines or folder / "lines.jsonl")
    rows = [summary(arm, runs) | {"bytes": sizes.get(arm)} for arm in ARMS]
    if not asked.json:
        for row in rows:
            print(row["variant"], json.dumps(row["three"]))
    by_arm = {row["variant"]: row for row in rows}

    def over(one: str, other: str, metric: str) -> float:
        return float(by_arm[one]["three"][metric]["mean"] / by_arm[other]["three"][metric]["mean"])

    values = {
        AIMS[0].name: over("threshold_40", "online", "kl"),
        AIMS[1].name: over("hidden", "online", "kl"),
        AIMS[2].name: over("threshold_40", "topk_40", "kl"),
        AIMS[3].name: over("threshold_40", "topk_40", "ece"),
        AIMS[4].name: by_arm["threshold_20"]["step_ratio"],
    }
    result = {
        "benchmark": "offline_kd",
        "machine": machine(torch.device("cpu")),
        "seeds": asked.seeds,
        "records": asked.records,
        "rows": rows,
        "claims": claims_of(AIMS[:5], values),
    }
    print(json.dumps(result), flush=True)
    return 0


def campaign(seeds: int, records: int, folder: Path, lines: Path) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """All trainings, seed by seed, and the bytes a token of each store."""
    quiet = Console("quiet")
    stores, sizes = {}, {}
    for name, capture in STORES.items():
        run_recipe(recipe_of(records, capture), folder / name, console=quiet, verb="capture")
        stores[name] = folder / name / "capture" / "store"
        facts = SignalStore(stores[name]).facts
        sizes[name] = facts["bytes"] / facts["targets"]
    recipe = recipe_of(records)
    source = resolve(TEACHER, console=quiet)
    reader = reader_for("causal_lm", tokenizer=source.path, max_length=LENGTH)
    sides = read_sides(recipe.data)
    made = {
        side: [row for record in getattr(sides, side) if isinstance(row := reader.row(record), Tokenized)]
        for side in ("train", "held_out")
    }
    collate = reader.collator()
    held_out = [Batch.from_inputs(collate(made["held_out"][at : at + 4])) for at in range(0, len(made["held_out"]), 4)]
    student = build_student(FromTeacher(), teacher=source, tokenizer_source=source.path, seed=0, console=quiet).model
    context = {
        "teacher": build(recipe.teachers["main"]),
        "tokenizer": load_tokenizer(source),
        "held_out": held_out,
        "stores": stores,
        "folder": folder,
    }
    runs = [json.loads(line) for line in lines.read_text().splitlines()] if lines.is_file() else []
    for seed in range(seeds):
        for arm in ARMS:
            if any(run["arm"] == arm and run["seed"] == seed for run in runs):
                continue
            runs.append(train(arm, seed, student, made["train"], context))
            with lines.open("a", encoding="utf-8") as kept:
                kept.write(json.dumps(runs[-1]) + "\n")
    return runs, sizes


ALONE: Mapping[str, Mapping[str, Any]] = {"threshold": {"kind": "threshold", "tau": 0.05}, "hidden": {"kind": "hidden"}}


def memory_of_steps(folder: Path) -> dict[str, Any]:
    """Peak resident memory of a step from text, with the teacher, and from two stores, and of the teacher alone."""
    for name, capture in ALONE.items():
        run_recipe(recipe_of(8, capture), folder / name, console=Console("quiet"), verb="capture")
    peaks = {}
    for arm in ("text", "online", *ALONE, "teacher"):
        command = [sys.executable, "-m", "benchmarks.offline_kd", "--worker", arm, str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks[arm] = int(json.loads(done.stdout.splitlines()[-1])["peak"])
    weights = resolve(TEACHER, console=Console("quiet")).weight_bytes
    values = {
        AIMS[5].name: (peaks["threshold"] - peaks["text"]) / weights,
        AIMS[6].name: (peaks["online"] - peaks["threshold"]) / weights,
    }
    rows = [{"variant": arm, "peak_bytes": peak} for arm, peak in peaks.items()]
    result = {"benchmark": "offline_kd", "machine": machine(torch.device("cpu")), "weights": weights, "rows": rows}
    return result | {"claims": claims_of(AIMS[5:], values)}


def peak_of_steps(arm: str, folder: Path) -> dict[str, int]:
    """The memory of this process over three steps of one kind, the opening of the teacher or of its store included."""
    recipe, source = recipe_of(8), resolve(TEACHER, console=Console("quiet"))
    reader = reader_for("causal_lm", tokenizer=source.path, max_length=LENGTH)
    rows, student = _rows_of(recipe, reader), None
    if arm != "teacher":
        built = build_student(
            FromTeacher(), teacher=source, tokenizer_source=source.path, seed=0, console=Console("quiet")
        )
        student = built.model
    with watched() as memory:
        teacher: Any = None
        if arm in ("online", "teacher"):
            teacher = build(recipe.teachers["main"])
        elif arm in ALONE:
            teacher = StoredTeacher(folder / arm / "capture" / "store")
        optimizer = None if student is None else torch.optim.AdamW(student.parameters(), lr=1e-5)
        for _ in range(3):
            if student is None or optimizer is None:
                teacher.signals(Batch.from_inputs(reader.collator()(rows)), Ask(response=True))
                continue
            step(*learning(student, teacher, reader), rows)
            optimizer.step()
            optimizer.zero_grad()
    return memory


def _rows_of(recipe: Recipe, reader: TaskReader) -> list[Tokenized]:
    """The rows of one batch."""
    read = (reader.row(record) for record in read_sides(recipe.data).train)
    return [row for row in read if isinstance(row, Tokenized)][:BATCH]


def learning(student: torch.nn.Module, teacher: Any, reader: TaskReader) -> tuple[DistillModule, Collate]:
    """The module that a step trains, by cross-entropy where there is no teacher, and its collator."""
    module = DistillModule(student, teacher, [build(HardCE() if teacher is None else ForwardKL())])
    collate = reader.collator()
    return module, teacher.joining(collate) if isinstance(teacher, StoredTeacher) else collate


def step(module: DistillModule, collate: Collate, rows: Sequence[Tokenized]) -> None:
    """Collating, forward and backward pass of some rows."""
    inputs = collate(rows)
    module(inputs, module.counts(Batch.from_inputs(inputs)))["loss"].backward()


def step_costs(folder: Path, rounds: int = 5) -> dict[str, Any]:
    """Median processor seconds of collating, forward and backward pass of 4 rows, kinds in turn; the optimiser's step,
    equal for all, is left out. Other work on the machine moves wall-clock time, and this little."""
    quiet = Console("quiet")
    recipe, source = recipe_of(8), resolve(TEACHER, console=quiet)
    reader = reader_for("causal_lm", tokenizer=source.path, max_length=LENGTH)
    rows = _rows_of(recipe, reader)
    student = build_student(FromTeacher(), teacher=source, tokenizer_source=source.path, seed=0, console=quiet).model
    teachers: dict[str, Any] = {"text": None, "online": build(recipe.teachers["main"])}
    for name, capture in ALONE.items():
        run_recipe(recipe_of(8, capture), folder / name, console=quiet, verb="capture")
        teachers[name] = StoredTeacher(folder / name / "capture" / "store")
    seconds: dict[str, list[float]] = {name: [] for name in teachers}
    for _ in range(rounds):
        for name, teacher in teachers.items():
            module, collate = learning(student, teacher, reader)
            began = time.process_time()
            step(module, collate, rows)
            seconds[name].append(time.process_time() - began)
            student.zero_grad()
    medians = {name: statistics.median(found[1:]) for name, found in seconds.items()}
    ratios = {name: round(medians[name] / medians["text"], 3) for name in medians}
    return {"benchmark": "offline_kd", "processor_seconds": medians, "over_text": ratios}


def summary(arm: str, runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """An arm's figures over seeds, and their differences from `online`'s."""
    own = {run["seed"]: run for run in runs if run["arm"] == arm}
    online, text = ({run["seed"]: run for run in runs if run["arm"] == name} for name in ("online", "text"))
    row: dict[str, Any] = {"variant": arm, "trainings": len(own)}
    for when in ("one", "three"):
        row[when] = {}
        for metric in METRICS:
            values = [run[when][metric] for run in own.values()]
            differences = [own[s][when][metric] - online[s][when][metric] for s in own if s in online]
            row[when][metric] = {"mean": statistics.mean(values), "difference": statistics.mean(differences)}
            if (mean := mean_over(differences, 0.95)) is not None:
                row[when][metric]["half_width"] = mean.high - mean.value
    row["step_ratio"] = statistics.median(own[s]["step_seconds"] / text[s]["step_seconds"] for s in own if s in text)
    return row


if __name__ == "__main__":
    raise SystemExit(main())
