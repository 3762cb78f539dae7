"""The task of a model, from its `config.json`, and the tasks it can be used for. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from potstill.errors import ModelError
from potstill.tasks import SPECS, Task

_SEES = (
    "vision_config",
    "vision_tower",
    "mm_vision_tower",
    "visual",
    "img_processor",
    "image_token_id",
    "image_token_index",
)
_HEARS = ("audio_config", "audio_processor", "audio_token_id", "audio_token_index")
_IMAGES = ("image_size", "num_channels")


def task_of_class(name: str, *, images: bool) -> Task | None:
    """The task of a class of `transformers`, by the ending of its name; None if potstill has no such task.

    Args:
        name: the class's name.
        images: whether it reads images; the name of a class without head (`BertModel`) does not tell.
    """
    for spec in SPECS.values():
        if name.endswith(spec.endings):
            return spec.name
    if name.endswith(("Model", "ForPreTraining")):
        return next(spec.name for spec in SPECS.values() if spec.headless and spec.reads_images == images)
    return None


def own_task(config: Mapping[str, Any]) -> Task | None:
    """The task of the model of a `config.json`, by its architecture; a causal language model if none is named. None if
    potstill has no such task."""
    architectures = [str(name) for name in config.get("architectures") or []]
    if not architectures:
        return "causal_lm"
    images = any(config.get(key) for key in _IMAGES)
    return next((task for name in architectures if (task := task_of_class(name, images=images))), None)


def task_in(config: Mapping[str, Any], where: str) -> Task:
    """As `own_task`, but the model must have a task.

    Raises:
        ModelError: potstill has no such task.
    """
    check_task(config, None, where)
    task = own_task(config)
    if task is None:
        raise ModelError("its architecture is none that potstill can use", where=where)
    return task


def check_task(config: Mapping[str, Any], task: Task | None, where: str) -> None:
    """Refuse a model that cannot be used for a task (or, with None, for any task).

    An encoder of texts may be used for another text task than that of its head: it gets a new head. No model gets a
    new causal head.

    Raises:
        ModelError: a vision-language, audio or encoder-decoder model, or one for another task.
    """
    architectures = [str(name) for name in config.get("architectures") or []]
    name = " / ".join(architectures) or "no architecture named"
    called = f"{config.get('model_type', 'unknown type')} ({name})"
    use = SPECS[task or "causal_lm"].requirement
    if found := [key for key in _SEES if config.get(key)]:
        text_only = " or this model's text-only sibling, if there is one" if "text_config" in config else ""
        what = f"{called} is a vision-language model (its configuration has {found[0]})"
        raise ModelError(what, where=where, fix=use + text_only)
    if found := [key for key in _HEARS if config.get(key)]:
        what = f"{called} is a speech or audio model (its configuration has {found[0]})"
        raise ModelError(what, where=where, fix=use)
    if config.get("is_encoder_decoder"):
        raise ModelError(f"{called} is an encoder-decoder model", where=where, fix=use)
    own = own_task(config)
    if own is None:
        kinds = ", ".join(spec.title for spec in SPECS.values())
        raise ModelError(f"{called} is nothing that potstill can use", where=where, fix=f"it takes: {kinds}")
    if task is None or own == task or not architectures:
        return
    if SPECS[task].writes or SPECS[own].reads != SPECS[task].reads:
        raise ModelError(f"{called} is no {SPECS[task].title}", where=where, fix=use)
