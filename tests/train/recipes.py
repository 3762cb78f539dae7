"""A recipe whose models are tiny, and its stages run as the pipeline does.

python recipes.py RECIPE RUN [key=value …]      in a process of its own, which tests can kill
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
import yaml
from train.small import conversations

from potstill.artifacts import Artifact, read_artifact, write_artifact
from potstill.console import Console
from potstill.recipe import Recipe, load_recipe
from potstill.recipe.train import STUDENT, Training
from potstill.stage import Context
from potstill.train import training  # noqa: F401 (imported before a process is forked)
from potstill.train.stage import stage

ARGS = {"learning_rate": 5e-3, "num_train_epochs": 2, "per_device_train_batch_size": 4, "bf16": False, "use_cpu": True}


def write_recipe(folder: Path, teacher: Path, **changes: Any) -> Path:
    """A recipe beside its data: 40 conversations, a tiny teacher, every other layer of it."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(row) for row in conversations(40)]
    (folder / "data.jsonl").write_text("\n".join(lines), encoding="utf-8")
    document: dict[str, Any] = {
        "name": "tiny",
        "seed": 5,
        "teacher": {"kind": "local", "model": str(teacher), "device": "cpu"},
        "student": {"kind": "from_teacher", "layers": "every_other"},
        "data": {"kind": "jsonl", "path": "data.jsonl", "held_out": 0.2},
        "train": {"evaluations": 2, "objectives": [{"kind": "forward_kl"}], "args": ARGS},
    }
    for key, value in changes.items():
        document[key] = {**document[key], **value} if isinstance(value, dict) and key in document else value
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    return path


def run_stage(
    recipe: Recipe,
    run: Path,
    which: Training = STUDENT,
    console: Console | None = None,
    inputs: Mapping[str, Artifact] | None = None,
) -> Artifact:
    """Run the stage, as the pipeline does."""
    made = stage(recipe, which)
    key, digests = made.key(recipe, {})
    with write_artifact(run, made.name, key, settings=made.settings, inputs=digests, seed=recipe.seed) as work:
        made.write(Context(recipe, run, inputs or {}, work, console or Console("quiet")))
    artifact = read_artifact(run / made.name)
    assert artifact is not None
    return artifact


def serve() -> None:
    """Fork a process per line: it begins at once, since everything is imported already."""
    torch.set_num_threads(1)
    for line in sys.stdin:
        path, run_folder, *overrides = line.split()
        child = os.fork()
        if child == 0:
            status = 1
            try:
                run_stage(load_recipe(path, overrides), Path(run_folder), console=Console("lines"))
                status = 0
            finally:
                os._exit(status)
        print(child, flush=True)
        print(os.waitpid(child, 0)[1], flush=True)


if __name__ == "__main__":
    serve()
