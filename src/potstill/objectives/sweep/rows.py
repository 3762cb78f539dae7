"""A tile of rows, and the protocol of a row rule.

The sweep (`engine.py`) gives every rule the same tile: some rows of the student's logits, of the teacher's, and the
targets. Results that several rules need, such as the student's softmax at T = 1, are computed once per tile.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from potstill.objectives.divergences import shared_tokens


class Scratch:
    """Named tile-sized buffers for the duration of a sweep, allocated on first use and reused."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self.dtype, self.device = dtype, device
        self._flat: dict[object, Tensor] = {}

    def take(self, name: object, rows: int, width: int) -> Float[Tensor, "R V"]:
        """The buffer of that name as [rows, width]; its content is whatever was last written."""
        flat = self._flat.get(name)
        if flat is None or flat.numel() < rows * width:
            flat = self._flat[name] = torch.empty(rows * width, dtype=self.dtype, device=self.device)
        return flat[: rows * width].view(rows, width)

    @property
    def largest(self) -> int:
        """Elements of the largest buffer."""
        return max((flat.numel() for flat in self._flat.values()), default=0)


class Exponentials(NamedTuple):
    """An unnormalised softmax: `values` are exp((z − the row's maximum) / T), `total` their sum, so that `values` ÷
    `total` is softmax(z / T); `log_partition` is log Σ exp(z / T). A rule that divides only its sums, or its
    coefficient, saves a pass."""

    values: Float[Tensor, "R width"]
    total: Float[Tensor, "R 1"]
    log_partition: Float[Tensor, "R 1"]


@dataclass(frozen=True)
class SparseRows:
    """The stored entries of one tile, E in all.

    Attributes:
        row_of, ids, weights: each entry's row in the tile, its token and its weight.
        entropy: of the full distribution of each row, in nats.
        kept: number of entries of each row.
        cut: whether the entries are the most probable ones (`top_k`), so that mass is missing.
        vocab: the number of tokens that student and store share.
        left: the mass that is not stored of each row, where the store keeps it.
    """

    row_of: Int[Tensor, " E"]
    ids: Int[Tensor, " E"]
    weights: Float[Tensor, " E"]
    entropy: Float[Tensor, " R"]
    kept: Int[Tensor, " R"]
    cut: bool
    vocab: int
    left: Float[Tensor, " R"] | None = None

    @property
    def mass(self) -> Float[Tensor, " R"]:
        """Σ w of each row."""
        return torch.zeros_like(self.entropy).index_add_(0, self.row_of, self.weights)

    def summed(self, values: Float[Tensor, " E"]) -> Float[Tensor, " R"]:
        """Σ of each row's entries."""
        return torch.zeros_like(self.entropy).index_add_(0, self.row_of, values)


class Rows:
    """One tile: `student` logits [R,V], `teacher` logits [R,W] or None, `target_ids` [R], in fp32 (fp64 for fp64
    models), after scale and soft-cap. Results of its methods are shared between rules: read them, never write to them.
    If the teacher's distribution is a stored one, `sparse` holds its entries and there are no teacher logits; only
    rules that accept it (their attribute `sparse`) are then called.
    """

    def __init__(
        self,
        student: Float[Tensor, "R V"],
        teacher: Float[Tensor, "R W"] | None,
        target_ids: Int[Tensor, " R"],
        scratch: Scratch,
        wants_gradient: bool,
        sparse: SparseRows | None = None,
    ) -> None:
        self.student, self.teacher, self.target_ids = student, teacher, target_ids
        self.sparse = sparse
        self.wants_gradient = wants_gradient
        self.scratch = scratch
        self._known: dict[tuple[str, float, int], Exponentials] = {}
        self._softmaxes: dict[tuple[str, float, int], Tensor] = {}
        self._gradient: Tensor | None = None

    @property
    def vocab(self) -> int:
        """V, the rows of the student's head."""
        return self.student.shape[1]

    @property
    def shared(self) -> int:
        """The number of tokens that both heads have."""
        if self.sparse is not None:
            return self.sparse.vocab
        return self.vocab if self.teacher is None else shared_tokens(self.vocab, self.teacher.shape[1])

    def student_softmax(self, temperature: float = 1.0, width: int | None = None) -> Float[Tensor, "R width"]:
        """q at a temperature, over the first `width` tokens (default: all of the student's)."""
        return self._softmax("student", self.student, temperature, width or self.vocab)

    def student_exponentials(self, temperature: float = 1.0, width: int | None = None) -> Exponentials:
        """q unnormalised, and log Σ exp(z / T), so that log q = z / T − this."""
        return self._exponentials("student", self.student, temperature, width or self.vocab)

    def teacher_softmax(self, temperature: float = 1.0, width: int | None = None) -> Float[Tensor, "R width"]:
        """p at a temperature, over the first `width` tokens (default: all of the teacher's)."""
        teacher = self.teacher_logits
        return self._softmax("teacher", teacher, temperature, width or teacher.shape[1])

    def teacher_exponentials(self, temperature: float = 1.0, width: int | None = None) -> Exponentials:
        """p unnormalised, and the teacher's log Σ exp(z / T)."""
        teacher = self.teacher_logits
        return self._exponentials("teacher", teacher, temperature, width or teacher.shape[1])

    def add_gradient(self, coefficient: Float[Tensor, "R 1"], derivative: Float[Tensor, "R width"]) -> None:
        """Add coefficient × ∂value/∂logits to the gradient buffer that all rules share.

        A derivative narrower than the vocabulary is zero on the cut rows.
        """
        if self._gradient is None:
            self._gradient = self.scratch.take("gradient", *self.student.shape)
            width = derivative.shape[1]
            if width == self.vocab:
                torch.mul(derivative, coefficient, out=self._gradient)
            else:  # in two passes: the compiler does not accept a strided `out`
                self._gradient[:, :width].copy_(derivative).mul_(coefficient)
                self._gradient[:, width:] = 0
        else:
            self._gradient[:, : derivative.shape[1]].addcmul_(derivative, coefficient)

    def add_gradient_at(self, ids: Int[Tensor, " R"], values: Float[Tensor, "R 1"]) -> None:
        """Add one value per row at one token per row."""
        self.gradient.scatter_add_(1, ids[:, None], values)

    def add_gradient_entries(
        self, row_of: Int[Tensor, " E"], ids: Int[Tensor, " E"], values: Float[Tensor, " E"]
    ) -> None:
        """Add values at any entries, each given by its row in the tile and its token; an entry may occur twice."""
        self.gradient.index_put_((row_of, ids), values, accumulate=True)

    @property
    def gradient(self) -> Float[Tensor, "R V"]:
        """Σ coefficient × ∂value/∂logits of the rules so far."""
        if self._gradient is None:
            self._gradient = self.scratch.take("gradient", *self.student.shape).zero_()
        return self._gradient

    @property
    def teacher_logits(self) -> Float[Tensor, "R W"]:
        """The teacher's logits.

        Raises:
            ValueError: this sweep has no teacher.
        """
        if self.teacher is None:
            raise ValueError("a rule asks for the teacher's distribution, and this sweep has no teacher")
        return self.teacher

    def _exponentials(self, side: str, logits: Tensor, temperature: float, width: int) -> Exponentials:
        name = (side, temperature, width)
        if name not in self._known:
            out = self.scratch.take(name, logits.shape[0], width)
            self._known[name] = exponentials_into(out, logits[:, :width], temperature)
        return self._known[name]

    def _softmax(self, side: str, logits: Tensor, temperature: float, width: int) -> Tensor:
        name = (side, temperature, width)
        if name not in self._softmaxes:
            known = self._exponentials(side, logits, temperature, width)
            # Not in place: another rule may hold them.
            out = self.scratch.take(("softmax", *name), logits.shape[0], width)
            self._softmaxes[name] = torch.div(known.values, known.total, out=out)
        return self._softmaxes[name]


def exponentials_into(
    out: Float[Tensor, "R V"], logits: Float[Tensor, "R V"], temperature: float = 1.0
) -> Exponentials:
    """The exponentials of logits / T, written to `out`, which may be `logits` itself. A logit may be −∞.

    `exp2` takes a quarter of the time of `exp` on some processors, and gradients are equally close to fp64; the faster
    exponential of `torch.softmax` on CPUs leaves those of KL up to four times as far from fp64.
    """
    greatest = logits.amax(-1, keepdim=True)
    torch.sub(logits, greatest, out=out)
    # exp(x / T) as 2^(x · log2 e / T).
    total = out.mul_(math.log2(math.e) / temperature).exp2_().sum(-1, keepdim=True)
    return Exponentials(out, total, total.log().add_(greatest, alpha=1 / temperature))


@runtime_checkable
class RowRule(Protocol):
    """What a vocabulary-sized objective computes on a tile.

    It returns its value per row [R], and if `rows.wants_gradient` calls `rows.add_gradient(coefficient, ∂value/∂z)`, z
    the student's logits. `coefficient` [R,1] is weight ÷ count (times a token weight, if there are any); values are
    returned without it. It is called for several tiles concurrently, on several threads, and keeps no state.

    A rule that accepts a stored distribution declares it by an attribute `sparse` (`soft.TakesSparse`), and reads
    `rows.sparse`; a rule without the attribute is never called with one.
    """

    needs_teacher: bool

    def __call__(self, rows: Rows, coefficient: Float[Tensor, "R 1"]) -> Float[Tensor, " R"]: ...
