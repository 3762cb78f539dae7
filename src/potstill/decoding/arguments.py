"""Arguments of `model.generate` that the speculative loop does not have: refused by name, with what to do instead.

`transformers` hands a `custom_generate` the merged configuration and the model's inputs, but neither a draft model nor
a tokenizer, and says nothing about a key that nobody reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.generation.stopping_criteria import StopStringCriteria

from potstill.errors import UserError

_ELSE = "leave {key} out, or use model.generate"
_GAMMA = "set gamma of SpeculativeDecoder: the number of drafted tokens"
_CACHE = "leave {key} out: the decoder has a cache of its own, in memory"

_UNSUPPORTED = {
    "num_beams": 1,
    "num_beam_groups": 1,
    "penalty_alpha": None,
    "dola_layers": None,
    "prompt_lookup_num_tokens": None,
    "guidance_scale": 1.0,
    "output_scores": False,
    "output_logits": False,
    "output_attentions": False,
    "output_hidden_states": False,
    "return_dict_in_generate": False,
    "constraints": None,
    "force_words_ids": None,
    "watermarking_config": None,
    "token_healing": False,
}
"""Keys of a generation configuration that change the text or what is returned, and the value that asks for nothing."""

_WORK: dict[str, tuple[Any, str]] = {
    "use_cache": (True, "leave use_cache out: keys and values are what a draft is verified by"),
    "cache_implementation": (None, _CACHE),
    "cache_config": (None, _CACHE),
    "max_cache_len": (None, _CACHE),
    "prefill_chunk_size": (None, "leave prefill_chunk_size out: prompts are read whole"),
    "compile_config": (None, "leave compile_config out: the loop is not compiled"),
    "num_assistant_tokens": (20, _GAMMA),
    "num_assistant_tokens_schedule": ("constant", _GAMMA),
    "assistant_confidence_threshold": (0.4, "set threshold of ModelDraft"),
    "assistant_early_exit": (None, "give SpeculativeDecoder the draft early_exit(target, layers)"),
    "max_matching_ngram_size": (None, "set longest of LookupDraft"),
}
"""Keys that change how the work is done, their defaults in `transformers`, and what to do instead. A model's own
configuration may have them, for other loops; a caller who asks for them must know that they are not for this one."""

_LOST = {
    "assistant_model": "give the draft to the decoder: SpeculativeDecoder(target, ModelDraft(CachedModel(model)))",
    "assistant_tokenizer": "use a draft with the target's tokenizer",
    "synced_gpus": "leave synced_gpus out: the model runs on one device",
}
"""Arguments that `transformers` does not hand on."""

_INPUTS = {"attention_mask", "position_ids", "past_key_values", "use_cache", "logits_to_keep", "cache_position"}
"""Inputs of a model that `transformers` prepares itself."""


def take_stop_strings(
    settings: dict[str, Any], config: GenerationConfig | None, own: GenerationConfig
) -> dict[str, Any]:
    """The settings of a call with a stopping criterion in place of stop strings and their tokenizer, which
    `transformers` takes away from a `custom_generate`.

    Args:
        settings: keywords of the call.
        config: its configuration.
        own: the model's.
    """
    stated = next((c.stop_strings for c in (config, own) if c is not None and c.stop_strings), None)
    strings, tokenizer = settings.get("stop_strings", stated), settings.get("tokenizer")
    if not strings or tokenizer is None:
        return settings  # without a tokenizer `transformers` says what is missing
    criterion = StopStringCriteria(stop_strings=strings, tokenizer=tokenizer)
    others = {key: value for key, value in settings.items() if key != "tokenizer"}
    return others | {"stop_strings": None, "stopping_criteria": [*(settings.get("stopping_criteria") or ()), criterion]}


def check_settings(settings: Mapping[str, Any]) -> None:
    """Refuse keywords of a call that would be lost on their way through `transformers`.

    Raises:
        UserError: names the first of them, and what to do instead.
    """
    for key, fix in _LOST.items():
        if settings.get(key) not in (None, False):
            raise UserError(f"{key} is not for speculative decoding", fix=fix)
    for key, (nothing, fix) in _WORK.items():
        if settings.get(key) not in (None, nothing):
            _refuse(key, settings[key], fix)
    if settings.get("token_healing"):
        _refuse("token_healing", True, _ELSE)


def check_prepared(config: GenerationConfig, model: PreTrainedModel, inputs: Mapping[str, Any]) -> None:
    """Refuse what `transformers` prepared and this decoder would ignore.

    Args:
        config: of the call, merged with the model's own and the defaults.
        model: the target.
        inputs: the model's inputs beside the token ids.

    Raises:
        UserError: names the first key, and what to do instead.
    """
    for key, nothing in _UNSUPPORTED.items():
        if (value := getattr(config, key, None)) not in (None, nothing):
            _refuse(key, value, _ELSE)
    for key, (nothing, fix) in _WORK.items():
        if (value := getattr(config, key, None)) not in (None, nothing, getattr(model.generation_config, key, None)):
            _refuse(key, value, fix)
    for key, value in inputs.items():
        if key not in _INPUTS and value is not None and value is not False:
            raise UserError(f"the model's input {key} is not for speculative decoding", fix=_ELSE.format(key=key))
    kept = inputs.get("past_key_values")
    if isinstance(kept, Cache) and kept.get_seq_length() > 0:
        raise UserError("past_key_values is not empty", fix="leave it out, and give the whole text as token ids")
    mask, positions = inputs.get("attention_mask"), inputs.get("position_ids")
    if isinstance(positions, torch.Tensor) and positions.dim() == 2:
        real = torch.ones_like(positions) if mask is None else mask
        if not torch.equal(((real.cumsum(-1) - 1) * real), positions * real):
            raise UserError(
                "position_ids that do not count the tokens of each row are not for speculative decoding",
                fix=_ELSE.format(key="position_ids"),
            )


def _refuse(key: str, value: Any, fix: str) -> None:
    raise UserError(f"{key}: {value} is not for speculative decoding", fix=fix.format(key=key))
