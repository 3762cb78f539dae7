"""A run as the stages before `evaluate` leave it, made of tiny models in a second."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from potstill.artifacts import Artifact, Work
from potstill.console import Console
from potstill.data import ChatTokenizer, read_records, read_sides, save_records, split_of
from potstill.evaluate.held_out import HeldOut, of_tokens
from potstill.models import resolve
from potstill.models.live import live_signals
from potstill.models.unchanged import evaluating
from potstill.recipe import Recipe
from potstill.signals import Ask, Batch, Side, Signals
from potstill.stage import Context
from potstill.students import build_student
from potstill.types import Record, group_of
from tiny_models import make_tiny_causal_lm, make_tiny_tokenizer

WORDS = ("copper", "still", "spirit", "cask", "barley", "malt", "peat", "water", "yeast", "wash", "feints", "heart")
CHAT = ChatTokenizer.from_transformers(make_tiny_tokenizer())


def records(count: int = 12, samples: int = 1) -> list[Record]:
    """Questions with answers of unequal length; `samples` answers each."""
    made = []
    for i in range(count):
        prompt = f"What is {WORDS[i % len(WORDS)]}, number {i}?"
        for sample in range(samples):
            answer = " ".join(WORDS[(i + j) % len(WORDS)] for j in range(1 + (3 * i + sample) % 7))
            messages = ({"role": "user", "content": prompt}, {"role": "assistant", "content": answer})
            made.append(Record(messages=messages, group=group_of(prompt), sample=sample, row=i + 1))
    return made


def held_out(made: list[Record], max_length: int = 200) -> HeldOut:
    """All of the records, as if they were held out."""
    from potstill.data import tokenize

    rows = [tokenize(record, CHAT, max_length) for record in made]
    return of_tokens(made, rows, CHAT.pad_id)  # type: ignore[arg-type]


class InMemory:
    """A model (or the members of an ensemble) of a test, as an evaluation sees an open one."""

    def __init__(self, *models: nn.Module, side: Side = "student") -> None:
        self.modules, self.side = models, side

    def signals(self, batch: Batch, ask: Ask) -> Signals:
        with torch.no_grad(), evaluating(self.modules[0]):
            return live_signals(self.modules[0], batch, self.side, ask)


class SmallRun:
    """A run folder with a teacher, a data file, and the artifacts of `generate`, `train` and `train.text_only`.

    The student is every other layer of the teacher's, moved a little away from it; `text_only` further.
    """

    def __init__(self, folder: Path, *, generate: bool = True, text_only: bool = True, **changes: Any) -> None:
        self.folder = folder
        self.teacher = make_tiny_causal_lm(folder / "teacher")
        data = folder / "data.jsonl"
        lines = [{"messages": list(r.messages or ())} for r in records(changes.pop("records", 24))]
        data.write_text("\n".join(map(json.dumps, lines)))
        plain: dict[str, Any] = {
            "name": "small",
            "teacher": {"kind": "local", "model": str(self.teacher), "device": "cpu"},
            "student": {"kind": "from_teacher", "layers": "every_other"},
            "data": {"kind": "jsonl", "path": str(data), "held_out": 0.5},
            "train": {"max_length": 200, "controls": ["text_only"] if text_only else []},
            "evaluate": {"resamples": 200, "samples_shown": 3, "sample_tokens": 8, "speed": False},
        }
        if generate:
            plain["generate"] = {"kind": "sequence"}
        for section, values in changes.items():
            whole = not isinstance(values, Mapping) or "kind" in values
            plain[section] = values if whole else {**plain[section], **values}
        self.recipe = Recipe.model_validate(plain)
        self.inputs: dict[str, Artifact] = {}
        for training in self.recipe.required_train.trainings:
            self._trained(training.stage, away=0.1 if training.control else 0.05, seed=1 + training.seed)
        if generate:
            (folder / "generate").mkdir()
            save_records(
                folder / "generate" / "records.parquet",
                read_records(self.recipe.data).records,
                split_of(self.recipe.data),
            )
            self.inputs["generate"] = Artifact(folder / "generate", {})

    def _trained(self, name: str, away: float, seed: int) -> None:
        assert self.recipe.student is not None
        made = build_student(
            self.recipe.student,
            teacher=resolve(str(self.teacher), console=Console("quiet")),
            tokenizer_source=self.teacher,
            seed=self.recipe.seed,
            console=Console("quiet"),
        )
        torch.manual_seed(seed)
        with torch.no_grad():
            for weight in made.model.parameters():
                weight.add_(away * torch.randn_like(weight))
        made.model.save_pretrained(str(self.folder / name / "model"))
        make_tiny_tokenizer().save_pretrained(self.folder / name / "model")
        (self.folder / name / "student.json").write_text(json.dumps(made.facts))
        self.inputs[name] = Artifact(self.folder / name, {})

    def context(self) -> Context:
        """What the stage is given."""
        out = self.folder / "evaluate"
        out.mkdir(exist_ok=True)
        return Context(self.recipe, self.folder, self.inputs, Work(out, resumed=False), Console("quiet"))

    @property
    def held_out_records(self) -> list[Record]:
        return [r for r in read_sides(self.recipe.data).held_out if isinstance(r, Record)]
