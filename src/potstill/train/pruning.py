"""The stage `train.pruned`: measure the teacher's parts, cut candidates of a size, choose one by a short look.

The look trains every candidate for a few steps by forward KL and measures the KL on training records that these steps
do not see. Held-out records of the recipe are not measured. The student, its controls and all seeds begin with the
model that is chosen here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from functools import partial
from itertools import cycle, islice
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from potstill.artifacts import Work
from potstill.data.reader import Row, TaskReader
from potstill.errors import DataError, ModelError, RecipeError
from potstill.models.facts import facts_of_folder
from potstill.models.folder import is_module
from potstill.models.load import load_tokenizer, open_model
from potstill.models.quiet import quiet_loading
from potstill.models.saving import save_model
from potstill.recipe import ForwardKL, Pruned, Recipe
from potstill.recipe.students import Look
from potstill.registry import build
from potstill.signals import Batch
from potstill.stage import Context
from potstill.students.build import count_parameters
from potstill.students.from_teacher import layer_influence
from potstill.students.importance import Importance, measure_importance
from potstill.students.pruned import PRUNING, Candidate, candidates_of, cut, shapes_of
from potstill.teachers import Teacher
from potstill.train.inputs import Models, find_models, make_teacher, read_rows, row_batches
from potstill.train.module import DistillModule, measure_held_out


def write_pruned(recipe: Recipe, settings: Pruned, context: Context) -> None:
    """Write `model/` (the chosen student before its first step, with its tokenizer) and `pruning.json`.

    Raises:
        RecipeError: there is no teacher to prune, or it has no shape of this size.
        ModelError: its family cannot be pruned by width.
        DataError: too few records to look at.
    """
    models = find_models(recipe, context.console)
    generated = context.inputs.get("generate")
    records = generated.path / "records.parquet" if generated is not None else None
    # What is dropped and cut is counted by the training.
    reader, rows = read_rows(recipe, records, models.tokenizer, Work(context.out, resumed=False))
    with quiet_loading():
        chosen, facts = _choose(settings, models, reader, rows.train, context)
        save_model(chosen, context.out / "model")
    if models.tokenizer is not None:
        load_tokenizer(models.tokenizer, models.trust_remote_code).save_pretrained(str(context.out / "model"))
    (context.out / PRUNING).write_text(json.dumps(facts, indent=1), encoding="utf-8")
    context.work.count("candidates", len(facts["candidates"]))


def _choose(
    settings: Pruned, models: Models, reader: TaskReader, rows: Sequence[Row], context: Context
) -> tuple[PreTrainedModel, dict[str, Any]]:
    source, console, task = models.teacher, context.console, context.recipe.task
    if source is None or is_module(source.path):
        raise RecipeError(
            "a pruned student needs a teacher of transformers whose weights are here",
            where="student.kind",
            fix="name one (kind: local), or make the student from_config or of an existing model",
        )
    sizes = facts_of_folder(source.path)
    widths, shapes = shapes_of(settings, sizes)
    teacher, _ = open_model(
        source, task=task, dtype="float32", device="cpu", trust_remote_code=models.trust_remote_code
    )
    if not isinstance(teacher, PreTrainedModel) or getattr(teacher.config, "quantization_config", None) is not None:
        raise ModelError(
            "the teacher's weights are quantised, and packed weights cannot be pruned",
            where=str(source.path),
            fix="name the unquantised model as teacher",
        )
    influence = layer_influence(teacher, row_batches(rows, reader), records=settings.records, console=console)
    importance: Importance | None = None
    if widths is not None:
        with console.task("measuring heads and channels", total=settings.records, unit="records") as progress:
            importance = measure_importance(
                teacher,
                row_batches(rows, reader),
                groups=widths.shape.groups,
                records=settings.records,
                advance=progress.advance,
            )
    candidates = candidates_of(shapes, len(influence), influence)
    look = TrialRun(settings.look, rows, reader, models, make_teacher(models), context.recipe)
    make = partial(cut, teacher, widths=widths, importance=importance, task=task)
    losses: list[float] = []
    sized: list[int] = []
    with console.task("looking at candidates", total=len(candidates), unit="candidates") as progress:
        for candidate in candidates:
            student = make(candidate)
            sized.append(count_parameters(student))
            losses.append(look.loss(student))
            console.say(f"{candidate}: {sized[-1] / 1e6:,.1f}M parameters, KL {losses[-1]:.3f}")
            progress.advance(1)
    best = min(range(len(candidates)), key=losses.__getitem__)
    chosen = candidates[best]
    facts = {
        "layers": list(chosen.layers),
        "teacher_layers": len(influence),
        "shape": None if chosen.shape is None else asdict(chosen.shape),
        "influence": influence,
        "sample": {
            "records": min(settings.records, len(rows)),
            "measured": look.measured_rows,
            "kl": "per target token",
        },
        "candidates": [
            _described(candidate, parameters, loss)
            for candidate, parameters, loss in zip(candidates, sized, losses, strict=True)
        ],
    }
    return make(chosen), facts


def _described(candidate: Candidate, parameters: int, loss: float) -> dict[str, Any]:
    shape = {} if candidate.shape is None else asdict(candidate.shape)
    return {**shape, "layers": list(candidate.layers), "by": candidate.by, "parameters": parameters, "kl": loss}


class TrialRun:
    """A short look at a student: a few steps of training, then the KL on rows that they did not see.

    Args:
        settings: how long.
        rows: training rows; the last `measured` of them are not trained on here.
        reader: collates them.
        models: the device.
        teacher: gives the distributions.
        recipe: its seed, and whether it trains in bf16.

    Raises:
        DataError: fewer than two rows, or no teacher.
    """

    def __init__(
        self,
        settings: Look,
        rows: Sequence[Row],
        reader: TaskReader,
        models: Models,
        teacher: Teacher | None,
        recipe: Recipe,
    ) -> None:
        if len(rows) < 2:
            raise DataError("a look at candidates needs two training records", where="student.look")
        self.settings, self._teacher, self._device = settings, teacher, models.device
        self.measured_rows = min(settings.measured, max(1, len(rows) // 3))
        self._collate = reader.collator()
        self._measured = rows[-self.measured_rows :]
        self._trained = rows[: -self.measured_rows]
        self._bf16 = bool(recipe.required_train.args.get("bf16"))

    def loss(self, student: PreTrainedModel) -> float:
        """KL(teacher ‖ student) in nats per target after the steps. The student is changed by them."""
        module = DistillModule(student, self._teacher, [build(ForwardKL())]).to(self._device)
        self._train(module)
        found = measure_held_out(
            module,
            module,
            self._batches(self._measured),
            precision=self._precision,
            sum_over_processes=lambda totals: totals,
        )
        return found["kl"]

    def _train(self, module: DistillModule) -> None:
        settings = self.settings
        optimiser = torch.optim.AdamW(module.parameters(), lr=settings.learning_rate, weight_decay=0.0)
        module.train()
        rows = islice(cycle(self._trained), settings.steps * settings.rows)
        for inputs in self._batches(list(rows)):
            counts = module.counts(Batch.from_inputs(inputs))
            with self._precision():
                loss = module(inputs, counts)["loss"]
            loss.backward()
            torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)

    def _batches(self, rows: Sequence[Row]) -> Iterator[Mapping[str, Tensor]]:
        size = self.settings.rows
        for start in range(0, len(rows), size):
            inputs = self._collate(rows[start : start + size])
            yield {name: v.to(self._device) if isinstance(v, Tensor) else v for name, v in inputs.items()}

    def _precision(self) -> AbstractContextManager[Any]:
        return torch.autocast(self._device.type, torch.bfloat16, enabled=self._bf16)
