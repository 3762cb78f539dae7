"""The training arguments that a recipe may set, and their values. No torch."""

from __future__ import annotations

from typing import Any

from potstill.errors import did_you_mean
from potstill.recipe.declared import MOST, training_arguments

OURS = {
    "output_dir": "it is the run's folder",
    "remove_unused_columns": "the collator needs every column",
    "label_names": "labels are made by the collator",
    "do_train": "the stage is the switch",
    "do_eval": "held-out KL is measured whenever there are held-out records",
    "do_predict": "use evaluate",
    "resume_from_checkpoint": "the same command resumes by itself",
    "label_smoothing_factor": "the objectives are the loss; leave it out",
    "use_liger_kernel": "the vocabulary losses are already fused",
    "load_best_model_at_end": "use keep: best or keep: last",
    "fp16": "use bf16: true (fp16 is refused: its loss scaling breaks gradients made in the forward pass)",
    "fp16_full_eval": "leave it out: held-out records are measured in the precision of training",
    "bf16_full_eval": "leave it out: it would turn the student's fp32 weights into bf16 for good",
    "fsdp": "sharded weights are not supported: start one process per GPU with torchrun (DDP)",
    "deepspeed": "sharded weights are not supported: start one process per GPU with torchrun (DDP)",
    "torch_compile": "leave it out: torch_compile does not see through the fused loss",
    "push_to_hub": "a run writes folders only: upload an export with `hf upload`",
    "hub_token": "a recipe is saved with its run, and a key must not be: log in with `hf auth login`",
    "seed": "use the recipe's seed",
    "data_seed": "use the recipe's seed",
    "save_strategy": "use checkpoint_seconds",
    "save_steps": "use checkpoint_seconds",
    "eval_strategy": "use evaluations",
    "eval_steps": "use evaluations",
}
"""Training arguments that a recipe may not set, and what to do instead."""

_ABOVE_ZERO = frozenset(
    {
        "adam_epsilon",
        "gradient_accumulation_steps",
        "logging_steps",
        "num_train_epochs",
        "per_device_eval_batch_size",
        "per_device_train_batch_size",
    }
)
_BELOW_ONE = frozenset({"adam_beta1", "adam_beta2"})
_AT_MOST = {"num_train_epochs": 1_000_000}
_MAY_BE_NEGATIVE = frozenset({"local_rank"})


def check_arguments(args: dict[str, Any]) -> dict[str, Any]:
    """The arguments, if the installed `TrainingArguments` has a field of each name that a recipe may set, and each
    value has the field's type and range.

    Raises:
        ValueError: names the nearest field, or the range.
    """
    declared = training_arguments()
    for name, value in args.items():
        if name in OURS:
            raise ValueError(f"{name!r} cannot be set here: {OURS[name]}")
        if declared.types and name not in declared.types:
            raise ValueError(f"{name!r} is not a field of TrainingArguments{did_you_mean(name, declared.types)}")
        if problem := declared.why_not(name, value) or _out_of_range(name, value):
            raise ValueError(f"{name} {problem}")
    return args


def _out_of_range(name: str, value: Any) -> str | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    if name == "max_steps":
        return None if value == -1 or value > 0 else f"should be a number of steps above 0, not {value}"
    if name in _ABOVE_ZERO and value <= 0:
        return f"should be above 0, not {value}"
    if name in _BELOW_ONE and not 0 <= value < 1:
        return f"should be at least 0 and below 1, not {value}"
    if value > (most := _AT_MOST.get(name, MOST)):
        return f"should be at most {most:,}, not {value:g}"
    if value < 0 and name not in _MAY_BE_NEGATIVE:
        return f"should not be negative: {value}"
    return None
