"""Preconditions on training, evaluation and export, and a summary of the training."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from potstill.check.findings import Finding, facts, warning
from potstill.check.inputs import Inputs
from potstill.data import check_selection
from potstill.errors import DataError, ModelError, RecipeError, RunError, TokenizerMismatch
from potstill.models.tokenizers import check_same_tokenizer
from potstill.quantities import counted
from potstill.recipe import Change, LocalTeacher, ModuleStudent, ObjectiveSettings, TrainSettings, TrainStage
from potstill.recipe.schedules import schedule_text
from potstill.teachers.origin import teacher_name

DEFAULT_BATCH = 8


def objectives_are_listed(inputs: Inputs) -> Iterator[Finding]:
    """The loss of every stage, schedules, and objectives that depend on the size of micro-batches."""
    train = inputs.recipe.train
    if train is None:
        return
    for stage in train.in_stages:
        terms = " + ".join(f"{schedule_text(o.weight)}·{o.kind}" for o in stage.objectives)
        yield Finding("train", f"stage {stage.name}: loss = {terms}" if train.stages else f"loss = {terms}")
        yield from facts("train", [f"{'  ' if train.stages else ''}{line}" for line in _of_stage(train, stage)])


def _of_stage(train: TrainSettings, stage: TrainStage) -> Iterator[str]:
    if stage.freeze:
        yield f"does not learn: {', '.join(stage.freeze)}"
    if stage.initialise:
        yield f"begins anew: {', '.join(stage.initialise)}"
    for objective in stage.objectives:
        yield from (f"{objective.kind}: {change}" for change in _changes(objective))
    rows = _rows_of_micro_batch(train, stage)
    for objective in stage.objectives:
        if rows < objective.least_examples:
            raise RecipeError(
                f"{objective.kind} is 0 of fewer than {objective.least_examples} examples, and a batch has {rows}",
                where="train.args.per_device_train_batch_size",
                fix=f"set it to {objective.least_examples} or more (accumulating is not the same)",
            )
        if objective.scope == "batch":
            yield (
                f"{objective.kind} is defined on the micro-batch: it compares the {rows} records of each with one "
                "another (per_device_train_batch_size), and more of them is another objective; accumulating is not the "
                "same"
            )


def _changes(objective: ObjectiveSettings) -> Iterator[str]:
    for name in type(objective).model_fields:
        value = getattr(objective, name)
        if isinstance(value, Change):
            when = f"at {value.until:.0%}" if value.shape == "step" else f"from {value.begin:.0%} to {value.until:.0%}"
            yield f"{name} {schedule_text(value)}, {value.shape}, {when} of the training"


def _rows_of_micro_batch(train: TrainSettings, stage: TrainStage) -> int:
    return int({**train.args, **stage.args}.get("per_device_train_batch_size", DEFAULT_BATCH))


def steps_are_counted(inputs: Inputs) -> Iterator[Finding]:
    """How many optimiser steps every stage takes; there is at least one."""
    recipe, sides = inputs.recipe, inputs.sides
    train = recipe.train
    if train is None or sides is None:
        return
    program = recipe.generate
    best: int | None = getattr(program, "best", None)
    samples: int = getattr(program, "samples", 1)
    answers = len(sides.train) * (best or samples)
    about = "about " if train.packing or recipe.generate is not None or inputs.task.masks else ""
    controls = f", and as many for each of: {', '.join(train.controls)}" if train.controls else ""
    if train.seeds > 1:
        controls += f", each by {train.seeds} seeds"
    total = 0
    for stage in train.in_stages:
        args = {**train.args, **stage.args}
        rows = _rows_of_micro_batch(train, stage) * int(args.get("gradient_accumulation_steps", 1))
        steps = int(args.get("max_steps", -1))
        if steps <= 0:
            # As transformers counts: whole steps in an epoch, of which the last may be smaller.
            an_epoch = answers // rows if args.get("dataloader_drop_last") else math.ceil(answers / rows)
            steps = math.ceil(an_epoch * float(args.get("num_train_epochs", 1)))
        which = f"stage {stage.name}: " if train.stages else ""
        if answers and (steps == 0 or (args.get("dataloader_drop_last") and answers < rows)):
            raise DataError(
                f"{answers:,} rows do not fill one step of {rows:,}",
                where="train.args",
                fix="give more rows, make the batch smaller, or set dataloader_drop_last: false",
            )
        total += steps
        yield Finding("train", f"{which}{about}{counted(steps, 'step')} of {counted(rows, 'record')}{controls}")
        yield from _long_warm_up(args, steps, f"{which}{about}")
    inputs.figures["steps"] = total


def _long_warm_up(args: Mapping[str, Any], steps: int, about: str) -> Iterator[Finding]:
    """A warning if the learning rate is still rising at the last step. Below 1, `warmup_steps` is a share of them."""
    warm_up = args.get("warmup_steps", 0)
    if steps and warm_up >= 1 and warm_up >= steps and args.get("lr_scheduler_type") != "constant":
        text = f"args.warmup_steps is {warm_up:,}, and there are {about}{steps:,} steps"
        yield warning(
            "train", f"{text}: the learning rate rises to {steps / warm_up:.0%} of what is set, and ends there"
        )


def best_weights_can_be_chosen(inputs: Inputs) -> None:
    """`keep: best` has held-out groups to choose by, and leaves some to report on."""
    recipe, sides = inputs.recipe, inputs.sides
    if recipe.train is not None and recipe.train.keeps_best and sides is not None:
        check_selection(example.group for example in sides.held_out)


def one_process(inputs: Inputs) -> None:
    """A run is written by one process."""
    if int(os.environ.get("WORLD_SIZE", "1") or 1) > 1 and inputs.recipe.train is not None:
        raise RunError(
            "several processes would write one run folder",
            fix="start potstill without torchrun; DistillTrainer in a script of your own runs under it",
        )


# ---- evaluation and export -------------------------------------------------------------------------------------


def problems_can_be_solved(inputs: Inputs) -> Iterator[Finding]:
    """Held-out problems exist, of at least two groups, with what their verifier compares with: what an evaluation asks
    of them."""
    evaluate = inputs.recipe.evaluate
    solve = evaluate.solve if evaluate is not None else None
    held_out = inputs.records("held_out")
    if solve is None or not held_out:
        return
    from potstill.evaluate.questions import SOLVE, problems_of

    counts: Counter[str] = Counter()
    problems = problems_of(held_out, solve, None, lambda name, amount: counts.update({name: amount}), SOLVE)
    total = len(problems) + counts[f"problems beyond {SOLVE}.limit"]
    yield Finding("evaluate", f"each model answers {len(problems):,} of {total:,} held-out problems")


def measures_have_their_teacher(inputs: Inputs) -> Iterator[Finding]:
    """Measures that compare what models write with their teacher's text have one teacher that writes here."""
    recipe = inputs.recipe
    if recipe.evaluate is None or recipe.train is None:
        return
    kinds = [measure.kind for measure in recipe.evaluate.measures_for(inputs.task) if measure.reads_teachers_text]
    if not kinds:
        return
    if (why := _why_no_text(inputs)) is not None:
        raise RecipeError(
            f"{' and '.join(kinds)} compare what models write with their teacher's text, and {why}",
            where="evaluate.measures",
            fix="name a teacher of kind local with the student's tokenizer, or drop them",
        )
    if recipe.evaluates_stored:
        yield warning(
            "evaluate",
            f"{' and '.join(kinds)}: the teacher's side is read from the store, which has no text that it writes; set "
            "evaluate.teacher: live",
        )


def _why_no_text(inputs: Inputs) -> str | None:
    """Why an evaluation has no text of a teacher; None if it has."""
    name = teacher_name(inputs.recipe)
    if name is None:
        return "there is no teacher"
    teacher = inputs.recipe.teachers[name]
    if not isinstance(teacher, LocalTeacher):
        return f"the teacher {name!r} is of kind {teacher.kind}"
    source, own = inputs.source(teacher), inputs.own_tokenizer
    if source is not None and own is not None:
        try:
            check_same_tokenizer(source.path, own)
        except TokenizerMismatch as mismatch:
            return f"the teacher {name!r} is not measured: {mismatch.what}"
    return None


def exports_are_possible(inputs: Inputs) -> Iterator[Finding]:
    """Students of the task have such exports, their packages are installed, and a module of the user's own is exported
    in its own precision. A warning for each that rounds rounded weights again."""
    from potstill.export.base import check_possible, second_rounding

    recipe = inputs.recipe
    for settings in recipe.export:
        check_possible(settings, inputs.task.name)
        dtype: Any = getattr(settings, "dtype", None)
        if isinstance(recipe.student, ModuleStudent) and dtype is not None and dtype != "keep":
            raise ModelError(
                f"a module of your own is exported as it was trained, not in {dtype}",
                where="export.dtype",
                fix="set dtype: keep, and convert it in your own program",
            )
        if recipe.train is not None and (note := second_rounding(settings, recipe.train.quantize)) is not None:
            yield warning("export", f"{settings.kind}: {note}")
