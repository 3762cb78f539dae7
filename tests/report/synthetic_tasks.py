"""Runs of every task that were never run: scores are made up, and written as `evaluate` writes them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from report.synthetic import write_files

from potstill.artifacts import Artifact, write_artifact
from potstill.console import Console
from potstill.data import Tokenized
from potstill.data.images import Pixels
from potstill.evaluate.documents import (
    blanked,
    documents_of,
    examples_of,
    neighbours_of,
    save_documents,
    save_examples,
    save_tokens,
)
from potstill.evaluate.held_out import HeldOut
from potstill.evaluate.measures.base import Draws
from potstill.evaluate.scores import Scores
from potstill.evaluate.summary import Size, summarise
from potstill.measures import Speed
from potstill.recipe import Recipe, parse_recipe
from potstill.recipe.measures import Fidelity
from potstill.registry import build
from potstill.report.findings import Findings, read_findings
from potstill.report.stage import stage
from potstill.stage import Context
from potstill.tasks import Task
from potstill.teachers.origin import origin_of_teacher
from potstill.types import Record

CLASSES = ("graphics", "hockey", "medicine", "space")
TASKS: tuple[Task, ...] = (
    "masked_lm",
    "sequence_classification",
    "sentence_embedding",
    "image_classification",
)
_WORDS = "the orbit of a satellite decays slowly when its drag is small and its period long".split()
_OBJECTIVES: dict[str, list[dict[str, Any]]] = {
    "sentence_embedding": [{"kind": "rkd_distance", "pooling": "mean"}, {"kind": "rkd_angle"}],
    "image_classification": [{"kind": "soft_ce", "temperature": 4.0}, {"kind": "hard_ce"}],
}


@dataclass(frozen=True)
class TaskShape:
    """What kind of run it is. `skill` is how often the teacher is right; without `teacher` it is a fine-tuning."""

    task: Task
    teacher: bool = True
    control: bool = True
    speed: bool = True
    labels: bool = True
    module: bool = False
    skill: float = 0.9
    text: str | None = None
    examples: int = 60


def recipe_of_task(shape: TaskShape) -> Recipe:
    """The recipe of such a run."""
    images = shape.task == "image_classification"
    controls = ["text_only"] if shape.control and shape.teacher and shape.task != "sentence_embedding" else []
    student: dict[str, Any] = {"kind": "from_teacher"} if shape.teacher else {"kind": "existing", "model": "acme/base"}
    if shape.module:
        student = {"kind": "module", "source": "nets.py:Small"}
    objectives = _OBJECTIVES.get(shape.task, [{"kind": "forward_kl"}, {"kind": "hard_ce"}])
    document: dict[str, Any] = {
        "name": f"synthetic-{shape.task.replace('_', '-')}",
        "task": shape.task,
        "student": student,
        "data": {"kind": "digits"} if images else {"kind": "jsonl", "path": "posts.jsonl"},
        "train": {
            "objectives": objectives if shape.teacher else [{"kind": "hard_ce"}],
            "controls": controls,
            "max_length": 128,
        },
        "evaluate": {},
        "report": {"worst_documents": 4},
    }
    if shape.teacher:
        document["teacher"] = {"kind": "local", "model": "acme/teacher"}
    return parse_recipe(document, base=Path("/"))


def held_out_of(shape: TaskShape) -> HeldOut:
    """Made-up examples: texts with a class, or images of 8 × 8."""
    random = np.random.default_rng(0)
    records: list[Any] = []
    rows: list[Any] = []
    targets: list[list[tuple[int, int]]] = []
    for i in range(shape.examples):
        label = int(random.integers(len(CLASSES)))
        if shape.task == "image_classification":
            pixels = np.clip(random.normal(60, 50, (8, 8)) + 150 * np.eye(8)[:, :: 1 if label % 2 else -1], 0, 255)
            row: Any = Pixels(pixels.astype(np.uint8), label, f"g{i}", f"{i:016x}", i)
            records.append(row)
        else:
            text = shape.text or " ".join(random.permutation(_WORDS)) + f" ({i})"
            record = Record(text=text, label=CLASSES[label], group=f"g{i}", row=i)
            row = Tokenized(list(range(5, 25)), list(range(5, 25)), f"{i:016x}", f"g{i}", label=label)
            records.append(record)
        rows.append(row)
        masked = [(place, 5 + place) for place in (3, 4, 11)]
        targets.append(masked if shape.task == "masked_lm" else [(0, label if shape.labels else -1)])
    return HeldOut(shape.task, records, rows, targets, lambda rows: rows, 128, CLASSES)


def scores_of(shape: TaskShape, held_out: HeldOut) -> dict[str, Scores]:
    """Made-up scores: the teacher is right as often as its skill says, the student a little less."""
    random = np.random.default_rng(1)
    count = int(held_out.starts[-1])
    skills = {"teacher": shape.skill, "student": shape.skill - 0.06, "text_only": shape.skill - 0.14, "untrained": 0.25}
    if not shape.teacher:
        del skills["teacher"]
    if not (shape.control and shape.teacher) or shape.task == "sentence_embedding":
        skills.pop("text_only", None)
    made, labels = {}, held_out.target_ids
    draws = random.random(count)
    for name, skill in skills.items():
        compared = shape.teacher and name != "teacher"
        kl = random.gamma(1.0, 1.0 - skill + 0.1, count).astype(np.float32) if compared else None
        nll = random.gamma(1.0, 1.2 - skill, count).astype(np.float32)
        # The same draws for all: whoever is better is right where the others are, and now and then is not.
        right = (draws < skill) ^ (random.random(count) < 0.03)
        agree = right ^ (random.random(count) < 0.1) if compared else None
        if shape.task == "masked_lm":
            made[name] = Scores(nll, kl, agree)
        elif shape.task == "sentence_embedding":
            nearest = (np.arange(count) + random.integers(1, count, count)) % count
            regret = random.gamma(0.3, 0.1, count).astype(np.float32) if compared else None
            made[name] = Scores(
                agree=agree,
                correct=right if shape.labels else None,
                predicted=nearest,
                cosine=random.uniform(0.5, 0.99, count).astype(np.float32),
                regret=regret,
                pairs=np.linspace(0, 1, count // 2) + random.normal(0, 1.1 - skill, count // 2),
            )
        else:
            said = np.where(right, labels, (labels + 1) % len(CLASSES))
            sure = random.uniform(0.4, 0.99, count).astype(np.float32)
            made[name] = Scores(nll, kl, agree, right, said, sure)
    return made


def write_task_run(run: Path, shape: TaskShape) -> tuple[Recipe, dict[str, Artifact]]:
    """Write the artifacts of such a run; gives its recipe and what report reads."""
    recipe, held_out = recipe_of_task(shape), held_out_of(shape)
    scores = scores_of(shape, held_out)
    trainings = {"train": "student"} | ({"train.text_only": "text_only"} if "text_only" in scores else {})
    found = {}
    for stage_name, model in trainings.items():
        facts = {"kind": "from_teacher", "layers": None if shape.module else [0, 2, 4], "parameters": 11_300_000}
        facts |= {"steps": 90, "tokens": None if shape.task == "image_classification" else 50_112, "seconds": 60.0}
        files = {"student.json": json.dumps(facts), "history.jsonl": "\n".join(map(json.dumps, _history(shape, model)))}
        files |= {"model/module.json" if shape.module else "model/config.json": "{}"}
        found[stage_name] = write_files(run, stage_name, files, counts={"records": 540})
    facts = {"image_shape": [1, 8, 8]} if shape.task == "image_classification" else {}
    found["evaluate"] = evaluate = write_files(
        run, "evaluate", {}, counts={"held-out records": shape.examples}, facts=facts
    )
    labels = None if shape.task == "masked_lm" else held_out.target_ids
    slow, fast = ((820.0, (800.0, 840.0)), (1570.0, (1540.0, 1600.0)))
    speeds = {
        name: Speed(
            410_000_000 if name == "student" else 500_000_000, "float32", examples_per_second=r, examples_spread=s
        )
        for name, (r, s) in (("teacher", slow), ("student", fast))
        if shape.speed and name in scores
    }
    sizes = {
        name: Size(22_700_000 if name == "teacher" else 11_300_000, 90_000_000, 0 if shape.module else 6)
        for name in scores
    }
    measures = summarise(
        {name: [of_model] for name, of_model in scores.items()},
        sizes,
        speeds,
        held_out.target_groups,
        task=shape.task,
        labels=labels,
        records=shape.examples,
        draws=Draws(200, 0.95, 0),
        notes=("All models were measured in fp32 and evaluation mode.",),
        measures=[build(Fidelity())],
    )
    measures.save(evaluate.path / "measures.json")
    entries: Sequence[Mapping[str, Any]]
    if shape.task == "masked_lm":
        questions = [blanked(held_out, i, lambda ids: " ".join(map(str, ids))) for i in range(shape.examples)]
        entries = [d.to_dict() for d in documents_of(held_out, questions, scores["student"], scores.get("teacher"))]
        save_tokens(evaluate.path / "tokens.parquet", held_out, scores)
    else:
        entries = (neighbours_of if shape.task == "sentence_embedding" else examples_of)(held_out, scores)
        save_examples(evaluate.path / "examples.parquet", held_out, scores)
    save_documents(evaluate.path / "documents.json", entries)
    return recipe, found


def _history(shape: TaskShape, model: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [{"loss": 2.0 * np.exp(-step / 30) + 0.3, "step": step} for step in range(5, 91, 5)]
    for step in (30, 60, 90):
        measured: dict[str, Any] = {"eval_nll": 2.0 - step / 60, "step": step}
        if shape.task.endswith("classification"):
            measured["eval_accuracy"] = 0.5 + step / 300
        if shape.task != "sentence_embedding":
            rows.append(measured | ({"eval_kl": 1.0 - step / 120} if model == "student" and shape.teacher else {}))
    return rows


def task_findings(run: Path, shape: TaskShape) -> Findings:
    """What report finds in such a run."""
    recipe, inputs = write_task_run(run, shape)
    return read_findings(recipe, inputs, origin_of_teacher(recipe))


def write_task_report(run: Path, shape: TaskShape) -> Path:
    """Run the report stage on such a run; gives its folder."""
    recipe, inputs = write_task_run(run, shape)
    made = stage(recipe)
    with write_artifact(run, made.name, "1" * 64, settings={}, inputs={}, seed=0) as work:
        made.write(Context(recipe, run, {name: inputs[name] for name in made.reads}, work, Console("quiet")))
    return run / "report"
