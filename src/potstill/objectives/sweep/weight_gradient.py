"""The gradient of an output weight: Σ over chunks of gradientᵀ @ hidden, as large as the weight itself.

A product of bf16 factors is rounded to bf16, so if products are narrower than their sum, each is rounded once and the
sum is not. The wide sum then costs more than the products: it is read and written for every chunk, and its memory is
allocated at every call. So for a weight of the products' dtype the sum is in fp32 only if there are three products or
more: a single product is rounded already, and a sum of two is rounded once, at its end, anyway.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

FEW_PRODUCTS = 2
"""This many products can be summed in their own dtype, with no more roundings than in a wider one."""

_BLOCK_ROWS = 4096
"""Vocabulary rows per product if it is added to a wider sum. Such a product needs its own buffer, and this size fits
the cache."""

_PIECE_BYTES = 64 * 2**20
"""Minimum size of a block of memory that is returned to the system: glibc keeps smaller ones (its threshold grows to
32 MiB)."""


def bytes_saved_by_few(weight: Tensor, product_dtype: torch.dtype, sum_dtype: torch.dtype) -> int:
    """Memory that a sum of at most `FEW_PRODUCTS` products saves over one of more."""
    narrower = max(0, sum_dtype.itemsize - product_dtype.itemsize)
    return weight.numel() * narrower if weight.dtype == product_dtype else 0


class WeightGradient:
    """The sum of `chunks` products, for a weight [V,H]; products in `product_dtype`, summed in `sum_dtype`."""

    def __init__(self, weight: Tensor, product_dtype: torch.dtype, sum_dtype: torch.dtype, chunks: int) -> None:
        self._weight, self._product_dtype, self._sum_dtype = weight, product_dtype, sum_dtype
        self._chunks, self._added = chunks, 0
        vocab, width = weight.shape
        held_in = product_dtype if weight.dtype == product_dtype and chunks <= FEW_PRODUCTS else sum_dtype
        height = vocab
        if held_in.itemsize > weight.dtype.itemsize:
            # In pieces, which are freed one by one as they are rounded at the end.
            height = _BLOCK_ROWS * math.ceil(_PIECE_BYTES / (_BLOCK_ROWS * width * held_in.itemsize))
        heights = [min(height, vocab - start) for start in range(0, vocab, height)] if chunks else []
        self._pieces = [torch.empty(h, width, dtype=held_in, device=weight.device) for h in heights]
        self._product: Tensor | None = None

    def add(self, gradient_CV: Float[Tensor, "C V"], hidden_CH: Float[Tensor, "C H"]) -> None:
        """Add one chunk's product."""
        self._added += 1
        start = 0
        for piece in self._pieces:
            part = gradient_CV[:, start : start + piece.shape[0]].t()
            if self._product_dtype != self._sum_dtype:
                self._add_rounded(piece, part, hidden_CH)
            elif self._added == 1:
                torch.mm(part, hidden_CH, out=piece)
            else:
                piece.addmm_(part, hidden_CH)
            start += piece.shape[0]

    def take(self) -> Float[Tensor, "V H"]:
        """The sum in the weight's dtype; releases it.

        Raises:
            RuntimeError: chunks are missing.
        """
        if self._added != self._chunks:
            raise RuntimeError(f"{self._added} of {self._chunks} chunks were added to a weight's gradient")
        pieces, self._pieces, self._product = self._pieces, [], None
        if len(pieces) == 1:
            return pieces[0].to(self._weight.dtype)
        whole, stop = torch.empty_like(self._weight, memory_format=torch.contiguous_format), self._weight.shape[0]
        if not pieces:
            whole.zero_()
        while pieces:
            piece = pieces.pop()
            whole[stop - piece.shape[0] : stop] = piece
            stop -= piece.shape[0]
        return whole

    def _add_rounded(self, piece: Tensor, gradient_PC: Tensor, hidden_CH: Tensor) -> None:
        """Compute the product block by block: directly into the result, for the first one, if that is as narrow."""
        first = self._added == 1
        for start in range(0, piece.shape[0], _BLOCK_ROWS):
            part = slice(start, start + _BLOCK_ROWS)
            block = piece[part]
            if first and block.dtype == self._product_dtype:
                torch.mm(gradient_PC[part], hidden_CH, out=block)
                continue
            product = torch.mm(gradient_PC[part], hidden_CH, out=self._room(block.shape[0]))
            if first:
                block.copy_(product)
            else:
                block.add_(product)

    def _room(self, rows: int) -> Tensor:
        if self._product is None:
            shape = (min(_BLOCK_ROWS, self._weight.shape[0]), self._weight.shape[1])
            self._product = torch.empty(shape, dtype=self._product_dtype, device=self._weight.device)
        return self._product[:rows]
