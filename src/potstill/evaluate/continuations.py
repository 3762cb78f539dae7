"""Log-probabilities of given continuations of one prompt, which is read once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import DynamicCache


@dataclass(frozen=True)
class Continued:
    """The log-probabilities behind one prompt.

    Attributes:
        scores: log p(continuation | prompt) of each continuation, nats.
        rows: of the last continuation, the log-probabilities of the whole vocabulary before each of its tokens.
    """

    scores: list[float]
    rows: Float[Tensor, "L V"]


def continued(model: Any, prompt: Sequence[int], continuations: Sequence[Sequence[int]]) -> Continued:
    """Score continuations of a prompt.

    Args:
        model: a causal language model in evaluation mode.
        prompt: its tokens, at least one.
        continuations: their tokens, each at least one.
    """
    device = model.device
    width = max(map(len, continuations))
    padded = [[*tokens, *[tokens[-1]] * (width - len(tokens))] for tokens in continuations]
    ids = torch.tensor(padded, device=device)
    with torch.inference_mode():
        cache = DynamicCache(config=model.config)
        asked = torch.tensor([list(prompt)], device=device)
        before = model(input_ids=asked, past_key_values=cache, use_cache=True).logits[:, -1:].float()
        before = before.expand(len(padded), -1, -1)
        if width > 1:
            cache.batch_repeat_interleave(len(padded))
            # Padding stands behind what is scored, which does not attend to it.
            after = model(input_ids=ids[:, :-1], past_key_values=cache, use_cache=True).logits.float()
            before = torch.cat([before, after], 1)
        logs = before.log_softmax(-1)
        at = logs.gather(-1, ids[..., None])[..., 0]
        lengths = torch.tensor([len(tokens) for tokens in continuations], device=device)
        inside = torch.arange(width, device=device) < lengths[:, None]
        scores = (at * inside).sum(-1).tolist()
        return Continued(scores, logs[-1, : len(continuations[-1])])
