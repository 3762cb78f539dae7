"""The fused sweep: every vocabulary-sized objective in one pass over each head, without ever holding [N,V].

For N rows, V vocabulary, H_s and H_t hidden widths, and chunks of C rows:

    for each chunk of C rows                                   operations (multiply and add)
        student logits  [C,V] = hidden_s @ weight_sᵀ           2·C·V·H_s
        teacher logits  [C,V] = hidden_t @ weight_tᵀ           2·C·V·H_t
        for each tile of R rows, each on one thread       some 15 passes over R·V that stay in the cache
            each rule: values [R], ∂/∂logits into one shared [R,V]
            scale and soft-cap: chain rule in place
            the gradient tile overwrites the tile of student logits
        ∂hidden [C,H_s] = gradients @ weight_s                 2·C·V·H_s
        ∂weight [V,H_s] += gradientsᵀ @ hidden_s               2·C·V·H_s

Operations: 2·N·V·(3·H_s + H_t), the minimum, whatever the number of objectives. A frozen head or a frozen hidden state
saves its product, and a call under `no_grad` saves both. Nothing is recomputed in the backward pass, which only
multiplies the finished gradients by the incoming one.

Memory beyond the gradients: two buffers [C,V] (one without a teacher, or if it is `Dense`), sized by `chunk_rows`, and
a few tiles. For 2,048 rows and V = 49,152 in fp32: C = 342, 128 MiB. Statistics are in fp32 (fp64 for fp64 models)
whatever the dtype of the products, and a weight gradient narrower than fp32 is summed in fp32 if there are three
chunks or more.

Under autocast the products are in autocast's dtype, as in the models; the logits are rounded to it once and everything
after is in fp32.

The gradients are computed in the forward pass, and only if grad mode was on when `fused_sweep` was called. Grad mode
is read outside the autograd function: inside, it is always off and `ctx.needs_input_grad` is true under `no_grad` too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from potstill.objectives.sweep.heads import Cap, Logits, logits_of
from potstill.objectives.sweep.rows import RowRule, Scratch
from potstill.objectives.sweep.sparse import SparseTeacher, check_takes
from potstill.objectives.sweep.tile import TileInputs, TileWork, tile_function
from potstill.objectives.sweep.weight_gradient import FEW_PRODUCTS
from potstill.objectives.sweep.workers import TileWorkers, divide_threads
from potstill.signals import Dense, Head, Sparse

BUFFER_BYTES = 176 * 2**20
"""Bytes of the two chunk buffers together, if they hold `FEW_CHUNK_ROWS`. On two threads, with the tiles of any one
objective, a sweep then uses less than 200 MiB beyond the gradients."""

FEW_CHUNK_ROWS = 112
"""If `BUFFER_BYTES` hold fewer rows, more bytes are used: products of few rows read and write the weight and its
gradient too often (per row, 88 rows took 1.4 times as long as 256, V = 262,144 in fp32)."""

MOST_BUFFER_BYTES = 232 * 2**20
"""The limit of those bytes: with the tiles, below 256 MiB."""

MOST_CHUNK_ROWS = 344
"""Maximum rows of a chunk on a CPU: on two cores, 344 took 2 % less time than 256, and 512 no less. Twice as many for
narrow products, which are faster, so that the overhead of a chunk weighs more: 4,096 rows in bf16, V = 49,152, took 10
% less time."""

MOST_ACCELERATOR_BYTES = 2 * 2**30
"""Bytes of the two chunk buffers together on a GPU. Each chunk reads and writes the whole gradient of the weight,
which pays only for long chunks: for 8,192 rows in bf16 (V = 128,256, H 2,048 and 4,096) the four products alone took
41 ms in chunks of 256 rows, 33.5 of 1,024, 32 of 2,048 and 31.5 of 4,096, which fill this."""

ACCELERATOR_SHARE = 40
"""The buffers use at most this fraction (1/n) of a GPU's memory."""

TILE_BYTES = 1536 * 2**10
"""Bytes of one tile buffer per CPU thread. Smaller tiles fit the second-level cache better and need more calls: at 200
KiB the tiles took 0.72 s of a sweep of 2,048 rows over 49,152 tokens, at 400 KiB 0.53, at 800 KiB 0.40, at 1,600 KiB
0.37, and at 3 MiB 20 % more than that."""

ACCELERATOR_TILE_BYTES = 256 * 2**20
"""Bytes of one tile buffer on a GPU: enough rows to fill it. Larger ones are no faster, and a rule holds several."""


@dataclass(frozen=True)
class Swept:
    """The result of a sweep.

    Attributes:
        loss: Σ over rules and rows of coefficient × value; differentiable.
        values: per rule and row, without coefficients; detached.
        student_cut_mass, teacher_cut_mass: if the heads have different numbers of rows, the probability (T = 1) in
            each row of the tokens that only one head has; else None.
    """

    loss: Float[Tensor, ""]
    values: Float[Tensor, "rules N"]
    student_cut_mass: Float[Tensor, " N"] | None = None
    teacher_cut_mass: Float[Tensor, " N"] | None = None


def fused_sweep(
    student: Head | Dense,
    teacher: Head | Dense | Sparse | None,
    target_ids: Int[Tensor, " N"],
    rules: Sequence[tuple[RowRule, Tensor | float]],
    *,
    product_dtype: torch.dtype | None = None,
) -> Swept:
    """Run rules over all rows, each with its coefficient: weight ÷ count as a scalar, or [N] with a weight per row.

    The loss is differentiable in the student's hidden states, weight and bias (or its dense logits); the teacher gets
    no gradient. `product_dtype` overrides the dtype in which heads are projected. Logits must be finite: tokens that a
    model lacks are cut (rule 5), not given −∞, whose 0 · ∞ would be NaN.

    A `Sparse` teacher works with rules that are linear in its probabilities, at its own temperature.

    Raises:
        ValueError: student, teacher and targets have different numbers of rows; a rule needs a teacher and there is
            none, or does not accept a sparse one; a stored token is not in the student's vocabulary.
    """
    taught = any(rule.needs_teacher for rule, _ in rules)
    if taught and teacher is None:
        raise ValueError("a rule needs the teacher's distribution, and there is no teacher")
    source = logits_of(student, product_dtype)
    # A teacher that no rule reads is not projected.
    rows, statistics = source.rows, torch.float64 if source.dtype == torch.float64 else torch.float32
    reference: Logits | SparseTeacher | None = None
    if taught and teacher is not None:
        if isinstance(teacher, Sparse):
            check_takes([rule for rule, _ in rules if rule.needs_teacher], teacher)
            reference = SparseTeacher(teacher, source.vocab, statistics)
        else:
            reference = logits_of(teacher, product_dtype)
    if target_ids.shape[0] != rows or (reference is not None and reference.rows != rows):
        there = "none" if reference is None else reference.rows
        raise ValueError(f"rows differ: student {rows}, teacher {there}, targets {target_ids.shape[0]}")
    coefficients = [_per_row(coefficient, rows, statistics, source.device) for _, coefficient in rules]
    leaves = source.leaves
    wanted = tuple(torch.is_grad_enabled() and leaf is not None and leaf.requires_grad for leaf in leaves)
    engine = _Engine(source, reference, target_ids, [rule for rule, _ in rules], coefficients, statistics, wanted)
    apply: Any = _Sweep.apply
    return Swept(*apply(engine, *leaves))


def _per_row(coefficient: Tensor | float, rows: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.as_tensor(coefficient, dtype=dtype, device=device).detach().expand(rows)


@dataclass(frozen=True)
class _Chunk:
    """Some rows: projected logits of student and teacher, and the buffer for the gradient of the student's."""

    rows: slice
    raw: Tensor
    taught: Tensor | None
    room: Tensor | None


class _Engine:
    """One sweep: its sources, buffers and results."""

    def __init__(
        self,
        student: Logits,
        teacher: Logits | SparseTeacher | None,
        target_ids: Tensor,
        rules: Sequence[RowRule],
        coefficients: Sequence[Tensor],
        statistics: torch.dtype,
        wanted: tuple[bool, ...],
    ) -> None:
        self.student, self.target_ids = student, target_ids
        self.teacher: Logits | None = None
        self.sparse: SparseTeacher | None = None
        if isinstance(teacher, SparseTeacher):
            self.sparse = teacher
        else:
            self.teacher = teacher
        self.rules, self.coefficients = rules, torch.stack(list(coefficients), dim=1)
        self.statistics, self.wanted = statistics, wanted
        self.wants_gradient = any(wanted)
        self.values = torch.zeros(len(rules), student.rows, dtype=statistics, device=student.device)
        cut = self.teacher is not None and self.teacher.vocab != student.vocab
        self.masses = [torch.zeros_like(self.values[0]) for _ in range(2)] if cut else [None, None]
        caps = student.cap, Cap() if self.teacher is None else self.teacher.cap
        self.tile_of = tile_function(TileWork(tuple(rules), *caps, self.wants_gradient), student.device, student.vocab)

    def run(self) -> tuple[Tensor | None, ...]:
        """(loss, values, cut mass of student and of teacher, and the gradients of the leaves)."""
        # Free the buffers before the gradients are cast to their leaves' dtype, which needs memory too.
        self._sweep_chunks()
        loss = sum((self.values[i] @ c for i, c in enumerate(self.coefficients.unbind(1))), self.values.new_zeros(()))
        return loss, self.values, *self.masses, *self.student.gradients()

    def _sweep_chunks(self) -> None:
        student, teacher = self.student, self.teacher
        chunk = rows_of_chunk(student, teacher, self.wanted, self.statistics)
        if self.wants_gradient:
            student.want_gradients(self.wanted, self.statistics, math.ceil(student.rows / chunk))
        buffers = {
            id(side): torch.empty(chunk, side.vocab, dtype=side.dtype, device=side.device)
            for side in _buffered(student, teacher)
        }

        tile, workers, threads_each = _tiling(chunk, student.vocab * self.statistics.itemsize, student.device)
        scratches = [Scratch(self.statistics, student.device) for _ in range(workers)]
        with TileWorkers(workers, threads_each) as pool:
            for start in range(0, student.rows, chunk):
                rows = slice(start, min(start + chunk, student.rows))
                raw = student.project(rows, buffers.get(id(student)))
                taught = None if teacher is None else teacher.project(rows, buffers.get(id(teacher)))
                room = student.gradient_room(rows, raw) if self.wants_gradient else None
                pool.run(partial(self._sweep_tiles, _Chunk(rows, raw, taught, room), tile, scratches))
                if room is not None:
                    student.take_gradient(rows, room)

    def _sweep_tiles(self, chunk: _Chunk, tile: int, scratches: Sequence[Scratch], worker: int) -> None:
        """One worker's tiles of a chunk: every n-th tile, all rules on each."""
        count = chunk.rows.stop - chunk.rows.start
        for at in range(worker * tile, count, tile * len(scratches)):
            part = slice(at, min(at + tile, count))
            rows = slice(chunk.rows.start + part.start, chunk.rows.start + part.stop)
            inputs = TileInputs(
                chunk.raw[part],
                None if chunk.taught is None else chunk.taught[part],
                self.target_ids[rows],
                self.coefficients[rows],
                None if self.sparse is None else self.sparse.tile(rows),
            )
            outputs = self.tile_of(inputs, scratches[worker])
            self.values[:, rows] = outputs.values
            for mass, found in zip(self.masses, outputs.cut_masses, strict=True):
                if mass is not None and found is not None:
                    mass[rows] = found
            if chunk.room is not None and outputs.gradient is not None:
                chunk.room[part] = outputs.gradient


def rows_of_chunk(student: Logits, teacher: Logits | None, wanted: tuple[bool, ...], statistics: torch.dtype) -> int:
    """The number of rows that a sweep projects at once, if gradients of the `wanted` leaves are summed in the dtype of
    the statistics."""
    return chunk_rows(
        student.rows,
        sum(side.vocab * side.dtype.itemsize for side in _buffered(student, teacher)),
        accelerator_bytes=_accelerator_bytes(student.device),
        narrow_products=student.dtype.itemsize < statistics.itemsize,
        saved_bytes=student.bytes_saved_by_few_chunks(wanted, statistics),
    )


def _accelerator_bytes(device: torch.device) -> int | None:
    """The memory of a GPU, an estimate for other accelerators, None for a CPU."""
    if device.type == "cpu":
        return None
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else 8 * 2**30


def _buffered(student: Logits, teacher: Logits | None) -> list[Logits]:
    return [side for side in (student, teacher) if side is not None and side.buffered]


def _tiling(chunk: int, bytes_per_row: int, device: torch.device) -> tuple[int, int, int]:
    """(rows of a tile, workers, threads of each). Off the CPU a single worker processes all tiles."""
    if device.type != "cpu":
        return min(chunk, max(1, ACCELERATOR_TILE_BYTES // bytes_per_row)), 1, 1
    fit = max(1, TILE_BYTES // bytes_per_row)
    workers, threads_each = divide_threads(torch.get_num_threads(), math.ceil(chunk / fit))
    return min(chunk, fit * threads_each), workers, threads_each


class _Sweep(torch.autograd.Function):
    """Carries the finished gradients from the forward to the backward pass."""

    @staticmethod
    def forward(ctx: Any, engine: _Engine, *leaves: Tensor | None) -> tuple[Tensor | None, ...]:
        with torch.autocast(engine.student.device.type, enabled=False):
            loss, values, student_mass, teacher_mass, *gradients = engine.run()
        # Saved tensors are freed after use in the backward pass, so the parameter takes over the buffer itself; if
        # the graph is retained, autograd sees that they are still held and copies.
        ctx.save_for_backward(*gradients)
        ctx.mark_non_differentiable(*(t for t in (values, student_mass, teacher_mass) if t is not None))
        return loss, values, student_mass, teacher_mass

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        gradients = ctx.saved_tensors
        if not bool(grad_loss == 1):
            gradients = tuple(None if g is None else g * grad_loss for g in gradients)
        return (None, *gradients)


# ---- the size of a chunk ---------------------------------------------------------------------------------------------


def chunk_rows(
    rows: int,
    bytes_per_row: int,
    *,
    accelerator_bytes: int | None = None,
    narrow_products: bool = False,
    saved_bytes: int = 0,
) -> int:
    """Rows of a chunk, if a row needs `bytes_per_row` in all buffers together.

    Args:
        accelerator_bytes: the memory of the GPU; None on a CPU.
        narrow_products: products are in a narrower dtype than the statistics.
        saved_bytes: memory saved in summing the weight's gradient if there are at most `FEW_PRODUCTS` chunks. On a CPU
            the buffers may use it beyond their budget, if there are then no more chunks.
    """
    if accelerator_bytes is not None:
        budget = min(MOST_ACCELERATOR_BYTES, accelerator_bytes // ACCELERATOR_SHARE)
        return rows_per_chunk(rows, bytes_per_row, budget, rows)
    most, budget = MOST_CHUNK_ROWS, buffer_budget(bytes_per_row)
    if narrow_products:
        most *= 2
    rows_of_few = math.ceil(rows / FEW_PRODUCTS)
    if rows_of_few <= most and rows_of_few * bytes_per_row <= budget + saved_bytes:
        budget = max(budget, rows_of_few * bytes_per_row)
    return rows_per_chunk(rows, bytes_per_row, budget, most)


def buffer_budget(bytes_per_row: int) -> int:
    """The memory budget of the buffers, if a row needs `bytes_per_row` in all of them."""
    return min(MOST_BUFFER_BYTES, max(BUFFER_BYTES, FEW_CHUNK_ROWS * bytes_per_row))


def rows_per_chunk(rows: int, bytes_per_row: int, budget_bytes: int, most: int) -> int:
    """As many rows as the budget holds, at most `most`, balanced so that no chunk is short."""
    fit = max(1, min(most, budget_bytes // max(1, bytes_per_row)))
    return math.ceil(rows / math.ceil(rows / fit)) if rows else 1
