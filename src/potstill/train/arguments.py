"""The `TrainingArguments` of a recipe: its own values over potstill's defaults."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from potstill.errors import RecipeError
from potstill.models.load import has_fast_bf16
from potstill.recipe import Existing, Recipe, TrainStage
from potstill.tasks import SPECS

MOST_LOGS = 500
"""Up to this many steps, each step is logged; longer trainings log at intervals."""


def defaults(recipe: Recipe, device: torch.device) -> dict[str, Any]:
    """The training arguments that the recipe does not set.

    One epoch in steps of 8 rows, AdamW, cosine decay after 5 % warm-up, clipped at norm 1, in bf16 if the device
    multiplies in it (weights stay fp32). The learning rate is 5e-4 for a student with much to learn (made of the
    teacher's layers, or of random weights), 5e-5 for an existing whole model, and 2e-4 for an adapter.
    """
    rate = 5e-4
    if recipe.required_student.lora is not None:
        rate = 2e-4
    elif isinstance(recipe.required_student, Existing):
        rate = 5e-5
    return {
        "learning_rate": rate,
        "num_train_epochs": 1,
        "per_device_train_batch_size": 8,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.05,
        "max_grad_norm": 1.0,
        "bf16": has_fast_bf16(device),
        "report_to": "none",
    }


def training_arguments(
    recipe: Recipe, folder: Path, device: torch.device, rows: int, stage: TrainStage | None = None
) -> TrainingArguments:
    """The arguments of a stage (by default the first) of the recipe's training on `rows` rows, with a folder for its
    checkpoints.

    Raises:
        RecipeError: `train.args` hold a value that `TrainingArguments` refuses.
    """
    stage = stage or recipe.required_train.in_stages[0]
    best = stage.keep == "best"
    given = {**defaults(recipe, device), **recipe.required_train.args, **stage.args}
    given.setdefault("logging_steps", max(1, steps_of(given, rows) // MOST_LOGS))
    try:
        return TrainingArguments(
            output_dir=str(folder),
            use_cpu=given.pop("use_cpu", device.type == "cpu"),
            seed=recipe.seed,
            data_seed=recipe.seed,
            disable_tqdm=given.pop("disable_tqdm", True),
            save_strategy="best" if best else "no",
            eval_strategy="no",
            load_best_model_at_end=best,
            metric_for_best_model=_criterion(recipe) if best else None,
            greater_is_better=False if best else None,
            save_total_limit=given.pop("save_total_limit", 2),
            **given,
        )
    except (ValueError, TypeError, KeyError) as error:
        raise RecipeError(str(error), where="train.args") from error


def _criterion(recipe: Recipe) -> str:
    """The criterion for the best weights: the same for students and controls, so that neither is favoured.

    A student's KL could be used, but a control that trains without the teacher has no KL meanwhile: each would be
    chosen by its own criterion, and the comparison in KL would attribute the difference in choice to the teacher.
    """
    return "eval_nll" if SPECS[recipe.task].has_response else "eval_loss"


def steps_of(arguments: dict[str, Any], rows: int) -> int:
    """The number of optimiser steps for some arguments and a number of rows, in one process."""
    if int(arguments.get("max_steps", -1)) > 0:
        return int(arguments["max_steps"])
    step = int(arguments["per_device_train_batch_size"]) * int(arguments.get("gradient_accumulation_steps", 1))
    per_epoch = rows // step if arguments.get("dataloader_drop_last") else math.ceil(rows / step)
    return math.ceil(per_epoch * float(arguments["num_train_epochs"]))
