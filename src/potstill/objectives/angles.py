"""Angles of all triplets in a batch, without the memory of N³ cosines or N²·D differences.

The authors' code multiplies unit vectors of differences: N³·D operations. Inner products of differences are
differences of inner products; taken about the mean and in fp64 these are exact to fp32 precision, and cost N²·D.
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
"""Bytes of cosines computed at a time: 2 MiB in fp64, which fit the cache."""


def rkd_angle(student_ND: Float[Tensor, "N D"], teacher_NC: Float[Tensor, "N C"]) -> Float[Tensor, " N"]:
    """Smooth L1 (δ = 1) between the cosines of the angles at a point between all pairs of points, the mean over the
    point's N² pairs (degenerate pairs are 0). The mean over points is the loss of Park et al. 2019, §3.2.2, as the
    mean over N³.

    Costs 2·N²·(D + C) operations in products and about 15·N³ element-wise (three times that with the gradient), and
    never holds N³ numbers. Points closer than a millionth of the longest vector, which is rounding, have no direction.
    The gradient flows to the student only.
    """
    student, teacher = _Angles.of(student_ND), _Angles.of(teacher_NC.detach())
    values: Tensor = _AnglesInPieces.apply(*student, *teacher)  # type: ignore[no-untyped-call]
    return values.to(widened(student_ND).dtype)


class _Angles(NamedTuple):
    """Inner products of points about their mean, and inverse distances (0 where a distance is only rounding), in
    fp64."""

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
    """Values of all vertices, piece by piece, recomputed in the backward pass: N³ numbers are never held."""

    @staticmethod
    def forward(ctx: Any, *parts: Tensor) -> Float[Tensor, " N"]:
        ctx.save_for_backward(*parts)
        pieces = [_angles_from(vertices, parts[:2], parts[2:]) for vertices in _pieces(len(parts[0]))]
        return torch.cat(pieces) if pieces else parts[0].new_zeros(0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Float[Tensor, " N"]) -> tuple[Tensor | None, ...]:
        products, inverse, *teacher = ctx.saved_tensors
        totals = [torch.zeros_like(products), torch.zeros_like(inverse)]
        student = [part.detach().requires_grad_() for part in (products, inverse)]
        for vertices in _pieces(len(products)):
            with torch.enable_grad():
                values = _angles_from(vertices, student, teacher)
            for total, found in zip(totals, torch.autograd.grad(values, student, gradient[vertices]), strict=True):
                total += found
        return *totals, None, None


def _pieces(number: int) -> list[slice]:
    step = max(1, _TILE // max(1, number * number))
    return [slice(start, start + step) for start in range(0, number, step)]


def _angles_from(vertices: slice, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Float[Tensor, " n"]:
    """Values of some vertices, from products and inverse distances of both models."""
    cosines = [_cosines(products, inverse, vertices) for products, inverse in (student, teacher)]
    return smooth_l1_loss(cosines[0], cosines[1], reduction="none").mean((1, 2))


def _cosines(products: Tensor, inverse: Tensor, vertices: slice) -> Float[Tensor, "n N N"]:
    """Cosines of the angles at vertices j (axis 0) between the directions to i and k.

    (p_i − p_j)·(p_k − p_j) / (d_ij·d_kj); the inner product is that of i and k, minus those of each with j, plus that
    of j with itself.
    """
    to_vertex, scale, own = products[vertices], inverse[vertices], products.diagonal()[vertices]
    inner = products - to_vertex[:, :, None]
    inner = inner - (to_vertex - own[:, None])[:, None, :]
    return inner * scale[:, :, None] * scale[:, None, :]
