"""The work on one tile: all rules, run operation by operation or compiled into a few kernels.

Run operation by operation, a rule reads and writes its tile about fifteen times. On a CPU the cache absorbs that. On a
GPU it is half of a sweep's time, so there the same function goes through `torch.compile`: 8,192 rows in bf16 (V =
128,256, H 2,048 and 4,096, H200) took 73 ms operation by operation and 37 ms compiled; the four products alone take
31.5.
On CPUs compiling gained nothing: its kernels recompute each exponential wherever it is needed.

The first sweep with a set of rules waits for the compiler, for a few seconds up to half a minute.
`TORCH_COMPILE_DISABLE=1`, a variable of torch, turns it off.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from potstill.objectives.sweep.heads import Cap
from potstill.objectives.sweep.rows import RowRule, Rows, Scratch, SparseRows

COMPILED_DEVICES = ("cuda",)

LEAST_COMPILED_VOCAB = 4096
"""With fewer tokens or classes a sweep is too short for compiling to pay."""

MOST_VARIANTS = 6
"""Maximum number of sets of rules, with their settings, that are compiled in one process; torch allows eight graphs of
a function. Rules whose temperature changes at each step soon run operation by operation."""


@dataclass(frozen=True)
class TileWork:
    """The inputs that all tiles of a sweep share."""

    rules: tuple[RowRule, ...]
    student_cap: Cap
    teacher_cap: Cap
    wants_gradient: bool


@dataclass(frozen=True)
class TileInputs:
    """Some rows: projected logits of both models, targets, and a coefficient per rule and row."""

    student: Float[Tensor, "R V"]
    teacher: Float[Tensor, "R W"] | None
    target_ids: Int[Tensor, " R"]
    coefficients: Float[Tensor, "R rules"]
    sparse: SparseRows | None = None


@dataclass(frozen=True)
class TileOutputs:
    """The results of one tile.

    Attributes:
        values: per rule and row, without coefficients.
        gradient: Σ coefficient × ∂value/∂(student as projected), in the dtype of the statistics or narrower; None if
            not wanted.
        cut_masses: of student and teacher, the probability of the tokens that only that head has; None if it has none.
    """

    values: Float[Tensor, "rules R"]
    gradient: Float[Tensor, "R V"] | None
    cut_masses: tuple[Tensor | None, Tensor | None]


def run_tile(work: TileWork, inputs: TileInputs, scratch: Scratch) -> TileOutputs:
    """All rules on one tile."""
    student = work.student_cap.apply(inputs.student, scratch, "student")
    teacher = None if inputs.teacher is None else work.teacher_cap.apply(inputs.teacher, scratch, "teacher")
    rows = Rows(student, teacher, inputs.target_ids, scratch, work.wants_gradient, inputs.sparse)
    values = torch.stack([rule(rows, inputs.coefficients[:, i, None]) for i, rule in enumerate(work.rules)])
    masses = (_cut_mass(student, rows.shared), None if teacher is None else _cut_mass(teacher, rows.shared))
    if not work.wants_gradient:
        return TileOutputs(values, None, masses)
    gradient = rows.gradient
    work.student_cap.chain(gradient, student, scratch)
    return TileOutputs(values, gradient, masses)


def tile_function(work: TileWork, device: torch.device, vocab: int) -> Callable[[TileInputs, Scratch], TileOutputs]:
    """The function that a sweep calls on each tile."""

    def as_written(inputs: TileInputs, scratch: Scratch) -> TileOutputs:
        return run_tile(work, inputs, scratch)

    def compiled(inputs: TileInputs, scratch: Scratch) -> TileOutputs:
        # The number of stored entries differs between tiles, and a single row would be a graph of its own.
        if inputs.sparse is not None or inputs.student.shape[0] < 2 or not _Compiler.admits(work):
            return as_written(inputs, scratch)
        return _Compiler.run(work, inputs, scratch)

    return compiled if device.type in COMPILED_DEVICES and vocab >= LEAST_COMPILED_VOCAB else as_written


class _Fresh(Scratch):
    """Buffers that are never reused: the compiler decides which of them to allocate."""

    def take(self, name: object, rows: int, width: int) -> Float[Tensor, "R V"]:
        return torch.empty(rows, width, dtype=self.dtype, device=self.device)


def run_fresh(
    work: TileWork,
    student: Tensor,
    teacher: Tensor | None,
    target_ids: Tensor,
    coefficients: Tensor,
    statistics: torch.dtype,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """`run_tile` as a function of tensors, for the compiler: values, gradient, and the cut masses of both."""
    inputs = TileInputs(student, teacher, target_ids, coefficients)
    done = run_tile(work, inputs, _Fresh(statistics, student.device))
    # Rounded here, so that the kernel that computes a gradient writes it in its final dtype.
    return done.values, None if done.gradient is None else done.gradient.to(student.dtype), *done.cut_masses


class _Compiler:
    """The compiled function of this process, the rules it has been compiled for, and whether compiling has failed."""

    broken = False
    _variants: ClassVar[set[str]] = set()
    _function: Callable[..., tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]] | None = None

    @classmethod
    def admits(cls, work: TileWork) -> bool:
        """Whether these rules are compiled, or may still be."""
        rules = "; ".join(f"{type(rule).__qualname__} {sorted(vars(rule).items())}" for rule in work.rules)
        variant = f"{rules}; {work.student_cap} {work.teacher_cap} {work.wants_gradient}"
        if variant not in cls._variants and len(cls._variants) < MOST_VARIANTS:
            cls._variants.add(variant)
        return not cls.broken and variant in cls._variants

    @classmethod
    def run(cls, work: TileWork, inputs: TileInputs, scratch: Scratch) -> TileOutputs:
        """Run one tile. Kernels are compiled for any number of rows, since it differs between batches."""
        import torch._dynamo  # takes seconds, and only GPUs need it

        if cls._function is None:
            cls._function = torch.compile(run_fresh)
        for tensor in (inputs.student, inputs.teacher, inputs.target_ids, inputs.coefficients):
            if tensor is not None:
                torch._dynamo.maybe_mark_dynamic(tensor, 0)
        try:
            values, gradient, *masses = cls._function(
                work, inputs.student, inputs.teacher, inputs.target_ids, inputs.coefficients, scratch.dtype
            )
        except torch._dynamo.exc.TorchDynamoException as error:
            cls.broken = True
            reason = str(error).strip().splitlines()[0]
            warnings.warn(
                f"the loss cannot be compiled here, and takes about twice as long uncompiled: {reason}", stacklevel=2
            )
            return run_tile(work, inputs, scratch)
        return TileOutputs(values, gradient, (masses[0], masses[1]))


def _cut_mass(logits: Float[Tensor, "R V"], shared: int) -> Float[Tensor, " R"] | None:
    if logits.shape[1] == shared:
        return None
    return torch.sigmoid(logits[:, shared:].logsumexp(-1) - logits[:, :shared].logsumexp(-1))
