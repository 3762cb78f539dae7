"""Settings of training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    PositiveFloat,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from potstill.errors import did_you_mean
from potstill.recipe.base import LONGEST_NAME, Cosmetic, Count, PartIfSet, Settings, Tokens, one_of
from potstill.recipe.data import DataSettings
from potstill.recipe.declared import MOST, training_arguments
from potstill.recipe.objectives import ObjectiveSettings
from potstill.recipe.relations import PooledSettings, Pooling
from potstill.recipe.response import ForwardKL, HardCE
from potstill.recipe.schedules import may_be_positive

# ---- the training arguments that a recipe may set --------------------------------------------------------------------


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


class Masking(Settings):
    """Dynamic masking for masked language models: in every epoch, a new random `probability` of a text's tokens
    (except special ones) are targets; `replaced` of these become the mask token, `random` a random token, and the rest
    stay. Devlin et al. 2019, §3.1."""

    probability: float = Field(0.15, gt=0, lt=1)
    replaced: float = Field(0.8, ge=0, le=1)
    random: float = Field(0.1, ge=0, le=1)

    @model_validator(mode="after")
    def _shares(self) -> Masking:
        if self.replaced + self.random > 1:
            raise ValueError("replaced and random are shares of the targets: together at most 1")
        return self


class RefusalMix(Settings):
    """Refusals mixed into the training records: the harmful `prompts` of one half of a set, each with a refusal, as a
    `share` of all training records. The measure `safety` asks the other half.

    `answers` are the texts of refusals, dealt out in turn.
    """

    prompts: one_of(DataSettings)  # type: ignore[valid-type]
    share: float = Field(0.1, gt=0, lt=1)
    answers: tuple[str, ...] = Field(
        (
            "I'm sorry, but I can't help with that.",
            "I can't help with that request. It could hurt people.",
            "Sorry, I can't assist with this.",
            "I'm not able to help with that.",
        ),
        min_length=1,
    )


class RefusalWeight(Settings):
    """The first `tokens` of answers that refuse count `weight` times in every objective over the vocabulary: where the
    teacher refuses, the opening decides what follows (Qi et al. 2024, arXiv 2406.05946)."""

    weight: float = Field(4.0, gt=0, le=1000)
    tokens: Count = 5


class TrainStage(Settings):
    """One stage of a training with several: TinyBERT's intermediate layers, then its prediction layer.

    `freeze` are patterns of parameter names (`embeddings.*`) that are not trained in this stage; parameters without a
    gradient from its objectives are frozen too, with a message. `initialise` are patterns of parameters that begin the
    stage with fresh weights. `keep` chooses the weights handed on, and `keep_projections` whether projections are too
    (otherwise each stage begins with new ones). `args` override those of `train.args`.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=LONGEST_NAME)
    objectives: tuple[one_of(ObjectiveSettings), ...] = Field(min_length=1)  # type: ignore[valid-type]
    freeze: tuple[str, ...] = ()
    initialise: tuple[str, ...] = ()
    keep: Literal["last", "best"] = "last"
    keep_projections: bool = False
    args: dict[str, Any] = {}

    @field_validator("args")
    @classmethod
    def _known_arguments(cls, args: dict[str, Any]) -> dict[str, Any]:
        return check_arguments(args)


class Quantize(Settings):
    """The student's weights in 8 or 4 bits, in blocks of 32 with one scale, on the grids of GGUF's `q8_0` and `q4_0`.
    With `learned` it computes with rounded weights in every step, and learns its teacher through them; without, its
    weights are rounded once, after the last step. The saved weights are the rounded ones. Liu et al. 2023 (LLM-QAT,
    arXiv 2305.17888)."""

    weights: Literal["int8", "int4"]
    learned: bool = True


Control = Literal["text_only", "text_only_equal_seconds", "rounded_afterwards"]
"""`text_only`: the same initialisation, batches, order, steps and schedule, with `hard_ce` alone.
`text_only_equal_seconds`: likewise, for as many steps as fit into the seconds that the student trained for.
`rounded_afterwards`: as the student, trained in full precision and rounded after the last step."""

SEEDS_AT_MOST = 100


@dataclass(frozen=True)
class Training:
    """One training of a recipe: of the student (`control` None) or of a control, by the seed `recipe.seed + seed`."""

    control: Control | None = None
    seed: int = 0

    @property
    def stage(self) -> str:
        """The name of its stage: `train`, `train.text_only`, `train.seed1`, `train.text_only.seed1` …"""
        parts = ("train", self.control, f"seed{self.seed}" if self.seed else None)
        return ".".join(part for part in parts if part is not None)

    @property
    def model(self) -> str:
        """The name of its model in the measures."""
        return self.control or "student"


PRUNED = "train.pruned"
"""The stage that cuts a pruned student, before its trainings."""

STUDENT = Training()
"""The student of the first seed: the one that is shown and exported."""


class TrainSettings(Settings):
    """How the student is trained: by `objectives`, or in several `stages`, one after the other.

    Texts longer than `max_length` tokens are cut at the end, and counted. `packing` puts several records into one row
    (they do not see each other). `keep` chooses the resulting weights: those of the `last` step, or of the `best` of
    the `evaluations` evenly spaced ones. Best is the lowest NLL of the held-out targets (for sentence embeddings,
    which have none: the lowest objectives), for students and controls alike, on a third of the held-out groups; the
    evaluation reports on the others. A checkpoint is written every `checkpoint_seconds`.

    `refusals` are mixed into the training records, and `refusal_weight` makes the openings of answers that refuse count
    more; both are for language models that write.

    `quantize` gives the student weights of few bits.

    `frequent` is for a draft: its objectives are over the K most frequent tokens of the training records alone, a
    fraction of the products of the whole output layer. `speculate.train` takes it from `speculate.draft`.

    `controls` are variants of this stage with artifacts of their own (see `Control`). `seeds` trains student and
    controls that often, by the seeds that follow the recipe's (initialisation, order, dropout), on the same data; the
    first is the one that is exported.
    """

    objectives: tuple[one_of(ObjectiveSettings), ...] = Field((ForwardKL(), HardCE()), min_length=1)  # type: ignore[valid-type]
    stages: tuple[TrainStage, ...] = ()
    masking: Masking = Masking()
    teacher: str = "main"
    controls: tuple[Control, ...] = ()
    seeds: int = Field(1, ge=1, le=SEEDS_AT_MOST)
    max_length: Tokens = 1024
    packing: bool = False
    teacher_system: Annotated[str | None, PartIfSet(), Field(min_length=1)] = None
    refusals: Annotated[RefusalMix | None, PartIfSet()] = None
    refusal_weight: Annotated[RefusalWeight | None, PartIfSet()] = None
    quantize: Annotated[Quantize | None, PartIfSet()] = None
    frequent: Annotated[Count | None, PartIfSet()] = None
    keep: Literal["last", "best"] = "last"
    evaluations: Count = 4
    checkpoint_seconds: Annotated[PositiveFloat, Cosmetic()] = 300.0
    log_gradient_norms: Annotated[bool, Cosmetic()] = False
    args: dict[str, Any] = {}

    @field_validator("args")
    @classmethod
    def _known_arguments(cls, args: dict[str, Any]) -> dict[str, Any]:
        return check_arguments(args)

    @property
    def in_stages(self) -> tuple[TrainStage, ...]:
        """The stages of the training; without a list of stages, one."""
        return self.stages or (TrainStage(name="train", objectives=self.objectives, keep=self.keep),)

    @property
    def trainings(self) -> tuple[Training, ...]:
        """The trainings of student and controls, seed by seed, in the order in which they run."""
        return tuple(Training(control, seed) for seed in range(self.seeds) for control in (None, *self.controls))

    @property
    def keeps_best(self) -> bool:
        """Whether a stage keeps its best weights, so that some held-out groups are used to choose and are not reported
        on."""
        return any(stage.keep == "best" for stage in self.in_stages)

    @property
    def all_objectives(self) -> tuple[ObjectiveSettings, ...]:
        """The objectives of all stages, in order."""
        return tuple(objective for stage in self.in_stages for objective in stage.objectives)

    @property
    def pooling(self) -> Pooling:
        """How one vector is made of an example's states: as the first objective that pools does it, else by their
        mean."""
        return next((o.pooling for o in self.all_objectives if isinstance(o, PooledSettings)), "mean")

    @model_serializer(mode="wrap")
    def _one_of_both(self, written: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Write objectives or stages, not both: a resolved recipe must be readable."""
        fields: dict[str, Any] = written(self)
        return {name: value for name, value in fields.items() if name != ("objectives" if self.stages else "stages")}

    @model_validator(mode="before")
    @classmethod
    def _objectives_or_stages(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("stages") and "objectives" in value:
            raise ValueError("give either objectives or stages, not both")
        return value

    @model_validator(mode="after")
    def _learns_something(self) -> TrainSettings:
        for stage in self.in_stages:
            if not any(may_be_positive(o.weight) for o in stage.objectives):
                where = f"in stage {stage.name!r} " if self.stages else ""
                raise ValueError(f"{where}every objective has weight 0: give at least one a weight above 0")
        if "rounded_afterwards" in self.controls and (self.quantize is None or not self.quantize.learned):
            raise ValueError(
                "rounded_afterwards is the control of a student that learns through its rounding: add `quantize: "
                "{weights: int4}` to train, or drop it from the controls"
            )
        if "text_only_equal_seconds" in self.controls:
            if "text_only" not in self.controls:
                raise ValueError(
                    "text_only_equal_seconds takes its seconds per step from text_only: add text_only to the controls"
                )
            if self.stages:
                raise ValueError(
                    "text_only_equal_seconds is for a training in one stage: drop it, or give objectives instead of "
                    "stages"
                )
        names = [stage.name for stage in self.stages]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two stages have the name {twice[0]!r}: rename one")
        return self
