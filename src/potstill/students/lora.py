"""A low-rank adapter on any student."""

from __future__ import annotations

from typing import Any

from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from potstill.errors import RecipeError
from potstill.recipe.students import Lora
from potstill.tasks import SPECS, Task

_WHERE = "student.lora.target_modules"


def add_lora(model: PreTrainedModel, settings: Lora, task: Task = "causal_lm") -> PeftModel:
    """The model with a trainable adapter; everything else is frozen, except the head of a classifier, which is trained
    whole. Hu et al. 2021.

    Raises:
        RecipeError: no module has such a name, or the adapter would sit on one of two tied weights (merging it would
            change the other one too).
    """
    spec, targets = SPECS[task], settings.target_modules
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
    except ValueError as error:
        what = str(error).strip().splitlines()[0]
        raise RecipeError(what, where=_WHERE, fix="all-linear, or names such as [q_proj, v_proj]") from error
    ends = () if spec.reads_images else (model.get_input_embeddings(), model.get_output_embeddings())
    if getattr(model.config, "tie_word_embeddings", False) and any(isinstance(end, BaseTunerLayer) for end in ends):
        raise RecipeError(
            "the output layer is tied to the embeddings, and an adapter on one of them cannot be merged without "
            "changing the other",
            where=_WHERE,
            fix="leave the output layer and the embeddings out (all-linear does)",
        )
    return adapted
