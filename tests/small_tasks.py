"""Runs of every task as the stages before `evaluate` leave them, made of tiny models in a second."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from potstill.artifacts import Artifact, Work
from potstill.console import Console
from potstill.models import resolve
from potstill.models.saving import save_model
from potstill.recipe import Recipe, parse_recipe
from potstill.stage import Context
from potstill.students import build_student
from potstill.tasks import Task
from tiny_models import (
    make_tiny_classifier,
    make_tiny_convnet,
    make_tiny_encoder,
    make_tiny_masked_lm,
    make_tiny_wordpiece,
)

CLASSES = ("ale", "malt", "rye")
WORDS = ("copper", "still", "spirit", "cask", "barley", "peat", "water", "yeast", "wash", "heart")
NET = """
from torch import nn


class Net(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.seen = nn.Conv2d(1, width, 3)
        self.head = nn.Linear(width, 3)

    def forward(self, pixels):
        return self.head(self.seen(pixels).relu().mean((2, 3)))
"""
_MAKERS: dict[Task, Any] = {
    "masked_lm": make_tiny_masked_lm,
    "sequence_classification": make_tiny_classifier,
    "sentence_embedding": make_tiny_encoder,
    "image_classification": make_tiny_convnet,
}


class TaskRun:
    """A run folder of one task: a teacher, data, and the artifacts of `train` and, where it goes, `train.text_only`.

    The student is the teacher's (or, of images, a small net of the user's own), moved a little; `text_only` further.
    """

    def __init__(self, folder: Path, task: Task, *, teacher: bool = True, members: int = 0, **sections: Any) -> None:
        self.folder, self.task = folder, task
        self.teacher = _MAKERS[task](folder / "teacher")
        plain: dict[str, Any] = {
            "name": "small",
            "task": task,
            "student": self._student(),
            "data": self._data(),
            "train": {"max_length": 16, "controls": [], "objectives": [{"kind": "hard_ce"}]},
            "evaluate": {"resamples": 100, "speed": False},
        }
        local = {"kind": "local", "model": str(self.teacher), "device": "cpu"}
        if teacher:
            plain["teacher"] = {"kind": "ensemble", "members": [local] * members} if members else local
        elif task != "image_classification":
            plain["student"] = {"kind": "existing", "model": str(self.teacher)}
        if task == "sentence_embedding":
            plain["train"]["objectives"] = [{"kind": "rkd_distance", "pooling": "first"}]
        elif teacher:
            plain["train"]["controls"] = ["text_only"]
        for section, values in sections.items():
            plain[section] = {**plain[section], **values}
        self.recipe: Recipe = parse_recipe(plain, base=folder)
        self.inputs: dict[str, Artifact] = {}
        self._trained("train", away=0.02)
        if self.recipe.train is not None and self.recipe.train.controls:
            self._trained("train.text_only", away=0.3)

    def _student(self) -> dict[str, Any]:
        if self.task != "image_classification":
            return {"kind": "from_teacher", "layers": "every_other"}
        (self.folder / "net.py").write_text(NET)
        return {"kind": "module", "source": "net.py:Net"}

    def _data(self) -> dict[str, Any]:
        random = np.random.default_rng(0)
        if self.task == "image_classification":
            images = random.integers(0, 256, (60, 8, 8), dtype=np.uint8)
            np.savez(self.folder / "data.npz", images=images, labels=np.arange(60) % 3, names=np.array(CLASSES))
            return {"kind": "arrays", "path": str(self.folder / "data.npz"), "held_out": 0.5}
        lines = [
            {"text": " ".join(random.choice(WORDS, 3 + i % 5)) + f" {i}", "label": CLASSES[i % 3]} for i in range(60)
        ]
        (self.folder / "data.jsonl").write_text("\n".join(map(json.dumps, lines)))
        form = "text" if self.task == "masked_lm" else "labelled"
        return {"kind": "jsonl", "path": str(self.folder / "data.jsonl"), "format": form, "held_out": 0.5}

    def _trained(self, name: str, away: float) -> None:
        assert self.recipe.student is not None
        classes = CLASSES if self.task.endswith("classification") else None
        text = self.task != "image_classification"
        made = build_student(
            self.recipe.student,
            teacher=resolve(str(self.teacher), console=Console("quiet")),
            tokenizer_source=self.teacher if text else None,
            seed=self.recipe.seed,
            console=Console("quiet"),
            task=self.task,
            labels=classes,
        )
        torch.manual_seed(1)
        with torch.no_grad():
            for weight in made.model.parameters():
                weight.add_(away * torch.randn_like(weight))
        model = self.folder / name / "model"
        save_model(made.model, model)
        if text:
            make_tiny_wordpiece().save_pretrained(model)
        (self.folder / name / "student.json").write_text(json.dumps(made.facts))
        self.inputs[name] = Artifact(self.folder / name, {})

    def context(self) -> Context:
        """What the stage is given."""
        out = self.folder / "evaluate"
        out.mkdir(exist_ok=True)
        return Context(self.recipe, self.folder, self.inputs, Work(out, resumed=False), Console("quiet"))
