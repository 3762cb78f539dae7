"""A student of random weights in a given shape, with the teacher's tokenizer if it reads text."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, GenerationConfig, PreTrainedConfig, PreTrainedModel

from potstill.errors import ModelError, RecipeError, did_you_mean, did_you_mean_path
from potstill.models.folder import is_module
from potstill.models.kinds import check_task
from potstill.models.load import load_tokenizer
from potstill.models.tasks import opener_of
from potstill.recipe.students import FromConfig
from potstill.registry import implements
from potstill.students.base import Materials, Plain
from potstill.students.depth import config_from, config_of, per_layer_keys
from potstill.tasks import SPECS, Task

_WHERE = "student.config"
_NOT_SHAPE = {"model_type", "architectures", "transformers_version", "_name_or_path", "dtype"}
_SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")


@implements(FromConfig)
class RandomWeights:
    """The family's own initialisation, in the shape of a `config.json`, of the teacher's with some keys changed, or of
    a mapping with a `model_type`."""

    def __init__(self, settings: FromConfig) -> None:
        self.settings = settings

    def build(self, materials: Materials) -> Plain:
        """Raises RecipeError for an unknown key or a vocabulary smaller than the tokenizer's, ModelError for a
        configuration that cannot be used."""
        config = configuration(self.settings, materials)
        if SPECS[materials.task].reads_text:
            _check_vocabulary(config, materials)
        student = _initialised(config, materials)
        return Plain(student, {"layers": None, "model_type": config.model_type})


def configuration(settings: FromConfig, materials: Materials) -> PreTrainedConfig:
    """The student's configuration, with the classes of a classifier. Raises as `RandomWeights.build`."""
    if isinstance(settings.config, Path):
        config = _read(settings.config, materials)
    elif "model_type" in settings.config:
        config = _of_family(settings.config)
    else:
        config = _changed(_teacher_config(materials), settings.config)
    if materials.labels is not None:
        config.id2label = dict(enumerate(materials.labels))
        config.label2id = {name: number for number, name in enumerate(materials.labels)}
    return config


def _read(path: Path, materials: Materials) -> PreTrainedConfig:
    file = path / "config.json" if path.is_dir() else path
    if not file.is_file():
        raise RecipeError(
            f"there is no such configuration{did_you_mean_path(file)}",
            where=str(file),
            fix="paths are relative to the recipe",
        )
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(file, trust_remote_code=materials.trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        what = str(error).strip().splitlines()[0]
        raise ModelError(f"the configuration cannot be read: {what}", where=str(file)) from error
    check_task(config.to_dict(), materials.task, where=str(file))
    return config_from(config, {})


def _of_family(document: dict[str, Any]) -> PreTrainedConfig:
    """The configuration of a family of `transformers` with some of its keys set (validated by the settings)."""
    plain: PreTrainedConfig = AutoConfig.for_model(str(document["model_type"]))
    keys = {key: value for key, value in document.items() if key != "model_type"}
    own_name = type(plain).attribute_map
    return config_of(type(plain), {own_name.get(key, key): value for key, value in keys.items()})


def _teacher_config(materials: Materials) -> PreTrainedConfig:
    if materials.teacher is None or is_module(materials.teacher.path):
        there = (
            "there is no teacher whose folder is here" if materials.teacher is None else "that is a module of your own"
        )
        raise RecipeError(
            f"a mapping changes the teacher's configuration, and {there}",
            where=_WHERE,
            fix="give a folder or file with a config.json, or a model_type",
        )
    config: PreTrainedConfig = AutoConfig.from_pretrained(
        materials.teacher.path, trust_remote_code=materials.trust_remote_code
    )
    return config


def _changed(teacher: PreTrainedConfig, changes: dict[str, Any]) -> PreTrainedConfig:
    """The teacher's configuration with some keys changed."""
    own_name = type(teacher).attribute_map
    document = teacher.to_dict()
    _check_keys(changes, teacher)
    changes = {own_name.get(key, key): value for key, value in changes.items()}

    def now(key: str) -> Any:
        return changes.get(own_name.get(key, key), getattr(teacher, key, None))

    # Sizes that followed from other keys follow from the changed ones, unless they are given.
    heads, hidden, following = now("num_attention_heads"), now("hidden_size"), {}
    head_dim = document.get("head_dim")
    followed = head_dim and head_dim * teacher.num_attention_heads == teacher.hidden_size
    if followed and isinstance(heads, int) and isinstance(hidden, int) and heads > 0:  # otherwise the family raises
        following["head_dim"] = hidden // heads
    if document.get("num_key_value_heads") and document["num_key_value_heads"] == teacher.num_attention_heads:
        following["num_key_value_heads"] = heads
    fewer = now("num_hidden_layers") != getattr(teacher, "num_hidden_layers", None)
    derive_anew = [key for key in per_layer_keys(teacher) if fewer and key not in changes]
    return config_from(teacher, following | changes, derive_anew)


def _check_keys(keys: Mapping[str, Any], config: PreTrainedConfig) -> None:
    known = {*config.to_dict(), *type(config).attribute_map} - _NOT_SHAPE
    for key in keys:
        if key not in known:
            raise RecipeError(
                f"unknown key {key!r} of a {config.model_type} configuration{did_you_mean(key, known)}", where=_WHERE
            )


def _check_vocabulary(config: PreTrainedConfig, materials: Materials) -> None:
    tokenizer = load_tokenizer(materials.tokenizer_folder, materials.trust_remote_code)
    needed = max(tokenizer.get_vocab().values()) + 1
    if config.vocab_size < needed:
        raise RecipeError(
            f"vocab_size {config.vocab_size:,} is smaller than the tokenizer's, which has ids up to {needed - 1:,}",
            where=f"{_WHERE}.vocab_size",
            fix=f"set vocab_size to {needed} or more",
        )


def _initialised(config: PreTrainedConfig, materials: Materials) -> PreTrainedModel:
    source = materials.tokenizer_source
    if source is not None:
        # The ids of special tokens belong to the tokenizer: take them from its model, or from the tokenizer itself.
        trust = materials.trust_remote_code
        of_model = (source / "config.json").is_file()
        opened = AutoConfig.from_pretrained if of_model else load_tokenizer
        speaks: Any = opened(source, trust_remote_code=trust)
        for name in _SPECIAL:
            setattr(config, name, getattr(speaks, name, None))
    causal = SPECS[materials.task].writes
    pad = config.pad_token_id if causal else None
    if causal:
        # The family would set the pad token's embedding to 0, but it may be the end token too (rule 4).
        config.pad_token_id = None
    try:
        student: PreTrainedModel = opener_of(materials.task).from_config(
            config, dtype=torch.float32, trust_remote_code=materials.trust_remote_code
        )
        _try(student, materials.task)
    except (ValueError, RuntimeError, TypeError, ZeroDivisionError) as error:
        what = str(error).strip().splitlines()[0]
        raise ModelError(f"no model can be made in this shape: {what}", where=_WHERE) from error
    if not causal:
        return student
    student.config.pad_token_id = pad
    speaker = materials.tokenizer_folder
    if (speaker / "generation_config.json").is_file():
        student.generation_config = GenerationConfig.from_pretrained(speaker)
    elif student.generation_config is not None:
        student.generation_config.pad_token_id = pad
    return student


@torch.no_grad()
def _try(student: PreTrainedModel, task: Task) -> None:
    """Run the model once: some shapes turn out impossible only then (heads that no key-value head fits)."""
    student.eval()
    if SPECS[task].writes:
        student(torch.zeros(1, 2, dtype=torch.long), use_cache=False)
    elif SPECS[task].reads_text:
        student(input_ids=torch.ones(1, 2, dtype=torch.long), attention_mask=torch.ones(1, 2, dtype=torch.long))
    elif isinstance(size := getattr(student.config, "image_size", None), int):
        student(pixel_values=torch.zeros(1, student.config.num_channels, size, size))
