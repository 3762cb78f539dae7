"""Models without their weights: the modules of a student, or of the model in a folder. For checks of names and shapes
before anything is loaded."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from potstill.models.folder import ModelSource, is_module
from potstill.models.plain import build_module, load_module
from potstill.models.resolve import locate
from potstill.models.tasks import opener_of
from potstill.recipe.layers import choose_layers
from potstill.recipe.students import Existing, FromConfig, FromTeacher, ModuleStudent, StudentSettings
from potstill.students.base import Materials
from potstill.students.build import add_lora
from potstill.students.depth import shallower_config
from potstill.students.from_config import configuration
from potstill.tasks import Task


def outline_of_student(settings: StudentSettings, materials: Materials) -> nn.Module | None:
    """The student on the meta device, adapters included; a module of the user's own is built, without its weights.

    Returns:
        None if its shape is not known yet: a model that is not on this machine, or a kind of a plug-in.

    Raises:
        RecipeError, ModelError: as `build_student`.
    """
    if isinstance(settings, ModuleStudent):
        return build_module(settings.source, settings.arguments)
    config = _configuration(settings, materials)
    if config is None:
        return None
    model = _without_weights(config, materials.task, materials.trust_remote_code)
    return model if settings.lora is None else add_lora(model, settings.lora, materials.task)


def outline_of_folder(
    source: ModelSource, task: Task, *, attn_implementation: str | None = None, trust_remote_code: bool = False
) -> nn.Module:
    """The model in a folder on the meta device; a module of the user's own is loaded.

    Raises:
        ModelError: the module cannot be loaded.
        ImportError, ValueError: the attention implementation is not installed, or not one of the family's.
    """
    if is_module(source.path):
        return load_module(source.path)
    config = AutoConfig.from_pretrained(source.path, trust_remote_code=trust_remote_code)
    return _without_weights(config, task, trust_remote_code, attn_implementation)


def _configuration(settings: StudentSettings, materials: Materials) -> PreTrainedConfig | None:
    trust, labels = materials.trust_remote_code, materials.labels
    if isinstance(settings, FromConfig):
        return configuration(settings, materials)
    if isinstance(settings, Existing):
        source = locate(settings.model, settings.revision)
    else:
        source = materials.teacher if isinstance(settings, FromTeacher) else None
    if source is None or is_module(source.path):
        return None
    config: PreTrainedConfig = AutoConfig.from_pretrained(source.path, trust_remote_code=trust)
    count = getattr(config, "num_hidden_layers", None)
    if isinstance(settings, FromTeacher):
        if not isinstance(count, int):
            return None
        config = shallower_config(config, choose_layers(settings.layers, count, [0.0] * count))
    if labels is not None:
        config.id2label = dict(enumerate(labels))
        config.label2id = {name: number for number, name in enumerate(labels)}
    return config


def _without_weights(
    config: PreTrainedConfig, task: Task, trust_remote_code: bool, attn_implementation: str | None = None
) -> PreTrainedModel:
    asked: dict[str, Any] = {} if attn_implementation is None else {"attn_implementation": attn_implementation}
    with torch.device("meta"):
        model: PreTrainedModel = opener_of(task).from_config(config, trust_remote_code=trust_remote_code, **asked)
    return model
