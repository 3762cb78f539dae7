"""Sources of a sweep's logits and destinations of their gradients: a head that is projected chunk by chunk, or
existing logits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from potstill.objectives.sweep.rows import Scratch
from potstill.objectives.sweep.weight_gradient import WeightGradient, bytes_saved_by_few
from potstill.signals import Dense, Head


def product_dtype(hidden: Tensor, weight: Tensor) -> torch.dtype:
    """The dtype in which a head is projected: autocast's if it is on, as in `F.linear`; else the wider of both.

    fp64 is exempt from autocast, and so here.
    """
    dtype = torch.promote_types(hidden.dtype, weight.dtype)
    kind = hidden.device.type
    if torch.is_autocast_enabled(kind) and dtype != torch.float64:
        return torch.get_autocast_dtype(kind)
    return dtype


@dataclass(frozen=True)
class Cap:
    """What a model applies to its projected logits: times `scale`, then softcap · tanh(logits / softcap)."""

    scale: float = 1.0
    softcap: float | None = None

    def apply(self, raw: Float[Tensor, "R V"], scratch: Scratch, name: str) -> Float[Tensor, "R V"]:
        """A tile's logits in the dtype of the statistics; `raw` itself if nothing has to be done."""
        if self.scale == 1.0 and self.softcap is None and raw.dtype == scratch.dtype:
            return raw
        logits = scratch.take((name, "logits"), *raw.shape).copy_(raw)
        if self.scale != 1.0:
            logits.mul_(self.scale)
        if self.softcap is not None:
            logits.div_(self.softcap).tanh_().mul_(self.softcap)
        return logits

    def chain(self, gradient: Float[Tensor, "R V"], logits: Float[Tensor, "R V"], scratch: Scratch) -> None:
        """Turn ∂/∂logits, in place, into ∂/∂(hidden @ weightᵀ + bias): times scale · (1 − (logits/softcap)²)."""
        if self.softcap is not None:
            slope = scratch.take("softcap slope", *logits.shape)
            torch.mul(logits, logits, out=slope)
            slope.mul_(-1.0 / self.softcap**2).add_(1.0)
            gradient.mul_(slope)
        if self.scale != 1.0:
            gradient.mul_(self.scale)


class HeadLogits:
    """Logits of a `Head`, projected in chunks.

    Products are in `dtype`; the weight is cast to it once per sweep. Only the `wanted` gradients are kept.
    """

    buffered = True

    def __init__(self, head: Head, dtype: torch.dtype | None = None) -> None:
        self.head = head
        self.dtype = dtype or product_dtype(head.hidden, head.weight)
        self.device = head.hidden.device
        self.cap = Cap(head.scale, head.softcap)
        self.rows, self.vocab = head.hidden.shape[0], head.weight.shape[0]
        self._hidden = head.hidden.detach().to(self.dtype)
        self._weight = head.weight.detach().to(self.dtype)
        self._bias = None if head.bias is None else head.bias.detach().to(self.dtype)
        self._hidden_gradient: Tensor | None = None
        self._weight_gradient: WeightGradient | None = None
        self._bias_gradient: Tensor | None = None

    @property
    def leaves(self) -> tuple[Tensor | None, ...]:
        """The tensors that gradients flow to."""
        return (self.head.hidden, self.head.weight, self.head.bias)

    def project(self, rows: slice, buffer: Tensor | None) -> Float[Tensor, "C V"]:
        """hidden @ weightᵀ + bias of some rows, into the buffer."""
        hidden, out = self._hidden[rows], None if buffer is None else buffer[: rows.stop - rows.start]
        if self._bias is None:
            return torch.mm(hidden, self._weight.t(), out=out)
        return torch.addmm(self._bias, hidden, self._weight.t(), out=out)

    def bytes_saved_by_few_chunks(self, wanted: tuple[bool, ...], accumulate_in: torch.dtype) -> int:
        """Memory saved in summing the weight's gradient if there are few chunks."""
        return bytes_saved_by_few(self.head.weight, self.dtype, accumulate_in) if wanted[1] else 0

    def want_gradients(self, wanted: tuple[bool, ...], accumulate_in: torch.dtype, chunks: int) -> None:
        """Allocate the gradients of (hidden, weight, bias); those of weight and bias are summed over `chunks` chunks,
        in `accumulate_in`."""
        if wanted[0]:
            self._hidden_gradient = torch.empty_like(self.head.hidden, memory_format=torch.contiguous_format)
        if wanted[1]:
            self._weight_gradient = WeightGradient(self.head.weight.detach(), self.dtype, accumulate_in, chunks)
        if wanted[2] and self.head.bias is not None:
            self._bias_gradient = torch.zeros(self.head.bias.shape, dtype=accumulate_in, device=self.device)

    def gradient_room(self, rows: slice, raw: Float[Tensor, "C V"]) -> Float[Tensor, "C V"]:
        """The buffer for the gradient of a chunk: its logits, which are not read again."""
        return raw

    def take_gradient(self, rows: slice, gradient_CV: Float[Tensor, "C V"]) -> None:
        """Compute the two products of a chunk, each only if wanted."""
        if self._hidden_gradient is not None:
            target = self._hidden_gradient[rows]
            if target.dtype == self.dtype:
                torch.mm(gradient_CV, self._weight, out=target)
            else:
                target.copy_(torch.mm(gradient_CV, self._weight))
        if self._weight_gradient is not None:
            self._weight_gradient.add(gradient_CV, self._hidden[rows])
        if self._bias_gradient is not None:
            self._bias_gradient.add_(gradient_CV.sum(0, dtype=self._bias_gradient.dtype))

    def gradients(self) -> tuple[Tensor | None, ...]:
        """Gradients of the leaves, each in its leaf's dtype, None where not wanted."""
        weight = None if self._weight_gradient is None else self._weight_gradient.take()
        held = (self._hidden_gradient, weight, self._bias_gradient)
        self._hidden_gradient = self._weight_gradient = self._bias_gradient = None
        return tuple(
            None if gradient is None or leaf is None else gradient.to(leaf.dtype)
            for gradient, leaf in zip(held, self.leaves, strict=True)
        )


class DenseLogits:
    """Existing logits, read in chunks. Their gradient is as large as they are."""

    buffered = False

    def __init__(self, dense: Dense) -> None:
        self.logits = dense.logits
        self.dtype, self.device = dense.logits.dtype, dense.logits.device
        self.rows, self.vocab = dense.logits.shape
        self.cap = Cap()
        self._values = dense.logits.detach()
        self._gradient: Tensor | None = None

    @property
    def leaves(self) -> tuple[Tensor | None, ...]:
        """The tensors that gradients flow to."""
        return (self.logits,)

    def project(self, rows: slice, buffer: Tensor | None) -> Float[Tensor, "C V"]:
        """Some rows, unchanged."""
        return self._values[rows]

    def bytes_saved_by_few_chunks(self, wanted: tuple[bool, ...], accumulate_in: torch.dtype) -> int:
        """0: there is no weight."""
        return 0

    def want_gradients(self, wanted: tuple[bool, ...], accumulate_in: torch.dtype, chunks: int) -> None:
        """Allocate the gradient of the logits."""
        if wanted[0]:
            self._gradient = torch.empty_like(self._values, memory_format=torch.contiguous_format)

    def gradient_room(self, rows: slice, raw: Float[Tensor, "C V"]) -> Float[Tensor, "C V"]:
        """The buffer for the gradient of a chunk."""
        if self._gradient is None:
            raise RuntimeError("want_gradients comes before gradient_room")
        return self._gradient[rows]

    def take_gradient(self, rows: slice, gradient_CV: Float[Tensor, "C V"]) -> None:
        """Nothing to do: the gradient is already in its place."""

    def gradients(self) -> tuple[Tensor | None, ...]:
        """The gradient of the logits."""
        held, self._gradient = self._gradient, None
        return (held,)


Logits = HeadLogits | DenseLogits


def logits_of(signal: Head | Dense, dtype: torch.dtype | None = None) -> Logits:
    """The source of a signal's logits; `dtype` overrides that of a head's products."""
    return HeadLogits(signal, dtype) if isinstance(signal, Head) else DenseLogits(signal)
