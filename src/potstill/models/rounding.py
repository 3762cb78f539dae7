"""Weights rounded to few bits, in blocks, on the grids of GGUF's `q8_0` and `q4_0`; and a model that computes with
them while it learns.

A block is 32 neighbouring weights of a row with one scale in 16 bits: 8.5 and 4.5 bits a weight. A matrix on its grid
is not changed by rounding it again, here or in a GGUF file, so an exported file has the student's own weights.
`torchao` has other grids (its symmetric int4 divides the range by 7.5 steps and keeps scales in 32 bits), from which a
file would be rounded once more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

Bits = Literal["int8", "int4"]
BLOCK = 32
"""Weights that share a scale."""

Blocks = Float[Tensor, "N 32"]


def _int8(blocks: Blocks) -> Blocks:
    """`q8_0`: the scale d is the largest magnitude ÷ 127; integers are rounded with halves away from 0."""
    scale = blocks.abs().amax(-1, keepdim=True) / 127
    steps = blocks * _inverse(scale)
    whole = steps.abs().add(0.5).floor() * steps.sign()
    return whole * _in_16_bits(scale)


def _int4(blocks: Blocks) -> Blocks:
    """`q4_0`: the weight of largest magnitude is −8 steps, the others −8 to 7."""
    largest = blocks.gather(-1, blocks.abs().argmax(-1, keepdim=True))
    scale = largest / -8
    steps = (blocks * _inverse(scale) + 8.5).trunc().clamp(0, 15) - 8
    return steps * _in_16_bits(scale)


def _inverse(scale: Tensor) -> Tensor:
    """1 ÷ scale; 0 for a scale that 16 bits cannot hold, whose block is 0."""
    return torch.where(_in_16_bits(scale) == 0, 0.0, 1 / scale)


def _in_16_bits(scale: Tensor) -> Tensor:
    return scale.half().float()


_GRIDS: dict[Bits, Callable[[Blocks], Blocks]] = {"int8": _int8, "int4": _int4}


@torch.no_grad()
def round_to(weight: Float[Tensor, "R C"], bits: Bits) -> Float[Tensor, "R C"]:
    """The nearest matrix on the grid.

    Args:
        weight: in fp32; C is a multiple of `BLOCK`.
        bits: the grid.
    """
    return _GRIDS[bits](weight.reshape(-1, BLOCK)).reshape(weight.shape)


def grids_of(model: nn.Module, bits: Bits) -> dict[str, Bits]:
    """The grid of every matrix that is rounded, by the name of its parameter; the others (vectors, rows that are no
    multiple of a block) stay as they are. In int4 the output layer, and embeddings that are tied to it, are int8, as in
    GGUF files."""
    head = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
    output = getattr(head, "weight", None)
    return {
        name: "int8" if weight is output else bits
        for name, weight in model.named_parameters()
        if weight.dim() == 2 and weight.shape[-1] % BLOCK == 0
    }


@contextmanager
def rounded(model: nn.Module, bits: Bits | None) -> Iterator[None]:
    """Within the context the model computes with rounded weights; afterwards it has its own again.

    Gradients that are computed within it are those at the rounded weights. The optimiser applies them to the model's
    own weights, as if rounding were the identity: the straight-through estimator (Bengio et al. 2013, arXiv 1308.3432).

    Args:
        model: in fp32.
        bits: the grid; None changes nothing.
    """
    if bits is None:
        yield
        return
    parameters, grids = dict(model.named_parameters()), grids_of(model, bits)
    own = {name: parameters[name].data for name in grids}
    try:
        for name, grid in grids.items():
            parameters[name].data = round_to(own[name], grid)
        yield
    finally:
        for name, data in own.items():
            parameters[name].data = data


def round_weights(model: nn.Module, bits: Bits) -> float:
    """Round a model's weights for good.

    Returns:
        The mean number of bits of a parameter in a file, with scales; what is not rounded counts 16 bits a weight in a
        matrix and 32 in a vector.
    """
    grids, stored = grids_of(model, bits), 0.0
    for name, weight in model.named_parameters():
        grid = grids.get(name)
        if grid is not None:
            weight.data = round_to(weight.data, grid)
        stored += weight.numel() * ({"int8": 8.5, "int4": 4.5}[grid] if grid else 16 if weight.dim() > 1 else 32)
    return stored / max(1, sum(weight.numel() for weight in model.parameters()))
