"""`potstill check`: is it possible, and what will it cost? The static part loads no torch and fetches nothing."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from potstill.console import Console
from potstill.errors import DataError
from potstill.recipe import Recipe
from potstill.recipe.schedules import said
from potstill.types import Record

if TYPE_CHECKING:
    from potstill.data import ReadResult


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
    checked when the recipe was read). Data of the hub are not read: that would fetch them.

    Raises:
        DataError: the recipe cannot work as it stands.
    """
    from potstill.data import read_records
    from potstill.models.resolve import locate

    lines: dict[str, tuple[str, ...]] = {}
    figures: dict[str, Any] = {}
    read = None if recipe.data.kind == "hub" else read_records(recipe.data)
    if read is None:
        lines["data"] = (f"{recipe.data.kind}: will be fetched, and is not looked at before",)
    else:
        lines["data"], sides = _data_lines(recipe, read)
        figures |= {"records": len(read.records)} | sides

    folder = None
    teachers: list[str] = []
    for name, teacher in recipe.teachers.items():
        model = getattr(teacher, "model", None)
        source = locate(model, getattr(teacher, "revision", None)) if model else None
        teachers.append(f"{name}: {model} ({'here' if source else 'will be fetched'})")
        teachers += [f"  {note}" for note in source.notes] if source else []
        folder = folder or (source.path if source else None)
    lines["teachers"] = tuple(teachers) or ("none",)

    if recipe.generate is not None and read is not None:
        asked = len(read.records) * getattr(recipe.generate, "samples", 1)
        most = asked * getattr(recipe.generate, "max_new_tokens", 0)
        budget = getattr(recipe.generate, "token_budget", None)
        most = min(most, budget) if budget else most
        lines["generate"] = (f"{asked:,} answers, at most {most:,} tokens written",)
        figures |= {"answers": asked, "tokens_at_most": most}
    if recipe.train is not None and read is not None:
        lines["train"] = _train_lines(recipe, figures["train"])
        if folder is not None and recipe.generate is None:
            lines["train"] += _token_lines(recipe, read.records, folder)
    lines["stages"] = (" → ".join(_stage_names(recipe)),)
    return Findings(lines, figures)


def _data_lines(recipe: Recipe, read: ReadResult) -> tuple[tuple[str, ...], dict[str, int]]:
    from potstill.data import side_of

    groups = {r.group: side_of(r, recipe.data) for r in read.records}
    sides = {side: sum(groups[r.group] == side for r in read.records) for side in ("train", "held_out")}
    if recipe.evaluate is not None and list(groups.values()).count("held_out") < 2:
        raise DataError(
            "fewer than two groups of records are held out, and an interval needs two",
            where="data.held_out",
            mend="raise it, or give more records",
        )
    if recipe.train is not None and recipe.generate is None and all(r.is_prompt for r in read.records):
        raise DataError(
            "the data are prompts without answers, and nothing answers them",
            where="data",
            mend="add a generate section, or give data with answers",
        )
    lines = [f"{len(read.records):,} records: {sides['train']:,} to train on, {sides['held_out']:,} held out"]
    lines += [f"{count:,} dropped: {reason}" for reason, count in sorted(read.counts.items()) if reason != "read"]
    if read.unused_columns:
        lines.append(f"columns that are not used: {', '.join(read.unused_columns)}")
    return tuple(lines), sides


def _train_lines(recipe: Recipe, training: int) -> tuple[str, ...]:
    assert recipe.train is not None
    terms = " + ".join(f"{said(o.weight)}·{o.kind}" for o in recipe.train.all_objectives)
    args = recipe.train.args
    rows = int(args.get("per_device_train_batch_size", 8)) * int(args.get("gradient_accumulation_steps", 1))
    answers = training * getattr(recipe.generate, "samples", 1)
    steps = int(args.get("max_steps", 0)) or math.ceil(answers / rows) * float(args.get("num_train_epochs", 1))
    about = "about " if recipe.train.packing or recipe.generate is not None else ""
    controls = f", and as many for each of: {', '.join(recipe.train.controls)}" if recipe.train.controls else ""
    return (f"loss = {terms}", f"{about}{steps:,.0f} steps of {rows} records{controls}")


def _token_lines(recipe: Recipe, records: Sequence[Record], folder: Path) -> tuple[str, ...]:
    from potstill.data import ChatTokenizer, tokenize
    from potstill.types import Reject

    assert recipe.train is not None
    chat = ChatTokenizer.from_folder(folder)
    rows = [tokenize(record, chat, recipe.train.max_length) for record in records]
    kept = [row for row in rows if not isinstance(row, Reject)]
    cut = sum(row.cut for row in kept)
    tokens = sum(len(row.input_ids) for row in kept)
    unusable = len(rows) - len(kept)
    return (f"{tokens:,} tokens a pass; {cut:,} records cut at {recipe.train.max_length}; {unusable:,} not usable",)


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
