"""Unit vectors, with a finite gradient also at zero."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def unit(vectors: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows D"]:
    """Vectors divided by their norm; zero vectors stay 0, and get no gradient.

    The usual division by max(norm, ε) also maps a zero vector to 0, but multiplies its gradient by 1/ε.
    """
    length = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    long = length > 0
    return torch.where(long, vectors / torch.where(long, length, 1.0), 0.0)
