"""The task of a loaded model, and the class of `transformers` that opens a model for a task."""

from __future__ import annotations

from typing import Any

from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel
from transformers.models.auto import modeling_auto
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_MASKED_LM_MAPPING_NAMES

from potstill.errors import ModelError
from potstill.models.kinds import task_of_class
from potstill.tasks import SPECS, Task, TaskSpec


def opener_of(task: Task) -> Any:
    """The `AutoModelFor…` class of a task."""
    return getattr(modeling_auto, SPECS[task].auto_class)


def task_of(model: nn.Module) -> Task:
    """The task of a loaded model, from its class. A module that is not of `transformers` takes arrays and gives
    classes.

    Raises:
        ModelError: potstill has no such task.
    """
    if is_plain(model):
        return "image_classification"
    inner = unwrap(model)
    task = task_of_class(type(inner).__name__, images=inner.main_input_name == "pixel_values")
    if task is None:
        raise ModelError(
            f"{type(inner).__name__} is for something that potstill does not do",
            fix="use a causal or masked language model, a classifier of texts or images, or an encoder of texts",
        )
    return task


def spec_of(model: nn.Module) -> TaskSpec:
    """The properties of a model's task.

    Raises:
        ModelError: as `task_of`.
    """
    return SPECS[task_of(model)]


def is_causal(model: nn.Module) -> bool:
    """Whether a token sees only earlier positions. Encoders that could be used as decoders (`is_decoder`) are
    bidirectional unless their configuration says so."""
    spec = spec_of(model)
    if spec.masks or spec.reads_images:
        return False
    config = unwrap(model).config
    if spec.writes or getattr(config, "is_decoder", False):
        return True
    return (
        config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
        and config.model_type not in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    )


def is_plain(model: nn.Module) -> bool:
    """Whether it is a module of the user's own rather than a model of `transformers`, wrapped by peft or not."""
    return not isinstance(model, (PreTrainedModel, PeftModel))


def unwrap(model: nn.Module) -> PreTrainedModel:
    """The `transformers` model inside a peft wrapper (adapters stay in place), or the model itself.

    Raises:
        ModelError: not a `transformers` model, or an adapter outside its layers (prompt tuning).
    """
    if isinstance(model, PeftModel):
        if model.active_peft_config.is_prompt_learning:
            raise ModelError(
                f"{model.active_peft_config.peft_type.value} adds virtual tokens outside the model's layers",
                fix="use an adapter that lives in the layers, such as LoRA",
            )
        model = model.get_base_model()
    if not isinstance(model, PreTrainedModel):
        raise ModelError(f"{type(model).__name__} is not a transformers model")
    return model
