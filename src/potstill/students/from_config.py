"""A student of random weights in a given shape, which speaks the teacher's tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, GenerationConfig, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from potstill.errors import ModelError, RecipeError, did_you_mean
from potstill.models.folder import check_causal
from potstill.models.load import load_tokenizer
from potstill.recipe.students import FromConfig
from potstill.registry import implements
from potstill.students.base import Materials, Plain
from potstill.students.depth import config_from, per_layer_keys

_WHERE = "student.config"
_SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")


@implements(FromConfig)
class RandomWeights:
    """The family's own initialisation, in the shape of a `config.json` or of the teacher's with some keys changed."""

    def __init__(self, settings: FromConfig) -> None:
        self.settings = settings

    def build(self, materials: Materials) -> Plain:
        """Raises RecipeError for an unknown key or a vocabulary smaller than the tokenizer's, ModelError for a
        configuration that cannot be used."""
        if isinstance(self.settings.config, Path):
            config = _read(self.settings.config, materials.trust_remote_code)
        else:
            config = _changed(_teacher_config(materials), self.settings.config)
        _check_vocabulary(config, materials)
        student = _initialised(config, materials)
        return Plain(student, {"layers": None, "model_type": config.model_type})


def _read(path: Path, trust_remote_code: bool) -> PreTrainedConfig:
    file = path / "config.json" if path.is_dir() else path
    if not file.is_file():
        raise RecipeError("there is no such configuration", where=str(file), mend="paths are relative to the recipe")
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(file, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        what = str(error).strip().splitlines()[0]
        raise ModelError(f"the configuration cannot be read: {what}", where=str(file)) from error
    check_causal(config.to_dict(), where=str(file))
    return config_from(config, {})


def _teacher_config(materials: Materials) -> PreTrainedConfig:
    if materials.teacher is None:
        raise RecipeError(
            "a mapping changes the teacher's configuration, and there is no teacher whose folder is here",
            where=_WHERE,
            mend="give a folder or file with a config.json",
        )
    config: PreTrainedConfig = AutoConfig.from_pretrained(
        materials.teacher.path, trust_remote_code=materials.trust_remote_code
    )
    return config


def _changed(teacher: PreTrainedConfig, changes: dict[str, Any]) -> PreTrainedConfig:
    """The teacher's configuration with some keys changed."""
    own_name = type(teacher).attribute_map
    document = teacher.to_dict()
    known = {*document, *own_name} - {"model_type", "architectures", "transformers_version", "_name_or_path", "dtype"}
    for key in changes:
        if key not in known:
            raise RecipeError(
                f"unknown key {key!r} of a {teacher.model_type} configuration{did_you_mean(key, known)}", where=_WHERE
            )
    changes = {own_name.get(key, key): value for key, value in changes.items()}

    def now(key: str) -> Any:
        return changes.get(own_name.get(key, key), getattr(teacher, key))

    # What followed from other keys follows from them again, unless it is named.
    heads, hidden, following = now("num_attention_heads"), now("hidden_size"), {}
    followed = document.get("head_dim") and document["head_dim"] * teacher.num_attention_heads == teacher.hidden_size
    if followed and isinstance(heads, int) and isinstance(hidden, int) and heads > 0:  # else the family refuses them
        following["head_dim"] = hidden // heads
    if document.get("num_key_value_heads") == teacher.num_attention_heads:
        following["num_key_value_heads"] = heads
    fewer = now("num_hidden_layers") != teacher.num_hidden_layers
    derive_anew = [key for key in per_layer_keys(teacher) if fewer and key not in changes]
    return config_from(teacher, following | changes, derive_anew)


def _check_vocabulary(config: PreTrainedConfig, materials: Materials) -> None:
    tokenizer = load_tokenizer(materials.tokenizer_source, materials.trust_remote_code)
    needed = max(tokenizer.get_vocab().values()) + 1
    if config.vocab_size < needed:
        raise RecipeError(
            f"vocab_size {config.vocab_size:,} is smaller than the tokenizer's, which has ids up to {needed - 1:,}",
            where=f"{_WHERE}.vocab_size",
            mend=f"set vocab_size to {needed} or more",
        )


def _initialised(config: PreTrainedConfig, materials: Materials) -> PreTrainedModel:
    source = materials.tokenizer_source
    if (source / "config.json").is_file():
        # The tokens are the teacher's, and so are the numbers of the special ones.
        speaks = AutoConfig.from_pretrained(source, trust_remote_code=materials.trust_remote_code)
        for name in _SPECIAL:
            setattr(config, name, getattr(speaks, name, None))
    # With a pad token, the family would leave its embedding at 0; it may well be the end token too (rule 4).
    pad, config.pad_token_id = config.pad_token_id, None
    try:
        student: PreTrainedModel = AutoModelForCausalLM.from_config(
            config, dtype=torch.float32, trust_remote_code=materials.trust_remote_code
        )
        # Some shapes are only found impossible when the model runs (heads that no key-value head fits).
        with torch.no_grad():
            student.eval()(torch.zeros(1, 2, dtype=torch.long), use_cache=False)
    except (ValueError, RuntimeError, TypeError, ZeroDivisionError) as error:
        what = str(error).strip().splitlines()[0]
        raise ModelError(f"no model can be made in this shape: {what}", where=_WHERE) from error
    student.config.pad_token_id = pad
    if (source / "generation_config.json").is_file():
        student.generation_config = GenerationConfig.from_pretrained(source)
    elif student.generation_config is not None:
        student.generation_config.pad_token_id = pad
    return student
