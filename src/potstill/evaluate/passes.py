"""One pass of a model, timed: what rates and peak memory are measured on.

What writes text reads a prompt and writes behind it (`Writing`); all others see one batch of examples (`Forward`).
"""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from potstill.teachers.base import OpenTeacher

LEAST_SECONDS = 0.25
"""A batch that is done sooner is given again and again for so long: one pass of a small model is mostly noise."""

_MOST_PASSES = 200


@dataclass(frozen=True)
class Writing:
    """A prompt to read and so many tokens to write behind it."""

    prompt: tuple[int, ...]
    new_tokens: int

    def rates(self, model: OpenTeacher) -> dict[str, float]:
        """Tokens per second: `prefill` of the prompt, `decode` of what is written."""
        seconds = one_pass(model.modules[0], self.prompt, self.new_tokens)
        return {"prefill": len(self.prompt) / seconds.prefill, "decode": self.new_tokens / seconds.decode}


@dataclass(frozen=True)
class Forward:
    """A batch of so many examples, in a safetensors file by the names that models take: `input_ids` and
    `attention_mask` [B,T], or `pixel_values` [B,…]."""

    file: Path
    examples: int

    def inputs(self, device: torch.device) -> dict[str, Tensor]:
        """The batch, on a device."""
        return {name: column.to(device) for name, column in load_file(self.file).items()}

    def rates(self, model: OpenTeacher) -> dict[str, float]:
        """`examples` per second, over as many passes as fill `LEAST_SECONDS`."""
        inputs = self.inputs(_device(model.modules[0]))
        first = forward_seconds(model, inputs, 1)
        passes = max(1, min(_MOST_PASSES, math.ceil(LEAST_SECONDS / max(first, 1e-9))))
        return {"examples": passes * self.examples / forward_seconds(model, inputs, passes)}


Work = Writing | Forward


@dataclass(frozen=True)
class Seconds:
    """How long one pass took: to read the prompt, and to write the tokens behind it one by one."""

    prefill: float
    decode: float


def run_once(model: OpenTeacher, work: Work) -> None:
    """One pass, not timed."""
    if isinstance(work, Writing):
        one_pass(model.modules[0], work.prompt, work.new_tokens)
    else:
        forward_seconds(model, work.inputs(_device(model.modules[0])), 1)


def one_pass(model: Any, prompt: tuple[int, ...], new_tokens: int) -> Seconds:
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


def forward_seconds(model: OpenTeacher, inputs: Mapping[str, Tensor], passes: int) -> float:
    """Seconds for a number of passes over a batch; all members of an ensemble run, one after the other."""
    with torch.inference_mode():
        _wait(model.modules[0])
        begun = time.perf_counter()
        for _ in range(passes):
            for module in model.modules:
                _call(module, inputs)
        _wait(model.modules[0])
    return time.perf_counter() - begun


def _call(model: nn.Module, inputs: Mapping[str, Tensor]) -> None:
    if isinstance(model, PreTrainedModel):
        dtype = model.dtype
        model(**{name: column.to(dtype) if column.is_floating_point() else column for name, column in inputs.items()})
    else:
        dtype = next(model.parameters()).dtype
        model(*(column.to(dtype) if column.is_floating_point() else column for column in inputs.values()))


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _wait(model: nn.Module) -> None:
    """Accelerators work ahead: a clock is read when they are done."""
    device = _device(model)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
