"""Angles of all triplets of a batch, without the memory that N³ cosines and N²·D differences take.

The authors' code multiplies unit vectors of differences, N³·D operations. Inner products of differences are differences
of inner products; taken about the mean and in fp64 these lose nothing that fp32 could hold, and cost N²·D.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import smooth_l1_loss

from potstill.objectives.base import widened

_TILE = 2**18
"""Cosines done at a time: 2 MiB in fp64, so that they stay in the cache."""


def rkd_angle(student_ND: Float[Tensor, "N D"], teacher_NC: Float[Tensor, "N C"]) -> Float[Tensor, " N"]:
    """Smooth L1 (δ = 1) between the cosines of the angles that all pairs of points make as seen from a point, the mean
    over a point's N² pairs (degenerate ones included, which are 0). Their mean is the loss of Park et al. 2019, §3.2.2,
    as the mean over N³.

    Costs 2·N²·(D + C) operations in products and some 15·N³ element-wise (thrice that with the gradient), and no memory
    of N³ numbers. Between points nearer than a millionth of the longest vector, which is rounding, no direction is
    taken. The gradient flows to the student only.
    """
    ours, theirs = _Angles.of(student_ND), _Angles.of(teacher_NC.detach())
    values: Tensor = _AnglesInPieces.apply(*ours, *theirs)  # type: ignore[no-untyped-call]
    return values.to(widened(student_ND).dtype)


class _Angles(NamedTuple):
    """What angles are made of: inner products of points about their mean, and one over their distances (0 where these
    are nothing but rounding), in fp64."""

    products: Float[Tensor, "N N"]
    inverse: Float[Tensor, "N N"]

    @classmethod
    def of(cls, points_ND: Float[Tensor, "N D"]) -> _Angles:
        points = points_ND.double()
        longest = points.detach().square().sum(1).amax() if len(points) else points.sum()
        centred = points - points.mean(0)
        with torch.autocast(points.device.type, enabled=False):
            products = centred @ centred.mT
        lengths = products.diagonal()
        squares = lengths[:, None] + lengths[None, :] - 2 * products
        apart = squares > 1e-12 * longest
        return cls(products, torch.where(apart, torch.where(apart, squares, 1.0).rsqrt(), 0.0))


class _AnglesInPieces(torch.autograd.Function):
    """Values of all vertices, some at a time, and in the backward pass again: nothing of N³ numbers is kept."""

    @staticmethod
    def forward(ctx: Any, *parts: Tensor) -> Float[Tensor, " N"]:
        ctx.save_for_backward(*parts)
        pieces = [_angles_from(vertices, parts[:2], parts[2:]) for vertices in _pieces(len(parts[0]))]
        return torch.cat(pieces) if pieces else parts[0].new_zeros(0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Float[Tensor, " N"]) -> tuple[Tensor | None, ...]:
        products, inverse, *theirs = ctx.saved_tensors
        totals = [torch.zeros_like(products), torch.zeros_like(inverse)]
        ours = [part.detach().requires_grad_() for part in (products, inverse)]
        for vertices in _pieces(len(products)):
            with torch.enable_grad():
                values = _angles_from(vertices, ours, theirs)
            for total, found in zip(totals, torch.autograd.grad(values, ours, gradient[vertices]), strict=True):
                total += found
        return *totals, None, None


def _pieces(number: int) -> list[slice]:
    step = max(1, _TILE // max(1, number * number))
    return [slice(start, start + step) for start in range(0, number, step)]


def _angles_from(vertices: slice, ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> Float[Tensor, " n"]:
    """Values of some vertices, of products and inverse distances of either model."""
    cosines = [_cosines(products, inverse, vertices) for products, inverse in (ours, theirs)]
    return smooth_l1_loss(cosines[0], cosines[1], reduction="none").mean((1, 2))


def _cosines(products: Tensor, inverse: Tensor, vertices: slice) -> Float[Tensor, "n N N"]:
    """Cosines of the angles at vertices j (axis 0) between the directions to i and k.

    (p_i − p_j)·(p_k − p_j) / (d_ij·d_kj), whose inner product is that of i and k, less those of either with j, plus
    that of j with itself.
    """
    to_vertex, scale, own = products[vertices], inverse[vertices], products.diagonal()[vertices]
    inner = products - to_vertex[:, :, None]
    inner = inner - (to_vertex - own[:, None])[:, None, :]
    return inner * scale[:, :, None] * scale[:, None, :]
