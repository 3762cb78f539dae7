"""From logits to the distribution that is sampled: processors of logits, each position with its own history."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers.generation.logits_process import (
    EncoderNoRepeatNGramLogitsProcessor,
    EncoderRepetitionPenaltyLogitsProcessor,
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    InfNanRemoveLogitsProcessor,
    LogitNormalization,
    LogitsProcessor,
    MinPLogitsWarper,
    PrefixConstrainedLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from potstill.decoding.rows import Rows

_WITHOUT_HISTORY = (
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    InfNanRemoveLogitsProcessor,
    LogitNormalization,
    MinPLogitsWarper,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)
"""Processors that read the logits alone, so that one call handles all positions. Every other processor is called for
each position of each row with the tokens before it: it must not keep state between calls, nor tell rows by place."""


class Sampler:
    """What is done to logits before a token is chosen. Target and draft use the same.

    Args:
        processors: of `transformers`, in order.
        greedy: take the most probable token instead of drawing.
    """

    def __init__(self, processors: Sequence[LogitsProcessor] = (), greedy: bool = False) -> None:
        self._processors, self.greedy = list(processors), greedy

    @property
    def reads_history(self) -> bool:
        """Whether a distribution depends on the tokens before it by more than the logits."""
        return any(type(processor) not in _WITHOUT_HISTORY for processor in self._processors)

    def distributions(
        self, logits_BnV: Float[Tensor, "B n V"], rows: Rows, first: int, vocabulary: Tensor | None = None
    ) -> Float[Tensor, "B n V"]:
        """Probabilities of the tokens at the places `length + first`, `length + first + 1`, … of each row."""
        return self._scores(logits_BnV, rows, first, vocabulary).softmax(-1)

    def best(
        self, logits_BnV: Float[Tensor, "B n V"], rows: Rows, first: int, vocabulary: Tensor | None = None
    ) -> Int[Tensor, "B n"]:
        """The most probable token at each of these places."""
        if vocabulary is not None and not self._processors:
            return vocabulary[logits_BnV.argmax(-1)]
        return self._scores(logits_BnV, rows, first, vocabulary).argmax(-1)

    def ranked(
        self, logits_BnV: Float[Tensor, "B n V"], rows: Rows, first: int, count: int, vocabulary: Tensor | None = None
    ) -> Int[Tensor, "B n count"]:
        """The `count` most probable tokens at each of these places, best first."""
        if vocabulary is not None and not self._processors:
            return vocabulary[logits_BnV.topk(count, -1).indices]
        return self._scores(logits_BnV, rows, first, vocabulary).topk(count, -1).indices

    def _scores(self, logits_BnV: Tensor, rows: Rows, first: int, vocabulary: Tensor | None) -> Tensor:
        scores = logits_BnV.to(torch.promote_types(logits_BnV.dtype, torch.float32))
        if vocabulary is not None:
            # Other tokens have no probability: −inf before the processors, so that a truncation sees the same.
            whole = scores.new_full((*scores.shape[:2], rows.vocab_size), -torch.inf)
            scores = whole.index_copy_(-1, vocabulary, scores)
        for processor in self._processors:
            if type(processor) in _WITHOUT_HISTORY:
                # The tokens are not read; their number of rows must fit.
                flat = scores.flatten(0, 1)
                scores = _call(processor, rows.ids_BT.new_zeros(len(flat), 1), flat).view(scores.shape)
            else:
                scores = self._with_history(processor, scores, rows, first)
        return scores

    def _with_history(self, processor: LogitsProcessor, scores_BnV: Tensor, rows: Rows, first: int) -> Tensor:
        changed = scores_BnV.clone()
        for row in range(scores_BnV.shape[0]):
            own = _of_row(processor, rows.numbers[row], rows.batch_size)
            for place in range(scores_BnV.shape[1]):
                history = rows.history(row, first + place)
                changed[row, place] = _call(own, history, scores_BnV[row, place][None].clone())[0]
        return changed


def _call(processor: Any, history: Tensor, scores: Tensor) -> Tensor:
    result: Tensor = processor(history, scores)
    return result


def _of_row(processor: LogitsProcessor, row: int, batch_size: int) -> LogitsProcessor:
    """The processor for one row of the batch, if rows differ for it. Prompts may be fewer than rows, each with as many
    rows (`num_return_sequences`)."""
    if isinstance(processor, PrefixConstrainedLogitsProcessor):
        allowed, processor = processor._prefix_allowed_tokens_fn, copy.copy(processor)
        processor._prefix_allowed_tokens_fn = lambda _, tokens: allowed(row, tokens)
        return processor
    if isinstance(processor, EncoderRepetitionPenaltyLogitsProcessor):
        prompts: Any = processor.encoder_input_ids
        processor = copy.copy(processor)
        processor.encoder_input_ids = prompts[row * len(prompts) // batch_size][None]
        return processor
    if isinstance(processor, EncoderNoRepeatNGramLogitsProcessor):
        n_grams, processor = processor.generated_ngrams, copy.copy(processor)
        processor.generated_ngrams, processor.batch_size = [n_grams[row * len(n_grams) // batch_size]], 1
        return processor
    ignored = getattr(processor, "prompt_ignore_length", None)
    if isinstance(processor, RepetitionPenaltyLogitsProcessor) and isinstance(ignored, Tensor) and ignored.numel() > 1:
        processor = copy.copy(processor)
        processor.prompt_ignore_length = ignored[row : row + 1]
    return processor
