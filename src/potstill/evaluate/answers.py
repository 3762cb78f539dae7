"""What a model writes: greedy answers, so that a person sees beside the figures what they stand for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel

from potstill.data import ChatTokenizer


@dataclass(frozen=True)
class Written:
    """An answer. `finished` says that the model stopped by itself, and was not cut at the limit; `tokens` were written,
    the end token aside."""

    text: str
    finished: bool
    tokens: int = 0


def write_answers(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    chat: ChatTokenizer,
    *,
    max_new_tokens: int,
    advance: Callable[[float], None],
    batch_size: int = 8,
) -> list[Written]:
    """Answer prompts greedily, in fp32 or whatever the model is in.

    Of the model's own generation settings only the end tokens are used: what is written is what its distribution says,
    without penalties. The model's settings are put back afterwards.

    Args:
        model: in evaluation mode.
        prompts: token ids, with the generation prompt.
        chat: the model's tokenizer.
        max_new_tokens: where an answer is cut.
        advance: told how many prompts were answered.
        batch_size: how many are answered side by side, of like length; the last of them to stop ends the batch.
    """
    ends = end_ids(model, chat)
    own = model.generation_config
    model.generation_config = GenerationConfig(
        do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=sorted(ends) or None, pad_token_id=chat.pad_id
    )
    try:
        # Like lengths together; the answers come back in the order of the prompts.
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        written: dict[int, Written] = {}
        for start in range(0, len(order), batch_size):
            some = order[start : start + batch_size]
            for index, ids in zip(some, _continued(model, [prompts[i] for i in some], chat.pad_id), strict=True):
                stop = next((at for at, token in enumerate(ids) if token in ends), None)
                said = ids if stop is None else ids[:stop]
                text = chat.decode(said, skip_special_tokens=True)
                written[index] = Written(text.strip(), finished=stop is not None, tokens=len(said))
            advance(len(some))
    finally:
        model.generation_config = own
    return [written[i] for i in range(len(prompts))]


def end_ids(model: PreTrainedModel, chat: ChatTokenizer) -> set[int]:
    """The tokens at which a model stops: its own, and its tokenizer's."""
    own = getattr(model.generation_config, "eos_token_id", None)
    ids = {own} if isinstance(own, int) else set(own or ())
    return ids | ({chat.eos_id} if chat.eos_id is not None else set())


def _continued(model: PreTrainedModel, prompts: Sequence[Sequence[int]], pad_id: int) -> list[list[int]]:
    """What is written behind each prompt. Padding is on the left, masked by length."""
    width = max(map(len, prompts))
    ids = torch.tensor([[pad_id] * (width - len(p)) + list(p) for p in prompts], device=model.device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=model.device)
    generate: Any = model.generate
    with torch.no_grad():
        whole: torch.Tensor = generate(input_ids=ids, attention_mask=mask)
    rows: list[list[int]] = whole[:, width:].tolist()
    return rows
