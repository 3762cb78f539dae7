"""Settings of training."""

from __future__ import annotations

import ast
import functools
import importlib.util
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from potstill.errors import did_you_mean
from potstill.recipe.base import Cosmetic, Settings, one_of
from potstill.recipe.objectives import ForwardKL, HardCE, ObjectiveSettings

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
    "seed": "use the recipe's seed",
    "data_seed": "use the recipe's seed",
    "save_strategy": "use checkpoint_seconds",
    "save_steps": "use checkpoint_seconds",
    "eval_strategy": "use evaluations",
    "eval_steps": "use evaluations",
}
"""Training arguments that a recipe may not set, and what to do instead."""


@functools.cache
def training_argument_names() -> frozenset[str]:
    """The fields of the installed `transformers.TrainingArguments`, read from its source: importing it would
    load torch (5 s), and a check must answer at once."""
    spec = importlib.util.find_spec("transformers")
    if spec is None or not spec.submodule_search_locations:
        return frozenset()
    source = Path(next(iter(spec.submodule_search_locations))) / "training_args.py"
    for node in ast.parse(source.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef) and node.name == "TrainingArguments":
            fields = (n.target.id for n in node.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name))
            return frozenset(f for f in fields if not f.startswith("_"))
    return frozenset()


class TrainSettings(Settings):
    """How the student learns.

    Texts longer than `max_length` tokens are cut at the end, and counted. `packing` puts several records into
    one row (they do not see each other). `keep` chooses the weights that the stage hands on: those of the `last`
    step or of the `best` held-out KL among the `evaluations` evenly spaced ones. A checkpoint is written every
    `checkpoint_seconds`. `controls` are variants of this stage with artifacts of their own: `text_only` is the
    same initialisation, batches, order, steps and schedule, with `hard_ce` alone.
    """

    objectives: tuple[one_of(ObjectiveSettings), ...] = Field((ForwardKL(), HardCE()), min_length=1)  # type: ignore[valid-type]
    teacher: str = "main"
    controls: tuple[Literal["text_only"], ...] = ()
    max_length: PositiveInt = 1024
    packing: bool = False
    keep: Literal["last", "best"] = "last"
    evaluations: PositiveInt = 4
    checkpoint_seconds: Annotated[PositiveFloat, Cosmetic()] = 300.0
    log_gradient_norms: Annotated[bool, Cosmetic()] = False
    args: dict[str, Any] = {}

    @field_validator("args")
    @classmethod
    def _known_arguments(cls, args: dict[str, Any]) -> dict[str, Any]:
        known = training_argument_names()
        for name in args:
            if name in OURS:
                raise ValueError(f"{name!r} cannot be set here: {OURS[name]}")
            if known and name not in known:
                raise ValueError(f"{name!r} is not a field of TrainingArguments{did_you_mean(name, known)}")
        return args

    @model_validator(mode="after")
    def _learns_something(self) -> TrainSettings:
        if not any(o.weight > 0 for o in self.objectives):
            raise ValueError("every objective has weight 0: give at least one a weight above 0")
        return self
