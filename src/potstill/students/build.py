"""Build the student that a recipe describes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import AutoConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from potstill import registry
from potstill.console import Console
from potstill.errors import RecipeError, did_you_mean
from potstill.models.folder import ModelSource, is_module
from potstill.models.kinds import own_task
from potstill.models.plain import load_module
from potstill.models.tasks import opener_of
from potstill.recipe.students import Lora, StudentSettings
from potstill.signals import Batch
from potstill.students.base import Materials, StudentBuilder
from potstill.tasks import SPECS, Task


@dataclass(frozen=True)
class BuiltStudent:
    """A student in fp32 on the processor, in evaluation mode, and facts about how it was made.

    `facts`: `kind`, `seed`, `layers` (the teacher's, by index, or None), `parameters` (without adapters, as exported),
    `trainable_parameters`, `teacher_parameters` (or None), and facts of the kind: `new_weights` if a head was newly
    drawn for a model with trained weights.
    """

    model: nn.Module
    facts: dict[str, Any]


def build_student(
    settings: StudentSettings,
    *,
    teacher: ModelSource | None,
    tokenizer_source: Path | None,
    seed: int,
    influence_batches: Callable[[], Iterable[Batch]] | None = None,
    console: Console,
    trust_remote_code: bool = False,
    task: Task = "causal_lm",
    labels: Sequence[str] | None = None,
    pruned: Path | None = None,
) -> BuiltStudent:
    """Build a student. The same arguments give the same weights, bit for bit; the caller's random state is unchanged.

    Args:
        settings: the recipe's `student`.
        teacher: its folder, if its weights are on this machine.
        tokenizer_source: folder of the student's tokenizer; None if it reads no text.
        seed: for all random numbers: initial weights, new heads, adapters.
        influence_batches: batches of the training data, for `by_influence`.
        console: shows progress and a summary.
        trust_remote_code: of the teacher.
        task: the student's task.
        labels: class names, in order, for a classifier; None keeps those of the model that it is made of.
        pruned: folder of the stage `train.pruned`, for a student of that kind.

    Raises:
        RecipeError: the recipe asks for something impossible of this teacher.
        ModelError: a model cannot be found, opened, or used.
        DataError: there are no data to measure the layers on.
    """
    materials = Materials(
        teacher, tokenizer_source, console, influence_batches, trust_remote_code, task, labels, pruned
    )
    builder: StudentBuilder = registry.build(settings)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        plain = builder.build(materials)
        model = plain.model
        if SPECS[task].writes:
            _learn_every_embedding(plain.model)
        parameters = count_parameters(plain.model)
        if settings.lora is not None:
            assert isinstance(plain.model, PreTrainedModel)
            if "new_weights" in plain.facts and SPECS[task].masks:
                raise RecipeError(
                    "an adapter would leave the new head as it was drawn, at random",
                    where="student.lora",
                    fix="train the head first, in a recipe of its own without lora (hard_ce)",
                )
            model = add_lora(plain.model, settings.lora, task)
    model.eval()
    facts = {
        "kind": settings.kind,
        "seed": seed,
        "parameters": parameters,
        "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "teacher_parameters": parameters_of(teacher, trust_remote_code) if teacher is not None else None,
        **plain.facts,
    }
    console.say(_summary(facts), **facts)
    return BuiltStudent(model, facts)


def count_parameters(model: nn.Module) -> int:
    """The number of parameters; tied weights count once."""
    return sum(p.numel() for p in model.parameters())


def parameters_of(source: ModelSource, trust_remote_code: bool = False) -> int:
    """The number of parameters of the model in a folder, without loading its weights."""
    if is_module(source.path):
        return count_parameters(load_module(source.path))
    config = AutoConfig.from_pretrained(source.path, trust_remote_code=trust_remote_code)
    opener = opener_of(own_task(config.to_dict()) or "causal_lm")
    with torch.device("meta"):
        return count_parameters(opener.from_config(config, trust_remote_code=trust_remote_code))


def _learn_every_embedding(model: nn.Module) -> None:
    """Let every embedding learn. Padding is marked by length, never by token id (rule 4): a pad token that is also the
    end token needs a gradient, which `padding_idx` would withhold."""
    assert isinstance(model, PreTrainedModel)
    embeddings = model.get_input_embeddings()
    if isinstance(embeddings, nn.Embedding):
        embeddings.padding_idx = None


def _summary(facts: dict[str, Any]) -> str:
    parts = [f"student: {_numbers(facts['parameters'])} parameters"]
    if facts["teacher_parameters"]:
        share = 1 - facts["parameters"] / facts["teacher_parameters"]
        compared = f"{share:.0%} fewer than" if share > 0 else "no fewer than"
        parts.append(f"{compared} the teacher's {_numbers(facts['teacher_parameters'])}")
    if facts["layers"] is not None:
        parts.append(f"of its {facts['teacher_layers']} layers {', '.join(map(str, facts['layers']))}")
    if facts["trainable_parameters"] != facts["parameters"]:
        parts.append(f"adapters of {facts['trainable_parameters'] / 1e6:,.2f}M in training")
    return ", ".join(parts)


def _numbers(amount: int) -> str:
    return f"{amount / 1e6:,.1f}M" if amount >= 100_000 else f"{amount:,}"


# ---- a low-rank adapter on any student -------------------------------------------------------------------------------


_WHERE = "student.lora.target_modules"
_FIX = "all-linear, or names such as [q_proj, v_proj]"


def add_lora(model: PreTrainedModel, settings: Lora, task: Task = "causal_lm") -> PeftModel:
    """The model with a trainable adapter; everything else is frozen, except the head of a classifier, which is trained
    whole. Hu et al. 2021.

    Raises:
        RecipeError: no module has such a name, or the adapter would sit on one of two tied weights (merging it would
            change the other one too).
    """
    spec, targets = SPECS[task], settings.target_modules
    _check_targets(model, targets)
    asked: dict[str, Any] = {
        "r": settings.r,
        "lora_alpha": settings.alpha,
        "lora_dropout": settings.dropout,
        "target_modules": targets if isinstance(targets, str) else list(targets),
        "task_type": "CAUSAL_LM" if spec.writes else None,
        # GPT-2 stores its weights transposed.
        "fan_in_fan_out": any(isinstance(module, Conv1D) for module in model.modules()),
    }
    if spec.has_classes:
        parts = [(name, part) for name, part in model.named_children() if part is not model.base_model]
        heads = [name for name, part in parts if next(part.parameters(), None) is not None]
        asked |= {"modules_to_save": heads, "exclude_modules": rf"({'|'.join(heads)})(\..*)?"}
    try:
        adapted = get_peft_model(model, LoraConfig(**asked))
    except (ValueError, TypeError) as error:
        what = str(error).strip().splitlines()[0]
        raise RecipeError(what, where=_WHERE, fix=_FIX) from error
    ends = () if spec.reads_images else (model.get_input_embeddings(), model.get_output_embeddings())
    if getattr(model.config, "tie_word_embeddings", False) and any(isinstance(end, BaseTunerLayer) for end in ends):
        raise RecipeError(
            "the output layer is tied to the embeddings, and an adapter on one of them cannot be merged without "
            "changing the other",
            where=_WHERE,
            fix="leave the output layer and the embeddings out (all-linear does)",
        )
    return adapted


def _check_targets(model: PreTrainedModel, targets: str | Sequence[str]) -> None:
    """Raise RecipeError unless every target names a module: peft passes over those that do not, as long as one does."""
    if targets == "all-linear":
        return
    paths = [name for name, _ in model.named_modules()]
    if isinstance(targets, str):
        try:
            found = any(re.fullmatch(targets, path) for path in paths)
        except re.error as error:
            raise RecipeError(f"{targets!r} is no regular expression: {error}", where=_WHERE, fix=_FIX) from None
        if not found:
            raise RecipeError(f"the regular expression {targets!r} matches no module", where=_WHERE, fix=_FIX)
        return
    for target in targets:
        if not any(path == target or path.endswith(f".{target}") for path in paths):
            near = did_you_mean(target, {path.rpartition(".")[2] for path in paths if not path[-1:].isdigit()} - {""})
            raise RecipeError(f"no module of the student is called {target!r}{near}", where=_WHERE, fix=_FIX)
