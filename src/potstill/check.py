"""`potstill check`: is it possible, and what will it cost? The static part loads no torch and fetches nothing."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from potstill.console import Console
from potstill.errors import DataError
from potstill.recipe import (
    Change,
    Existing,
    FromConfig,
    ObjectiveSettings,
    Recipe,
    TeacherSettings,
    TrainSettings,
    TrainStage,
)
from potstill.recipe.data import DataSettings, PackagedData
from potstill.recipe.schedules import said
from potstill.types import Record

if TYPE_CHECKING:
    from potstill.data import Sides

_NAMES_SHOWN = 20
_RECORDS_READ = 2000
"""How many are tokenised at most: a check answers at once."""


@dataclass(frozen=True)
class Findings:
    """What a check found: lines for a person by topic, and the figures behind them."""

    lines: Mapping[str, tuple[str, ...]]
    figures: Mapping[str, Any] = field(default_factory=dict)

    def text(self) -> str:
        """One topic a paragraph."""
        width = max(len(topic) for topic in self.lines)
        return "\n".join(
            f"{topic if index == 0 else '':<{width}}  {line}"
            for topic, lines in self.lines.items()
            for index, line in enumerate(lines)
        )

    def to_dict(self) -> dict[str, Any]:
        return {"event": "result", "ok": True, "findings": {k: list(v) for k, v in self.lines.items()}, **self.figures}

    def with_probe(self, probe: Findings) -> Findings:
        return replace(self, lines={**self.lines, **probe.lines}, figures={**self.figures, **probe.figures})


def check_recipe(recipe: Recipe) -> Findings:
    """The static check: data, split, token counts and an upper bound of the work (what its teachers can give was
    checked when the recipe was read). Data of the hub or of a package that is not here are not read: that would fetch
    them.

    Raises:
        DataError: the recipe cannot work as it stands.
        ModelError: nor without a tokenizer that it names.
    """
    from potstill.models.folder import check_tokenizer_folder
    from potstill.models.resolve import locate

    lines: dict[str, tuple[str, ...]] = {}
    figures: dict[str, Any] = {}
    sides = _read(recipe)
    if sides is None:
        lines["data"] = (f"{recipe.data.kind}: will be fetched, and is not looked at before",)
    else:
        lines["data"] = _data_lines(recipe, sides)
        figures |= {"records": _records(sides), "train": len(sides.train), "held_out": len(sides.held_out)}

    folder = None
    teachers: list[str] = []
    for name, teacher in _all_teachers(recipe.teachers):
        model = getattr(teacher, "model", None)
        # Of a teacher elsewhere (an endpoint) the model is only a name.
        here = model is not None and not getattr(teacher, "remote", False)
        source = locate(model, getattr(teacher, "revision", None)) if model is not None and here else None
        where = "here" if source else "will be fetched" if here else teacher.kind
        teachers.append(f"{name}: {model} ({where})" if model else f"{name}: {where}")
        teachers += [f"  {note}" for note in source.notes] if source else []
        folder = folder or (source.path if source else None)
    lines["teachers"] = tuple(teachers) or ("none",)
    if isinstance(recipe.student, FromConfig) and recipe.student.tokenizer is not None:
        folder = check_tokenizer_folder(recipe.student.tokenizer, "student.tokenizer")

    if recipe.generate is not None and sides is not None:
        from potstill.generate.estimate import estimate

        train, found = _clean(recipe, [item for item in sides.train if isinstance(item, Record)])
        prompts = [*train, *(item for item in sides.held_out if isinstance(item, Record))]
        lines["generate"], costs = estimate(recipe, prompts)
        lines["generate"] += found
        figures |= costs
    if recipe.train is not None:
        lines["train"] = _train_lines(recipe.train)
        if sides is not None:
            lines["train"] += _work_lines(recipe, len(sides.train))
            if recipe.generate is None:
                lines["train"] += _token_lines(recipe, sides, folder)
    lines["stages"] = (" → ".join(_stage_names(recipe)),)
    return Findings(lines, figures)


def _read(recipe: Recipe) -> Sides | None:
    from potstill.data import read_sides

    if not _here(recipe.data):
        return None
    return read_sides(recipe.data)


def _here(source: DataSettings) -> bool:
    """Whether it can be read without fetching it."""
    from potstill.data.packages import fetched

    return source.kind != "hub" and not (isinstance(source, PackagedData) and not fetched(source.name))


def _clean(recipe: Recipe, train: list[Record]) -> tuple[list[Record], tuple[str, ...]]:
    """The training records that will be asked, and what is said of those that stand in an evaluation set."""
    assert recipe.generate is not None
    settings = recipe.generate.decontaminate
    if settings is None:
        return train, ()
    if away := [name for name, source in settings.against.items() if not _here(source)]:
        return train, (f"evaluation sets that will be fetched are not looked at before: {', '.join(away)}",)
    from potstill.generate.decontaminating import set_digests, without_caught

    if not recipe.generate.asks:
        set_digests(settings)  # that they are there
        return train, ()
    kept, caught = without_caught(settings, train)
    named = ", ".join(f"{name} {caught.get(name, 0):,}" for name in settings.against)
    return kept, (f"in an evaluation set, and not asked: {len(train) - len(kept):,} of {len(train):,} ({named})",)


def _records(sides: Sides) -> int:
    return len(sides.train) + len(sides.held_out)


def _all_teachers(teachers: Mapping[str, TeacherSettings]) -> Iterator[tuple[str, TeacherSettings]]:
    """Every teacher by name, an ensemble's members after it by number."""
    for name, teacher in teachers.items():
        yield name, teacher
        members = getattr(teacher, "members", ())
        yield from _all_teachers({f"{name}.{number}": member for number, member in enumerate(members)})


def _data_lines(recipe: Recipe, sides: Sides) -> tuple[str, ...]:
    if recipe.evaluate is not None and len({record.group for record in sides.held_out}) < 2:
        raise DataError(
            "fewer than two groups of records are held out, and an interval needs two",
            where="data.held_out",
            fix="raise it, or give more records",
        )
    records = [*sides.train, *sides.held_out]
    if recipe.train is not None and recipe.generate is None and all(getattr(r, "is_prompt", False) for r in records):
        raise DataError(
            "the data are prompts without answers, and nothing answers them",
            where="data",
            fix="add a generate section, or give data with answers",
        )
    lines = [f"{len(records):,} records: {len(sides.train):,} to train on, {len(sides.held_out):,} held out"]
    if sides.classes:
        lines.append(f"{len(sides.classes)} classes: {_shortened(sides.classes)}")
    lines += [f"{count:,} dropped: {reason}" for reason, count in sorted(sides.counts.items()) if reason != "read"]
    if sides.read is not None and sides.read.unused_columns:
        lines.append(f"columns that are not used: {', '.join(sides.read.unused_columns)}")
    return tuple(lines)


def _shortened(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= _NAMES_SHOWN else f"{', '.join(names[:_NAMES_SHOWN])} …"


# ---- training ------------------------------------------------------------------------------------------------


def _train_lines(train: TrainSettings) -> tuple[str, ...]:
    """The loss of every stage, what changes while it is trained, and what depends on the size of micro-batches."""
    lines = []
    for stage in train.in_stages:
        terms = " + ".join(f"{said(o.weight)}·{o.kind}" for o in stage.objectives)
        lines.append(f"stage {stage.name}: loss = {terms}" if train.stages else f"loss = {terms}")
        indent = "  " if train.stages else ""
        if stage.freeze:
            lines.append(f"{indent}does not learn: {', '.join(stage.freeze)}")
        if stage.initialise:
            lines.append(f"{indent}begins anew: {', '.join(stage.initialise)}")
        for objective in stage.objectives:
            lines += [f"{indent}{objective.kind}: {change}" for change in _changes(objective)]
        rows = _rows_of_micro_batch(train, stage)
        lines += [
            f"{indent}{objective.kind} is defined on the micro-batch: it compares the {rows} records of each with one "
            "another (per_device_train_batch_size), and more of them is another objective; accumulating is not the same"
            for objective in stage.objectives
            if objective.scope == "batch"
        ]
    return tuple(lines)


def _changes(objective: ObjectiveSettings) -> Iterator[str]:
    for name in type(objective).model_fields:
        value = getattr(objective, name)
        if isinstance(value, Change):
            when = f"at {value.until:.0%}" if value.shape == "step" else f"from {value.begin:.0%} to {value.until:.0%}"
            yield f"{name} {said(value)}, {value.shape}, {when} of the training"


def _rows_of_micro_batch(train: TrainSettings, stage: TrainStage) -> int:
    return int({**train.args, **stage.args}.get("per_device_train_batch_size", 8))


def _work_lines(recipe: Recipe, training: int) -> tuple[str, ...]:
    train = recipe.train
    assert train is not None
    answers = training * getattr(recipe.generate, "samples", 1)
    about = "about " if train.packing or recipe.generate is not None or recipe.task == "masked_lm" else ""
    controls = f", and as many for each of: {', '.join(train.controls)}" if train.controls else ""
    lines = []
    for stage in train.in_stages:
        args = {**train.args, **stage.args}
        rows = _rows_of_micro_batch(train, stage) * int(args.get("gradient_accumulation_steps", 1))
        steps = int(args.get("max_steps", 0))
        # As transformers does: whole steps in an epoch, whose last one may be smaller.
        steps = steps if steps > 0 else math.ceil(math.ceil(answers / rows) * float(args.get("num_train_epochs", 1)))
        which = f"stage {stage.name}: " if train.stages else ""
        lines.append(f"{which}{about}{steps:,} steps of {rows} records{controls}")
    return tuple(lines)


def _token_lines(recipe: Recipe, sides: Sides, teacher: Path | None) -> tuple[str, ...]:
    from potstill.data import reader_of
    from potstill.models.resolve import locate
    from potstill.types import Reject

    assert recipe.train is not None
    student = recipe.student
    own = locate(student.model, student.revision) if isinstance(student, Existing) else None
    folder = own.path if own is not None else teacher
    if folder is None or recipe.task == "image_classification":
        return ()
    reader = reader_of(recipe, folder, sides.classes)
    records = [*sides.train, *sides.held_out]
    looked_at = records[:: math.ceil(len(records) / _RECORDS_READ)]
    rows = [row for record in looked_at for row in reader.rows(record)]
    kept = [row for row in rows if not isinstance(row, Reject)]
    cut = sum(getattr(row, "cut", False) for row in kept)
    tokens = sum(len(getattr(row, "input_ids", ())) for row in kept)
    unusable = len(rows) - len(kept)
    of = f" (of {len(looked_at):,} records that were looked at)" if len(looked_at) < len(records) else ""
    tokens = tokens * len(records) // max(len(looked_at), 1)
    pass_ = f"{'about ' if of else ''}{tokens:,} tokens a pass"
    return (f"{pass_}; {cut:,} records cut at {recipe.train.max_length}; {unusable:,} not usable{of}",)


def _stage_names(recipe: Recipe) -> list[str]:
    from potstill.pipeline import stages_of

    return [stage.name for stage in stages_of(recipe)]


def probe_recipe(recipe: Recipe, console: Console) -> Findings:
    """Load teacher and student, compare heads with logits, try one batch, and time it. Loads torch.

    Raises:
        PotstillError: a model cannot be loaded, the tokenizers differ, or a head cannot be read.
    """
    from potstill.train.probe import probe_training

    started = time.monotonic()
    lines, figures = probe_training(recipe, console)
    figures = {**figures, "probe_seconds": round(time.monotonic() - started, 1)}
    return Findings({"probe": tuple(lines)}, figures)
