"""Answers of a model: greedy ones, so that a reader can see what the figures mean in practice, or drawn ones."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from potstill.data import ChatTokenizer
from potstill.decoding.generator import batches_by_length, stop_token_ids, write
from potstill.teachers.base import OpenTeacher
from potstill.types import Sampling


@dataclass(frozen=True)
class Written:
    """An answer.

    Attributes:
        text: without the end token.
        finished: whether the model ended it, rather than being cut at the limit.
        tokens: how many were written, the end token aside.
        ids: all that was written, the end token too.
    """

    text: str
    finished: bool
    tokens: int = 0
    ids: tuple[int, ...] = ()


def writer_of(opened: OpenTeacher) -> PreTrainedModel | None:
    """The single model that writes; None for an ensemble, whose members do not write jointly, or another kind."""
    model = opened.modules[0]
    return model if len(opened.modules) == 1 and isinstance(model, PreTrainedModel) else None


def room_behind(prompts: Sequence[Sequence[int]], most_new: int, positions: int | None) -> int:
    """New tokens, up to `most_new`, that fit behind the longest prompt into so many positions (None: any number)."""
    return most_new if positions is None else min(most_new, positions - max(map(len, prompts)))


def write_answers(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    chat: ChatTokenizer,
    *,
    max_new_tokens: int,
    advance: Callable[[float], None],
    batch_size: int = 8,
    temperature: float = 0.0,
    seed: int = 0,
) -> list[Written]:
    """Answer prompts, greedily or drawn, in the precision of the model's weights.

    Only the end tokens of the model's own generation settings are used: no penalties, so an answer shows the model's
    distribution.

    Args:
        model: in evaluation mode.
        prompts: token ids, with the generation prompt.
        chat: the model's tokenizer.
        max_new_tokens: maximum length of an answer.
        advance: called after every step with the progress since the last call, in prompts (a fraction).
        batch_size: prompts of similar length that are answered together, until the longest answer ends.
        temperature: of the draws; 0 is greedy.
        seed: of the draws.
    """
    stop_ids = stop_token_ids(model, chat.eos_id)
    written: dict[int, Written] = {}
    for number_of_batch, batch in enumerate(batches_by_length(prompts, batch_size)):
        shown = 0.0

        def wrote(tokens: int) -> None:
            nonlocal shown
            part = tokens / max_new_tokens
            shown += part
            advance(part)

        answers = write(
            model,
            [prompts[number] for number in batch],
            Sampling(max_new_tokens, temperature),
            samples=[0] * len(batch),
            most_new=max_new_tokens,
            stop_ids=stop_ids,
            pad_id=chat.pad_id,
            seed=seed + number_of_batch,
            wrote=wrote,
        )
        advance(len(batch) - shown)
        for number, ids in zip(batch, answers, strict=True):
            finished = bool(ids) and ids[-1] in stop_ids
            answer = ids[:-1] if finished else ids
            text = chat.decode(answer, skip_special_tokens=True)
            written[number] = Written(text.strip(), finished, tokens=len(answer), ids=tuple(ids))
    return [written[number] for number in range(len(prompts))]


def confidence_in(model: PreTrainedModel, prompt: Sequence[int], answer: Sequence[int]) -> float:
    """How sure a model is of an answer that it wrote: the geometric mean of its probabilities of the answer's tokens,
    the end token among them (0 to 1). An empty answer has 0."""
    if not answer:
        return 0.0
    asked: dict[str, Any] = {"input_ids": torch.tensor([[*prompt, *answer]], device=model.device), "use_cache": False}
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        asked["logits_to_keep"] = len(answer) + 1
    with torch.no_grad():
        logits = model(**asked).logits[0, -len(answer) - 1 : -1].float()
    chosen = torch.tensor(list(answer), device=logits.device)
    return float(logits.log_softmax(-1).gather(1, chosen[:, None]).mean().exp())
