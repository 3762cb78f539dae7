"""How a local model writes: prompts as token ids in, answers as token ids out, a batch at a time.

`transformers` does the decoding. What is ours is that nothing is left to its defaults, and a cache that is not copied
at every token (a third of the time on a processor).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import DynamicLayer

from potstill.types import Sampling

_ROOM_TOKENS = 128


def write(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    samples: Sequence[int],
    most_new: int,
    stop_ids: Sequence[int],
    pad_id: int,
    seed: int,
) -> list[list[int]]:
    """The tokens that the model writes behind each prompt, up to and with the first end token.

    Args:
        prompts: token ids, padded here on the left and masked by length.
        samples: for beam search, which beam each prompt is to get (0 the best).
        most_new: at most so many tokens each; an answer that has them all and no end token was cut.
        stop_ids: end tokens. May be empty.
        seed: of the draws. They come from a generator state that is put back afterwards.

    Raises:
        ValueError: a beam is asked for that there is not.
    """
    if sampling.beams > 1:
        return _write_beams(model, prompts, sampling, samples, most_new, stop_ids, pad_id)
    config = _config(sampling, most_new, stop_ids, pad_id)
    with _seeded(seed, model.device):
        rows = _generate(model, prompts, config, pad_id, _growing_cache(model))
    return [_until_stop(row, stop_ids) for row in rows]


def stop_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Every token that ends an answer: those of the model's generation settings (a chat model often names the end of a
    turn there), and the tokenizer's end token."""
    stated: Any = getattr(model.generation_config, "eos_token_id", None)
    ids = {int(i) for i in (stated if isinstance(stated, (list, tuple)) else [stated]) if i is not None}
    if isinstance(tokenizer.eos_token_id, int):
        ids.add(tokenizer.eos_token_id)
    return sorted(ids)


def _write_beams(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    samples: Sequence[int],
    most_new: int,
    stop_ids: Sequence[int],
    pad_id: int,
) -> list[list[int]]:
    """Beam search, once per prompt, however many of its beams are asked for."""
    returned = max(samples) + 1
    if returned > sampling.beams:
        raise ValueError(f"sample {returned - 1} of {sampling.beams} beams")
    places: dict[tuple[int, ...], int] = {}
    for prompt in prompts:
        places.setdefault(tuple(prompt), len(places))
    config = _config(sampling, most_new, stop_ids, pad_id)
    config.num_return_sequences = returned
    rows = _generate(model, list(places), config, pad_id, cache=None)
    asked = zip(prompts, samples, strict=True)
    return [_until_stop(rows[places[tuple(prompt)] * returned + sample], stop_ids) for prompt, sample in asked]


def _config(sampling: Sampling, most_new: int, stop_ids: Sequence[int], pad_id: int) -> GenerationConfig:
    config = GenerationConfig(
        max_new_tokens=most_new,
        eos_token_id=list(stop_ids) or None,
        pad_token_id=pad_id,
        num_beams=sampling.beams,
        do_sample=sampling.temperature > 0,
        use_cache=True,
    )
    if sampling.beams > 1:
        config.length_penalty, config.early_stopping = 1.0, False
    if sampling.temperature > 0:
        config.temperature, config.top_p, config.top_k = sampling.temperature, sampling.top_p, sampling.top_k
    return config


def _generate(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    config: GenerationConfig,
    pad_id: int,
    cache: DynamicCache | None,
) -> list[list[int]]:
    longest = max(map(len, prompts))
    ids = torch.full((len(prompts), longest), pad_id)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask[row, longest - len(prompt) :] = 1
    with torch.no_grad(), _bare(model):
        generate: Any = model.generate
        whole: Tensor = generate(
            ids.to(model.device),
            attention_mask=mask.to(model.device),
            generation_config=config,
            **({} if cache is None else {"past_key_values": cache}),
        )
    written: list[list[int]] = whole[:, longest:].tolist()
    return written


@contextmanager
def _bare(model: PreTrainedModel) -> Iterator[None]:
    """Take the model's own generation defaults (a repetition penalty, say) out of the way: `generate` fills in with
    them whatever it is not told."""
    own = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def _until_stop(ids: Sequence[int], stop_ids: Sequence[int]) -> list[int]:
    """What was written, without the padding behind the end (which may be the end token too)."""
    end = next((place + 1 for place, token in enumerate(ids) if token in stop_ids), len(ids))
    return list(ids[:end])


def _growing_cache(model: PreTrainedModel) -> DynamicCache | None:
    """The model's usual cache, with room to grow; None for models that bring a cache of another kind."""
    supports: Any = model._supports_default_dynamic_cache
    if not supports():
        return None
    cache = DynamicCache(config=model.config.get_text_config(decoder=True))
    # Layers of other kinds (sliding windows) stay as they are.
    cache.layers = [_GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


class _GrowingLayer(DynamicLayer):
    """Keys and values [B, A, T, D] of one layer, as views into buffers that have room for the next tokens.

    `DynamicLayer` copies all of them at every token.
    """

    def __init__(self) -> None:
        initialise: Any = super().__init__  # untyped there
        initialise()
        self._buffers: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        before = self.get_seq_length()
        after = before + key_states.shape[-2]
        if self._buffers is None or after > self._buffers[0].shape[-2]:
            old = (self.keys, self.values) if before else (None, None)
            room = after + _ROOM_TOKENS
            self._buffers = (_with_room(key_states, old[0], room), _with_room(value_states, old[1], room))
        keys, values = self._buffers
        keys[..., before:after, :] = key_states
        values[..., before:after, :] = value_states
        self.keys, self.values = keys[..., :after, :], values[..., :after, :]
        return self.keys, self.values


def _with_room(states: Tensor, old: Tensor | None, room: int) -> Tensor:
    buffer = states.new_empty(*states.shape[:-2], room, states.shape[-1])
    if old is not None:
        buffer[..., : old.shape[-2], :] = old
    return buffer
