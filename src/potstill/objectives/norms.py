"""Directions of vectors, with a gradient that is finite where there is none to take."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def unit(vectors: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows D"]:
    """Vectors divided by their length; those of no length stay 0, and get no gradient.

    Dividing by max(length, ε), as is usual, makes 0 of a zero vector too, but multiplies its gradient by 1/ε.
    """
    length = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    long = length > 0
    return torch.where(long, vectors / torch.where(long, length, 1.0), 0.0)
