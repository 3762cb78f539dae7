"""Text from a model on this machine: prompts as token ids in, answers as token ids out.

Used by teachers and by models under evaluation. `transformers` does the decoding, with no setting left to its defaults,
and tokens are drawn by a generator of our own.

The loop of `speculative.py`, without a draft, is not used here, for two reasons. It has no beam search. And in low
precision an answer depends on the shape of the batch: of eight greedy answers of SmolLM2-135M (48 tokens, one batch)
both loops give the same eight in fp32, and three of eight in bf16, since that loop pads on the other side and drops
rows that have ended. Journals hold answers of this loop, and a resumed run must continue with the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel
from transformers.generation.logits_process import (
    LogitsProcessor,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.generation.stopping_criteria import StoppingCriteria, StoppingCriteriaList

from potstill.types import Sampling

Wrote = Callable[[int], None]
"""Called after each step of decoding with the number of tokens that it added to answers that have not ended."""


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
    wrote: Wrote | None = None,
) -> list[list[int]]:
    """The tokens that a model writes behind each prompt of one batch, up to and with the first end token.

    Greedy, sampled, or by beam search (length penalty 1, that is log-probability per token). No setting is taken from
    the model's own generation defaults, which are as before afterwards. The same arguments give the same tokens.

    Args:
        model: a causal language model in evaluation mode.
        prompts: token ids, padded here on the left and masked by length.
        sampling: how tokens are chosen; its `max_new_tokens` is not read.
        samples: for beam search, which beam each prompt gets (0 the best).
        most_new: maximum number of tokens of each answer. An answer of this length without end token was cut.
        stop_ids: end tokens. May be empty.
        pad_id: what shorter prompts are padded with.
        seed: of the draws.
        wrote: progress.

    Raises:
        ValueError: a sample is not smaller than the number of beams.
    """
    searches = len(set(map(tuple, prompts))) if sampling.beams > 1 else None
    steps = None if wrote is None else _Steps(stop_ids, wrote, searches)
    if sampling.beams > 1:
        return _write_beams(model, prompts, sampling, samples, most_new, stop_ids, pad_id, steps)
    config = _config(sampling, most_new, stop_ids, pad_id)
    drawing = _Draw(sampling, seed, model.device) if sampling.temperature > 0 else None
    rows = _generate(model, prompts, config, pad_id, drawing, steps)
    return [_until_stop(row, stop_ids) for row in rows]


def stream(
    model: PreTrainedModel, prompt: Sequence[int], sampling: Sampling, *, stop_ids: Sequence[int], seed: int
) -> Iterator[int]:
    """The tokens that a model writes behind one prompt, each when it is chosen, without the end token: those of `write`
    for the same arguments, at most `sampling.max_new_tokens`.

    Raises:
        ValueError: beam search, which has no token before it has all of them.
    """
    if sampling.beams > 1:
        raise ValueError("beam search cannot be streamed")
    drawing = _Draw(sampling, seed, model.device) if sampling.temperature > 0 else None
    read, cache = torch.tensor([list(prompt)], device=model.device), None
    for _ in range(sampling.max_new_tokens):
        with torch.no_grad():
            made = model(input_ids=read, past_key_values=cache, use_cache=True)
        scores, cache = made.logits[:, -1], made.past_key_values
        read = (scores if drawing is None else drawing(read, scores)).argmax(-1, keepdim=True)
        if (token := int(read)) in stop_ids:
            return
        yield token


def batches_by_length(prompts: Sequence[Sequence[int]], batch_size: int) -> list[list[int]]:
    """The prompts by their numbers, in batches of like length: the shortest first, so that little is padded."""
    order = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def stop_token_ids(model: PreTrainedModel, eos_id: int | None) -> list[int]:
    """Every token that ends an answer: those of the model's generation settings (a chat model often names the end of a
    turn there), and the tokenizer's end token, if it has one."""
    stated: Any = getattr(model.generation_config, "eos_token_id", None)
    ids = {int(i) for i in (stated if isinstance(stated, (list, tuple)) else [stated]) if i is not None}
    return sorted(ids if eos_id is None else ids | {eos_id})


def _write_beams(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    samples: Sequence[int],
    most_new: int,
    stop_ids: Sequence[int],
    pad_id: int,
    steps: _Steps | None,
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
    rows = _generate(model, list(places), config, pad_id, None, steps)
    asked = zip(prompts, samples, strict=True)
    return [_until_stop(rows[places[tuple(prompt)] * returned + sample], stop_ids) for prompt, sample in asked]


def _config(sampling: Sampling, most_new: int, stop_ids: Sequence[int], pad_id: int) -> GenerationConfig:
    config = GenerationConfig(
        max_new_tokens=most_new,
        eos_token_id=list(stop_ids) or None,
        pad_token_id=pad_id,
        num_beams=sampling.beams,
        do_sample=False,  # drawn tokens are the only possible ones
        use_cache=True,
    )
    if sampling.beams > 1:
        config.length_penalty, config.early_stopping = 1.0, False
    return config


def _generate(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    config: GenerationConfig,
    pad_id: int,
    drawing: _Draw | None,
    steps: _Steps | None,
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
            logits_processor=LogitsProcessorList([drawing] if drawing is not None else []),
            stopping_criteria=StoppingCriteriaList([steps] if steps is not None else []),
        )
    written: list[list[int]] = whole[:, longest:].tolist()
    return written


@contextmanager
def _bare(model: PreTrainedModel) -> Iterator[None]:
    """Put the model's own generation defaults (a repetition penalty, say) aside: `generate` takes every setting from
    them that it is not given."""
    own = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own


def _until_stop(ids: Sequence[int], stop_ids: Sequence[int]) -> list[int]:
    """What was written, without the padding behind the end (which may be the end token too)."""
    end = next((place + 1 for place, token in enumerate(ids) if token in stop_ids), len(ids))
    return list(ids[:end])


class _Steps(StoppingCriteria):
    """Reports the progress of a batch after every step of decoding; never stops it.

    Args:
        stop_ids: end tokens.
        wrote: called with the number of tokens that a step added to answers that had not ended.
        searches: the number of prompts, in a beam search, where several rows are of one prompt and change places.
    """

    def __init__(self, stop_ids: Sequence[int], wrote: Wrote, searches: int | None = None) -> None:
        self._stop_ids, self._wrote, self._searches = list(stop_ids), wrote, searches
        self._ended: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        rows = input_ids.shape[0]
        going_on = torch.zeros(rows, dtype=torch.bool, device=input_ids.device)
        if self._searches is not None:
            self._wrote(self._searches)
            return going_on
        ended = going_on if self._ended is None else self._ended
        self._wrote(int((~ended).sum()))
        new = input_ids[:, -1]
        self._ended = ended | torch.isin(new, torch.tensor(self._stop_ids, dtype=new.dtype, device=new.device))
        return going_on


class _Draw(LogitsProcessor):
    """Draws the next token of each row, and leaves only that one possible.

    The draws come from a generator of their own: they do not depend on what else the process draws, nor disturb it.
    And they go through the cumulative distribution, one uniform number a row; `torch.multinomial` makes one for every
    token of the vocabulary, which was a fifth of the time of writing on a processor (27 ms of 120 a step).
    """

    def __init__(self, sampling: Sampling, seed: int, device: torch.device) -> None:
        self.generator = torch.Generator(device).manual_seed(seed)
        self.warpers: Any = LogitsProcessorList()
        if sampling.temperature != 1.0:
            self.warpers.append(TemperatureLogitsWarper(sampling.temperature))
        if sampling.top_k > 0:
            self.warpers.append(TopKLogitsWarper(sampling.top_k))
        if sampling.top_p < 1.0:
            self.warpers.append(TopPLogitsWarper(sampling.top_p))

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        kept: Tensor = self.warpers(input_ids, scores.float())
        tokens = draw(kept.softmax(-1), self.generator)
        return torch.full_like(scores, -torch.inf).scatter_(1, tokens[:, None], 0.0)


def draw(probabilities_BV: Float[Tensor, "B V"], generator: torch.Generator) -> Int[Tensor, " B"]:
    """One token per row, by the inverse of the cumulative distribution: the first whose cumulative probability is above
    u, u uniform on [0, 1). A token of probability 0 is never drawn. Rows need not sum to 1."""
    # In fp64 (fp32 on devices without it), so that the tail of a large vocabulary is not rounded away.
    wide = torch.float32 if probabilities_BV.device.type == "mps" else torch.float64
    cumulative = probabilities_BV.cumsum(-1, dtype=wide)
    total = cumulative[:, -1:]
    u = torch.rand(total.shape, dtype=wide, device=total.device, generator=generator) * total
    # u may be rounded up to the total, where no token is above it: then it is the last one that has any.
    u = torch.minimum(u, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulative, u, right=True).squeeze(-1)
