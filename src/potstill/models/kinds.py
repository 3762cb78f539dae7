"""What a model is for, by what its `config.json` says, and whether potstill can use it so. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from potstill.errors import ModelError
from potstill.tasks import Task

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
_ENDINGS: tuple[tuple[str, Task], ...] = (
    ("ForCausalLM", "causal_lm"),
    ("LMHeadModel", "causal_lm"),
    ("ForMaskedLM", "masked_lm"),
    ("ForSequenceClassification", "sequence_classification"),
    ("ForImageClassification", "image_classification"),
)
_CALLED: Mapping[Task, str] = {
    "causal_lm": "causal language model",
    "masked_lm": "masked language model",
    "sequence_classification": "classifier of texts",
    "sentence_embedding": "encoder of texts",
    "image_classification": "classifier of images",
}
_USE: Mapping[Task, str] = {
    "causal_lm": "use a causal language model of text (its architecture ends in ForCausalLM)",
    "masked_lm": "use an encoder of texts, with a masked head (ForMaskedLM) or without",
    "sequence_classification": "use an encoder of texts, with a classification head (ForSequenceClassification) or not",
    "sentence_embedding": "use an encoder of texts",
    "image_classification": "use a classifier of images (ForImageClassification), or a module of your own",
}
OF_TEXT: frozenset[Task] = frozenset({"causal_lm", "masked_lm", "sequence_classification", "sentence_embedding"})
"""The tasks whose models read tokens, and so need a tokenizer."""


def task_of_class(name: str, *, images: bool) -> Task | None:
    """What a class of `transformers` is for, by how its name ends; None where it is for something else.

    A class without head (`BertModel`) is an encoder, whose use is its states; `images` says what it reads.
    """
    for ending, task in _ENDINGS:
        if name.endswith(ending):
            return task
    if name.endswith(("Model", "ForPreTraining")):
        return "image_classification" if images else "sentence_embedding"
    return None


def own_task(config: Mapping[str, Any]) -> Task | None:
    """What the model of a `config.json` is for, by the architecture that it names; a causal language model if it names
    none. None where it is for something that potstill does not do."""
    architectures = [str(name) for name in config.get("architectures") or []]
    if not architectures:
        return "causal_lm"
    images = any(config.get(key) for key in _IMAGES)
    return next((task for name in architectures if (task := task_of_class(name, images=images))), None)


def check_task(config: Mapping[str, Any], task: Task | None, where: str) -> None:
    """Refuse, by name, what cannot be used for a task (or, with None, for any).

    An encoder may be used for another task of texts than the one that its head is for: it gets a new head. Nothing gets
    a new causal head.

    Raises:
        ModelError: a vision-language, audio or encoder-decoder model, or one that is made for something else.
    """
    architectures = [str(name) for name in config.get("architectures") or []]
    name = " / ".join(architectures) or "no architecture named"
    called = f"{config.get('model_type', 'unknown type')} ({name})"
    use = _USE[task or "causal_lm"]
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
        kinds = ", ".join(_CALLED.values())
        raise ModelError(f"{called} is nothing that potstill can use", where=where, fix=f"it takes: {kinds}")
    if task is None or own == task or not architectures:
        return
    if task == "causal_lm" or (own in OF_TEXT) != (task in OF_TEXT):
        raise ModelError(f"{called} is no {_CALLED[task]}", where=where, fix=use)
