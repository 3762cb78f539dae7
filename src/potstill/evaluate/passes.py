"""One pass of a model over a prompt, timed: what rates and peak memory are measured on."""

from __future__ import annotations

import inspect
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel


@dataclass(frozen=True)
class Seconds:
    """How long one pass took: to read the prompt, and to write the tokens behind it one by one."""

    prefill: float
    decode: float


def one_pass(model: PreTrainedModel, prompt: Sequence[int], new_tokens: int) -> Seconds:
    """Read a prompt, then write greedily with a cache, token by token, whether the model would stop or not."""
    ids = torch.tensor([list(prompt)], device=model.device)
    # As in generation: logits of the last position only, where the model can.
    last_only: dict[str, Any] = {}
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        last_only["logits_to_keep"] = 1
    with torch.inference_mode():
        _wait(model)
        begun = time.perf_counter()
        out = model(input_ids=ids, use_cache=True, **last_only)
        token = out.logits[:, -1:].argmax(-1)
        _wait(model)
        read = time.perf_counter()
        for _ in range(new_tokens):
            out = model(input_ids=token, past_key_values=out.past_key_values, use_cache=True)
            token = out.logits[:, -1:].argmax(-1)
        _wait(model)
    return Seconds(read - begun, time.perf_counter() - read)


def _wait(model: PreTrainedModel) -> None:
    """Accelerators work ahead: a clock is read when they are done."""
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    elif model.device.type == "mps":
        torch.mps.synchronize()
